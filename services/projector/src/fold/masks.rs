//! Masks.

use std::collections::BTreeMap;

use edge::hierarchy::MalformedEvent;
use eventlog::{FoldError, RecordedEvent};
use proto::identity::v1::Event;
use sqlx::PgConnection;

use super::inapplicable;

pub(super) async fn apply(
    connection: &mut PgConnection,
    events: &[RecordedEvent],
) -> Result<(), FoldError> {
    // By id: where it is and what it is; or none if it is gone.
    let mut masks = BTreeMap::new();
    for event in events {
        match Event::decode(&event.event_type, &event.payload).map_err(inapplicable(event))? {
            Event::MaskCreated(mask) => {
                let read = edge::masks::mask(&mask).ok_or_else(|| FoldError::Inapplicable {
                    position: event.position,
                    reason: MalformedEvent::Mask.into(),
                })?;
                masks.insert(mask.mask_id, Some((mask.namespace_id, read)));
            }
            Event::MaskDeleted(mask) => {
                masks.insert(mask.mask_id, None);
            }
            _ => {}
        }
    }
    if masks.is_empty() {
        return Ok(());
    }
    let (mut ids, mut namespaces, mut hidden, mut exceptions, mut gone) =
        (vec![], vec![], vec![], vec![], vec![]);
    for (id, mask) in masks {
        match mask {
            None => gone.push(id),
            Some((namespace, mask)) => {
                ids.push(id);
                namespaces.push(namespace);
                hidden.push(mask.hides.to_string());
                let each = mask.exceptions.iter().map(|id| format!(" {id}"));
                exceptions.push(each.collect::<String>());
            }
        }
    }
    sqlx::query!(
        "WITH gone AS (DELETE FROM masks WHERE id = ANY($1))
         INSERT INTO masks (id, namespace_id, hides, exceptions)
         SELECT * FROM UNNEST($2::text[], $3::text[], $4::text[], $5::text[])",
        &gone,
        &ids,
        &namespaces,
        &hidden,
        &exceptions
    )
    .execute(connection)
    .await?;
    Ok(())
}
