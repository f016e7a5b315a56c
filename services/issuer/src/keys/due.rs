//! What is to be done with the keys by the clock, or since the database was restored, and doing it.

use std::collections::BTreeMap;

use edge::clock;
use eventlog::{Append, AppendError, EventLog, LogError, Metadata};
use model::{SigningAlgorithm, SigningKeyId};
use time::{Duration, OffsetDateTime};

use super::KeyError;
use super::ring::{self, Recorded};
use super::vault::Vault;
use crate::domain::signing_key::{Command, Event, Fresh, Key, Policy, Stage, decide, evolve};
use crate::live_tokens::Expiries;

/// Why keys are revoked that are of another epoch of the log.
const RESTORED: &str = "the issuer's database was restored from a backup";

/// When the last token of each key expires that signs no more.
#[derive(Default)]
pub(super) struct Retired {
    read: Expiries,
    pub(super) last_expiry: BTreeMap<SigningKeyId, OffsetDateTime>,
}

impl Retired {
    /// Finds it for those that are retired, or comes closer to it.
    pub(super) async fn find(
        &mut self,
        log: &EventLog,
        recorded: &Recorded,
        clock_skew: Duration,
        now: OffsetDateTime,
    ) -> Result<(), LogError> {
        self.last_expiry
            .retain(|id, _| recorded.ring.get(*id).is_some());
        let unknown = recorded.ring.keys().filter(|key| {
            key.stage() == Stage::Retiring && !self.last_expiry.contains_key(&key.made.id)
        });
        let unknown: Vec<&Key> = unknown.collect();
        // All that a key has signed that is known to be retired is there before the log's end of now.
        if unknown.is_empty() || !self.read.read_on(log, clock_skew, now).await? {
            return Ok(());
        }
        for key in unknown {
            let retired = key.retired.unwrap_or(key.created);
            let last = self.read.of(&key.made.kid).unwrap_or(retired);
            self.last_expiry.insert(key.made.id, last.max(retired));
        }
        Ok(())
    }
}

/// Answers whether something was due, and is done, by this issuer or by another one.
pub(super) async fn do_what_is_due(
    log: &EventLog,
    vault: &Vault,
    policy: &Policy,
    recorded: &Recorded,
    (now, last_expiry): (OffsetDateTime, &BTreeMap<SigningKeyId, OffsetDateTime>),
) -> Result<bool, KeyError> {
    let epoch = log.head().await?.epoch;
    let is_of_epoch = recorded.revision.is_of(epoch);
    let restored = is_of_epoch == Some(false);
    let Due { events, made } = if restored {
        Due::restored(vault, policy, recorded, now).await?
    } else {
        Due::at(vault, policy, recorded, (now, last_expiry)).await?
    };
    if events.is_empty() && is_of_epoch == Some(true) {
        return Ok(false);
    }
    let (streams, mut guards) = recorded.changes(&events);
    guards.extend(recorded.forgets(now, policy));
    if is_of_epoch != Some(true) {
        guards.push(ring::belongs_to(epoch));
    }
    // An append without events has to be a command.
    let command = streams.is_empty().then(|| eventlog::Command {
        id: clock::new_uuid(),
        fingerprint: vec![],
        reply: vec![],
    });
    let append = Append {
        command,
        streams,
        shared: vec![],
        guards,
        metadata: Metadata {
            actor: "service:issuer".to_owned(),
            traceparent: None,
        },
    };
    match log.append(append).await {
        Ok(_) => {
            if restored {
                tracing::error!(
                    %epoch,
                    "the log has another epoch than the signing keys: every signing key is revoked, and so is every token \
                     of a job and of a service account; others sign"
                );
            }
            for event in &events {
                tracing::info!(id = %event.id(), event = wire_name(event), "signing key changed");
            }
            Ok(true)
        }
        // Another issuer was quicker.
        Err(AppendError::GuardRefused { .. }) => {
            vault.destroy(&made).await?;
            Ok(true)
        }
        Err(error) => Err(error.into()),
    }
}

/// What is due, and the names of the keys that were made for it.
#[derive(Default)]
struct Due {
    events: Vec<Event>,
    made: Vec<String>,
}

impl Due {
    async fn at(
        vault: &Vault,
        policy: &Policy,
        recorded: &Recorded,
        (now, last_expiry): (OffsetDateTime, &BTreeMap<SigningKeyId, OffsetDateTime>),
    ) -> Result<Self, KeyError> {
        let mut due = Self::default();
        let mut all = recorded.ring.clone();
        for algorithm in SigningAlgorithm::ALL {
            let ring = all.only(algorithm);
            let command = Command::Advance {
                now,
                policy: *policy,
                unread: recorded.ring.is_unread(),
                others: all.others(algorithm, policy),
                fresh: due.make(vault, algorithm, ring.wants_key()).await?,
                last_expiry: last_expiry.clone(),
            };
            let events = decide(&ring, command)?;
            events.iter().for_each(|event| evolve(&mut all, event));
            due.events.extend(events);
        }
        Ok(due)
    }

    /// In a restored database, what has become of the keys since the backup is not known: one that signs in it may have been
    /// revoked, and others made that relying parties know instead.
    async fn restored(
        vault: &Vault,
        policy: &Policy,
        recorded: &Recorded,
        now: OffsetDateTime,
    ) -> Result<Self, KeyError> {
        let mut due = Self::default();
        for algorithm in SigningAlgorithm::ALL {
            let ring = recorded.ring.only(algorithm);
            let signs = ring.active().is_some();
            let command = Command::RevokeAll {
                reason: RESTORED.to_owned(),
                now,
                policy: *policy,
                fresh: due.make(vault, algorithm, signs).await?,
            };
            due.events.extend(decide(&ring, command)?);
        }
        Ok(due)
    }

    async fn make(
        &mut self,
        vault: &Vault,
        algorithm: SigningAlgorithm,
        wanted: bool,
    ) -> Result<Option<Fresh>, KeyError> {
        if !wanted {
            return Ok(None);
        }
        let fresh = vault.make(algorithm).await?;
        self.made.push(fresh.kid.clone());
        Ok(Some(fresh))
    }
}

fn wire_name(event: &Event) -> &'static str {
    crate::wire::signing_key::write(event).event_type()
}
