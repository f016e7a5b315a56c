//! Signing keys between the domain and the wire.

use edge::request;
use eventlog::RecordedEvent;
use proto::issuer::v1::{self as pb, Event};
use time::{Duration, OffsetDateTime};

use super::{Unreadable, parse};
use crate::domain::signing_key::{self, Fresh, Key, Stage};

/// A key's event; `None` for one of another aggregate.
pub(crate) fn read(recorded: &RecordedEvent) -> Result<Option<signing_key::Event>, Unreadable> {
    // Events of the first keys have no times of their own.
    let time = |given: Option<&prost_types::Timestamp>| {
        given.map_or(Ok(recorded.recorded_at), |given| {
            request::time("time", given).map_err(|_| Unreadable::Field("time"))
        })
    };
    let id = |text: &str| parse("signing key id", text);
    Ok(Some(
        match Event::decode(&recorded.event_type, &recorded.payload)? {
            Event::SigningKeyCreated(event) => {
                let at = time(event.create_time.as_ref())?;
                let made = Fresh {
                    id: id(&event.signing_key_id)?,
                    kid: event.kid,
                    algorithm: parse("algorithm", &event.algorithm)?,
                    public_jwk: event.public_jwk,
                };
                signing_key::Event::Created(made, at)
            }
            Event::SigningKeyPublished(event) => {
                let at = time(event.publish_time.as_ref())?;
                let ready = time(event.ready_time.as_ref())?;
                // Nobody could read of it before it was recorded. The first one waits for nobody.
                let late = (recorded.recorded_at - at).max(Duration::ZERO);
                let late = if ready > at { late } else { Duration::ZERO };
                signing_key::Event::Published {
                    id: id(&event.signing_key_id)?,
                    at: at + late,
                    ready: ready + late,
                }
            }
            Event::SigningKeyRotationRequested(event) => signing_key::Event::RotationRequested(
                id(&event.signing_key_id)?,
                time(event.request_time.as_ref())?,
            ),
            Event::SigningKeyActivated(event) => signing_key::Event::Activated(
                id(&event.signing_key_id)?,
                time(event.activate_time.as_ref())?,
            ),
            Event::SigningKeyRetired(event) => signing_key::Event::Retired(
                id(&event.signing_key_id)?,
                time(event.retire_time.as_ref())?,
            ),
            Event::SigningKeyRemoved(event) => signing_key::Event::Removed(
                id(&event.signing_key_id)?,
                time(event.remove_time.as_ref())?,
            ),
            Event::SigningKeyRevoked(event) => signing_key::Event::Revoked {
                id: id(&event.signing_key_id)?,
                at: time(event.revoke_time.as_ref())?,
                reason: event.reason,
            },
            Event::JobOpened(_)
            | Event::JobTokenRepeated(_)
            | Event::JobHeartbeatReceived(_)
            | Event::JobFinished(_)
            | Event::JobCancelled(_)
            | Event::CredentialIssued(_)
            | Event::CredentialRefused(_)
            | Event::ServiceAccountTokenIssued(_) => return Ok(None),
        },
    ))
}

pub(crate) fn write(event: &signing_key::Event) -> Event {
    let signing_key_id = event.id().to_string();
    let time = |at: &OffsetDateTime| Some(request::timestamp(*at));
    match event {
        signing_key::Event::Created(made, at) => Event::SigningKeyCreated(pb::SigningKeyCreated {
            signing_key_id,
            kid: made.kid.clone(),
            algorithm: made.algorithm.to_string(),
            public_jwk: made.public_jwk.clone(),
            create_time: time(at),
        }),
        signing_key::Event::Published { at, ready, .. } => {
            Event::SigningKeyPublished(pb::SigningKeyPublished {
                signing_key_id,
                publish_time: time(at),
                ready_time: time(ready),
            })
        }
        signing_key::Event::RotationRequested(_, at) => {
            Event::SigningKeyRotationRequested(pb::SigningKeyRotationRequested {
                signing_key_id,
                request_time: time(at),
            })
        }
        signing_key::Event::Activated(_, at) => {
            Event::SigningKeyActivated(pb::SigningKeyActivated {
                signing_key_id,
                activate_time: time(at),
            })
        }
        signing_key::Event::Retired(_, at) => Event::SigningKeyRetired(pb::SigningKeyRetired {
            signing_key_id,
            retire_time: time(at),
        }),
        signing_key::Event::Removed(_, at) => Event::SigningKeyRemoved(pb::SigningKeyRemoved {
            signing_key_id,
            remove_time: time(at),
        }),
        signing_key::Event::Revoked { at, reason, .. } => {
            Event::SigningKeyRevoked(pb::SigningKeyRevoked {
                signing_key_id,
                revoke_time: time(at),
                reason: reason.clone(),
            })
        }
    }
}

/// A key as administrators see it.
pub(crate) fn message(key: &Key) -> pb::SigningKey {
    let time = |at: OffsetDateTime| request::timestamp(at);
    let state = match key.stage() {
        Stage::Prepared => pb::SigningKeyState::Prepared,
        Stage::Published => pb::SigningKeyState::Published,
        Stage::Active => pb::SigningKeyState::Active,
        Stage::Retiring => pb::SigningKeyState::Retiring,
        Stage::Gone => pb::SigningKeyState::Gone,
        Stage::Revoked => pb::SigningKeyState::Revoked,
    };
    pb::SigningKey {
        id: key.made.id.to_string(),
        trn: format!("trn:signing_key:{}", key.made.id),
        kid: key.made.kid.clone(),
        algorithm: key.made.algorithm.to_string(),
        public_jwk: key.made.public_jwk.clone(),
        state: state.into(),
        create_time: Some(time(key.created)),
        publish_time: key.published.map(|(at, _)| time(at)),
        ready_time: key.published.map(|(_, ready)| time(ready)),
        activate_time: key.activated.map(time),
        retire_time: key.retired.map(time),
        remove_time: key.removed.map(time),
        revoke_time: key.revoked.as_ref().map(|(at, _)| time(*at)),
        revoke_reason: key
            .revoked
            .as_ref()
            .map_or_else(String::new, |(_, reason)| reason.clone()),
        rotation_requested: key.rotation_requested.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const AT: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    /// When a key is published and ready that was to be so at a time, if its publication was recorded at another.
    fn published(
        planned: OffsetDateTime,
        recorded_at: OffsetDateTime,
    ) -> (OffsetDateTime, OffsetDateTime) {
        let event = write(&signing_key::Event::Published {
            id: model::SigningKeyId::from_uuid(Uuid::from_u128(1)),
            at: AT,
            ready: planned,
        });
        let recorded = RecordedEvent {
            position: 1,
            stream_id: "signing_key/1".to_owned(),
            version: 1,
            id: Uuid::from_u128(2),
            event_type: event.event_type().to_owned(),
            payload: event.encode().into(),
            metadata: eventlog::Metadata::default(),
            recorded_at,
        };
        match read(&recorded) {
            Ok(Some(signing_key::Event::Published { at, ready, .. })) => (at, ready),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_key_waits_from_when_its_publication_was_recorded() {
        let second = Duration::SECOND;
        let (planned, late) = (AT + 360 * second, AT + 7 * second);
        assert_eq!(published(planned, late), (late, planned + 7 * second));
        // The database's clock may be behind ours.
        assert_eq!(published(planned, AT - 7 * second), (AT, planned));
        // No relying party has other keys yet that it would have to read of this one.
        assert_eq!(published(AT, late), (AT, AT));
    }
}
