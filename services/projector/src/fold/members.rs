//! Memberships.

use std::collections::HashMap;

use edge::hierarchy::{self, MalformedEvent};
use eventlog::{FoldError, RecordedEvent};
use proto::access::v1::Principal;
use proto::namespace::v1::Event;
use sqlx::PgConnection;

use super::{Stamps, inapplicable};

struct Member<'a> {
    namespace: String,
    principal: String,
    role: i32,
    first: &'a RecordedEvent,
    last: &'a RecordedEvent,
}

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    // By id; none if it ended.
    let mut members: HashMap<String, Option<Member<'_>>> = HashMap::new();
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::MembershipCreated(made) => {
                let member = Member {
                    namespace: made.namespace_id,
                    principal: principal(event, made.principal.as_ref())?,
                    role: made.role,
                    first: event,
                    last: event,
                };
                members.insert(made.membership_id, Some(member));
            }
            Event::MembershipUpdated(changed) => {
                let member = Member {
                    namespace: changed.namespace_id,
                    principal: principal(event, changed.principal.as_ref())?,
                    role: changed.role,
                    first: match members.get(&changed.membership_id) {
                        Some(Some(before)) => before.first,
                        _ => event,
                    },
                    last: event,
                };
                members.insert(changed.membership_id, Some(member));
            }
            Event::MembershipDeleted(ended) => {
                members.insert(ended.membership_id, None);
            }
            _ => {}
        }
    }
    if members.is_empty() {
        return Ok(());
    }
    Ok(write(connection, members).await?)
}

/// How the read models name whom an event names.
pub(super) fn principal(
    event: &RecordedEvent,
    named: Option<&Principal>,
) -> Result<String, FoldError> {
    let principal = hierarchy::principal(named).ok_or_else(|| FoldError::Inapplicable {
        position: event.position,
        reason: MalformedEvent::Principal.into(),
    })?;
    Ok(principal.to_string())
}

async fn write(
    connection: &mut PgConnection,
    members: HashMap<String, Option<Member<'_>>>,
) -> sqlx::Result<()> {
    let (mut ids, mut namespaces, mut principals, mut roles, mut gone) =
        (vec![], vec![], vec![], vec![], vec![]);
    let mut stamps = Stamps::default();
    for (id, member) in members {
        match member {
            Some(member) => {
                ids.push(id);
                namespaces.push(member.namespace);
                principals.push(member.principal);
                roles.push(member.role);
                stamps.add(member.first, member.last);
            }
            None => gone.push(id),
        }
    }
    // One that is there already has changed: when it was made is in its row.
    sqlx::query!(
        "WITH gone AS (DELETE FROM members WHERE id = ANY($1))
         INSERT INTO members (id, namespace_id, principal, role, version, created_at, updated_at)
         SELECT * FROM UNNEST($2::text[], $3::text[], $4::text[], $5::integer[], $6::bigint[], $7::timestamptz[],
                              $8::timestamptz[])
         ON CONFLICT (id) DO UPDATE
         SET role = excluded.role, version = excluded.version, updated_at = excluded.updated_at",
        &gone,
        &ids,
        &namespaces,
        &principals,
        &roles,
        &stamps.versions,
        &stamps.created,
        &stamps.updated
    )
    .execute(connection)
    .await?;
    Ok(())
}
