//! The signing key of an OIDC issuer for callers: in a file that only its owner reads, or in memory for tests.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge::clock;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Value, json};

/// An RSA key with 2048 bits, and its public half.
pub struct SigningKey {
    pair: KeyPair,
    jwk: Jwk,
}

impl SigningKey {
    /// The key in the file; `None` if there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>> {
        let der = match fs::read(path) {
            Ok(der) => der,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("{} can't be read", path.display()));
            }
        };
        let pair = KeyPair::from_pkcs8(&der).map_err(|error| {
            anyhow!(
                "{} holds no RSA key ({error}); delete it to get a new one",
                path.display()
            )
        })?;
        Self::of(pair).map(Some)
    }

    /// The key in the file, which is made if there is none.
    pub fn read_or_make(path: &Path) -> Result<Self> {
        if let Some(key) = Self::read(path)? {
            return Ok(key);
        }
        make(path).with_context(|| format!("no key can be kept in {}", path.display()))?;
        Self::read(path)?.with_context(|| format!("{} is gone again", path.display()))
    }

    /// A key that is kept nowhere.
    pub fn generate() -> Result<Self> {
        Self::of(KeyPair::generate(KeySize::Rsa2048)?)
    }

    fn of(pair: KeyPair) -> Result<Self> {
        let public = DecodingKey::from_rsa_der(pair.public_key().as_ref());
        let mut jwk = Jwk::from_decoding_key(&public, Some(Algorithm::RS256))?;
        jwk.common.public_key_use = Some(PublicKeyUse::Signature);
        jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256)?);
        Ok(Self { pair, jwk })
    }

    /// The public half.
    #[must_use]
    pub fn jwk(&self) -> &Jwk {
        &self.jwk
    }

    /// The header of a good token.
    #[must_use]
    pub fn header(&self) -> Value {
        json!({"alg": "RS256", "typ": "JWT", "kid": self.jwk.common.key_id})
    }

    /// A JWT with these claims.
    pub fn sign(&self, claims: &Value) -> Result<String> {
        self.sign_as(&self.header(), claims)
    }

    /// A JWT with this header, whatever it says; the signature is of RS256.
    pub fn sign_as(&self, header: &Value, claims: &Value) -> Result<String> {
        self.sign_texts(&header.to_string(), &claims.to_string())
    }

    /// The same of texts, which may be anything.
    pub fn sign_texts(&self, header: &str, claims: &str) -> Result<String> {
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let message = format!("{}.{}", encode(header), encode(claims));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair.sign(
            &RSA_PKCS1_SHA256,
            &SystemRandom::new(),
            message.as_bytes(),
            &mut signature,
        )?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

/// Makes a key, and puts it in its place whole; where another process was quicker, its key stays.
fn make(path: &Path) -> Result<()> {
    let der: Pkcs8V1Der<'_> = KeyPair::generate(KeySize::Rsa2048)?.as_der()?;
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let draft = path.with_extension(clock::new_uuid().simple().to_string());
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?
        .write_all(der.as_ref())?;
    let placed = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match placed {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
