//! Compiles the contracts without `protoc`, refuses an rpc that declares no access, and writes one `Event` enum for
//! each `events.proto`, so that a new event type does not build until every follower says what it does with it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use prost_reflect::{DescriptorPool, FileDescriptor};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo:rerun-if-changed=tharsis");
    let files = proto_files(Path::new("tharsis"))?;
    let mut compiler = protox::Compiler::new(["."])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(&files)?;
    // Encoded by protox, because the prost types would drop the access options.
    let descriptors = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(descriptors.as_slice())?;
    refuse_rpc_without_access(&pool)?;
    std::fs::write(out.join("descriptors.bin"), &descriptors)?;
    for file in pool
        .files()
        .filter(|file| file.name().ends_with("/events.proto"))
    {
        std::fs::write(
            out.join(format!("{}.events.rs", file.package_name())),
            event_enum(&file)?,
        )?;
    }
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}

fn proto_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(proto_files(&path)?);
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn refuse_rpc_without_access(pool: &DescriptorPool) -> Result<()> {
    let access = pool
        .get_extension_by_name("tharsis.access.v1.access")
        .ok_or("no access option")?;
    for method in pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
    {
        let options = method.options();
        let value = options.get_extension(&access);
        let message = value.as_message().ok_or("access is no message")?;
        let field = |name: &str| {
            message
                .get_field_by_name(name)
                .map(std::borrow::Cow::into_owned)
        };
        if field("permission")
            .and_then(|value| value.as_enum_number())
            .unwrap_or(0)
            == 0
        {
            return Err(format!("{} declares no access permission", method.full_name()).into());
        }
        let path = field("resource")
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default();
        let mut holder = Some(method.input());
        for name in path.split('.').filter(|name| !name.is_empty()) {
            let field = holder
                .and_then(|message| message.get_field_by_name(name))
                .ok_or_else(|| {
                    format!("{}: no field {path} to authorize on", method.full_name())
                })?;
            holder = field.kind().as_message().cloned();
        }
    }
    Ok(())
}

fn event_enum(file: &FileDescriptor) -> Result<String> {
    let names: Vec<_> = file
        .messages()
        .map(|message| message.name().to_owned())
        .collect();
    let package = file.package_name();
    let mut code = String::new();
    let each =
        |line: &dyn Fn(&str) -> String| names.iter().map(|name| line(name)).collect::<String>();
    write!(
        code,
        "/// Every event of `{package}`.\n#[derive(Clone, Debug, PartialEq)]\npub enum Event {{\n{variants}}}\n\
         impl Event {{\n\
         /// The full names of all event types.\n\
         pub const TYPES: &'static [&'static str] = &[{types}];\n\
         /// Decodes a payload of the given type.\n\
         pub fn decode(event_type: &str, payload: &[u8]) -> Result<Self, crate::EventError> {{\n\
         match event_type {{\n{decode}\
         _ => Err(crate::EventError::Unknown(event_type.to_owned())),\n}}\n}}\n\
         /// The full name of the event's message.\n#[must_use]\n\
         pub fn event_type(&self) -> &'static str {{ match self {{ {name} }} }}\n\
         /// The payload.\n#[must_use]\n\
         pub fn encode(&self) -> Vec<u8> {{ match self {{ {encode} }} }}\n}}\n",
        variants = each(&|name| format!("/// [`{name}`].\n{name}({name}),\n")),
        types = each(&|name| format!("\"{package}.{name}\",")),
        decode = each(&|name| format!(
            "\"{package}.{name}\" => Ok(Self::{name}(prost::Message::decode(payload)?)),\n"
        )),
        name = each(&|name| format!("Self::{name}(_) => \"{package}.{name}\",")),
        encode =
            each(&|name| format!("Self::{name}(event) => prost::Message::encode_to_vec(event),")),
    )?;
    for name in &names {
        writeln!(
            code,
            "impl From<{name}> for Event {{ fn from(event: {name}) -> Self {{ Self::{name}(event) }} }}"
        )?;
    }
    Ok(code)
}
