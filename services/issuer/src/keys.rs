//! The signing keys of this issuer at work: read from the log, kept encrypted, told to relying parties, and changed when
//! that is due.
//!
//! Several issuers agree through the log. Each looks there several times a second, so what one publishes, all do long
//! before it signs; and a credential's audit is refused if its key does not sign any more.

mod due;
pub(crate) mod ring;
mod upkeep;
pub(crate) mod vault;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use edge::clock;
use edge::status::chain;
use eventlog::{AppendError, EventLog, LogError};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use model::SigningAlgorithm;
use time::OffsetDateTime;
use tokio::sync::{Mutex, Notify, watch};
use tokio::time::{Instant, timeout};

use self::due::{Retired, do_what_is_due};
use self::ring::{Recorded, Revision};
use self::vault::Vault;
use crate::domain::signing_key::{Fresh, Key, Policy, Rejection, Stage};
use crate::seal::{SealError, Sealer};
use crate::signing::{SigningError, SigningKey, entity_tag};
use crate::wire::Unreadable;

/// Between looks at the log. Far below the least clock skew that can be configured.
const LOOK: Duration = Duration::from_millis(200);
/// How long a look may take. A query that never answers must not be waited for: all that is revoked later would not be
/// seen.
const PATIENCE: Duration = Duration::from_secs(5);

/// The signing keys, as this process knows them. Cheap to clone.
#[derive(Clone)]
pub struct Keys {
    log: EventLog,
    vault: Vault,
    policy: Policy,
    known: Arc<watch::Sender<Known>>,
    private: Arc<watch::Sender<Private>>,
    of_jobs: Arc<watch::Sender<JwkSet>>,
    published: Arc<watch::Sender<JwkSet>>,
    /// When it was last known that nothing had changed.
    looked: Arc<watch::Sender<Instant>>,
    /// By how much our clock was off when that was looked at last, if by more than it may.
    off: Arc<watch::Sender<Option<Duration>>>,
    looking: Arc<Mutex<()>>,
    opening: Arc<Mutex<()>>,
    wake: Arc<Notify>,
}

/// What is known of the keys at a revision.
struct Known {
    recorded: Recorded,
    key_set: KeySet,
}

/// The private half of a key, or why it can't be used.
type Half = Result<Arc<SigningKey>, Arc<KeyError>>;

/// The private halves at a revision. What the log says of the keys counts whether they can be opened or not.
#[derive(Clone, Default)]
struct Private {
    revision: Revision,
    /// Of the keys that sign.
    active: BTreeMap<SigningAlgorithm, Half>,
    /// Opened before they sign.
    next: Vec<Half>,
}

/// The key set as relying parties read it (RFC 7517, 5).
#[derive(Clone)]
pub struct KeySet {
    /// JSON.
    pub body: Bytes,
    /// An entity tag (RFC 9110, 8.8.3).
    pub etag: String,
}

/// The signing keys can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// A stored key can't be opened.
    #[error("signing key {kid}: {source}")]
    Seal {
        /// Which.
        kid: String,
        /// Why.
        source: SealError,
    },
    /// A key can't be made or used.
    #[error(transparent)]
    Signing(#[from] SigningError),
    /// The log can't be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The log holds something else.
    #[error("an event of a signing key can't be read: {0}")]
    Event(String),
    /// The log can't be written.
    #[error("the signing key can't be recorded")]
    Append(#[from] AppendError),
    /// The database failed.
    #[error("the database failed")]
    Database(#[from] sqlx::Error),
    /// The log names a key that is not there.
    #[error("the private half of signing key {0} is missing from the database")]
    Missing(String),
    /// The public half of a key is none.
    #[error("the public half of a signing key can't be read")]
    Public(#[from] serde_json::Error),
    /// What should sign can't be used.
    #[error(transparent)]
    Closed(Arc<KeyError>),
    /// Whose clock is wrong can't be told here. A key that leaves the key set too early, or signs too early, does so for
    /// good, and a token whose times are wrong is of no use.
    #[error(
        "the clocks of this machine and of the database differ by {} s, more than THARSIS_CLOCK_SKEW_SECONDS ({}): set them \
         right",
        off.as_secs(),
        skew.as_secs()
    )]
    Clock {
        /// By how much, at least.
        off: Duration,
        /// The most that they may.
        skew: Duration,
    },
    /// Never of what is due by itself.
    #[error(transparent)]
    Rejected(#[from] Rejection),
}

impl From<Unreadable> for KeyError {
    fn from(error: Unreadable) -> Self {
        Self::Event(error.to_string())
    }
}

impl KeyError {
    fn seal(kid: &str, source: SealError) -> Self {
        let kid = kid.to_owned();
        Self::Seal { kid, source }
    }
}

impl Keys {
    /// Reads the keys, or makes the first ones. Several issuers that start at once end with the same keys.
    pub async fn open(log: &EventLog, sealer: Sealer, policy: Policy) -> Result<Self, KeyError> {
        let vault = Vault::new(log.pool().clone(), sealer);
        let mut private = Private::default();
        let recorded = loop {
            let recorded = ring::load(log).await?;
            // Keys of another epoch are only revoked. Where others can't be opened, nothing is done: the other issuers could not
            // open what is sealed here either.
            if recorded.revision.is_of(log.head().await?.epoch) != Some(false) {
                private = Private::of(&recorded, &vault, &private).await;
                match private.active.values().find_map(|half| half.clone().err()) {
                    // It was destroyed meanwhile, because another key signs now.
                    Some(error)
                        if matches!(*error, KeyError::Missing(_))
                            && ring::revision(log).await? != recorded.revision =>
                    {
                        continue;
                    }
                    Some(error) => return Err(KeyError::Closed(error)),
                    None => {}
                }
            }
            let times = (agreed_time(log, &policy).await?, &BTreeMap::new());
            if !do_what_is_due(log, &vault, &policy, &recorded, times).await? {
                break recorded;
            }
        };
        vault.destroy(&silent(&recorded)).await?;
        if let Err(error) = vault.reseal().await {
            let error = chain(&error);
            tracing::warn!(error, "signing keys can't be sealed anew");
        }
        let of_jobs = job_keys(&recorded, &policy)?;
        let published = published_keys(&recorded)?;
        let known = Known::of(recorded)?;
        Ok(Self {
            log: log.clone(),
            vault,
            policy,
            known: Arc::new(watch::channel(known).0),
            private: Arc::new(watch::channel(private).0),
            of_jobs: Arc::new(watch::channel(of_jobs).0),
            published: Arc::new(watch::channel(published).0),
            looked: Arc::new(watch::channel(Instant::now()).0),
            off: Arc::default(),
            looking: Arc::default(),
            opening: Arc::default(),
            wake: Arc::default(),
        })
    }

    /// The key that signs with the default algorithm, and so all that is for services of ours.
    pub fn active(&self) -> Result<Arc<SigningKey>, KeyError> {
        let algorithm = SigningAlgorithm::default();
        let active = self.active_for(algorithm)?;
        active.ok_or_else(|| KeyError::Missing(algorithm.to_string()))
    }

    /// The key that signs with an algorithm. `None` as long as the first one of it has to wait until it is known.
    pub fn active_for(
        &self,
        algorithm: SigningAlgorithm,
    ) -> Result<Option<Arc<SigningKey>>, KeyError> {
        let half = self.private.borrow().active.get(&algorithm).cloned();
        half.transpose().map_err(KeyError::Closed)
    }

    /// The keys that relying parties verify with.
    #[must_use]
    pub fn key_set(&self) -> KeySet {
        self.known.borrow().key_set.clone()
    }

    /// How long relying parties may keep the key set, in seconds: what we did not look at just now, they keep for less.
    #[must_use]
    pub fn max_age(&self) -> u64 {
        let max_age = self.policy.max_age.unsigned_abs().as_secs();
        max_age.saturating_sub(self.age().as_secs())
    }

    /// The keys that job tokens are verified with: a job may outlive the last credential of the key that signed its
    /// token.
    #[must_use]
    pub fn of_jobs(&self) -> watch::Receiver<JwkSet> {
        self.of_jobs.subscribe()
    }

    /// The keys that relying parties verify with, of all algorithms, for whoever is one in this process.
    #[must_use]
    pub fn published(&self) -> watch::Receiver<JwkSet> {
        self.published.subscribe()
    }

    /// How the keys are to live.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Since when what is known of the keys is known to be so.
    #[must_use]
    pub fn looked(&self) -> Instant {
        *self.looked.borrow()
    }

    fn age(&self) -> Duration {
        self.looked().elapsed()
    }

    /// Whether our clock was right when that was looked at last: where it is not, no token's times are.
    pub(crate) fn clock_agrees(&self) -> Result<(), KeyError> {
        match *self.off.borrow() {
            Some(off) => Err(self.policy.off(off)),
            None => Ok(()),
        }
    }

    /// Whether our clock was right when something was recorded, which was between these times by it.
    pub(crate) fn recorded_in_time(
        &self,
        before: OffsetDateTime,
        recorded_at: OffsetDateTime,
        after: OffsetDateTime,
    ) -> Result<(), KeyError> {
        self.policy.agree(before, recorded_at, after)
    }

    /// Looks at the log, after something was changed there or refused.
    pub(crate) async fn look(&self) -> Result<(), KeyError> {
        in_time(PATIENCE, self.look_once()).await?;
        self.open_once().await;
        Ok(())
    }

    async fn look_once(&self) -> Result<(), KeyError> {
        let _one_at_a_time = self.looking.lock().await;
        let now = Instant::now();
        let before = self.known.borrow().recorded.revision.clone();
        if ring::revision(&self.log).await? != before {
            let known = Known::of(ring::load(&self.log).await?)?;
            self.known.send_replace(known);
        }
        let of_jobs = job_keys(&self.known.borrow().recorded, &self.policy)?;
        let published = published_keys(&self.known.borrow().recorded)?;
        for (sender, now) in [(&self.of_jobs, of_jobs), (&self.published, published)] {
            sender.send_if_modified(|known| {
                let changed = *known != now;
                *known = now;
                changed
            });
        }
        self.looked.send_replace(now);
        Ok(())
    }

    /// Opens the private halves of what is known to sign, unless that is done. Until then the keys of before sign, in vain if
    /// they may not any more: what they sign is refused when it is recorded.
    async fn open_once(&self) {
        let _one_at_a_time = self.opening.lock().await;
        let recorded = self.known.borrow().recorded.clone();
        let before = self.private.borrow().clone();
        if before.revision != recorded.revision || before.wrong().is_some() {
            let private = Private::of(&recorded, &self.vault, &before).await;
            self.private.send_replace(private);
        }
    }

    /// The time by which keys are changed.
    pub(crate) async fn time(&self) -> Result<OffsetDateTime, KeyError> {
        in_time(PATIENCE, agreed_time(&self.log, &self.policy)).await
    }

    /// Has what is due now done soon.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    async fn advance(&self, retired: &mut Retired) -> Result<(), KeyError> {
        let now = self.time().await?;
        self.look().await?;
        let recorded = self.known.borrow().recorded.clone();
        retired
            .find(&self.log, &recorded, self.policy.clock_skew, now)
            .await?;
        let times = (now, &retired.last_expiry);
        let due = do_what_is_due(&self.log, &self.vault, &self.policy, &recorded, times);
        if due.await? {
            self.look().await?;
            self.destroy_unneeded().await?;
        }
        Ok(())
    }

    /// Destroys the private halves of keys that sign no more, and those that no event names.
    async fn destroy_unneeded(&self) -> Result<(), KeyError> {
        // What is named meanwhile was not made long ago.
        in_time(PATIENCE, self.look_once()).await?;
        let recorded = self.known.borrow().recorded.clone();
        self.vault.destroy(&silent(&recorded)).await?;
        let named = recorded.ring.keys().map(|key| key.made.kid.clone());
        self.vault.destroy_all_but(&named.collect::<Vec<_>>()).await
    }
}

/// The names of the keys that sign no more.
fn silent(recorded: &Recorded) -> Vec<String> {
    let silent = |key: &&Key| matches!(key.stage(), Stage::Retiring | Stage::Gone | Stage::Revoked);
    let silent = recorded.ring.keys().filter(silent);
    silent.map(|key| key.made.kid.clone()).collect()
}

impl Known {
    fn of(recorded: Recorded) -> Result<Self, KeyError> {
        let key_set = KeySet::of(&recorded)?;
        Ok(Self { recorded, key_set })
    }
}

impl Private {
    async fn of(recorded: &Recorded, vault: &Vault, before: &Self) -> Self {
        let mut private = Self {
            revision: recorded.revision.clone(),
            ..Self::default()
        };
        for algorithm in SigningAlgorithm::ALL {
            let ring = recorded.ring.only(algorithm);
            if let Some(key) = ring.active() {
                let half = before.open(vault, &key.made).await;
                private.active.insert(algorithm, half);
            }
            if let Some(key) = ring.next() {
                private.next.push(before.open(vault, &key.made).await);
            }
        }
        private
    }

    /// The private half of a key, which may be open already.
    async fn open(&self, vault: &Vault, key: &Fresh) -> Half {
        let mut held = self.halves().flatten();
        if let Some(held) = held.find(|held| held.kid() == key.kid) {
            return Ok(Arc::clone(held));
        }
        let read = in_time(PATIENCE, vault.read(key.algorithm, &key.kid)).await;
        read.map(Arc::new).map_err(Arc::new)
    }

    fn halves(&self) -> impl Iterator<Item = &Half> {
        self.active.values().chain(&self.next)
    }

    /// Why one of them can't be used.
    fn wrong(&self) -> Option<Arc<KeyError>> {
        self.halves().find_map(|half| half.clone().err())
    }
}

impl KeySet {
    fn of(recorded: &Recorded) -> Result<Self, KeyError> {
        // There are relying parties that try the keys in order and fail at one of another type than the token's: those of the
        // default algorithm, which all can verify, come first.
        let of = |algorithm| {
            let published = recorded.ring.keys().filter(|key| key.is_published());
            published.filter(move |key| key.made.algorithm == algorithm)
        };
        let keys: Vec<serde_json::Value> = SigningAlgorithm::ALL
            .into_iter()
            .flat_map(of)
            .map(|key| serde_json::from_str(&key.made.public_jwk))
            .collect::<Result<_, _>>()?;
        let body = serde_json::to_vec(&serde_json::json!({ "keys": keys }))?;
        let etag = entity_tag(&body);
        let body = body.into();
        Ok(Self { body, etag })
    }
}

/// The database's time, if ours is the same, as far as clocks may differ.
async fn agreed_time(log: &EventLog, policy: &Policy) -> Result<OffsetDateTime, KeyError> {
    let before = clock::now();
    let now = log.now().await?;
    let after = clock::now();
    policy.agree(before, now, after)?;
    Ok(now)
}

impl Policy {
    /// Whether the database's time lies between ours, as far as clocks may differ: however long it took until the database
    /// was asked, or its answer came.
    fn agree(
        &self,
        before: OffsetDateTime,
        theirs: OffsetDateTime,
        after: OffsetDateTime,
    ) -> Result<(), KeyError> {
        let off = (before - theirs).max(theirs - after);
        if off > self.clock_skew {
            return Err(self.off(off.unsigned_abs()));
        }
        Ok(())
    }

    fn off(&self, off: Duration) -> KeyError {
        KeyError::Clock {
            off,
            skew: self.clock_skew.unsigned_abs(),
        }
    }
}

async fn in_time<T>(
    patience: Duration,
    work: impl Future<Output = Result<T, KeyError>>,
) -> Result<T, KeyError> {
    let late = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
    timeout(patience, work).await.map_err(late)?
}

fn job_keys(recorded: &Recorded, policy: &Policy) -> Result<JwkSet, KeyError> {
    let now = clock::now();
    // Those of other algorithms sign for clouds only.
    let ring = recorded.ring.only(SigningAlgorithm::default());
    public(ring.keys().filter(|key| key.verifies_jobs(now, policy)))
}

fn published_keys(recorded: &Recorded) -> Result<JwkSet, KeyError> {
    public(recorded.ring.keys().filter(|key| key.is_published()))
}

fn public<'a>(keys: impl Iterator<Item = &'a Key>) -> Result<JwkSet, KeyError> {
    let keys: Result<Vec<Jwk>, _> = keys
        .map(|key| serde_json::from_str(&key.made.public_jwk))
        .collect();
    Ok(JwkSet { keys: keys? })
}

#[cfg(test)]
mod tests;
