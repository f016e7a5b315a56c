//! Who did what when, and where: a row for each event of each log, and one more for each move, of the group that was left.
//!
//! What an event is about is read from its fields by their names, which are the same in every event of ours, so that a
//! new event type is on the record without a word here.

use std::collections::HashMap;
use std::sync::LazyLock;

use eventlog::{FoldError, RecordedEvent};
use prost_reflect::{DescriptorPool, DynamicMessage, Value};
use sqlx::PgConnection;

use crate::activity;

/// The fields that name the group or workspace in which something happened, the nearest first.
const PLACES: [&str; 4] = ["workspace_id", "namespace_id", "group_id", "new_group_id"];
/// The fields that name the group from which something was moved; empty for the top.
const LEFT: [&str; 2] = ["old_group_id", "old_parent_id"];
const IDENTITY: &str = "managed_identity_id";
const ACCOUNT: &str = "service_account_id";
const SOURCE: &str = "source_id";

static CONTRACT: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(proto::DESCRIPTORS).ok());

#[derive(Debug, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the contract does not have the event's type")]
    Unknown,
    #[error("malformed payload")]
    Payload(#[from] prost::DecodeError),
    #[error("the log has no number")]
    Log,
}

#[derive(Default)]
struct Rows {
    ids: Vec<i64>,
    times: Vec<time::OffsetDateTime>,
    actors: Vec<String>,
    types: Vec<String>,
    resources: Vec<String>,
    places: Vec<String>,
    identities: Vec<Option<String>>,
    moved_to: Vec<Option<String>>,
}

/// Written before the log's own tables are: those still tell where a thing was that an event of the batch takes away.
pub(super) async fn apply(
    connection: &mut PgConnection,
    log: &'static str,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    let mut rows = Rows::default();
    // Events about a thing need not say where it is.
    let mut known: HashMap<String, String> = HashMap::new();
    let mut unknown: Vec<(usize, String)> = Vec::new();
    for event in events {
        let inapplicable = |reason: Malformed| FoldError::Inapplicable {
            position: event.position,
            reason: reason.into(),
        };
        let id = activity::id(log, event.position).ok_or_else(|| inapplicable(Malformed::Log))?;
        let message = decode(event).map_err(inapplicable)?;
        let text = |field: &str| {
            message
                .get_field_by_name(field)
                .and_then(|value| match value.as_ref() {
                    Value::String(text) if !text.is_empty() => Some(text.clone()),
                    _ => None,
                })
        };
        let resource = resource(event);
        let mut place = PLACES.iter().find_map(|field| text(field));
        let identity = text(IDENTITY).filter(|identity| *identity != resource);
        // An alias is about its source too.
        let identity = identity.or_else(|| text(SOURCE));
        let thing = owned(log).iter().find_map(|field| text(field));
        match (thing, &place) {
            (Some(thing), Some(place)) if thing == resource => {
                known.insert(thing, place.clone());
            }
            // As it was when this happened: later in the batch it may be elsewhere.
            (Some(thing), None) => match known.get(&thing) {
                Some(known) => place = Some(known.clone()),
                None => unknown.push((rows.ids.len(), thing)),
            },
            _ => {}
        }
        let place = place.unwrap_or_default();
        let left = LEFT.iter().find_map(|field| text(field));
        rows.add(id, event, place.clone(), identity.clone(), None);
        if let Some(left) = left.filter(|left| *left != place) {
            rows.add(id, event, left, identity, Some(place));
        }
    }
    let ids: Vec<String> = unknown.iter().map(|(_, id)| id.clone()).collect();
    let earlier: HashMap<_, _> = if ids.is_empty() {
        HashMap::new()
    } else {
        places(connection, &ids).await?.into_iter().collect()
    };
    for (row, thing) in unknown {
        if let (Some(place), Some(found)) = (rows.places.get_mut(row), earlier.get(&thing)) {
            place.clone_from(found);
        }
    }
    Ok(rows.write(connection).await?)
}

pub(super) fn decode(event: &RecordedEvent) -> Result<DynamicMessage, Malformed> {
    let descriptor = CONTRACT
        .as_ref()
        .and_then(|contract| contract.get_message_by_name(&event.event_type));
    let descriptor = descriptor.ok_or(Malformed::Unknown)?;
    Ok(DynamicMessage::decode(descriptor, event.payload.clone())?)
}

/// The fields that name a thing of the log itself: only of such a thing it is known, whichever log comes first, where it
/// is.
fn owned(log: &str) -> &'static [&'static str] {
    match log {
        "identity" => &[IDENTITY, ACCOUNT],
        "issuer" => &["job_id"],
        _ => &[],
    }
}

/// Where identities, service accounts and jobs of earlier batches are; of what is gone, where it was last.
async fn places(
    connection: &mut PgConnection,
    ids: &[String],
) -> sqlx::Result<Vec<(String, String)>> {
    let rows = sqlx::query!(
        r#"SELECT id AS "id!", place AS "place!" FROM (
               SELECT id, coalesce(
                   (SELECT group_id FROM managed_identities WHERE managed_identities.id = asked.id),
                   (SELECT group_id FROM service_accounts WHERE service_accounts.id = asked.id),
                   (SELECT workspace_id FROM jobs WHERE jobs.id = asked.id),
                   (SELECT place_id FROM activities
                    WHERE resource_id = asked.id AND place_id <> '' AND moved_to IS NULL
                    ORDER BY at DESC, activities.id DESC LIMIT 1)
               ) AS place
               FROM UNNEST($1::text[]) AS asked (id)
           ) AS found
           WHERE place IS NOT NULL"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(|row| (row.id, row.place)).collect())
}

/// The id of the aggregate.
fn resource(event: &RecordedEvent) -> String {
    let id = event.stream_id.split_once('/').map_or("", |(_, id)| id);
    id.to_owned()
}

impl Rows {
    fn add(
        &mut self,
        id: i64,
        event: &RecordedEvent,
        place: String,
        identity: Option<String>,
        moved_to: Option<String>,
    ) {
        self.ids.push(id);
        self.times.push(event.recorded_at);
        self.actors.push(event.metadata.actor.clone());
        self.types.push(event.event_type.clone());
        self.resources.push(resource(event));
        self.places.push(place);
        self.identities.push(identity);
        self.moved_to.push(moved_to);
    }

    async fn write(self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::query!(
            "INSERT INTO activities (id, at, actor, event_type, resource_id, place_id, managed_identity_id,
                 moved_to)
             SELECT * FROM UNNEST
                 ($1::bigint[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[])",
            &self.ids,
            &self.times,
            &self.actors,
            &self.types,
            &self.resources,
            &self.places,
            &self.identities as &[Option<String>],
            &self.moved_to as &[Option<String>]
        )
        .execute(connection)
        .await?;
        Ok(())
    }
}
