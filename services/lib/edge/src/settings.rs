//! Configuration from the environment, read in whole before anything binds. What is wrong is reported all at once.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use eventlog::bus;
use http::Uri;
use model::Principal;
use tracing_subscriber::EnvFilter;

use crate::authentication::Issuer;
use crate::host::Peer;

/// What every service is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `THARSIS_GRPC_LISTEN`.
    pub grpc_listen: SocketAddr,
    /// `THARSIS_METRICS_LISTEN`: where metrics are served, if they are.
    pub metrics_listen: Option<SocketAddr>,
    /// `THARSIS_DATABASE_URL`.
    pub database_url: Secret,
    /// `THARSIS_NATS_URL`; it may hold a password.
    pub nats_url: Secret,
    /// `THARSIS_NATS_CREDENTIALS_FILE`, where the servers ask for one.
    pub nats_credentials_file: Option<PathBuf>,
    /// `THARSIS_NATS_PREFIX`: the first word of subjects and stream names, where several sets share a NATS.
    pub nats_prefix: String,
    /// `THARSIS_NATS_REPLICAS`: copies of each stream in a cluster.
    pub nats_replicas: usize,
    /// `THARSIS_OIDC_ISSUERS`: whose tokens are taken.
    pub issuers: Vec<Issuer>,
    /// `THARSIS_ISSUER_URL`: the `iss` of the tokens that the set's own issuer signs, byte for byte.
    pub issuer_url: String,
    /// `THARSIS_ADMINISTRATORS`.
    pub administrators: BTreeSet<Principal>,
    /// `THARSIS_EVENT_READERS`.
    pub event_readers: BTreeSet<Principal>,
    /// `THARSIS_REQUESTS_PER_SECOND`: of each caller, in this process; none for as many as they like.
    pub requests_per_second: Option<NonZeroU32>,
    /// `THARSIS_SERVICE_TOKEN_FILE`.
    pub service_token_file: PathBuf,
    /// The gRPC addresses of the other services.
    pub peers: BTreeMap<Peer, Uri>,
    /// `THARSIS_LOG` and `THARSIS_LOG_FORMAT`.
    pub log: LogSettings,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter as `tracing_subscriber::EnvFilter` reads it.
    pub filter: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

impl Settings {
    /// Reads what every service is told, each of the others. `None` if something is wrong with it, which is then noted.
    pub fn read(environment: &mut Environment<'_>, own: Peer) -> Option<Self> {
        let grpc_listen = environment.required(
            "THARSIS_GRPC_LISTEN",
            "an address and port, such as 127.0.0.1:7101",
            str::parse,
        );
        let metrics_listen = environment.optional(
            "THARSIS_METRICS_LISTEN",
            "an address and port, such as 127.0.0.1:7109",
            str::parse,
        );
        let database_url = environment.secret(
            "THARSIS_DATABASE_URL",
            "postgres://user@host:port/database",
            |url| url.starts_with("postgres://") || url.starts_with("postgresql://"),
        );
        let nats_url = environment.secret(
            "THARSIS_NATS_URL",
            "nats://host:port or tls://host:port, several separated by commas",
            |url| bus::servers(url).is_ok(),
        );
        let nats_credentials_file = environment.optional(
            "THARSIS_NATS_CREDENTIALS_FILE",
            "the path of a .creds file",
            path,
        );
        let nats_prefix = environment.or(
            "THARSIS_NATS_PREFIX",
            "one word of lowercase letters, digits and _",
            subject_word,
            || "tharsis".to_owned(),
        );
        let nats_replicas = environment.or("THARSIS_NATS_REPLICAS", "1, 3 or 5", replicas, || 1);
        let issuer_url = issuer_url(environment);
        let issuers = environment.required("THARSIS_OIDC_ISSUERS", Issuer::SETTING, |json| {
            Issuer::parse_all(json, issuer_url.as_deref())
        });
        let administrators = environment.or(
            "THARSIS_ADMINISTRATORS",
            PRINCIPALS,
            principals,
            BTreeSet::new,
        );
        let event_readers = environment.or(
            "THARSIS_EVENT_READERS",
            PRINCIPALS,
            principals,
            BTreeSet::new,
        );
        let requests_per_second = environment.or(
            "THARSIS_REQUESTS_PER_SECOND",
            "a whole number; 0 for no limit",
            |text| text.parse().map(NonZeroU32::new),
            || NonZeroU32::new(REQUESTS_PER_SECOND),
        );
        let peers = peers(environment, own);
        let service_token_file = environment.required(
            "THARSIS_SERVICE_TOKEN_FILE",
            "the path of a file with this service's bearer token",
            path,
        );
        let log = LogSettings::read(environment);
        Some(Self {
            grpc_listen: grpc_listen?,
            metrics_listen: metrics_listen?,
            database_url: database_url?,
            nats_url: nats_url?,
            nats_credentials_file: nats_credentials_file?,
            nats_prefix: nats_prefix?,
            nats_replicas: nats_replicas?,
            issuers: issuers?,
            issuer_url: issuer_url?,
            administrators: administrators?,
            event_readers: event_readers?,
            requests_per_second: requests_per_second?,
            service_token_file: service_token_file?,
            peers: peers?,
            log: log?,
        })
    }
}

impl LogSettings {
    fn read(environment: &mut Environment<'_>) -> Option<Self> {
        let filter = environment.or(
            "THARSIS_LOG",
            "a tracing filter, such as info,edge=debug",
            filter,
            || "info".to_owned(),
        );
        let format = environment.or("THARSIS_LOG_FORMAT", "text or json", log_format, || {
            LogFormat::Text
        });
        Some(Self {
            filter: filter?,
            format: format?,
        })
    }
}

/// Of each caller, if the configuration does not say.
const REQUESTS_PER_SECOND: u32 = 1_000;
const PRINCIPALS: &str = "a comma-separated list of <issuer name>/<subject>";

fn principals(text: &str) -> Result<BTreeSet<Principal>, model::principal::InvalidUser> {
    text.split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .map(Principal::user)
        .collect()
}

fn address(text: &str) -> Result<Uri, String> {
    let uri: Uri = text
        .parse()
        .map_err(|error: http::uri::InvalidUri| error.to_string())?;
    match (
        uri.scheme_str(),
        uri.authority(),
        uri.path_and_query().map(http::uri::PathAndQuery::as_str),
    ) {
        (Some("http" | "https"), Some(_), None | Some("/")) => Ok(uri),
        _ => Err("not the address of a gRPC service".to_owned()),
    }
}

/// All but our own.
fn peers(environment: &mut Environment<'_>, own: Peer) -> Option<BTreeMap<Peer, Uri>> {
    let peers = Peer::ALL.into_iter().filter(|peer| *peer != own);
    let addresses: Vec<_> = peers
        .map(|peer| {
            let address = environment.required(peer.variable(), "http(s)://host:port", address);
            address.map(|address| (peer, address))
        })
        .collect();
    addresses.into_iter().collect()
}

fn path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    text.parse()
}

fn subject_word(text: &str) -> Result<String, &'static str> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if text.bytes().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("not a plain word")
    }
}

fn replicas(text: &str) -> Result<usize, &'static str> {
    text.parse()
        .ok()
        .filter(|count| [1, 3, 5].contains(count))
        .ok_or("not a number of replicas")
}

fn filter(text: &str) -> Result<String, tracing_subscriber::filter::ParseError> {
    EnvFilter::builder().parse(text).map(|_| text.to_owned())
}

fn log_format(text: &str) -> Result<LogFormat, &'static str> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("not a format"),
    }
}

/// A value that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value. It must not reach a log or an answer.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Variables, and what is wrong with those that were read.
pub struct Environment<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<Problem>,
}

/// What is wrong with a variable.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    variable: &'static str,
    found: Found,
    allowed: &'static str,
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    Nothing,
    Hidden,
    Text { text: String, why: String },
}

/// The configuration is wrong. Says so for each variable.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct InvalidSettings(Vec<Problem>);

/// Reads the configuration with `build`, from the process's environment.
pub fn from_process<T>(
    build: impl FnOnce(&mut Environment<'_>) -> Option<T>,
) -> Result<T, InvalidSettings> {
    from(
        &|variable| Some(std::env::var_os(variable)?.to_string_lossy().into_owned()),
        build,
    )
}

/// Reads the configuration with `build`, which notes what is wrong and answers `None` only then. It should read every
/// variable before it gives up, so that all problems are reported at once.
pub fn from<T>(
    lookup: &dyn Fn(&str) -> Option<String>,
    build: impl FnOnce(&mut Environment<'_>) -> Option<T>,
) -> Result<T, InvalidSettings> {
    let mut environment = Environment {
        lookup,
        problems: Vec::new(),
    };
    match build(&mut environment) {
        Some(settings) if environment.problems.is_empty() => Ok(settings),
        Some(_) | None => Err(InvalidSettings(environment.problems)),
    }
}

/// The names of the variables that `build` reads, as one that finds none of them.
pub(crate) fn variables<T>(
    build: impl FnOnce(&mut Environment<'_>) -> Option<T>,
) -> BTreeSet<String> {
    let names = RefCell::new(BTreeSet::new());
    let notes = |variable: &str| {
        names.borrow_mut().insert(variable.to_owned());
        None
    };
    // What is missing is of no interest here.
    let _ = from(&notes, build);
    names.into_inner()
}

fn issuer_url(environment: &mut Environment<'_>) -> Option<String> {
    environment.required(
        "THARSIS_ISSUER_URL",
        "an https URL (http on a loopback address) as clients write it, without query, fragment and trailing slash, at most \
         600 characters",
        parse_issuer_url,
    )
}

/// Clouds compare the issuer byte for byte, and Azure takes 600 characters at most. Only what may stand in a URL
/// (RFC 3986, 2), and no quotation mark: it is pasted into other texts.
fn parse_issuer_url(text: &str) -> Result<String, &'static str> {
    let url = reqwest::Url::parse(text).map_err(|_| "not a URL")?;
    let local = matches!(url.host_str(), Some("127.0.0.1" | "localhost" | "[::1]"));
    let rest = match text.split_once("://") {
        Some(("https", rest)) => rest,
        Some(("http", rest)) if local => rest,
        _ => return Err("not https"),
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/[]%!&()*+,;=".contains(&byte);
    let plain = !rest.is_empty() && !rest.ends_with('/') && rest.bytes().all(allowed);
    // Whoever fetches it asks for it as it is written here. A URL without a path is asked for with `/`.
    let written = url.as_str();
    let same = written == text || written.strip_suffix('/') == Some(text);
    if plain && same && text.len() <= 600 {
        Ok(text.to_owned())
    } else {
        Err("not such a URL")
    }
}

impl Environment<'_> {
    /// A variable that must be set.
    pub fn required<T, E: Display>(
        &mut self,
        variable: &'static str,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let found = self.optional(variable, allowed, parse)?;
        if found.is_none() {
            self.problems.push(Problem {
                variable,
                found: Found::Nothing,
                allowed,
            });
        }
        found
    }

    /// A variable that may be left out. `None` if it is wrong, `Some(None)` if it is not set or empty.
    pub fn optional<T, E: Display>(
        &mut self,
        variable: &'static str,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<Option<T>> {
        let Some(text) = self.look_up(variable) else {
            return Some(None);
        };
        match parse(&text) {
            Ok(value) => Some(Some(value)),
            Err(error) => {
                let found = Found::Text {
                    text,
                    why: error.to_string(),
                };
                self.problems.push(Problem {
                    variable,
                    found,
                    allowed,
                });
                None
            }
        }
    }

    /// A variable with a default.
    pub fn or<T, E: Display>(
        &mut self,
        variable: &'static str,
        allowed: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
        default: impl FnOnce() -> T,
    ) -> Option<T> {
        self.optional(variable, allowed, parse)
            .map(|found| found.unwrap_or_else(default))
    }

    /// A variable that must be set and is never printed.
    pub fn secret(
        &mut self,
        variable: &'static str,
        allowed: &'static str,
        valid: impl FnOnce(&str) -> bool,
    ) -> Option<Secret> {
        let found = match self.look_up(variable) {
            Some(text) if valid(&text) => return Some(Secret(text)),
            Some(_) => Found::Hidden,
            None => Found::Nothing,
        };
        self.problems.push(Problem {
            variable,
            found,
            allowed,
        });
        None
    }

    /// A variable that may be left out and is never printed. `None` if it is wrong, `Some(None)` if it is not set or
    /// empty.
    pub fn optional_secret(
        &mut self,
        variable: &'static str,
        allowed: &'static str,
        valid: impl FnOnce(&str) -> bool,
    ) -> Option<Option<Secret>> {
        match self.look_up(variable) {
            None => Some(None),
            Some(_) => self.secret(variable, allowed, valid).map(Some),
        }
    }

    fn look_up(&self, variable: &str) -> Option<String> {
        (self.lookup)(variable).filter(|text| !text.is_empty())
    }
}

impl Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the configuration is wrong:")?;
        for Problem {
            variable,
            found,
            allowed,
        } in &self.0
        {
            match found {
                Found::Nothing => write!(f, "\n  {variable} is not set")?,
                Found::Hidden => write!(f, "\n  {variable} is set to something else (not shown)")?,
                Found::Text { text, why } => write!(f, "\n  {variable} is {text:?}: {why}")?,
            }
            write!(f, "; it must be {allowed}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("THARSIS_GRPC_LISTEN", "127.0.0.1:7101"),
        ("THARSIS_DATABASE_URL", "postgres://u:hunter2@h/d"),
        ("THARSIS_NATS_URL", "nats://127.0.0.1:7107"),
        (
            "THARSIS_OIDC_ISSUERS",
            r#"[{"name":"dev","url":"http://127.0.0.1:7100","audience":"tharsis"}]"#,
        ),
        ("THARSIS_ISSUER_URL", "https://tharsis.example.com"),
        ("THARSIS_ADMINISTRATORS", "dev/admin, dev/root"),
        ("THARSIS_NAMESPACE_URL", "http://127.0.0.1:7101"),
        ("THARSIS_IDENTITY_URL", "http://127.0.0.1:7102"),
        ("THARSIS_PROJECTOR_URL", "http://127.0.0.1:7104"),
        ("THARSIS_SERVICE_TOKEN_FILE", "/run/token"),
    ];

    fn read(changes: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
        let lookup = |variable: &str| {
            let find = |pairs: &[(&str, &str)]| {
                pairs
                    .iter()
                    .find(|(name, _)| *name == variable)
                    .map(|(_, value)| (*value).to_owned())
            };
            find(changes).or_else(|| find(GOOD))
        };
        from(&lookup, |environment| {
            Settings::read(environment, Peer::Issuer)
        })
    }

    #[test]
    fn good_settings() {
        let settings = read(&[]).expect("valid");
        assert!(!format!("{settings:?}").contains("hunter2"));
        assert_eq!(settings.database_url.reveal(), "postgres://u:hunter2@h/d");
        assert_eq!(settings.administrators.len(), 2);
        assert_eq!(
            settings.log,
            LogSettings {
                filter: "info".into(),
                format: LogFormat::Text
            }
        );
        let others = [Peer::Namespace, Peer::Identity, Peer::Projector];
        assert!(settings.peers.into_keys().eq(others));
    }

    #[test]
    fn all_problems_are_reported_at_once_and_secrets_never() {
        let error = read(&[
            ("THARSIS_GRPC_LISTEN", "7101"),
            ("THARSIS_DATABASE_URL", "mysql://u:hunter2@h/d"),
            ("THARSIS_NATS_URL", "nats://u:hunter2@h:1,nats://i:x"),
            ("THARSIS_ADMINISTRATORS", "admin"),
            ("THARSIS_IDENTITY_URL", "127.0.0.1:7102"),
            ("THARSIS_NAMESPACE_URL", ""),
            ("THARSIS_PROJECTOR_URL", ""),
            ("THARSIS_LOG_FORMAT", "xml"),
            ("THARSIS_SERVICE_TOKEN_FILE", ""),
        ])
        .expect_err("invalid")
        .to_string();
        for part in [
            "THARSIS_GRPC_LISTEN is \"7101\"",
            "THARSIS_DATABASE_URL is set to something else (not shown); it must be postgres://",
            "THARSIS_NATS_URL is set to something else (not shown); it must be nats://",
            "THARSIS_ADMINISTRATORS is \"admin\"",
            "THARSIS_IDENTITY_URL is \"127.0.0.1:7102\"",
            "THARSIS_NAMESPACE_URL is not set",
            "THARSIS_PROJECTOR_URL is not set",
            "THARSIS_SERVICE_TOKEN_FILE is not set",
            "THARSIS_LOG_FORMAT is \"xml\": not a format; it must be text or json",
        ] {
            assert!(error.contains(part), "{part} is missing in {error}");
        }
        assert!(!error.contains("hunter2"));
    }

    #[test]
    fn a_service_is_told_of_all_others() {
        for own in Peer::ALL {
            let error = from(&|_| None, |environment| Settings::read(environment, own));
            let error = error.expect_err("invalid").to_string();
            for peer in Peer::ALL {
                let missing = format!("{} is not set", peer.variable());
                assert_eq!(error.contains(&missing), peer != own, "{error}");
            }
        }
    }

    #[test]
    fn bad_issuers() {
        for bad in [
            "dev",
            "[]",
            r#"[{"name":"Dev","url":"http://h","audience":"a"}]"#,
            r#"[{"name":"dev","url":"ftp://h","audience":"a"}]"#,
            r#"[{"name":"dev","url":"http://h?x","audience":"a"}]"#,
            r#"[{"name":"dev","url":"http://h","audience":""}]"#,
            r#"[{"name":"dev","url":"http://h","audience":"a","extra":1}]"#,
            r#"[{"name":"dev","url":"http://h","audience":"a"},{"name":"dev","url":"http://i","audience":"a"}]"#,
            r#"[{"name":"dev","url":"http://h","audience":"a"},{"name":"b","url":"http://h","audience":"a"}]"#,
        ] {
            assert!(read(&[("THARSIS_OIDC_ISSUERS", bad)]).is_err(), "{bad}");
        }
        let issuers = r#"[{"name":"dev","url":"https://own.example.com","audience":"a"}]"#;
        let read = |issuer_url| {
            read(&[
                ("THARSIS_OIDC_ISSUERS", issuers),
                ("THARSIS_ISSUER_URL", issuer_url),
            ])
        };
        assert!(read("https://other.example.com").is_ok());
        let error = read("https://own.example.com").expect_err("invalid");
        assert!(error.to_string().contains("THARSIS_ISSUER_URL"), "{error}");
    }

    #[test]
    fn issuer_urls() {
        for good in [
            "https://tharsis.example.com",
            "https://example.com/oidc/tharsis",
            "http://127.0.0.1:7105",
            "http://[::1]:7105",
        ] {
            assert_eq!(parse_issuer_url(good), Ok(good.to_owned()));
        }
        let long = format!("https://example.com/{}", "a".repeat(600));
        for bad in [
            "",
            "https://",
            "https://example.com/",
            "http://example.com",
            "https://example.com?x",
            "https://example.com#x",
            "https://alice@example.com",
            "https://example.com/a b",
            "https://example.com/\"",
            "https://example.com/'",
            "https://example.com/${x}",
            "https://exämple.com",
            "http://localhost.example.com",
            "http://127.0.0.1.example.com",
            "https://example.com:99999",
            // Others would write it otherwise, or ask elsewhere.
            "https:///example.com",
            "https://example.com/a/../b",
            "https://Example.com",
            "https://example.com:443",
            &long,
        ] {
            assert!(parse_issuer_url(bad).is_err(), "{bad}");
        }
    }
}
