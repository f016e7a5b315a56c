//! Finding groups, workspaces and identities.

use std::collections::HashMap;

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::status;
use edge::violations::Violations;
use model::Kind;
use proto::directory::v1 as pb;
use sqlx::PgPool;
use tonic::Status;

use super::children::{child, kind};
use super::expect;
use super::managed_identities::{identity, identity_type};
use crate::page::Page;
use crate::query::search::{self, Hit, Search};
use crate::query::visible::{self, Range};
use crate::query::{managed_identities, namespaces};

/// Longer than any path.
const MAX_TEXT: usize = 1_400;

pub(super) async fn namespaces(
    pool: &PgPool,
    call: &Call,
    message: &pb::SearchNamespacesRequest,
) -> Result<pb::SearchNamespacesResponse, Status> {
    let mut violations = Violations::default();
    let text = violations.check("query", text(&message.query));
    let prefix = violations.check("match", prefix(message.r#match));
    let kind = violations.check("kind", kind(message.kind));
    let (text, prefix, kind) = violations.finish(|| Some((text?, prefix?, kind?)))?;
    let query = ("namespaces", &message.group_id, &text, prefix, kind);
    let page = Page::read(message.page_size, &message.page_token, &query, 1)?;
    let Some(text) = text else {
        return Ok(pb::SearchNamespacesResponse::default());
    };
    let ranges = ranges(pool, call).await?;
    let search = Search {
        ranges: &ranges,
        text: &text,
        prefix,
        kind,
        after: (page.after.as_ref().map_or("", |key| key[0].as_str()), ""),
        limit: page.limit(),
    };
    let hits = search::namespaces(pool, &search).await;
    let mut hits = hits.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut hits, |hit| vec![hit.path.clone()]);
    let rows = namespaces::by_ids(pool, &ids(&hits)).await;
    let rows = rows.map_err(|error| status::database(&error))?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
    // What was deleted between the two questions is not shown.
    let found = hits.iter().filter_map(|hit| {
        let row = rows.remove(&hit.id)?;
        Some(child(hit.path.trim_end_matches('/').to_owned(), row))
    });
    Ok(pb::SearchNamespacesResponse {
        namespaces: found.collect(),
        next_page_token,
    })
}

pub(super) async fn identities(
    pool: &PgPool,
    call: &Call,
    message: &pb::SearchManagedIdentitiesRequest,
) -> Result<pb::SearchManagedIdentitiesResponse, Status> {
    let mut violations = Violations::default();
    let text = violations.check("query", text(&message.query));
    let prefix = violations.check("match", prefix(message.r#match));
    let kind = violations.check("type", identity_type(&message.r#type));
    let (text, prefix, kind) = violations.finish(|| Some((text?, prefix?, kind?)))?;
    let query = ("managed identities", &message.group_id, &text, prefix, kind);
    let page = Page::read(message.page_size, &message.page_token, &query, 2)?;
    let Some(text) = text else {
        return Ok(pb::SearchManagedIdentitiesResponse::default());
    };
    let ranges = ranges(pool, call).await?;
    let after = page
        .after
        .as_ref()
        .map_or(("", ""), |key| (key[0].as_str(), key[1].as_str()));
    let search = Search {
        ranges: &ranges,
        text: &text,
        prefix,
        kind,
        after,
        limit: page.limit(),
    };
    let hits = search::identities(pool, &search).await;
    let mut hits = hits.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut hits, |hit| vec![hit.path.clone(), hit.name.clone()]);
    let rows = managed_identities::by_ids(pool, &ids(&hits)).await;
    let rows = rows.map_err(|error| status::database(&error))?;
    let mut rows: HashMap<_, _> = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
    let found = hits.iter().filter_map(|hit| {
        let row = rows.remove(&hit.id)?;
        Some(identity(hit.path.trim_end_matches('/'), row))
    });
    Ok(pb::SearchManagedIdentitiesResponse {
        managed_identities: found.collect::<Result<_, _>>()?,
        next_page_token,
    })
}

fn ids(hits: &[Hit]) -> Vec<String> {
    hits.iter().map(|hit| hit.id.clone()).collect()
}

/// Where to look: below the group that the request names, or wherever the caller may.
async fn ranges(pool: &PgPool, call: &Call) -> Result<Vec<Range>, Status> {
    match &call.place {
        Some(place) => Ok(vec![below(place)?]),
        None => visible::to(pool, call)
            .await
            .map_err(|error| status::database(&error)),
    }
}

fn below(place: &Place) -> Result<Range, Status> {
    expect(place, Kind::Group, "group_id")?;
    Ok(Range::of(place))
}

/// In lower case, as all names are. `None` for what no path can hold.
fn text(query: &str) -> Result<Option<String>, String> {
    if query.len() > MAX_TEXT {
        return Err(format!("must be at most {MAX_TEXT} bytes"));
    }
    let text = query.to_ascii_lowercase();
    let of_paths =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_/".contains(&byte);
    Ok(Some(text).filter(|text| text.bytes().all(of_paths)))
}

fn prefix(way: i32) -> Result<bool, &'static str> {
    match pb::Match::try_from(way) {
        Ok(pb::Match::Unspecified | pb::Match::Substring) => Ok(false),
        Ok(pb::Match::Prefix) => Ok(true),
        Err(_) => Err("must be a known way to match, or not set"),
    }
}
