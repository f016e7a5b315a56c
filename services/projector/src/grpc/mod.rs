//! The rpcs of the directory, a module for each topic. The access layer has waited for the consistency token and checked
//! the permission.

mod audit;
mod children;
mod managed_identities;
mod members;
mod search;
mod service_accounts;
mod teams;

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::violations::Violations;
use model::{Kind, ResourceId};
use proto::directory::v1 as pb;
use proto::directory::v1::directory_service_server::DirectoryService;
use sqlx::PgPool;
use tonic::{Request, Response, Status};

use crate::order::Order;
use crate::page::Page;

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
        let answer = children::list(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_managed_identities(
        &self,
        request: Request<pb::ListManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = managed_identities::list(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_workspace_managed_identities(
        &self,
        request: Request<pb::ListWorkspaceManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListWorkspaceManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = managed_identities::of_workspace(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_managed_identity_workspaces(
        &self,
        request: Request<pb::ListManagedIdentityWorkspacesRequest>,
    ) -> Result<Response<pb::ListManagedIdentityWorkspacesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = children::with_identity(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_managed_identity_aliases(
        &self,
        request: Request<pb::ListManagedIdentityAliasesRequest>,
    ) -> Result<Response<pb::ListManagedIdentityAliasesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = managed_identities::aliases(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn search_namespaces(
        &self,
        request: Request<pb::SearchNamespacesRequest>,
    ) -> Result<Response<pb::SearchNamespacesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = search::namespaces(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn search_managed_identities(
        &self,
        request: Request<pb::SearchManagedIdentitiesRequest>,
    ) -> Result<Response<pb::SearchManagedIdentitiesResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = search::identities(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_memberships(
        &self,
        request: Request<pb::ListMembershipsRequest>,
    ) -> Result<Response<pb::ListMembershipsResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = members::list(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_principal_memberships(
        &self,
        request: Request<pb::ListPrincipalMembershipsRequest>,
    ) -> Result<Response<pb::ListPrincipalMembershipsResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = members::of_principal(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_teams(
        &self,
        request: Request<pb::ListTeamsRequest>,
    ) -> Result<Response<pb::ListTeamsResponse>, Status> {
        let answer = teams::list(&self.pool, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_team_members(
        &self,
        request: Request<pb::ListTeamMembersRequest>,
    ) -> Result<Response<pb::ListTeamMembersResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = teams::members(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }

    async fn list_service_accounts(
        &self,
        request: Request<pb::ListServiceAccountsRequest>,
    ) -> Result<Response<pb::ListServiceAccountsResponse>, Status> {
        let call = Call::of(&request)?;
        let answer = service_accounts::list(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }
}

/// The sort key and id in a page token of a list in this order.
fn keyed(page: &Page, order: Order) -> Result<Option<(&str, &str)>, Violations> {
    match page.after.as_deref() {
        None => Ok(None),
        Some([key, id]) if order.has_key(key) => Ok(Some((key, id))),
        Some(_) => Err(Page::wrong_token()),
    }
}

fn expect(place: &Place, kind: Kind, field: &str) -> Result<ResourceId, Status> {
    if place.id().kind() == kind {
        Ok(place.id())
    } else {
        Err(Violations::of(field, format!("must name a {kind}")).into_status())
    }
}

/// The ids of the groups of a place, itself included if it is one, nearest first; or only the nearest.
fn groups(place: &Place, only_nearest: bool) -> Vec<String> {
    let groups = place
        .nodes
        .iter()
        .filter(|node| node.id.kind() == Kind::Group);
    let most = if only_nearest { 1 } else { usize::MAX };
    groups.take(most).map(|node| node.id.to_string()).collect()
}

/// The path of one of a place's nodes. A query that was asked for those answers with no other.
fn path_of(place: &Place, id: &str) -> String {
    let at = place
        .nodes
        .iter()
        .position(|node| node.id.to_string() == id);
    place.path_of(at.unwrap_or_default())
}
