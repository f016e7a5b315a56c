//! Every parser of text that others send, as a fuzz target: none panics, and what is read is written as it was read, or
//! means the same.
//!
//! `deploy/dev test -p fuzz` runs each on its corpus and on inputs like it; `libfuzzer/` gives them to `cargo fuzz`.

mod glob;

use std::fmt::{Debug, Display};
use std::str::FromStr;

use edge::attestation::Envelope;
use edge::{attestation, authentication, consistency, past, request, rpc};
use eventlog::ConsistencyToken;
use http::{HeaderMap, HeaderName, HeaderValue};
use identity::domain::{aws, azure, google, kubernetes};
use model::access_rule::AccessRule;
use model::attestation::{ModuleDigest, PredicateType, PublicKey};
use model::mask::Mask;
use model::trust::{self, Algorithm, Audience, ClaimName, IssuerUrl, Pattern};
use model::{
    Description, JobDuration, Kind, Limit, Name, Principal, Reference, ResourceId, Role,
    SigningAlgorithm, Stage, TokenSettings,
};
use projector::order::{self, Direction, Order};
use projector::page::Page;

/// A parser, or a few that read the same kind of text.
#[derive(Clone, Copy)]
pub struct Target {
    /// What its corpus is called.
    pub name: &'static str,
    /// Panics if an input shows a bug.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 13] = [
    target("names", names),
    target("references", references),
    target("principals", principals),
    target("configurations", configurations),
    target("patterns", patterns),
    target("trust", trust),
    target("facts", facts),
    target("attestations", attestations),
    target("consistency", consistency_tokens),
    target("lists", lists),
    target("headers", headers),
    target("tokens", tokens),
    target("requests", requests),
];

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// The target of that name.
///
/// # Panics
/// If there is none.
pub fn run(name: &str, input: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    (target.expect("a target").run)(input);
}

fn names(input: &[u8]) {
    let Some(text) = text(input) else { return };
    if let Some(name) = same_text::<Name>(text) {
        assert!((1..=64).contains(&name.as_str().len()));
    }
    same_text::<Description>(text);
    same_text::<Kind>(text);
    same_text::<Role>(text);
    same_text::<Stage>(text);
    same_text::<SigningAlgorithm>(text);
    same_text::<Limit>(text);
}

fn references(input: &[u8]) {
    let Some(text) = text(input) else { return };
    if let Some(id) = same_text::<ResourceId>(text) {
        assert!(id.to_string().contains('_'), "{:?}", id.kind());
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let written = match &reference {
            Reference::Id(id) => id.to_string(),
            Reference::Trn(trn) => trn.to_string(),
        };
        assert_eq!(written, text);
    }
}

fn principals(input: &[u8]) {
    let Some(text) = text(input) else { return };
    same_text::<Principal>(text);
    if let Ok(user) = Principal::user(text) {
        same_text::<Principal>(&user.to_string());
    }
}

fn configurations(input: &[u8]) {
    let Some(text) = text(input) else { return };
    same_text::<aws::RoleArn>(text);
    // Of any case, or empty for what is usual; kept in one form.
    same_value::<azure::Guid>(text);
    same_value::<azure::AzureAudience>(text);
    same_value::<google::Provider>(text);
    same_text::<google::ServiceAccount>(text);
    same_value::<kubernetes::KubernetesAudience>(text);
}

/// A glob, and after a line feed the value.
fn patterns(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let (pattern, value) = text.split_once('\n').unwrap_or((text, text));
    if let Ok(exact) = Pattern::exact(pattern) {
        assert_eq!(exact.matches(value), pattern == value);
    }
    if let Ok(glob) = Pattern::glob(pattern) {
        let is_like = trust::is_plain(value) && glob::matches(pattern, value);
        assert_eq!(glob.matches(value), is_like);
    }
}

fn trust(input: &[u8]) {
    let Some(text) = text(input) else { return };
    same_text::<IssuerUrl>(text);
    same_text::<Audience>(text);
    same_text::<ClaimName>(text);
    if let Ok(algorithm) = text.parse::<Algorithm>() {
        assert_eq!(algorithm.as_str(), text);
    }
}

/// What is kept as text in the facts, and read before every decision.
fn facts(input: &[u8]) {
    let Some(text) = text(input) else { return };
    same_value::<AccessRule>(text);
    same_value::<Mask>(text);
    same_value::<TokenSettings>(text);
    same_value::<JobDuration>(text);
    let _ = edge::hierarchy::read_configuration(text);
    let _ = edge::hierarchy::read_trust(text);
}

fn attestations(input: &[u8]) {
    if let Ok(envelope) = Envelope::read(input) {
        let _ = envelope.predicate_type();
    }
    let Some(text) = text(input) else { return };
    if let Ok(key) = attestation::public_key(text) {
        let again = attestation::public_key(&attestation::pem(&key));
        assert_eq!(again.ok(), Some(key));
    }
    same_text::<PublicKey>(text);
    same_text::<PredicateType>(text);
    same_text::<ModuleDigest>(text);
}

fn consistency_tokens(input: &[u8]) {
    let Some(text) = text(input) else { return };
    same_value::<ConsistencyToken>(text);
    if let Ok(positions) = past::positions(text) {
        let parts = positions.iter();
        let written: Vec<_> = parts
            .map(|(name, position)| format!("{name}={position}"))
            .collect();
        assert_eq!(past::positions(&written.join(",")), Ok(positions));
    }
}

/// An order, and after a line feed a page token.
fn lists(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let (order, token) = text.split_once('\n').unwrap_or((text, text));
    if let Ok(Some(order)) = Order::read(order) {
        let _ = order.has_key(token);
    }
    if let Ok(Some(direction)) = Direction::read("time", order) {
        assert_eq!(direction.word() == "DESC", direction.descending);
    }
    if let Some(time) = order::time(token) {
        assert_eq!(order::time(&order::moment(time)), Some(time));
    }
    for keys in 1..=2 {
        if let Ok(page) = Page::read(0, token, &"the query", keys) {
            assert!(page.after.is_none_or(|after| after.len() == keys));
        }
    }
}

/// The headers that are read here and not by a library.
fn headers(input: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let of = |name| {
        let header = (HeaderName::from_static(name), value.clone());
        [header].into_iter().collect::<HeaderMap>()
    };
    let _ = rpc::deadline(&of("grpc-timeout"));
    let _ = consistency::visibility_wait(&of("tharsis-wait"));
    let headers = of("traceparent");
    if let Some(context) = request::traceparent_of(&headers) {
        assert_eq!(context.as_bytes(), input);
    }
}

/// A bearer token, as far as it is read before it is verified.
fn tokens(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let _ = authentication::named_issuer(text);
    let _ = authentication::Issuer::parse_all(text, None);
    let _ = text.parse::<authentication::Networks>();
}

/// What requests of every service have in common.
fn requests(input: &[u8]) {
    let Some(text) = text(input) else { return };
    let _ = request::request_id(text);
    if let Ok(Some(version)) = request::expected_version("etag", text) {
        assert_eq!(request::etag(version), text);
    }
    let paths = text.split(',').map(str::to_owned).collect();
    let mask = prost_types::FieldMask { paths };
    let _ = request::update_mask(Some(&mask), &["description", "configuration"]);
}

fn text(input: &[u8]) -> Option<&str> {
    std::str::from_utf8(input).ok()
}

/// What is read is written as it stood.
fn same_text<T: FromStr + Display>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    assert_eq!(value.to_string(), text);
    Some(value)
}

/// What is read is written so that it is read alike.
fn same_value<T: FromStr + Display + Debug + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let written = value.to_string();
        assert_eq!(written.parse().ok(), Some(value), "{written}");
    }
}
