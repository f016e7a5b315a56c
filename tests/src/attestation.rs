//! Who attests modules, as a builder's tool does: signs in-toto statements in DSSE envelopes.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::issuer::v1::Module;
use serde_json::json;

const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// What the statements say, if nothing else is asked for.
pub const PROVENANCE: &str = "https://slsa.dev/provenance/v1";

/// Has a key of its own.
pub struct Attester(EcdsaKeyPair);

impl Default for Attester {
    fn default() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).expect("a key"))
    }
}

impl Attester {
    /// The public key.
    #[must_use]
    pub fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der().expect("DER");
        let base64 = STANDARD.encode(der.as_ref());
        format!("-----BEGIN PUBLIC KEY-----\n{base64}\n-----END PUBLIC KEY-----\n")
    }

    /// The envelope of a statement of this predicate type about the module of this digest.
    #[must_use]
    pub fn attests(&self, digest: &str, predicate_type: &str) -> Vec<u8> {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": "network.tar.gz", "digest": {"sha256": digest}}],
            "predicateType": predicate_type,
            "predicate": {},
        });
        let payload = statement.to_string();
        let signed = format!(
            "DSSEv1 {} {PAYLOAD_TYPE} {} {payload}",
            PAYLOAD_TYPE.len(),
            payload.len()
        );
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes());
        let envelope = json!({
            "payloadType": PAYLOAD_TYPE,
            "payload": STANDARD.encode(payload),
            "signatures": [{"sig": STANDARD.encode(signature.expect("signed"))}],
        });
        envelope.to_string().into_bytes()
    }
}

/// The SHA-256 that a module of this number has.
#[must_use]
pub fn digest(number: u8) -> String {
    format!("{number:02x}").repeat(32)
}

/// The module of this number, with these attestations.
#[must_use]
pub fn module(number: u8, attestations: &[Vec<u8>]) -> Module {
    Module {
        source: format!("registry.example.com/acme/network/aws 1.0.{number}"),
        digest: digest(number),
        attestations: attestations.to_vec(),
    }
}
