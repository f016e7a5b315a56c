//! The keys of a remote issuer: fetched through its discovery document, kept, refreshed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{AGE, CACHE_CONTROL};
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::timeout;

use super::AuthenticationError;
use super::keys::{Candidate, KeySet, Wanted};
use super::outbound::{GetError, Outbound, Place, body};
use crate::status::chain;

/// What holds where an issuer gives its keys no `max-age`.
const DEFAULT_AGE: Duration = Duration::from_mins(5);
/// After a fetch that failed, doubled by each that does after it: what was down for a second is asked again soon, and what
/// fails for long, seldom.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How long newer keys are waited for where there are usable ones.
const REFRESH_PATIENCE: Duration = Duration::from_secs(1);
/// How long it is waited that it is the issuer's turn to be asked, where there are no usable ones.
const TURN_PATIENCE: Duration = Duration::from_secs(2);
/// How long a fetch waits for its turn. It never takes as long, unless groups that wait for each other's turns have changed
/// places meanwhile.
const LONGEST_QUEUED: Duration = Duration::from_mins(5);

/// How far an issuer is followed in how long its keys hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// The least `max-age`.
    min_age: Duration,
    /// The most of it that is taken.
    max_age: Duration,
    /// How long keys are used past their age while the issuer can't be reached.
    stale: Duration,
    /// Between two fetches, whatever tokens come.
    interval: Duration,
    /// The most that it is after one that failed.
    longest_pause: Duration,
}

impl Bounds {
    /// Of an issuer that others run.
    pub(super) const FOREIGN: Self = Self {
        min_age: Duration::from_mins(1),
        max_age: Duration::from_hours(1),
        stale: Duration::from_hours(1),
        interval: Duration::from_secs(10),
        longest_pause: Duration::from_mins(1),
    };
    /// Of an issuer that others run, and all callers come with its tokens: its return is not to be missed for long.
    pub(super) const CONFIGURED: Self = Self {
        longest_pause: Duration::from_secs(10),
        ..Self::FOREIGN
    };
    /// Of the set's own. It gives no shorter age than it means, and one that suits clouds, which it does not want to ask
    /// often; it answers us from memory, and a key that it revokes is never to be trusted for long.
    pub(super) const OWN: Self = Self {
        min_age: Duration::from_secs(1),
        max_age: Duration::from_secs(5),
        stale: Duration::from_mins(3),
        interval: Duration::from_secs(1),
        longest_pause: Duration::from_secs(1),
    };
}

/// The keys of one issuer.
pub(super) struct RemoteKeys {
    source: Arc<Source>,
    state: Arc<watch::Sender<State>>,
}

struct Source {
    name: String,
    url: String,
    outbound: Outbound,
    bounds: Bounds,
}

#[derive(Default)]
struct State {
    keys: Option<Kept>,
    /// On whose behalf a fetch waits for its turn: each in its own ones, so that nobody waits in those of others.
    queued: BTreeSet<String>,
    in_flight: bool,
    /// When the last fetch ended.
    last_fetch: Option<Instant>,
    /// If the last fetch failed.
    failed: Option<Failed>,
}

#[derive(Clone)]
struct Failed {
    why: String,
    /// How often in a row.
    times: u32,
}

#[derive(Clone)]
struct Kept {
    keys: Arc<KeySet>,
    /// When they were asked for.
    fetched: Instant,
    lifetime: Lifetime,
}

/// How long keys hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lifetime {
    /// For so long they are fresh.
    age: Duration,
    /// And used for so much longer while the issuer can't be reached.
    stale: Duration,
}

/// How good what is kept is.
enum Freshness {
    Fresh,
    /// Past its age. `failed` if the issuer could not be reached since then.
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
    pub(super) fn new(name: &str, url: &str, outbound: Outbound, bounds: Bounds) -> Self {
        let source = Source {
            name: name.to_owned(),
            url: url.to_owned(),
            outbound,
            bounds,
        };
        Self {
            source: Arc::new(source),
            state: Arc::new(watch::Sender::default()),
        }
    }

    /// Verifies a token with the keys that may be its own. Fetches them if they are missing, old, or not those that the
    /// token is signed with: in the turns of the one on whose behalf it is, which comes first, and of what is above it.
    pub(super) async fn verify<T>(
        &self,
        wanted: Wanted<'_>,
        of: &[&str],
        verify: impl Fn(&[Candidate]) -> Result<T, AuthenticationError>,
    ) -> Result<T, AuthenticationError> {
        let verify = |keys: &KeySet| verify(&keys.find(wanted)?);
        let fetched = match self.freshness() {
            Freshness::Fresh => Ok(()),
            // The issuer is down: nobody waits for it while there are keys.
            Freshness::Stale { failed: true } => self.fetch_within(Duration::ZERO, of).await,
            Freshness::Stale { failed: false } => {
                // Else they would be used for as long as others crowd it out, whatever the issuer has withdrawn.
                self.queue(of)?;
                self.fetch_within(REFRESH_PATIENCE, of).await
            }
            Freshness::None => self.fetch(of).await,
        };
        let kept = self.kept(fetched)?;
        match verify(&kept) {
            // The issuer may have other keys by now, with the same ids or without any.
            Err(refused) if refused.is_of_the_key() => {
                let fetched = self.fetch(of).await;
                let newer = self.kept(fetched.clone())?;
                if !Arc::ptr_eq(&kept, &newer) {
                    return verify(&newer);
                }
                // A key that could not be looked for may be there: then a new token is of no use, but the same one later.
                let not_looked_for = fetched
                    .err()
                    .filter(|_| refused == AuthenticationError::KeyUnknown);
                Err(not_looked_for.unwrap_or(refused))
            }
            verified => verified,
        }
    }

    /// The keys that are used; what became of the last try to have newer ones, if there are none.
    fn kept(
        &self,
        fetched: Result<(), AuthenticationError>,
    ) -> Result<Arc<KeySet>, AuthenticationError> {
        let keys = self.state.borrow().keys.clone();
        match keys.filter(|_| self.has_usable_keys()) {
            Some(kept) => Ok(kept.keys),
            None => Err(fetched
                .err()
                .unwrap_or_else(|| self.unavailable("it gave none that hold"))),
        }
    }

    fn unavailable(&self, why: &str) -> AuthenticationError {
        AuthenticationError::IssuerUnavailable {
            issuer: self.source.name.clone(),
            why: why.to_owned(),
        }
    }

    fn freshness(&self) -> Freshness {
        let state = self.state.borrow();
        let Some(kept) = &state.keys else {
            return Freshness::None;
        };
        let (elapsed, Lifetime { age, stale }) = (kept.fetched.elapsed(), kept.lifetime);
        if elapsed < age {
            Freshness::Fresh
        } else if elapsed < age + stale {
            let since = kept.fetched + age;
            let failed = state.failed.is_some() && state.last_fetch.is_some_and(|at| at >= since);
            Freshness::Stale { failed }
        } else {
            Freshness::None
        }
    }

    /// Whether it is being asked for its keys, or is about to be.
    pub(super) fn is_in_flight(&self) -> bool {
        let state = self.state.borrow();
        state.in_flight || !state.queued.is_empty()
    }

    /// Whether there are keys that are used, fresh or not.
    pub(super) fn has_usable_keys(&self) -> bool {
        !matches!(self.freshness(), Freshness::None)
    }

    /// Fetches the keys, together with whoever else waits for them, unless they were fetched just now.
    async fn fetch(&self, of: &[&str]) -> Result<(), AuthenticationError> {
        self.queue(of)?;
        let (mut state, bounds) = (self.state.subscribe(), self.source.bounds);
        let own = own(of);
        let begun = |state: &State| !state.queued.contains(own) || !state.is_due(bounds);
        let begun = timeout(TURN_PATIENCE, state.wait_for(|state| begun(state)));
        begun.await.map_err(|_| self.crowded_out())?.ok();
        // Its sender lives in `self`.
        let _ = state.wait_for(|state| !state.in_flight).await;
        let failed = state.borrow().failed.clone();
        failed.map_or(Ok(()), |failed| Err(self.unavailable(&failed.why)))
    }

    /// The same, but not waited for long. It goes on by itself.
    async fn fetch_within(
        &self,
        patience: Duration,
        of: &[&str],
    ) -> Result<(), AuthenticationError> {
        timeout(patience, self.fetch(of)).await.unwrap_or(Ok(()))
    }

    fn crowded_out(&self) -> AuthenticationError {
        self.unavailable("too many issuers are being asked for their keys")
    }

    /// Has the keys fetched if they may be, in a task of its own: whoever hangs up, or does not wait for it, does not stop
    /// it for the others, nor does it lose its place. An error if too many wait already.
    fn queue(&self, of: &[&str]) -> Result<(), AuthenticationError> {
        let bounds = self.source.bounds;
        let wanted = |state: &State| state.is_due(bounds) && !state.queued.contains(own(of));
        if !wanted(&self.state.borrow()) {
            return Ok(());
        }
        let place = self.source.outbound.place(of);
        let place = place.ok_or_else(|| self.crowded_out())?;
        let queued = self.state.send_if_modified(|state| {
            let queued = wanted(state);
            queued && state.queued.insert(own(of).to_owned())
        });
        if queued {
            let queued = Queued {
                state: Arc::clone(&self.state),
                of: own(of).to_owned(),
            };
            tokio::spawn(Arc::clone(&self.source).fetch_in_turn(place, queued));
        }
        Ok(())
    }

    /// As if this much time had passed.
    #[cfg(test)]
    pub(super) fn age(&self, by: Duration) {
        self.state.send_modify(|state| {
            let earlier = |at: Instant| at.checked_sub(by).expect("the clock reaches back");
            state.last_fetch = state.last_fetch.map(earlier);
            if let Some(kept) = &mut state.keys {
                kept.fetched = earlier(kept.fetched);
            }
        });
    }
}

fn own<'a>(of: &[&'a str]) -> &'a str {
    of.first().copied().unwrap_or_default()
}

/// While a fetch waits for its turn.
struct Queued {
    state: Arc<watch::Sender<State>>,
    of: String,
}

impl Queued {
    /// Its turn has come. `None` if others have fetched meanwhile.
    fn begins(self, bounds: Bounds) -> Option<InFlight> {
        let begins = self.state.send_if_modified(|state| {
            let begins = state.is_due(bounds);
            state.in_flight |= begins;
            begins
        });
        begins.then(|| InFlight(Arc::clone(&self.state)))
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.state.send_modify(|state| {
            state.queued.remove(&self.of);
        });
    }
}

/// However the fetch ends, the next one may begin.
struct InFlight(Arc<watch::Sender<State>>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.send_modify(|state| {
            state.in_flight = false;
            state.last_fetch = Some(Instant::now());
        });
    }
}

impl State {
    /// Whether a fetch may begin. Counted from the end of the last one, so that a slow issuer is not asked all the time.
    fn is_due(&self, bounds: Bounds) -> bool {
        let pause = self.failed.as_ref().map_or(bounds.interval, |failed| {
            let doubled = 1 << (failed.times - 1).min(16);
            (FIRST_PAUSE * doubled).min(bounds.longest_pause)
        });
        !self.in_flight && self.last_fetch.is_none_or(|last| last.elapsed() >= pause)
    }
}

impl Source {
    async fn fetch_in_turn(self: Arc<Self>, place: Place, queued: Queued) {
        let Ok(_turn) = timeout(LONGEST_QUEUED, place.turn()).await else {
            return;
        };
        let Some(InFlight(state)) = &queued.begins(self.bounds) else {
            return;
        };
        let fetched = self.fetch().await;
        self.note(&fetched, &state.borrow());
        state.send_modify(|state| match fetched {
            Ok(kept) => (state.keys, state.failed) = (Some(kept), None),
            Err(error) => {
                let times = state.failed.as_ref().map_or(0, |failed| failed.times);
                state.failed = Some(Failed {
                    why: error.told(),
                    times: times.saturating_add(1),
                });
            }
        });
    }

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
        let fetched = Instant::now();
        let response = self.outbound.get(&url).await?;
        let lifetime = self.bounds.lifetime(response.headers());
        let keys = KeySet::parse(&body(response, &url).await?)
            .map_err(|source| FetchError::Malformed { url, source })?;
        Ok(Kept {
            keys: Arc::new(keys),
            fetched,
            lifetime,
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

impl Bounds {
    /// How long keys hold, by what the issuer says of it (RFC 9111, 5.2.2) and of how long a cache had them (5.1).
    fn lifetime(self, headers: &http::HeaderMap) -> Lifetime {
        let directives = headers
            .get_all(CACHE_CONTROL)
            .iter()
            .filter_map(|value| value.to_str().ok());
        let directives: Vec<&str> = directives
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .collect();
        let forbidden = |directive: &&str| {
            ["no-store", "no-cache"]
                .iter()
                .any(|name| directive.eq_ignore_ascii_case(name))
        };
        if directives.iter().any(forbidden) {
            return Lifetime {
                age: self.min_age,
                stale: Duration::ZERO,
            };
        }
        let given = directives.iter().find_map(|directive| {
            let (name, seconds) = directive.split_once('=')?;
            let seconds = seconds.trim_matches('"').parse();
            name.eq_ignore_ascii_case("max-age")
                .then(|| seconds.unwrap_or(0))
        });
        let passed = headers.get(AGE).and_then(|age| age.to_str().ok());
        let passed = passed.and_then(|age| age.parse().ok()).unwrap_or(0);
        let left = given.map(|given: u64| given.saturating_sub(passed));
        Lifetime {
            age: left
                .map_or(DEFAULT_AGE, Duration::from_secs)
                .clamp(self.min_age, self.max_age),
            stale: self.stale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(bounds: Bounds, cache_control: &'static str, age: &'static str) -> Lifetime {
        let headers = [(CACHE_CONTROL, cache_control), (AGE, age)]
            .map(|(name, value)| (name, http::HeaderValue::from_static(value)));
        bounds.lifetime(&http::HeaderMap::from_iter(headers))
    }

    #[test]
    fn ages_are_bounded() {
        for (value, age, foreign, own) in [
            ("max-age=1", "", 60, 1),
            ("public, max-age=600", "", 600, 5),
            ("public, max-age=3", "", 60, 3),
            ("MAX-AGE=\"600\"", "0", 600, 5),
            ("max-age=9999999", "", 3_600, 5),
            ("private", "", 300, 5),
            // What can't be read is stale (RFC 9111, 4.2.1).
            ("max-age=x", "", 60, 1),
            ("max-age=-1", "", 60, 1),
            // A cache between had them before.
            ("max-age=600", "400", 200, 5),
            ("max-age=600", "601", 60, 1),
            ("max-age=9999999", "400", 3_600, 5),
            ("max-age=600", "soon", 600, 5),
        ] {
            for (bounds, seconds) in [(Bounds::FOREIGN, foreign), (Bounds::OWN, own)] {
                let expected = Lifetime {
                    age: Duration::from_secs(seconds),
                    stale: bounds.stale,
                };
                assert_eq!(lifetime(bounds, value, age), expected, "{value} {age}");
            }
        }
    }

    #[test]
    fn what_must_not_be_kept_is_not_used_stale() {
        for value in ["no-store, max-age=600", "No-Cache"] {
            let Lifetime { age, stale } = lifetime(Bounds::FOREIGN, value, "");
            assert_eq!((age, stale), (Bounds::FOREIGN.min_age, Duration::ZERO));
        }
    }

    #[tokio::test]
    async fn a_fetch_that_panics_does_not_stand_in_the_way() {
        let state = Arc::new(watch::channel(State::default()).0);
        state.send_modify(|state| state.in_flight = true);
        let in_flight = InFlight(Arc::clone(&state));
        let fetch = tokio::spawn(async move {
            let _in_flight = in_flight;
            panic!("on purpose");
        });
        assert!(fetch.await.is_err());
        assert!(!state.borrow().in_flight);
    }
}
