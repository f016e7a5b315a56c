//! Managed identities of groups and workspaces.

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::{request, status};
use model::Kind;
use prost::Message as _;
use proto::directory::v1 as pb;
use proto::identity;
use sqlx::PgPool;
use tonic::Status;

use super::expect;
use crate::page::Page;
use crate::query::managed_identities::{self, IdentityRow};

/// Those that can be assigned in a group.
pub(super) async fn list(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListManagedIdentitiesRequest,
) -> Result<pb::ListManagedIdentitiesResponse, Status> {
    let place = call.place()?;
    let id = expect(place, Kind::Group, "group_id")?;
    let query = ("identities", id.to_string(), message.exclude_inherited);
    let page = Page::read(message.page_size, &message.page_token, &query, 2)?;
    let mut groups = groups(place);
    if message.exclude_inherited {
        groups.truncate(1);
    }
    let after = match &page.after {
        Some(key) => (key[0].parse().unwrap_or_default(), key[1].as_str()),
        None => (0, ""),
    };
    let rows = managed_identities::of_groups(pool, &groups, after, page.limit()).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| {
        vec![row.distance.to_string(), row.name.clone()]
    });
    let managed_identities = rows
        .into_iter()
        .map(|row| listed(place, row))
        .collect::<Result<_, _>>()?;
    Ok(pb::ListManagedIdentitiesResponse {
        managed_identities,
        next_page_token,
    })
}

/// Those that a workspace's jobs can get.
pub(super) async fn assigned(
    pool: &PgPool,
    call: &Call,
    message: &pb::ListWorkspaceManagedIdentitiesRequest,
) -> Result<pb::ListWorkspaceManagedIdentitiesResponse, Status> {
    let place = call.place()?;
    let id = expect(place, Kind::Workspace, "workspace_id")?.to_string();
    let page = Page::read(
        message.page_size,
        &message.page_token,
        &("assigned", &id),
        2,
    )?;
    let after = page
        .after
        .as_ref()
        .map_or(("", ""), |key| (key[0].as_str(), key[1].as_str()));
    let rows = managed_identities::assigned(pool, &id, &groups(place), after, page.limit()).await;
    let mut rows = rows.map_err(|error| status::database(&error))?;
    let next_page_token = page.cut(&mut rows, |row| vec![row.name.clone(), row.id.clone()]);
    let managed_identities = rows
        .into_iter()
        .map(|row| listed(place, row))
        .collect::<Result<_, _>>()?;
    Ok(pb::ListWorkspaceManagedIdentitiesResponse {
        managed_identities,
        next_page_token,
    })
}

/// The ids of the groups of a place, itself included if it is one, nearest first.
fn groups(place: &Place) -> Vec<String> {
    let groups = place
        .nodes
        .iter()
        .filter(|node| node.id.kind() == Kind::Group);
    groups.map(|node| node.id.to_string()).collect()
}

/// An identity as seen from a place. `place` has the identity's group among its nodes: the query asked for those.
fn listed(place: &Place, row: IdentityRow) -> Result<pb::DirectoryManagedIdentity, Status> {
    let at = place
        .nodes
        .iter()
        .position(|node| node.id.to_string() == row.group_id)
        .unwrap_or_default();
    let names: Vec<&str> = place
        .nodes
        .iter()
        .skip(at)
        .rev()
        .map(|node| node.name.as_str())
        .collect();
    let group_path = names.join("/");
    let configuration = identity::v1::Configuration::decode(row.configuration.as_slice());
    let managed_identity = identity::v1::ManagedIdentity {
        id: row.id,
        trn: format!("trn:managed_identity:{group_path}/{}", row.name),
        group_id: row.group_id,
        name: row.name,
        description: row.description,
        configuration: Some(configuration.map_err(|error| status::internal(&error))?),
        etag: request::etag(row.version.cast_unsigned()),
        create_time: Some(request::timestamp(row.created_at)),
        update_time: Some(request::timestamp(row.updated_at)),
    };
    let inherited = row.distance > 0;
    Ok(pb::DirectoryManagedIdentity {
        managed_identity: Some(managed_identity),
        inherited,
        group_path,
    })
}
