//! The keys in the log. Every change of any key counts one fact up, which every change expects as it was read: of two
//! issuers that do what is due, one is refused, and looks again.

use edge::aggregate;
use edge::authentication::revoked_key;
use eventlog::{EventLog, Expected, Guard, RecordedEvent, StreamAppend, StreamId};
use model::{SigningAlgorithm, SigningKeyId};
use time::OffsetDateTime;
use uuid::Uuid;

use super::KeyError;
use crate::domain::signing_key::{Event, Key, KeyRing, Policy, evolve};
use crate::signing::SigningKey;
use crate::wire;

/// The fact that names the key that signs with an algorithm, by its `kid`. Each credential's audit expects it.
fn active_key(algorithm: SigningAlgorithm) -> String {
    match algorithm {
        SigningAlgorithm::Rs256 => ACTIVE.to_owned(),
        other @ SigningAlgorithm::Es256 => format!("{ACTIVE}/{other}"),
    }
}

const ACTIVE: &str = "signing-key/active";
/// The fact that counts the changes.
const REVISION: &str = "signing-key/revision";
/// The fact that says of which epoch of the log the keys are.
const EPOCH: &str = "signing-key/epoch";
/// The facts of the keys that may still have to verify something.
const KEYS: &str = "signing-key/id/";

/// The keys as they were at one revision.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recorded {
    pub(crate) ring: KeyRing,
    pub(super) revision: Revision,
}

/// How often the keys were changed, and in which epoch of the log. In a restored database they may have been changed as
/// often as before, but otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Revision {
    count: Option<String>,
    /// None in a database from before it was kept.
    epoch: Option<String>,
}

/// What must hold for a token of this key to be valid: it signs.
pub(crate) fn signs(key: &SigningKey) -> Guard {
    Guard::Expect {
        key: active_key(key.algorithm()),
        value: Some(key.kid().to_owned()),
    }
}

/// At which revision the keys are.
pub(super) async fn revision(log: &EventLog) -> Result<Revision, KeyError> {
    let facts = log.facts(&[REVISION, EPOCH].map(str::to_owned)).await?;
    let [count, epoch] = [REVISION, EPOCH].map(|key| facts.get(key).map(str::to_owned));
    Ok(Revision { count, epoch })
}

/// That the keys are of this epoch from now on.
pub(super) fn belongs_to(epoch: Uuid) -> Guard {
    Guard::Set {
        key: EPOCH.to_owned(),
        value: Some(epoch.to_string()),
    }
}

impl Revision {
    /// Whether the keys are known to be of this epoch, or of another one.
    pub(super) fn is_of(&self, epoch: Uuid) -> Option<bool> {
        let known = self.epoch.as_ref();
        known.map(|known| *known == epoch.to_string())
    }
}

/// Reads all keys.
pub(crate) async fn load(log: &EventLog) -> Result<Recorded, KeyError> {
    loop {
        let before = revision(log).await?;
        let keys = log.fact_keys(KEYS).await?;
        let ids = keys.iter().map(|key| key.trim_start_matches(KEYS));
        let streams: Vec<_> = ids.map(|id| StreamId::new("signing_key", id)).collect();
        // Rotated fast, there are hundreds: none is worth a query of its own.
        let ring = read(log.streams(&streams).await?)?;
        // Read one after the other, both are of one moment only if nothing has changed.
        if revision(log).await? == before {
            let revision = before;
            return Ok(Recorded { ring, revision });
        }
    }
}

/// Reads one key, whatever has become of it; none, if there never was one.
pub(crate) async fn load_one(log: &EventLog, id: SigningKeyId) -> Result<KeyRing, KeyError> {
    read(log.stream(&StreamId::new("signing_key", id)).await?)
}

fn read(events: Vec<RecordedEvent>) -> Result<KeyRing, KeyError> {
    let mut ring = KeyRing::default();
    for recorded in events {
        if let Some(event) = wire::signing_key::read(&recorded)? {
            evolve(&mut ring, &event);
        }
    }
    Ok(ring)
}

impl Recorded {
    /// What to append for the events, and the guards that go with it.
    pub(crate) fn changes(&self, events: &[Event]) -> (Vec<StreamAppend>, Vec<Guard>) {
        let mut ring = self.ring.clone();
        let Revision { count, epoch } = &self.revision;
        let expected = [(REVISION, count), (EPOCH, epoch)];
        let expected = expected.map(|(key, value)| Guard::Expect {
            key: key.to_owned(),
            value: value.clone(),
        });
        let mut guards = Vec::from(expected);
        let mut set = |key: String, value: Option<String>| guards.push(Guard::Set { key, value });
        for event in events {
            evolve(&mut ring, event);
            match event {
                Event::Created(made, _) => set(format!("{KEYS}{}", made.id), Some(String::new())),
                Event::Activated(id, _) => {
                    if let Some(Key { made, .. }) = ring.get(*id) {
                        set(active_key(made.algorithm), Some(made.kid.clone()));
                    }
                }
                Event::Revoked { id, .. } => {
                    if let Some(Key { made, .. }) = ring.get(*id) {
                        set(revoked_key(&made.kid), Some(String::new()));
                        // It may have been forgotten; what is known again is forgotten again.
                        set(format!("{KEYS}{id}"), Some(String::new()));
                    }
                }
                Event::Published { .. }
                | Event::RotationRequested(..)
                | Event::Retired(..)
                | Event::Removed(..) => {}
            }
        }
        let counted = count.as_ref().map_or(Ok(0), |text| text.parse());
        let next = counted.unwrap_or(0_u64) + 1;
        set(REVISION.to_owned(), Some(next.to_string()));
        let streams = events.iter().filter_map(|event| {
            let stream = StreamId::new("signing_key", event.id());
            let event = wire::signing_key::write(event);
            aggregate::append(
                stream,
                Expected::Any,
                [(event.event_type(), event.encode())],
            )
        });
        (streams.collect(), guards)
    }

    /// What takes the facts away of keys of which nothing will ever be asked again.
    pub(super) fn forgets(&self, now: OffsetDateTime, policy: &Policy) -> Vec<Guard> {
        let over = self.ring.keys().filter(|key| key.is_over(now, policy));
        let facts =
            over.flat_map(|key| [format!("{KEYS}{}", key.made.id), revoked_key(&key.made.kid)]);
        let value = None;
        facts
            .map(|key| Guard::Set {
                key,
                value: value.clone(),
            })
            .collect()
    }
}
