//! Encryption at rest: AES-256-GCM under the key-encryption key of the configuration.

use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// The key-encryption key.
pub struct Sealer(RandomizedNonceKey);

/// Something can't be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file of the key-encryption key.
    #[error("the key-encryption key can't be read from {path}")]
    File {
        /// Where it should be.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What is in the file.
    #[error("the key-encryption key in {0} must be 32 bytes in base64")]
    Key(String),
    /// What was sealed.
    #[error("it can't be opened: it was sealed with another key-encryption key, or changed since")]
    Sealed,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Reads the key-encryption key: 32 bytes in base64.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| SealError::File {
            path: shown.clone(),
            source,
        })?;
        let key = STANDARD
            .decode(text.trim())
            .map_err(|_| SealError::Key(shown.clone()))?;
        RandomizedNonceKey::new(&AES_256_GCM, &key)
            .map(Self)
            .map_err(|_| SealError::Key(shown))
    }

    /// Seals; `name` is bound to it, so that one sealed thing can't stand in for another.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let mut sealed = plain.to_vec();
        let nonce = self
            .0
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut sealed)
            .map_err(|_| SealError::Sealed)?;
        Ok([nonce.as_ref(), sealed.as_slice()].concat())
    }

    /// Opens what was sealed under the name.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
        let (nonce, sealed) = sealed
            .split_at_checked(NONCE_LEN)
            .ok_or(SealError::Sealed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| SealError::Sealed)?;
        let mut plain = sealed.to_vec();
        let opened = self
            .0
            .open_in_place(nonce, Aad::from(name.as_bytes()), &mut plain)
            .map_err(|_| SealError::Sealed)?;
        Ok(opened.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(byte: u8) -> Sealer {
        Sealer(RandomizedNonceKey::new(&AES_256_GCM, &[byte; 32]).expect("a key"))
    }

    #[test]
    fn only_the_same_key_and_name_open_it() {
        let sealed = sealer(1).seal("kid", b"private").expect("sealed");
        assert!(!sealed.windows(7).any(|window| window == b"private"));
        assert_eq!(sealer(1).open("kid", &sealed).expect("opened"), b"private");
        assert!(sealer(2).open("kid", &sealed).is_err());
        assert!(sealer(1).open("other", &sealed).is_err());
        assert!(sealer(1).open("kid", &sealed[..5]).is_err());
    }
}
