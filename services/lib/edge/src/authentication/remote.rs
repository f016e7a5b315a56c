//! The keys of a remote issuer: fetched through its discovery document, kept, refreshed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::CACHE_CONTROL;
use jsonwebtoken::{Algorithm, DecodingKey};
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;

use super::AuthenticationError;
use super::keys::{KeySet, NoKey};
use super::outbound::{GetError, Outbound, body};
use crate::status::chain;

/// The bounds of the `max-age` that an issuer may give its keys, and what holds without one.
const MIN_AGE: Duration = Duration::from_mins(1);
const DEFAULT_AGE: Duration = Duration::from_mins(5);
const MAX_AGE: Duration = Duration::from_hours(1);
/// How long keys are used past their age while the issuer can't be reached.
const STALE: Duration = Duration::from_hours(1);
/// Between two fetches, whatever tokens come.
const INTERVAL: Duration = Duration::from_secs(10);
/// The same while there are no keys at all.
const FIRST_INTERVAL: Duration = Duration::from_secs(1);

/// The keys of one issuer.
pub(super) struct RemoteKeys {
    source: Arc<Source>,
    state: Arc<watch::Sender<State>>,
}

struct Source {
    name: String,
    url: String,
    outbound: Outbound,
}

#[derive(Default)]
struct State {
    keys: Option<Kept>,
    last_fetch: Option<Instant>,
    in_flight: bool,
    /// Why the last fetch failed, if it did.
    failed: Option<String>,
}

#[derive(Clone)]
struct Kept {
    keys: Arc<KeySet>,
    fetched: Instant,
    age: Duration,
}

/// How good what is kept is.
enum Freshness {
    Fresh,
    /// Past its age. `failed` if the issuer could not be reached since.
    Stale {
        failed: bool,
    },
    /// Not usable, or not there.
    None,
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error(transparent)]
    Get(#[from] GetError),
    #[error("{url} does not parse")]
    Malformed {
        url: String,
        source: serde_json::Error,
    },
    #[error("the discovery document is of the issuer {0:?}")]
    OtherIssuer(String),
    #[error("the jwks_uri {0:?} is not an absolute http(s) URL, or less safe than the issuer's")]
    JwksUri(String),
}

impl FetchError {
    /// For whoever sent a token of the issuer.
    fn told(&self) -> String {
        match self {
            Self::Get(error) => error.told(),
            Self::Malformed { .. } => "its document is not the JSON that is expected".to_owned(),
            Self::OtherIssuer(_) => "its discovery document is of another issuer".to_owned(),
            Self::JwksUri(_) => "its jwks_uri is not an absolute https URL".to_owned(),
        }
    }
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl RemoteKeys {
    /// Of the issuer at this URL, called by this name.
    pub(super) fn new(name: &str, url: &str, outbound: Outbound) -> Self {
        let source = Source {
            name: name.to_owned(),
            url: url.to_owned(),
            outbound,
        };
        Self {
            source: Arc::new(source),
            state: Arc::new(watch::Sender::default()),
        }
    }

    /// The key for a token with this header. Fetches the keys if they are missing, old, or without this one.
    pub(super) async fn find(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<DecodingKey, AuthenticationError> {
        match self.freshness() {
            Freshness::Fresh => {}
            // The issuer is down: nobody waits for it while there are keys.
            Freshness::Stale { failed: true } => self.start_fetch(),
            Freshness::Stale { failed: false } | Freshness::None => self.fetch().await,
        }
        match self.find_kept(id, algorithm)? {
            Err(NoKey::Unknown) => {
                self.fetch().await;
                Ok(self.find_kept(id, algorithm)??)
            }
            found => Ok(found?),
        }
    }

    fn find_kept(
        &self,
        id: Option<&str>,
        algorithm: Algorithm,
    ) -> Result<Result<DecodingKey, NoKey>, AuthenticationError> {
        let unavailable = || AuthenticationError::IssuerUnavailable {
            issuer: self.source.name.clone(),
            why: self.state.borrow().failed.clone().unwrap_or_default(),
        };
        let kept = match self.freshness() {
            Freshness::None => None,
            Freshness::Fresh | Freshness::Stale { .. } => self.state.borrow().keys.clone(),
        };
        Ok(kept.ok_or_else(unavailable)?.keys.find(id, algorithm))
    }

    fn freshness(&self) -> Freshness {
        let state = self.state.borrow();
        match state
            .keys
            .as_ref()
            .map(|kept| (kept.fetched.elapsed(), kept.age))
        {
            Some((elapsed, age)) if elapsed < age => Freshness::Fresh,
            Some((elapsed, age)) if elapsed < age + STALE => Freshness::Stale {
                failed: state.failed.is_some(),
            },
            Some(_) | None => Freshness::None,
        }
    }

    /// Fetches the keys, together with whoever else waits for them, unless they were fetched just now.
    async fn fetch(&self) {
        let mut state = self.state.subscribe();
        self.start_fetch();
        // Its sender lives in `self`.
        let _ = state.wait_for(|state| !state.in_flight).await;
    }

    /// Starts a fetch in a task of its own, so that a caller who hangs up does not stop it for the others.
    fn start_fetch(&self) {
        let start = self.state.send_if_modified(|state| {
            let interval = if state.keys.is_some() {
                INTERVAL
            } else {
                FIRST_INTERVAL
            };
            let due = state
                .last_fetch
                .is_none_or(|last| last.elapsed() >= interval);
            let start = due && !state.in_flight;
            if start {
                state.in_flight = true;
                state.last_fetch = Some(Instant::now());
            }
            start
        });
        if start {
            let (source, state) = (Arc::clone(&self.source), Arc::clone(&self.state));
            tokio::spawn(async move {
                let fetched = source.fetch().await;
                source.note(&fetched, &state.borrow());
                state.send_modify(|state| {
                    state.in_flight = false;
                    state.failed = fetched.as_ref().err().map(FetchError::told);
                    if let Ok(kept) = fetched {
                        state.keys = Some(kept);
                    }
                });
            });
        }
    }

    /// As if this much time had passed.
    #[cfg(test)]
    pub(super) fn age(&self, by: Duration) {
        self.state.send_modify(|state| {
            state.last_fetch = state.last_fetch.and_then(|last| last.checked_sub(by));
            if let Some(kept) = &mut state.keys {
                kept.fetched = kept
                    .fetched
                    .checked_sub(by)
                    .expect("the monotonic clock reaches back");
            }
        });
    }
}

impl Source {
    fn note(&self, fetched: &Result<Kept, FetchError>, before: &State) {
        match fetched {
            Ok(kept) if before.keys.is_none() || before.failed.is_some() => {
                tracing::info!(
                    issuer = self.name,
                    keys = kept.keys.len(),
                    "issuer's keys fetched"
                );
            }
            Ok(_) => tracing::debug!(issuer = self.name, "issuer's keys refreshed"),
            Err(error) => {
                let kept = before.keys.is_some();
                tracing::warn!(
                    issuer = self.name,
                    kept,
                    error = chain(error),
                    "issuer's keys can't be fetched"
                );
            }
        }
    }

    async fn fetch(&self) -> Result<Kept, FetchError> {
        // A trailing slash is not doubled (OpenID Connect Discovery 1.0, section 4).
        let url = format!(
            "{}/.well-known/openid-configuration",
            self.url.trim_end_matches('/')
        );
        let document = body(self.outbound.get(&url).await?, &url).await?;
        let discovery: Discovery = serde_json::from_slice(&document)
            .map_err(|source| FetchError::Malformed { url, source })?;
        if discovery.issuer != self.url {
            return Err(FetchError::OtherIssuer(discovery.issuer));
        }
        let url = self.jwks_url(&discovery.jwks_uri)?;
        let response = self.outbound.get(&url).await?;
        let age = age(response.headers());
        let keys = KeySet::parse(&body(response, &url).await?)
            .map_err(|source| FetchError::Malformed { url, source })?;
        Ok(Kept {
            keys: Arc::new(keys),
            fetched: Instant::now(),
            age,
        })
    }

    fn jwks_url(&self, jwks_uri: &str) -> Result<String, FetchError> {
        let url = Url::parse(jwks_uri).ok().filter(|url| match url.scheme() {
            "https" => true,
            "http" => self.url.starts_with("http://"),
            _ => false,
        });
        url.map(String::from)
            .ok_or_else(|| FetchError::JwksUri(jwks_uri.to_owned()))
    }
}

/// How long the keys hold, by `cache-control`, within bounds.
fn age(headers: &http::HeaderMap) -> Duration {
    let directives = headers
        .get_all(CACHE_CONTROL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let directives: Vec<&str> = directives
        .flat_map(|text| text.split(','))
        .map(str::trim)
        .collect();
    let forbidden = |directive: &&str| {
        matches!(
            directive.to_ascii_lowercase().as_str(),
            "no-store" | "no-cache"
        )
    };
    if directives.iter().any(forbidden) {
        return MIN_AGE;
    }
    let max_age = directives.iter().find_map(|directive| {
        let (name, seconds) = directive.split_once('=')?;
        if name.eq_ignore_ascii_case("max-age") {
            seconds.trim_matches('"').parse().ok()
        } else {
            None
        }
    });
    max_age
        .map_or(DEFAULT_AGE, Duration::from_secs)
        .clamp(MIN_AGE, MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_bounded() {
        for (value, seconds) in [
            ("max-age=1", 60),
            ("public, max-age=600", 600),
            ("MAX-AGE=\"600\"", 600),
            ("max-age=9999999", 3_600),
            ("no-store, max-age=600", 60),
            ("private", 300),
            ("max-age=x", 300),
        ] {
            let headers = [(CACHE_CONTROL, http::HeaderValue::from_static(value))]
                .into_iter()
                .collect();
            assert_eq!(age(&headers), Duration::from_secs(seconds), "{value}");
        }
    }
}
