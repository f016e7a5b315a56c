//! `WorkspaceService`.

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::hierarchy::{Place, name_key};
use edge::layer::Call;
use edge::request::etag;
use edge::status::PreconditionViolation;
use edge::violations::Violations;
use edge::{clock, request, status};
use eventlog::{Expected, Guard};
use model::WorkspaceId;
use proto::namespace::v1 as pb;
use proto::namespace::v1::workspace_service_server::WorkspaceService;
use tonic::{Request, Response, Status};

use super::{NamespaceRpc, add, changes, count, encoded, owners_key, stream, workspaces_key};
use crate::domain::{MAX_CHILDREN, workspace};
use crate::wire;

impl From<workspace::Rejection> for Status {
    fn from(rejection: workspace::Rejection) -> Self {
        use workspace::Rejection;
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the workspace"),
            Rejection::NameTaken => status::already_exists("NAME_TAKEN", &message),
            Rejection::TooDeep(_) => refused("DEPTH_LIMIT", &message),
            Rejection::TooManySiblings => refused("WORKSPACE_LIMIT", &message),
        }
    }
}

fn refused(reason: &'static str, message: &str) -> Status {
    status::failed_precondition(
        reason,
        message,
        vec![PreconditionViolation::new(reason, "workspace", message)],
    )
}

#[tonic::async_trait]
impl WorkspaceService for NamespaceRpc {
    async fn create_workspace(
        &self,
        request: Request<pb::CreateWorkspaceRequest>,
    ) -> Result<Response<pb::CreateWorkspaceResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.workspace.clone().unwrap_or_default();
        let wire::Named { name, description } =
            wire::named("workspace", &wanted.name, &wanted.description)?;
        let id = clock::new_id();
        let decide = || async {
            let group = call.id("workspace.group_id", "group")?;
            let (name, description) = (name.clone(), description.clone());
            let workspace = workspace::Workspace {
                id,
                group,
                name,
                description,
            };
            self.decide_create_workspace(&call, workspace).await
        };
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::CreateWorkspaceResponse, time| {
            if let Some(workspace) = &mut reply.workspace {
                let time = request::timestamp(time);
                (workspace.create_time, workspace.update_time) = (Some(time), Some(time));
            }
        };
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                answer,
            )
            .await
    }

    async fn get_workspace(
        &self,
        request: Request<pb::GetWorkspaceRequest>,
    ) -> Result<Response<pb::GetWorkspaceResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let (id, loaded) = self.load_workspace(place).await?;
        let workspace::State::Live(workspace) = &loaded.state else {
            return Err(workspace::Rejection::Missing.into());
        };
        let mut message = wire::workspace_message(id, &wire::parent_path(place), workspace);
        message.etag = loaded.etag();
        message.create_time = loaded.create_time.map(request::timestamp);
        message.update_time = loaded.update_time.map(request::timestamp);
        Ok(Response::new(pb::GetWorkspaceResponse {
            workspace: Some(message),
        }))
    }

    async fn delete_workspace(
        &self,
        request: Request<pb::DeleteWorkspaceRequest>,
    ) -> Result<Response<pb::DeleteWorkspaceResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let decide = || self.decide_delete_workspace(&call, &message.etag);
        self.commands
            .carry_out(
                mutation,
                decide,
                |reply| &mut reply.consistency_token,
                |_, _| {},
            )
            .await
    }
}

impl NamespaceRpc {
    async fn load_workspace(
        &self,
        place: &Place,
    ) -> Result<(WorkspaceId, Loaded<workspace::State>), Status> {
        let id = WorkspaceId::try_from(place.id())
            .map_err(|_| Violations::of("id", "must name a workspace").into_status())?;
        let stream = stream("workspace", id);
        Ok((
            id,
            aggregate::load(
                self.commands.log(),
                &stream,
                wire::read_workspace,
                workspace::evolve,
            )
            .await?,
        ))
    }

    async fn decide_create_workspace(
        &self,
        call: &Call,
        workspace: workspace::Workspace,
    ) -> Result<Decision<pb::CreateWorkspaceResponse>, Status> {
        let group = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the group"))?;
        let name = name_key(&workspace.group.to_string(), workspace.name.as_str());
        let siblings = workspaces_key(workspace.group);
        let facts = self.facts(&[name.clone(), siblings.clone()]).await?;
        let command = workspace::Command::Create {
            workspace: workspace.clone(),
            depth: group.nodes.len() + 1,
            name_taken: facts.get(&name).is_some(),
            siblings: count(&facts, &siblings),
        };
        let events: Vec<_> = workspace::decide(&workspace::State::Absent, command)?
            .iter()
            .map(wire::write_workspace)
            .collect();
        let mut guards = group.guards();
        guards.push(Guard::Expect {
            key: name,
            value: None,
        });
        guards.push(add(siblings, 1, 0, MAX_CHILDREN));
        guards.extend(changes(&events)?);
        let mut reply = wire::workspace_message(workspace.id, &group.path(), &workspace);
        reply.etag = etag(events.len() as u64);
        let streams = aggregate::append(
            stream("workspace", workspace.id),
            Expected::Version(0),
            encoded(events),
        );
        let reply = pb::CreateWorkspaceResponse {
            workspace: Some(reply),
            ..Default::default()
        };
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply,
        })
    }

    async fn decide_delete_workspace(
        &self,
        call: &Call,
        given_etag: &str,
    ) -> Result<Decision<pb::DeleteWorkspaceResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(workspace::Rejection::Missing)?;
        let (id, loaded) = self.load_workspace(&place).await?;
        loaded.check_etag("etag", given_etag)?;
        let events: Vec<_> = workspace::decide(&loaded.state, workspace::Command::Delete)?
            .iter()
            .map(wire::write_workspace)
            .collect();
        let mut guards = place.guards();
        guards.push(Guard::Set {
            key: owners_key(id),
            value: None,
        });
        if let Some(group) = place.parent() {
            guards.push(add(workspaces_key(group), -1, 0, i64::MAX));
        }
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream("workspace", id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::DeleteWorkspaceResponse::default(),
        })
    }
}
