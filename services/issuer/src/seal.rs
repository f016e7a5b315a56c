//! Encryption at rest: AES-256-GCM under the key-encryption keys of the configuration.

use std::fmt;
use std::path::Path;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Where the key-encryption keys are. A key management service of a cloud would be another place: one that never hands
/// them out.
pub enum Sealer {
    /// In this process. The first seals, all open.
    Local(Vec<RandomizedNonceKey>),
}

/// Something that was opened.
pub struct Opened {
    /// What was sealed.
    pub plain: Vec<u8>,
    /// Whether the key that seals now had sealed it.
    pub by_first: bool,
}

/// Something can't be sealed or opened.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The file of the key-encryption keys.
    #[error("the key-encryption keys can't be read from {path}")]
    File {
        /// Where it should be.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What is in the file.
    #[error("the key-encryption keys in {0} must be 32 bytes in base64 each")]
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
    /// Reads the key-encryption keys from a file.
    pub fn from_file(path: &Path) -> Result<Self, SealError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|source| SealError::File {
            path: shown.clone(),
            source,
        })?;
        Self::from_text(&text).ok_or(SealError::Key(shown))
    }

    /// Reads key-encryption keys, each 32 bytes in base64, with white space or commas between. At least one.
    #[must_use]
    pub fn from_text(text: &str) -> Option<Self> {
        let key = |text: &str| {
            let bytes = STANDARD.decode(text).ok()?;
            RandomizedNonceKey::new(&AES_256_GCM, &bytes).ok()
        };
        // Some editors begin a file with a byte order mark.
        let text = text.trim_start_matches('\u{feff}');
        let texts = text.split([' ', '\t', '\r', '\n', ',']);
        let keys: Option<Vec<_>> = texts.filter(|text| !text.is_empty()).map(key).collect();
        keys.filter(|keys| !keys.is_empty()).map(Self::Local)
    }

    /// Seals; `name` is bound to it, so that one sealed thing can't stand in for another.
    pub fn seal(&self, name: &str, plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let Self::Local(keys) = self;
        let mut sealed = plain.to_vec();
        let nonce = keys
            .first()
            .ok_or(SealError::Sealed)?
            .seal_in_place_append_tag(Aad::from(name.as_bytes()), &mut sealed)
            .map_err(|_| SealError::Sealed)?;
        Ok([nonce.as_ref(), sealed.as_slice()].concat())
    }

    /// Opens what was sealed under the name.
    pub fn open(&self, name: &str, sealed: &[u8]) -> Result<Opened, SealError> {
        let Self::Local(keys) = self;
        let opened = keys
            .iter()
            .enumerate()
            .find_map(|(place, key)| Some((place, open(key, name, sealed)?)));
        let (place, plain) = opened.ok_or(SealError::Sealed)?;
        let by_first = place == 0;
        Ok(Opened { plain, by_first })
    }
}

fn open(key: &RandomizedNonceKey, name: &str, sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_at_checked(NONCE_LEN)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut plain = sealed.to_vec();
    let opened = key.open_in_place(nonce, Aad::from(name.as_bytes()), &mut plain);
    opened.ok().map(|opened| opened.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealer(bytes: &[u8]) -> Sealer {
        let keys: Vec<String> = bytes
            .iter()
            .map(|byte| STANDARD.encode([*byte; 32]))
            .collect();
        Sealer::from_text(&keys.join("\n")).expect("keys")
    }

    #[test]
    fn only_the_same_key_and_name_open_it() {
        let sealed = sealer(&[1]).seal("kid", b"private").expect("sealed");
        assert!(!sealed.windows(7).any(|window| window == b"private"));
        let opened = sealer(&[1]).open("kid", &sealed).expect("opened");
        assert_eq!(
            (opened.plain.as_slice(), opened.by_first),
            (&b"private"[..], true)
        );
        assert!(sealer(&[2]).open("kid", &sealed).is_err());
        assert!(sealer(&[1]).open("other", &sealed).is_err());
        assert!(sealer(&[1]).open("kid", &sealed[..5]).is_err());
    }

    #[test]
    fn the_first_key_seals_and_all_open() {
        let old = sealer(&[1]).seal("kid", b"private").expect("sealed");
        let both = sealer(&[2, 1]);
        let opened = both.open("kid", &old).expect("opened");
        assert_eq!(
            (opened.plain.as_slice(), opened.by_first),
            (&b"private"[..], false)
        );
        let new = both.seal("kid", &opened.plain).expect("sealed");
        assert!(sealer(&[2]).open("kid", &new).is_ok() && sealer(&[1]).open("kid", &new).is_err());
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_a_key() {
        assert!(Sealer::from_text(&format!("\u{feff}{}\r\n", STANDARD.encode([1; 32]))).is_some());
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for bad in ["", "  \n", "AAEC", "not base64", &STANDARD.encode([1; 33])] {
            assert!(Sealer::from_text(bad).is_none(), "{bad:?}");
        }
    }
}
