//! Attestations as they are sent: in-toto statements in DSSE envelopes
//! (<https://github.com/secure-systems-lab/dsse/blob/master/envelope.md>), and the keys that sign them.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PSS_2048_8192_SHA256, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, STANDARD};
use base64::engine::{DecodePaddingMode, GeneralPurposeConfig};
use model::attestation::{ModuleDigest, PredicateType, PublicKey};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

/// The one payload type of in-toto statements.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// The versions of statements whose form is known here.
const STATEMENTS: [&str; 2] = [
    "https://in-toto.io/Statement/v1",
    "https://in-toto.io/Statement/v0.1",
];
/// With which keys sign, in the ways that cosign and the in-toto libraries do.
const ALGORITHMS: [&dyn VerificationAlgorithm; 6] = [
    &ECDSA_P256_SHA256_ASN1,
    &ECDSA_P384_SHA256_ASN1,
    &ECDSA_P384_SHA384_ASN1,
    &ED25519,
    &RSA_PKCS1_2048_8192_SHA256,
    &RSA_PSS_2048_8192_SHA256,
];
/// Signatures of an envelope.
const MAX_SIGNATURES: usize = 10;
/// Characters of a line of PEM (RFC 7468, 2).
const PEM_LINE: usize = 64;

/// Both alphabets are to be taken, and padding is no matter.
const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);

/// The text is no key that could have signed an attestation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be a PEM of a public key (BEGIN PUBLIC KEY): of ECDSA on P-256 or P-384, Ed25519, or RSA from 2048 bits on"
)]
pub struct InvalidPublicKey;

/// The public key of a PEM.
pub fn public_key(pem: &str) -> Result<PublicKey, InvalidPublicKey> {
    let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes());
    let der = der.map_err(|_| InvalidPublicKey)?;
    ways(der.as_ref()).next().ok_or(InvalidPublicKey)?;
    let key = STANDARD.encode(der.as_ref()).parse();
    key.map_err(|_| InvalidPublicKey)
}

/// The PEM of a public key.
#[must_use]
pub fn pem(key: &PublicKey) -> String {
    let lines = key.as_str().as_bytes().chunks(PEM_LINE);
    let lines: Vec<_> = lines.map(String::from_utf8_lossy).collect();
    format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        lines.join("\n")
    )
}

/// The key, in each way in which it may have signed.
fn ways(der: &[u8]) -> impl Iterator<Item = ParsedPublicKey> {
    let keys = ALGORITHMS.into_iter();
    keys.filter_map(move |algorithm| ParsedPublicKey::new(algorithm, der).ok())
}

/// An attestation, read and not verified.
#[derive(Clone, Debug)]
pub struct Envelope {
    predicate_type: PredicateType,
    subjects: Vec<String>,
    /// What is signed.
    signed: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

/// Why something is no attestation.
#[derive(Debug, thiserror::Error)]
pub enum InvalidEnvelope {
    /// It is no JSON of that form.
    #[error("must be a DSSE envelope as JSON: {0}")]
    Envelope(#[source] serde_json::Error),
    /// The envelope holds something else.
    #[error("the envelope's payloadType must be {PAYLOAD_TYPE}")]
    PayloadType,
    /// What is to be in base64 is not.
    #[error("the envelope's payload and signatures must be base64")]
    Base64,
    /// It has none, or too many.
    #[error("the envelope must have 1 to {MAX_SIGNATURES} signatures")]
    Signatures,
    /// The payload is no JSON of that form.
    #[error("the envelope's payload must be an in-toto statement: {0}")]
    Statement(#[source] serde_json::Error),
    /// It is of a version that is not known.
    #[error("the statement's _type must be {} or {}", STATEMENTS[0], STATEMENTS[1])]
    StatementType,
    /// Its predicate type is no URI.
    #[error("the statement's predicateType {0}")]
    PredicateType(model::attestation::InvalidAttestation),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEnvelope {
    payload_type: String,
    payload: String,
    signatures: Vec<WireSignature>,
}

#[derive(Deserialize)]
struct WireSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    predicate_type: String,
}

#[derive(Deserialize)]
struct Subject {
    #[serde(default)]
    digest: Digest,
}

#[derive(Default, Deserialize)]
struct Digest {
    #[serde(default)]
    sha256: String,
}

impl Envelope {
    /// Reads it.
    pub fn read(json: &[u8]) -> Result<Self, InvalidEnvelope> {
        let envelope: WireEnvelope =
            serde_json::from_slice(json).map_err(InvalidEnvelope::Envelope)?;
        if envelope.payload_type != PAYLOAD_TYPE {
            return Err(InvalidEnvelope::PayloadType);
        }
        if !(1..=MAX_SIGNATURES).contains(&envelope.signatures.len()) {
            return Err(InvalidEnvelope::Signatures);
        }
        let payload = decoded(&envelope.payload)?;
        let signatures = envelope.signatures.iter();
        let signatures = signatures.map(|signature| decoded(&signature.sig));
        let signatures = signatures.collect::<Result<_, _>>()?;
        let statement: Statement =
            serde_json::from_slice(&payload).map_err(InvalidEnvelope::Statement)?;
        if !STATEMENTS.contains(&statement.kind.as_str()) {
            return Err(InvalidEnvelope::StatementType);
        }
        let predicate_type = statement.predicate_type.parse();
        let subjects = statement.subject.into_iter();
        Ok(Self {
            predicate_type: predicate_type.map_err(InvalidEnvelope::PredicateType)?,
            subjects: subjects.map(|subject| subject.digest.sha256).collect(),
            signed: authenticated(&payload),
            signatures,
        })
    }

    /// What the statement says of its subjects.
    #[must_use]
    pub fn predicate_type(&self) -> &PredicateType {
        &self.predicate_type
    }

    /// How many signatures it has.
    #[must_use]
    pub fn signatures(&self) -> usize {
        self.signatures.len()
    }

    /// Whether the module of this digest is one of its subjects.
    #[must_use]
    pub fn is_about(&self, module: &ModuleDigest) -> bool {
        self.subjects
            .iter()
            .any(|subject| subject == module.as_str())
    }

    /// Whether one of its signatures is of this key.
    #[must_use]
    pub fn is_signed_by(&self, key: &PublicKey) -> bool {
        let Ok(der) = STANDARD.decode(key.as_str()) else {
            return false;
        };
        ways(&der).any(|key| {
            let mut signatures = self.signatures.iter();
            signatures.any(|signature| key.verify_sig(&self.signed, signature).is_ok())
        })
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, InvalidEnvelope> {
    let standard = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
    let for_urls = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);
    let decoded = standard.decode(text).or_else(|_| for_urls.decode(text));
    decoded.map_err(|_| InvalidEnvelope::Base64)
}

/// What is signed of a payload: DSSE's pre-authentication encoding.
fn authenticated(payload: &[u8]) -> Vec<u8> {
    let (type_length, length) = (PAYLOAD_TYPE.len(), payload.len());
    let header = format!("DSSEv1 {type_length} {PAYLOAD_TYPE} {length} ");
    [header.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    };
    use base64::engine::general_purpose::URL_SAFE;
    use proptest::prelude::*;

    const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn statement() -> String {
        format!(
            r#"{{"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
                "subject": [{{"name": "other", "digest": {{"sha512": "ab"}}}}, {{"digest": {{"sha256": "{DIGEST}"}}}}],
                "predicate": {{"builder": {{"id": "ci"}}}}}}"#
        )
    }

    fn envelope(payload: &str, signature: &[u8]) -> Vec<u8> {
        let (payload, signature) = (STANDARD.encode(payload), URL_SAFE.encode(signature));
        format!(
            r#"{{"payloadType": "{PAYLOAD_TYPE}", "payload": "{payload}", "signatures": [{{"keyid": "", "sig": "{signature}"}}]}}"#
        )
        .into_bytes()
    }

    /// A public key, and its signature of a text.
    type Signed = (Vec<u8>, Vec<u8>);

    fn each_way(text: &[u8]) -> Vec<Signed> {
        let random = SystemRandom::new();
        let mut signed: Vec<Signed> = Vec::new();
        for algorithm in [
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            &ECDSA_P384_SHA384_ASN1_SIGNING,
        ] {
            let pair = EcdsaKeyPair::generate(algorithm).expect("a key");
            let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("DER");
            let signature = pair.sign(&random, text).expect("signed");
            signed.push((der.as_ref().to_vec(), signature.as_ref().to_vec()));
        }
        let pair = Ed25519KeyPair::generate().expect("a key");
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("DER");
        signed.push((der.as_ref().to_vec(), pair.sign(text).as_ref().to_vec()));
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("a key");
        let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("DER");
        for padding in [
            &RSA_PKCS1_SHA256 as &dyn aws_lc_rs::signature::RsaEncoding,
            &RSA_PSS_SHA256,
        ] {
            let mut signature = vec![0; pair.public_modulus_len()];
            pair.sign(padding, &random, text, &mut signature)
                .expect("signed");
            signed.push((der.as_ref().to_vec(), signature));
        }
        signed
    }

    #[test]
    fn what_is_signed_with_a_key_is_of_that_key_alone() {
        let signed = each_way(&authenticated(statement().as_bytes()));
        for (der, signature) in &signed {
            let text = STANDARD.encode(der).parse().expect("a key");
            let key = public_key(&pem(&text)).expect("it reads back");
            assert_eq!(key, text);
            let read = Envelope::read(&envelope(&statement(), signature)).expect("read");
            assert!(read.is_signed_by(&key));
            assert!(read.is_about(&DIGEST.parse().expect("a digest")));
            assert!(!read.is_about(&"0a".repeat(32).parse().expect("a digest")));
            assert_eq!(
                read.predicate_type().as_str(),
                "https://slsa.dev/provenance/v1"
            );
            for (other, _) in signed.iter().filter(|(other, _)| other != der) {
                let other = STANDARD.encode(other).parse().expect("a key");
                assert!(!read.is_signed_by(&other));
            }
            // The same statement but for a space is not what was signed.
            let changed = envelope(&format!("{} ", statement()), signature);
            let changed = Envelope::read(&changed).expect("read");
            assert!(!changed.is_signed_by(&key));
        }
        // The text itself, not encoded for its type, could be of another protocol.
        let (der, signature) = each_way(statement().as_bytes()).remove(0);
        let read = Envelope::read(&envelope(&statement(), &signature)).expect("read");
        assert!(!read.is_signed_by(&STANDARD.encode(der).parse().expect("a key")));
    }

    /// By openssl, and as `cosign generate-key-pair` writes it.
    const PEM: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEGuyEdgWvwml+UKcIOkuDbPzlHG6Q
6IlNni2lACUT37mmnWrk93Gw98Ghsk456hOIZ+ggRJ0R0aWZD/2qVN+a7g==
-----END PUBLIC KEY-----
";

    #[test]
    fn keys_that_could_not_have_signed_are_refused() {
        let key = public_key(PEM).expect("a key");
        assert_eq!(pem(&key), PEM);
        let private = PEM.replace("PUBLIC", "PRIVATE");
        let broken = PEM.replace("MFkw", "AAAA");
        for text in [
            "",
            "-----BEGIN PUBLIC KEY-----",
            &private,
            &broken,
            key.as_str(),
        ] {
            assert_eq!(public_key(text), Err(InvalidPublicKey), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_envelope_is_said() {
        let sound = String::from_utf8(envelope(&statement(), b"it")).expect("text");
        assert!(Envelope::read(sound.as_bytes()).is_ok());
        let said = |json: String| {
            let error = Envelope::read(json.as_bytes()).expect_err("it is wrong");
            error.to_string()
        };
        let with = |payload: &str| String::from_utf8(envelope(payload, b"it")).expect("text");
        for (json, part) in [
            ("{}".to_owned(), "payloadType"),
            (sound.replace("vnd.in-toto", "other"), "payloadType must be"),
            (sound.replace("aXQ=", "?"), "base64"),
            (
                sound.replace(r#"[{"keyid": "", "sig": "aXQ="}]"#, "[]"),
                "1 to 10 signatures",
            ),
            (with("it"), "in-toto statement"),
            (
                with(&statement().replace("Statement/v1", "Link/v1")),
                "_type",
            ),
            (
                with(&statement().replace("https://slsa", "")),
                "predicateType",
            ),
        ] {
            let said = said(json);
            assert!(said.contains(part), "{said}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_the_reader_panic(json in any::<Vec<u8>>(), payload in ".{0,80}", pem in ".{0,80}") {
            let _ = Envelope::read(&json);
            let _ = Envelope::read(&envelope(&payload, payload.as_bytes()));
            let _ = public_key(&pem);
            let _ = public_key(&format!("-----BEGIN PUBLIC KEY-----\n{pem}\n-----END PUBLIC KEY-----\n"));
        }
    }
}
