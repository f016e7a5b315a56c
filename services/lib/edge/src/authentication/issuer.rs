//! The configuration of an OIDC issuer.

use std::collections::BTreeSet;

use serde::Deserialize;

/// An OIDC issuer whose tokens are taken.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// What principals of it are called by: the `dev` of `dev/alice`.
    pub name: String,
    /// The `iss` of its tokens, byte for byte; its discovery document is below it.
    pub url: String,
    /// The `aud` that its tokens for us have.
    pub audience: String,
}

/// The issuers are configured wrongly.
#[derive(Debug, thiserror::Error)]
pub enum InvalidIssuer {
    /// Not the JSON that is expected.
    #[error("it does not parse: {0}")]
    Json(#[from] serde_json::Error),
    /// There is none.
    #[error("it has no issuer, so nobody could call")]
    Empty,
    /// A name that can't be part of a principal.
    #[error("the name {0:?} is not made of lowercase letters, digits and -")]
    Name(String),
    /// A URL that can't be an issuer's.
    #[error("the url {0:?} is not an http(s) URL without user, query and fragment")]
    Url(String),
    /// No audience.
    #[error("the issuer {0} has no audience")]
    Audience(String),
    /// Two issuers can't be told apart.
    #[error("two issuers have the same name or url: {0}")]
    Twice(String),
    /// Callers would be looked for among its tokens for clouds.
    #[error("the url {0} is THARSIS_ISSUER_URL, whose own tokens are taken without it")]
    Own(String),
}

impl Issuer {
    /// How the setting looks.
    pub(crate) const SETTING: &str =
        r#"JSON such as [{"name":"dev","url":"http://127.0.0.1:7100","audience":"tharsis"}]"#;

    /// Reads the setting. `own` is the URL of the set's own issuer, if that is known.
    pub fn parse_all(json: &str, own: Option<&str>) -> Result<Vec<Self>, InvalidIssuer> {
        let issuers: Vec<Self> = serde_json::from_str(json)?;
        if issuers.is_empty() {
            return Err(InvalidIssuer::Empty);
        }
        let mut seen = BTreeSet::new();
        for issuer in &issuers {
            issuer.check()?;
            if own == Some(issuer.url.as_str()) {
                return Err(InvalidIssuer::Own(issuer.url.clone()));
            }
            for unique in [&issuer.name, &issuer.url] {
                if !seen.insert(unique) {
                    return Err(InvalidIssuer::Twice(unique.clone()));
                }
            }
        }
        Ok(issuers)
    }

    fn check(&self) -> Result<(), InvalidIssuer> {
        let name_valid = self
            .name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        if self.name.is_empty() || !name_valid {
            return Err(InvalidIssuer::Name(self.name.clone()));
        }
        let url_valid = reqwest::Url::parse(&self.url).is_ok_and(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.username().is_empty()
                && url.password().is_none()
                && url.query().is_none()
                && url.fragment().is_none()
        });
        if !url_valid {
            return Err(InvalidIssuer::Url(self.url.clone()));
        }
        if self.audience.is_empty() {
            return Err(InvalidIssuer::Audience(self.name.clone()));
        }
        Ok(())
    }
}
