//! The rpcs of the directory, a module for each topic. The access layer has waited for the consistency token and checked
//! the permission.

mod children;
mod managed_identities;

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::violations::Violations;
use model::{Kind, ResourceId};
use proto::directory::v1 as pb;
use proto::directory::v1::directory_service_server::DirectoryService;
use sqlx::PgPool;
use tonic::{Request, Response, Status};

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
        let answer = managed_identities::assigned(&self.pool, &call, request.get_ref()).await?;
        Ok(Response::new(answer))
    }
}

fn expect(place: &Place, kind: Kind, field: &str) -> Result<ResourceId, Status> {
    if place.id().kind() == kind {
        Ok(place.id())
    } else {
        Err(Violations::of(field, format!("must name a {kind}")).into_status())
    }
}
