//! Which tokens of other issuers a service account stands for. One function decides, wherever it is asked.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Bytes of an issuer's URL.
const MAX_ISSUER: usize = 255;
/// Bytes of an audience, and of what a claim must be.
const MAX_VALUE: usize = 255;
/// Bytes of a claim's name.
const MAX_CLAIM: usize = 64;
/// Bytes of what a token says in a claim. More is not compared, nor kept.
const MAX_SAID: usize = 1_024;
/// The hosts with which one may talk without TLS: this machine.
const LOOPBACK: [&str; 3] = ["127.0.0.1", "localhost", "[::1]"];
/// Claims that every token is checked for anyway, or that say nothing of who it is for.
const CHECKED_ANYWAY: [&str; 6] = ["iss", "aud", "exp", "nbf", "iat", "jti"];

/// The `iss` of an OIDC issuer, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IssuerUrl(String);

/// The text is not an [`IssuerUrl`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be an https URL (http on a loopback address only) without user, query and fragment, of at most {MAX_ISSUER} bytes"
)]
pub struct InvalidIssuerUrl;

/// Whom a token must be for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Audience(String);

/// The text is not an [`Audience`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to {MAX_VALUE} bytes without control characters")]
pub struct InvalidAudience;

/// The name of a claim on which a condition may be made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClaimName(String);

/// The text is not a [`ClaimName`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "must be the name of a claim, of at most {MAX_CLAIM} visible ASCII characters, and none of: {}",
    CHECKED_ANYWAY.join(", ")
)]
pub struct InvalidClaimName;

/// What the value of a claim must be like.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pattern {
    /// This, byte for byte.
    Exact(String),
    /// This, where `*` is any text, also none, and `?` any one character.
    Glob(String),
}

/// The text is not a [`Pattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    /// Nothing, too much, or what no claim holds.
    #[error("must be 1 to {MAX_VALUE} bytes without control characters")]
    Text,
    /// It asks for nothing.
    #[error("must hold more than * and ?: it would let every token of the issuer in")]
    Anything,
}

/// With what an issuer signs: an asymmetric algorithm (RFC 7518, 3.1; RFC 8037, 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Algorithm(&'static str);

/// The text is not an [`Algorithm`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be one of: {}", Algorithm::ALL.join(", "))]
pub struct InvalidAlgorithm;

/// Tokens that a service account stands for: of this issuer, for this audience, with all of these claims.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Whose tokens.
    pub issuer: IssuerUrl,
    /// With what they must be signed; if it is not said here, each key of the issuer has to say it itself.
    pub signing_algorithm: Option<Algorithm>,
    /// Whom they must be for.
    pub audience: Audience,
    /// What they must say. At least one.
    pub claims: BTreeMap<ClaimName, Pattern>,
}

/// What a token says, once it is verified: its claims that are texts, numbers or truth values, as texts.
pub type Claims = BTreeMap<String, String>;

impl TrustPolicy {
    /// Policies of a service account.
    pub const MAX: usize = 10;
    /// Conditions of a policy.
    pub const MAX_CLAIMS: usize = 10;

    /// Whether it is certain that a token was to be signed with this algorithm. `declared` if its key says so itself.
    #[must_use]
    pub fn is_signed_with(&self, algorithm: &str, declared: bool) -> bool {
        self.signing_algorithm
            .map_or(declared, |named| named.as_str() == algorithm)
    }

    /// Whether a verified token of this issuer, which is for these audiences and says this, is one of them.
    #[must_use]
    pub fn admits(&self, issuer: &str, audiences: &[String], claims: &Claims) -> bool {
        self.issuer.0 == issuer
            && audiences.contains(&self.audience.0)
            && !self.claims.is_empty()
            && self.unlike(claims).next().is_none()
    }

    /// The claims that are not there, or not as the policy asks.
    pub fn unlike<'a>(&'a self, claims: &'a Claims) -> impl Iterator<Item = &'a ClaimName> {
        let differs = |(name, pattern): &(&ClaimName, &Pattern)| {
            let value = claims.get(&name.0);
            !value.is_some_and(|value| pattern.matches(value))
        };
        self.claims.iter().filter(differs).map(|(name, _)| name)
    }
}

/// Whether what a token says in a claim is short and plain enough to be compared, and kept.
#[must_use]
pub fn is_plain(said: &str) -> bool {
    said.len() <= MAX_SAID && !said.chars().any(char::is_control)
}

impl Algorithm {
    /// Their names.
    pub const ALL: [&str; 9] = [
        "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
    ];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

impl FromStr for Algorithm {
    type Err = InvalidAlgorithm;

    fn from_str(text: &str) -> Result<Self, InvalidAlgorithm> {
        let mut known = Self::ALL.into_iter();
        let found = known.find(|name| *name == text);
        found.map(Self).ok_or(InvalidAlgorithm)
    }
}

impl Pattern {
    /// An exact value.
    pub fn exact(text: &str) -> Result<Self, InvalidPattern> {
        plain(text).map(Self::Exact).ok_or(InvalidPattern::Text)
    }

    /// A glob.
    pub fn glob(text: &str) -> Result<Self, InvalidPattern> {
        let text = plain(text).ok_or(InvalidPattern::Text)?;
        if text.chars().all(|c| matches!(c, '*' | '?')) {
            return Err(InvalidPattern::Anything);
        }
        Ok(Self::Glob(text))
    }

    /// Whether a value is like this. One that is not plain never is.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        match self {
            _ if !is_plain(value) => false,
            Self::Exact(text) => text == value,
            Self::Glob(glob) => {
                let (glob, value): (Vec<char>, Vec<char>) =
                    (glob.chars().collect(), value.chars().collect());
                is_like(&glob, &value)
            }
        }
    }
}

/// Takes as long as the lengths multiplied at most: only the last `*` is ever tried again.
fn is_like(glob: &[char], value: &[char]) -> bool {
    let (mut g, mut v) = (0, 0);
    let mut last_star: Option<(usize, usize)> = None;
    while v < value.len() {
        match glob.get(g) {
            Some('*') => {
                last_star = Some((g, v));
                g += 1;
            }
            Some(c) if *c == '?' || *c == value[v] => {
                g += 1;
                v += 1;
            }
            _ => {
                // The last star takes one more.
                let Some((star, taken)) = last_star else {
                    return false;
                };
                last_star = Some((star, taken + 1));
                g = star + 1;
                v = taken + 1;
            }
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

fn plain(text: &str) -> Option<String> {
    let plain = (1..=MAX_VALUE).contains(&text.len()) && !text.chars().any(char::is_control);
    plain.then(|| text.to_owned())
}

impl IssuerUrl {
    /// Byte for byte.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IssuerUrl {
    type Err = InvalidIssuerUrl;

    fn from_str(text: &str) -> Result<Self, InvalidIssuerUrl> {
        let (scheme, rest) = text.split_once("://").ok_or(InvalidIssuerUrl)?;
        let authority = rest.split('/').next().unwrap_or_default();
        // The last colon is of the port, unless it is in the brackets of an IPv6 address.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (authority, None),
        };
        let port_valid = port.is_none_or(|port| {
            port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
        });
        // Only what may stand in a URL (RFC 3986, 2), and neither user, query nor fragment.
        let allowed =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]%!$&'()*+,;=".contains(&byte);
        let safe = scheme == "https" || scheme == "http" && LOOPBACK.contains(&host);
        let valid = text.len() <= MAX_ISSUER
            && safe
            && !host.is_empty()
            && port_valid
            && rest.bytes().all(allowed);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidIssuerUrl)
        }
    }
}

impl FromStr for Audience {
    type Err = InvalidAudience;

    fn from_str(text: &str) -> Result<Self, InvalidAudience> {
        plain(text).map(Self).ok_or(InvalidAudience)
    }
}

impl FromStr for ClaimName {
    type Err = InvalidClaimName;

    fn from_str(text: &str) -> Result<Self, InvalidClaimName> {
        let valid = (1..=MAX_CLAIM).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic())
            && !CHECKED_ANYWAY.contains(&text);
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidClaimName)
        }
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for ClaimName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy() -> TrustPolicy {
        let claims = [
            ("sub", Pattern::glob("repo:acme/*:ref:refs/heads/main")),
            ("environment", Pattern::exact("prod")),
        ];
        TrustPolicy {
            issuer: "https://ci.example.com".parse().expect("a url"),
            signing_algorithm: None,
            audience: "tharsis".parse().expect("an audience"),
            claims: claims
                .into_iter()
                .map(|(name, pattern)| {
                    let name = name.parse().expect("a name");
                    (name, pattern.expect("a pattern"))
                })
                .collect(),
        }
    }

    fn says(claims: &[(&str, &str)]) -> Claims {
        let claims = claims.iter();
        claims
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn a_token_must_be_of_the_issuer_for_the_audience_and_say_all_of_it() {
        let (issuer, audiences) = (
            "https://ci.example.com",
            ["x".to_owned(), "tharsis".to_owned()],
        );
        let sub = ("sub", "repo:acme/web:ref:refs/heads/main");
        let good = says(&[sub, ("environment", "prod"), ("more", "1")]);
        assert!(policy().admits(issuer, &audiences, &good));
        for other in ["https://ci.example.com/", "https://CI.example.com", ""] {
            assert!(!policy().admits(other, &audiences, &good), "{other}");
        }
        assert!(!policy().admits(issuer, &audiences[..1], &good));
        assert!(!policy().admits(issuer, &[], &good));
        for lacking in [
            &[][..],
            &[sub],
            &[sub, ("environment", "Prod")],
            &[
                ("sub", "repo:other/web:ref:refs/heads/main"),
                ("environment", "prod"),
            ],
            &[
                ("sub", "repo:acme/web:ref:refs/heads/main2"),
                ("environment", "prod"),
            ],
        ] {
            assert!(
                !policy().admits(issuer, &audiences, &says(lacking)),
                "{lacking:?}"
            );
        }
        let anybody = TrustPolicy {
            claims: BTreeMap::new(),
            ..policy()
        };
        assert!(!anybody.admits(issuer, &audiences, &good));
    }

    #[test]
    fn what_asks_for_nothing_is_no_pattern() {
        for anything in ["*", "?", "**", "?*?"] {
            assert_eq!(Pattern::glob(anything), Err(InvalidPattern::Anything));
        }
        for wrong in ["", "a\n", &"a".repeat(256)] {
            assert_eq!(Pattern::glob(wrong), Err(InvalidPattern::Text));
            assert_eq!(Pattern::exact(wrong), Err(InvalidPattern::Text));
        }
        // By itself a star is a text like any other.
        assert!(Pattern::exact("*").is_ok_and(|star| star.matches("*") && !star.matches("a")));
        assert!(Pattern::glob("a").is_ok_and(|glob| glob.matches("a") && !glob.matches("ab")));
    }

    #[test]
    fn what_is_long_or_not_plain_is_like_nothing() {
        let glob = Pattern::glob("a*").expect("a pattern");
        assert!(glob.matches(&"a".repeat(1_024)));
        for other in ["a".repeat(1_025), "a\n".to_owned(), "a\u{85}".to_owned()] {
            assert!(!glob.matches(&other), "{other:?}");
        }
    }

    #[test]
    fn the_algorithm_is_said_by_the_policy_or_the_key() {
        let named = |name: &str| TrustPolicy {
            signing_algorithm: Some(name.parse().expect("an algorithm")),
            ..policy()
        };
        assert!(named("RS256").is_signed_with("RS256", false));
        assert!(!named("RS256").is_signed_with("ES256", true));
        assert!(policy().is_signed_with("RS256", true));
        assert!(!policy().is_signed_with("RS256", false));
        for wrong in ["", "none", "HS256", "rs256", "RSA-OAEP"] {
            assert_eq!(wrong.parse::<Algorithm>(), Err(InvalidAlgorithm), "{wrong}");
        }
    }

    #[test]
    fn issuers_are_https_but_for_this_machine() {
        for good in [
            "https://ci.example.com",
            "https://ci.example.com/",
            "https://ci.example.com:8443/a/b",
            "http://127.0.0.1:7100",
            "http://localhost",
            "http://[::1]:1/x",
        ] {
            assert!(good.parse::<IssuerUrl>().is_ok(), "{good}");
        }
        for bad in [
            "",
            "ci.example.com",
            "https://",
            "https:///x",
            "http://ci.example.com",
            "http://127.0.0.1.example.com",
            "http://localhost.example.com",
            "http://127.0.0.1@example.com",
            "https://alice@example.com",
            "https://example.com?x",
            "https://example.com#x",
            "https://example.com:x",
            "https://example.com:99999",
            "https://example.com/a b",
            "https://example.com\\@evil",
            "ftp://example.com",
            "HTTP://example.com",
            &format!("https://example.com/{}", "a".repeat(255)),
        ] {
            assert_eq!(bad.parse::<IssuerUrl>(), Err(InvalidIssuerUrl), "{bad}");
        }
    }

    #[test]
    fn conditions_are_on_claims_that_tell_tokens_apart() {
        for good in ["sub", "repository", "https://example.com/groups", "a.b"] {
            assert!(good.parse::<ClaimName>().is_ok(), "{good}");
        }
        for bad in ["", "iss", "aud", "exp", "jti", "a b", "é", &"a".repeat(65)] {
            assert_eq!(bad.parse::<ClaimName>(), Err(InvalidClaimName), "{bad}");
        }
    }

    /// What a glob means, said as simply as can be.
    fn reference(glob: &[char], value: &[char]) -> bool {
        match (glob.split_first(), value.split_first()) {
            (None, None) => true,
            (Some(('*', rest)), _) => {
                (0..=value.len()).any(|taken| reference(rest, &value[taken..]))
            }
            (Some(('?', glob)), Some((_, value))) => reference(glob, value),
            (Some((c, glob)), Some((d, value))) => c == d && reference(glob, value),
            (None | Some(_), _) => false,
        }
    }

    proptest! {
        #[test]
        fn a_glob_matches_what_it_means(glob in "[ab*?é]{0,8}", value in "[abé]{0,10}") {
            let (glob, value): (Vec<char>, Vec<char>) = (glob.chars().collect(), value.chars().collect());
            prop_assert_eq!(is_like(&glob, &value), reference(&glob, &value));
        }

        #[test]
        fn an_exact_value_matches_itself_only(text in "[a*?]{1,6}", other in "[a*?]{1,6}") {
            let pattern = Pattern::exact(&text).expect("a pattern");
            prop_assert_eq!(pattern.matches(&other), text == other);
        }

        #[test]
        fn more_conditions_never_admit_more(values in prop::collection::vec("[ab]{1,2}", 3), globs in prop::collection::vec("[ab][*?ab]", 3)) {
            let claims: Claims = values.iter().enumerate().map(|(n, value)| (format!("c{n}"), value.clone())).collect();
            let mut policy = policy();
            policy.claims.clear();
            let mut before = true;
            for (n, glob) in globs.iter().enumerate() {
                let name = format!("c{n}").parse().expect("a name");
                policy.claims.insert(name, Pattern::glob(glob).expect("a pattern"));
                let now = policy.admits("https://ci.example.com", &["tharsis".to_owned()], &claims);
                prop_assert!(before || !now);
                before = now;
            }
        }

        #[test]
        fn no_url_makes_the_parser_panic(text in "(https?://)?.{0,64}") {
            let _ = text.parse::<IssuerUrl>();
        }
    }
}
