//! The facts of other services' logs as they were at a revision: made anew from the logs' beginning, apart from those that
//! are now.

use std::collections::BTreeMap;
use std::pin::pin;

use eventlog::{EventLog, Owner, OwnerError};
use futures::StreamExt as _;
use sqlx::PgPool;
use tonic::Status;

use crate::hierarchy::{Hierarchy, changes};
use crate::status;

/// Facts of another time.
pub struct Past {
    /// Reads them, and nothing else.
    pub log: EventLog,
    /// Of that time.
    pub hierarchy: Hierarchy,
}

/// A log, and up to which of its events.
pub struct Until<'a> {
    /// Whose log it is: `namespace`.
    pub name: &'static str,
    /// Who has it.
    pub owner: &'a Owner,
    /// Of the last event that counts.
    pub position: u64,
}

/// The text names no revision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be of the form namespace=7,identity=9")]
pub struct InvalidRevision;

/// The positions that a revision names, by log: `namespace=7,identity=9`.
pub fn positions(revision: &str) -> Result<BTreeMap<&str, u64>, InvalidRevision> {
    let mut positions = BTreeMap::new();
    for part in revision.split(',') {
        let (name, position) = part.split_once('=').ok_or(InvalidRevision)?;
        // A number here has no sign.
        let digits = position.bytes().all(|byte| byte.is_ascii_digit());
        let position = position.parse().ok().filter(|_| digits);
        let position = position.ok_or(InvalidRevision)?;
        if positions.insert(name, position).is_some() {
            return Err(InvalidRevision);
        }
    }
    Ok(positions)
}

impl Past {
    /// After these events. Takes as long as it takes to read them.
    pub async fn at(log: &EventLog, revision: &[Until<'_>]) -> Result<Self, Status> {
        let pool = eventlog::facts_apart(log.pool()).await;
        let pool = pool.map_err(|error| status::database(&error))?;
        for until in revision {
            replay(&pool, until).await?;
        }
        Ok(Self {
            log: log.with_facts_of(pool.clone()),
            hierarchy: Hierarchy::new(pool),
        })
    }
}

async fn replay(pool: &PgPool, until: &Until<'_>) -> Result<(), Status> {
    if until.position == 0 {
        return Ok(());
    }
    let mut pages = pin!(until.owner.read(0).await.map_err(|error| away(&error))?);
    while let Some(page) = pages.next().await {
        let (_, mut events) = page.map_err(|error| away(&error))?;
        events.retain(|event| event.position <= until.position);
        let changes = changes(until.name, &events).map_err(|error| status::internal(&error))?;
        let written = async {
            let mut connection = pool.acquire().await?;
            eventlog::write_facts(&mut connection, until.name, &changes).await
        };
        written.await.map_err(|error| status::database(&error))?;
        if events.last().map(|event| event.position) == Some(until.position) {
            return Ok(());
        }
    }
    let message = format!("the log of {} ended before {}", until.name, until.position);
    Err(status::unavailable("LOG_UNAVAILABLE", &message))
}

fn away(error: &OwnerError) -> Status {
    let message = "the owner of a log does not answer; try again";
    status::logged(error, status::unavailable("LOG_UNAVAILABLE", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions() {
        let both = positions("namespace=7,identity=9").expect("a revision");
        assert_eq!(both, BTreeMap::from([("namespace", 7), ("identity", 9)]));
        for wrong in [
            "",
            "7",
            "a=",
            "a=+7",
            "a=-7",
            "a=1,",
            "a=1,a=1",
            "a=1=2",
            "a=18446744073709551616",
        ] {
            assert_eq!(positions(wrong), Err(InvalidRevision), "{wrong}");
        }
    }
}
