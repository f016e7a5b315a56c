//! What a job runs, between the domain and the wire.

use edge::attestation::{Envelope, InvalidEnvelope};
use edge::violations::Violations;
use model::attestation::ModuleDigest;
use proto::issuer::v1 as pb;

use super::{Unreadable, parse};
use crate::domain::job::Module;

/// Bytes of what it is called.
const MAX_SOURCE: usize = 512;
const MAX_ATTESTATIONS: usize = 10;
/// Signatures of all of them: each may be verified with each key that a rule names.
const MAX_SIGNATURES: usize = 10;
/// Bytes of its attestations together: they are in an event, which has to fit into a message.
const MAX_BYTES: usize = 64 << 10;

/// An attestation that is none of the module.
#[derive(Debug, thiserror::Error)]
enum InvalidAttestation {
    #[error(transparent)]
    Envelope(#[from] InvalidEnvelope),
    #[error("the statement must have a subject with the module's digest as sha256")]
    OtherModule,
}

/// The module that a request gives: whoever opens a job hears at once what none of its rules could ever take.
pub(crate) fn wanted(module: &pb::Module) -> Result<Module, Violations> {
    let mut violations = Violations::default();
    if module.source.len() > MAX_SOURCE || module.source.chars().any(char::is_control) {
        let wrong = format!("must be at most {MAX_SOURCE} bytes, without control characters");
        violations.add("source", wrong);
    }
    let digest = (!module.digest.is_empty() || !module.attestations.is_empty())
        .then(|| module.digest.parse::<ModuleDigest>())
        .transpose();
    let digest = violations.check("digest", digest);
    if module.attestations.len() > MAX_ATTESTATIONS {
        violations.add(
            "attestations",
            format!("must be at most {MAX_ATTESTATIONS}"),
        );
    }
    if module.attestations.iter().map(Vec::len).sum::<usize>() > MAX_BYTES {
        let wrong = format!("must be at most {} KiB together", MAX_BYTES >> 10);
        violations.add("attestations", wrong);
    } else {
        let given = module.attestations.iter().take(MAX_ATTESTATIONS);
        let mut signatures = 0;
        for (index, json) in given.enumerate() {
            let read = attestation(json, digest.as_ref().and_then(Option::as_ref));
            let read = violations.check(&format!("attestations[{index}]"), read);
            signatures += read.map_or(0, |envelope| envelope.signatures());
        }
        if signatures > MAX_SIGNATURES {
            let wrong = format!("must have at most {MAX_SIGNATURES} signatures together");
            violations.add("attestations", wrong);
        }
    }
    violations.finish(|| {
        Some(Module {
            source: module.source.clone(),
            digest: digest?,
            attestations: module.attestations.clone(),
        })
    })
}

fn attestation(json: &[u8], digest: Option<&ModuleDigest>) -> Result<Envelope, InvalidAttestation> {
    let envelope = Envelope::read(json)?;
    if digest.is_none_or(|digest| envelope.is_about(digest)) {
        Ok(envelope)
    } else {
        Err(InvalidAttestation::OtherModule)
    }
}

pub(crate) fn read(module: pb::Module) -> Result<Module, Unreadable> {
    let digest = module.digest.as_str();
    let digest = (!digest.is_empty()).then(|| parse("module digest", digest));
    Ok(Module {
        digest: digest.transpose()?,
        source: module.source,
        attestations: module.attestations,
    })
}

/// With its attestations.
pub(crate) fn write(module: &Module) -> pb::Module {
    pb::Module {
        attestations: module.attestations.clone(),
        ..message(module)
    }
}

/// As callers see it.
pub(crate) fn message(module: &Module) -> pb::Module {
    let digest = module.digest.as_ref();
    pb::Module {
        source: module.source.clone(),
        digest: digest.map(ToString::to_string).unwrap_or_default(),
        attestations: vec![],
    }
}
