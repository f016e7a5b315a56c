//! `DirectoryService`. The access layer has waited for the consistency token and checked the permission.

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::violations::Violations;
use edge::{request, status};
use model::{Kind, ResourceId};
use prost::Message as _;
use proto::directory::v1 as pb;
use proto::directory::v1::directory_service_server::DirectoryService;
use proto::{identity, namespace};
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::page::Page;
use crate::query::{self, IdentityRow, NamespaceRow};

/// Serves the directory.
#[derive(Clone)]
pub struct DirectoryRpc {
    pool: PgPool,
}

impl DirectoryRpc {
    /// From the read models in this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }
}

#[tonic::async_trait]
impl DirectoryService for DirectoryRpc {
    async fn list_children(
        &self,
        request: Request<pb::ListChildrenRequest>,
    ) -> Result<Response<pb::ListChildrenResponse>, Status> {
        let call = Call::of(&request)?;
        let message = request.get_ref();
        let (parent, path) = match &call.place {
            Some(place) => (
                expect(place, Kind::Group, "group_id")?.to_string(),
                place.path(),
            ),
            None => (String::new(), String::new()),
        };
        let page = Page::read(
            message.page_size,
            &message.page_token,
            &("children", &parent),
            1,
        )?;
        let after = page.after.as_ref().map_or("", |key| key[0].as_str());
        let rows = if call.place.is_none() && !call.caller.administrator {
            query::top_level_of(
                &self.pool,
                &call.caller.principal.to_string(),
                after,
                page.limit(),
            )
            .await
        } else {
            query::children(&self.pool, &parent, after, page.limit()).await
        };
        let mut rows = rows.map_err(|error| status::database(&error))?;
        let next_page_token = page.cut(&mut rows, |row| vec![row.name.clone()]);
        let children = rows.into_iter().map(|row| child(&path, row)).collect();
        Ok(Response::new(pb::ListChildrenResponse {
            children,
            next_page_token,
        }))
    }

    async fn list_managed_identities(
        &self,
        request: Request<pb::ListManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        let message = request.get_ref();
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
        let rows = query::identities_of(&self.pool, &groups, after, page.limit()).await;
        let mut rows = rows.map_err(|error| status::database(&error))?;
        let next_page_token = page.cut(&mut rows, |row| {
            vec![row.distance.to_string(), row.name.clone()]
        });
        let managed_identities = rows
            .into_iter()
            .map(|row| listed(place, row))
            .collect::<Result<_, _>>()?;
        Ok(Response::new(pb::ListManagedIdentitiesResponse {
            managed_identities,
            next_page_token,
        }))
    }

    async fn list_workspace_managed_identities(
        &self,
        request: Request<pb::ListWorkspaceManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListWorkspaceManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        let message = request.get_ref();
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
        let rows =
            query::identities_assigned(&self.pool, &id, &groups(place), after, page.limit()).await;
        let mut rows = rows.map_err(|error| status::database(&error))?;
        let next_page_token = page.cut(&mut rows, |row| vec![row.name.clone(), row.id.clone()]);
        let managed_identities = rows
            .into_iter()
            .map(|row| listed(place, row))
            .collect::<Result<_, _>>()?;
        Ok(Response::new(pb::ListWorkspaceManagedIdentitiesResponse {
            managed_identities,
            next_page_token,
        }))
    }
}

fn expect(place: &Place, kind: Kind, field: &str) -> Result<ResourceId, Status> {
    if place.id().kind() == kind {
        Ok(place.id())
    } else {
        Err(Violations::of(field, format!("must name a {kind}")).into_status())
    }
}

/// The ids of the groups of a place, itself included if it is one, nearest first.
fn groups(place: &Place) -> Vec<String> {
    let groups = place
        .nodes
        .iter()
        .filter(|node| node.id.kind() == Kind::Group);
    groups.map(|node| node.id.to_string()).collect()
}

fn child(parent_path: &str, row: NamespaceRow) -> pb::Child {
    let path = if parent_path.is_empty() {
        row.name.clone()
    } else {
        format!("{parent_path}/{}", row.name)
    };
    let etag = request::etag(row.version.cast_unsigned());
    let (created, updated) = (
        request::timestamp(row.created_at),
        request::timestamp(row.updated_at),
    );
    let kind = if row.kind == "group" {
        pb::child::Kind::Group(namespace::v1::Group {
            id: row.id,
            trn: format!("trn:group:{path}"),
            parent_id: row.parent_id,
            name: row.name,
            description: row.description,
            path,
            etag,
            create_time: Some(created),
            update_time: Some(updated),
        })
    } else {
        pb::child::Kind::Workspace(namespace::v1::Workspace {
            id: row.id,
            trn: format!("trn:workspace:{path}"),
            group_id: row.parent_id,
            name: row.name,
            description: row.description,
            path,
            etag,
            create_time: Some(created),
            update_time: Some(updated),
        })
    };
    pb::Child { kind: Some(kind) }
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
