//! The reference of the contract, `proto/reference.md`: made of the protos with their comments, and of requests that the
//! access matrix asks, each as its JSON reads there.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::LazyLock;

use prost_reflect::prost_types::SourceCodeInfo;
use prost_reflect::{
    DescriptorPool, DynamicMessage, EnumDescriptor, EnumValueDescriptor, FieldDescriptor,
    FileDescriptor, Kind, MessageDescriptor, MethodDescriptor, SerializeOptions, ServiceDescriptor,
};
use serde_json::Value;

use crate::golden;

static CONTRACT: LazyLock<DescriptorPool> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).expect("descriptors"));

/// What the answer tells, and a request need not.
const OUTPUT_ONLY: [&str; 4] = ["trn", "path", "create_time", "update_time"];

fn input(path: &str) -> MessageDescriptor {
    let (service, method) = path
        .trim_start_matches('/')
        .split_once('/')
        .expect("a path");
    let service = CONTRACT.get_service_by_name(service).expect("a service");
    let method = service.methods().find(|known| known.name() == method);
    method.expect("a method").input()
}

/// A request as JSON, with the names that the protos have.
pub(crate) fn json(path: &str, request: &impl prost::Message) -> Value {
    let mut message = DynamicMessage::new(input(path));
    message.transcode_from(request).expect("it is of this type");
    let options = SerializeOptions::new().use_proto_field_name(true);
    let mut json = message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .expect("it is JSON");
    forget_output(&mut json);
    json
}

fn forget_output(json: &mut Value) {
    if let Value::Object(fields) = json {
        fields.retain(|name, _| !OUTPUT_ONLY.contains(&name.as_str()));
        fields.values_mut().for_each(forget_output);
    }
}

/// The request that the JSON is.
pub(crate) fn request<R: prost::Message + Default>(path: &str, json: &Value) -> R {
    let message = DynamicMessage::deserialize(input(path), json.clone());
    message
        .expect("it reads")
        .transcode_to()
        .expect("it is of this type")
}

/// The comments of a file, by the path of what they are of.
type Comments = BTreeMap<Vec<i32>, String>;

fn comments(file: &FileDescriptor) -> Comments {
    let info: Option<&SourceCodeInfo> = file.file_descriptor_proto().source_code_info.as_ref();
    let locations = info.map_or(&[][..], |info| info.location.as_slice());
    let commented = locations.iter().filter_map(|location| {
        let text = location.leading_comments.as_ref()?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        Some((location.path.clone(), lines.join(" ").trim().to_owned()))
    });
    commented.collect()
}

fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    comments(file).remove(path).unwrap_or_default()
}

fn access_option(method: &MethodDescriptor) -> DynamicMessage {
    let extension = CONTRACT.get_extension_by_name("tharsis.access.v1.access");
    let options = method.options();
    let value = options.get_extension(&extension.expect("the option"));
    value.as_message().expect("a message").clone()
}

fn permission(access: &DynamicMessage) -> EnumValueDescriptor {
    let permissions = CONTRACT.get_enum_by_name("tharsis.access.v1.Permission");
    let permissions: EnumDescriptor = permissions.expect("permissions");
    let number = access.get_field_by_name("permission").expect("a field");
    let value = permissions.get_value(number.as_enum_number().expect("a number"));
    value.expect("a permission")
}

/// What a caller needs.
fn needs(method: &MethodDescriptor) -> String {
    let access = access_option(method);
    let number = |field: &str| {
        let value = access.get_field_by_name(field).expect(field);
        value.as_enum_number().expect("a number")
    };
    let value = permission(&access);
    let who = comment(&value.parent_enum().parent_file(), value.path());
    let resource = access.get_field_by_name("resource").expect("a field");
    let resource = resource.as_str().unwrap_or_default().to_owned();
    let mut text = format!("Needs `{}`", value.name());
    if !resource.is_empty() {
        write!(text, " on `{resource}`").expect("a string takes text");
    }
    write!(text, ": {}", lower(&who)).expect("a string takes text");
    match number("top_level") {
        1 => text.push_str(" Where the field is empty, administrators may."),
        2 => text.push_str(
            " Where the field is empty, everybody may; the answer holds what the caller may see.",
        ),
        _ => {}
    }
    text
}

fn lower(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        format!("{}{}", first.to_lowercase(), letters.as_str())
    })
}

/// The codes that only some rpcs answer with.
fn errors(method: &MethodDescriptor) -> String {
    let access = access_option(method);
    let on_resource = access.get_field_by_name("resource").expect("a field");
    let on_resource = !on_resource.as_str().unwrap_or_default().is_empty();
    let has = |field: &str| method.input().get_field_by_name(field).is_some();
    let mut codes = vec!["INVALID_ARGUMENT", "UNAUTHENTICATED"];
    if permission(&access).name() != "PERMISSION_ANYONE" {
        codes.push("PERMISSION_DENIED");
    }
    let issues = permission(&access).name() == "PERMISSION_JOB" && !has("request_id");
    let names = [
        "id",
        "managed_identity_id",
        "principal",
        "service_account_id",
        "signing_key_id",
        "team_id",
    ];
    if on_resource || issues || names.into_iter().any(has) {
        codes.push("NOT_FOUND");
    }
    if has("request_id") {
        codes.push("ALREADY_EXISTS");
    }
    // A token of another epoch, if of nothing else.
    if has("request_id") || has("consistency_token") || issues {
        codes.push("FAILED_PRECONDITION");
    }
    if has("request_id") || issues {
        codes.push("ABORTED");
    }
    if has("consistency_token") {
        codes.push("DEADLINE_EXCEEDED");
    }
    codes.extend(["RESOURCE_EXHAUSTED", "UNAVAILABLE"]);
    codes.join(", ")
}

fn type_name(field: &FieldDescriptor) -> String {
    let name = match field.kind() {
        Kind::Message(message) => linked(message.full_name(), message.name()),
        Kind::Enum(of) => linked(of.full_name(), of.name()),
        kind => format!("{kind:?}").to_ascii_lowercase(),
    };
    if field.is_map() {
        "map".to_owned()
    } else if field.is_list() {
        format!("repeated {name}")
    } else {
        name
    }
}

fn linked(full_name: &str, name: &str) -> String {
    if full_name.starts_with("tharsis.") {
        format!("[{name}](#{})", name.to_ascii_lowercase())
    } else {
        full_name.to_owned()
    }
}

fn fields(message: &MessageDescriptor) -> String {
    let mut text = String::new();
    if message.fields().len() == 0 {
        return "No fields.\n".to_owned();
    }
    text.push_str("| field | type | |\n|---|---|---|\n");
    let file = message.parent_file();
    for field in message.fields() {
        let of_oneof = field.containing_oneof().filter(|one| !one.is_synthetic());
        let one_of = of_oneof.map_or_else(String::new, |one| format!("One of `{}`. ", one.name()));
        let said = comment(&file, field.path()).replace('|', "\\|");
        let (name, kind) = (field.name(), type_name(&field));
        writeln!(text, "| `{name}` | {kind} | {one_of}{said} |").expect("a string takes text");
    }
    text
}

fn port(service: &ServiceDescriptor) -> u16 {
    match service.package_name() {
        "tharsis.namespace.v1" => 7101,
        "tharsis.identity.v1" => 7102,
        "tharsis.issuer.v1" => 7103,
        _ => 7104,
    }
}

fn section(service: &ServiceDescriptor, examples: &BTreeMap<&str, String>) -> String {
    let mut text = String::new();
    let mut say = |line: &str| writeln!(text, "{line}\n").expect("a string takes text");
    let file = service.parent_file();
    say(&format!("## {}", service.name()));
    say(&format!(
        "`{}`, port {} of the development set. {}",
        service.full_name(),
        port(service),
        comment(&file, service.path())
    ));
    for method in service.methods() {
        say(&format!("### {}", method.name()));
        let said = comment(&file, method.path());
        if !said.is_empty() {
            say(&said);
        }
        say(&needs(&method));
        say(&format!("Errors: {}.", errors(&method)));
        say(fields(&method.input()).trim_end());
        let answer = method.output();
        let streams = if method.is_server_streaming() {
            "Answers with a stream of these:"
        } else {
            "Answers:"
        };
        say(streams);
        say(fields(&answer).trim_end());
        let path = format!("/{}/{}", service.full_name(), method.name());
        if let Some(example) = examples.get(path.as_str()) {
            let short = service.full_name().trim_start_matches("tharsis.");
            say(&format!(
                "```sh\ng {} {short}/{} '{example}'\n```",
                port(service),
                method.name()
            ));
        }
    }
    text
}

/// The messages and enums that requests and answers are made of.
fn types() -> String {
    let mut text = String::from("## Messages\n\n");
    let mut say = |line: &str| writeln!(text, "{line}\n").expect("a string takes text");
    let ours = |package: &str| package.starts_with("tharsis.") && !package.contains("access");
    let is_call = |name: &str| name.ends_with("Request") || name.ends_with("Response");
    let messages = CONTRACT.all_messages();
    let mut messages: Vec<MessageDescriptor> = messages
        .filter(|message| ours(message.package_name()) && !is_call(message.name()))
        .filter(|message| !message.is_map_entry() && message.parent_message().is_none())
        .filter(|message| !message.parent_file().name().ends_with("/events.proto"))
        .collect();
    messages.sort_by(|one, other| one.full_name().cmp(other.full_name()));
    for message in messages {
        say(&format!("### {}", message.name()));
        say(&format!(
            "`{}`. {}",
            message.full_name(),
            comment(&message.parent_file(), message.path())
        ));
        say(fields(&message).trim_end());
    }
    let mut enums: Vec<EnumDescriptor> = CONTRACT
        .all_enums()
        .filter(|of| of.package_name().starts_with("tharsis.") && of.name() != "TopLevel")
        .collect();
    enums.sort_by(|one, other| one.full_name().cmp(other.full_name()));
    for of in enums {
        let file = of.parent_file();
        say(&format!("### {}", of.name()));
        say(&format!(
            "`{}`. {}",
            of.full_name(),
            comment(&file, of.path())
        ));
        let values = of.values().map(|value| {
            let said = comment(&file, value.path());
            format!("- `{}` {said}", value.name()).trim_end().to_owned()
        });
        say(&values.collect::<Vec<_>>().join("\n"));
    }
    text
}

/// The events of each log, as they are on NATS.
fn events() -> String {
    let mut text = String::from("## Events\n\n");
    for file in CONTRACT.files() {
        if !file.name().ends_with("/events.proto") {
            continue;
        }
        for message in file.messages() {
            let said = comment(&file, message.path());
            writeln!(
                text,
                "### {}\n\n`{}`. {said}\n",
                message.name(),
                message.full_name()
            )
            .expect("a string takes text");
            writeln!(text, "{}", fields(&message)).expect("a string takes text");
        }
    }
    text
}

const PREFACE: &str = "<!-- Made of the protos by the test `reference`: UPDATE_GOLDEN=1 deploy/dev test -p e2e --test e2e access -->

# Reference

Every rpc, message and event of the contract. The [README](../README.md) says how to begin, and what holds of every rpc:
how resources are named, `request_id`, `validate_only`, `etag`, and consistency. The examples use its `g`; each is a
request that the tests ask, with names for its ids, and without the `etag` or `validate_only` by which nothing changes.

What every rpc may answer, with `google.rpc` details (`ErrorInfo.reason` stays the same for ever):

| code | when |
|---|---|
| INVALID_ARGUMENT | fields are wrong; `BadRequest` names them by their paths, those that say whom it is about first, pages last |
| UNAUTHENTICATED | the token is missing, malformed, expired, or not of a configured issuer: `TOKEN_…` says which |
| PERMISSION_DENIED | the caller knows of the resource, and may not do this |
| NOT_FOUND | there is no such thing, or the caller may not know of it |
| ALREADY_EXISTS | the name is taken, or there is such a thing already |
| FAILED_PRECONDITION | something stands in the way; `PreconditionFailure` names each thing |
| ABORTED | it changed meanwhile: `ETAG_MISMATCH`, `CONTENTION` |
| DEADLINE_EXCEEDED | `CONSISTENCY_TOKEN_NOT_REACHED`: the state that the request waits for was not visible in time |
| RESOURCE_EXHAUSTED | `RATE_LIMITED` or busy with others, with `RetryInfo`; or the message is too large |
| UNAVAILABLE | a dependency is down; nothing was changed, unless the reason is `OUTCOME_UNKNOWN` |

";

/// The whole of it must be what the file says; of each rpc the first example, by path.
pub(crate) fn compare(examples: &BTreeMap<&str, String>) {
    let mut services: Vec<ServiceDescriptor> = CONTRACT
        .services()
        .filter(|service| service.package_name().starts_with("tharsis."))
        .collect();
    services.sort_by_key(|service| (port(service), service.full_name().to_owned()));
    let sections: String = services.iter().map(|it| section(it, examples)).collect();
    let text = format!("{PREFACE}{sections}{}{}", types(), events());
    let text = format!("{}\n", text.trim_end());
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../proto/reference.md");
    golden::compare_file(&file, &text);
}
