//! `WorkspaceService`.

use edge::aggregate::{self, Loaded};
use edge::command::{Decision, Mutation};
use edge::consistency::visibility_wait;
use edge::hierarchy::Place;
use edge::layer::Call;
use edge::request::etag;
use edge::violations::Violations;
use edge::{clock, request, status};
use eventlog::{Expected, Guard};
use model::{Description, WorkspaceId};
use proto::namespace::v1 as pb;
use proto::namespace::v1::workspace_service_server::WorkspaceService;
use tonic::{Request, Response, Status};

use super::moves::grows;
use super::{
    NamespaceRpc, Sibling, add, changes, encoded, initial_assignments, obstacle, owners_key,
    stream, workspaces_key,
};
use crate::domain::workspace::{self, MaxJobDuration};
use crate::wire;

impl From<workspace::Rejection> for Status {
    fn from(rejection: workspace::Rejection) -> Self {
        use workspace::Rejection;
        let message = rejection.to_string();
        match rejection {
            Rejection::Missing => status::not_found("the workspace"),
            Rejection::NoRoom(reason) => Sibling::Workspace.refused(reason),
            Rejection::SameGroup => obstacle("SAME_PARENT", "workspace", &message),
        }
    }
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
        let mut violations = Violations::default();
        let max_job_duration = wire::max_job_duration(&wanted, &mut violations);
        let max_job_duration = max_job_duration.and_then(|wanted| wanted.0);
        let named = &message.managed_identity_ids;
        let with = initial_assignments::requested(&call, named, &mut violations);
        let wire::Named { name, description } =
            wire::named("workspace", &wanted.name, &wanted.description, violations)?;
        let id = clock::new_id();
        let decide = || async {
            let group = call.id("workspace.group_id", "group")?;
            let (name, description) = (name.clone(), description.clone());
            let workspace = workspace::Workspace {
                id,
                group,
                name,
                description,
                max_job_duration,
            };
            self.decide_create_workspace(&call, workspace, with.clone())
                .await
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
        let mut made = self
            .commands
            .carry_out(mutation, decide, token, answer)
            .await?;
        if named.is_empty() || call.validate_only {
            return Ok(made);
        }
        let patience = visibility_wait(metadata.as_ref())?.unwrap_or_default();
        let reply = made.get_mut();
        let workspace = reply.workspace.clone().unwrap_or_default();
        reply.initial_assignments = self
            .initial_assignments(&workspace.id, named, patience)
            .await;
        Ok(self
            .commands
            .and_what_followed(made, token, &metadata)
            .await)
    }

    async fn get_workspace(
        &self,
        request: Request<pb::GetWorkspaceRequest>,
    ) -> Result<Response<pb::GetWorkspaceResponse>, Status> {
        let call = Call::of(&request)?;
        let place = call.place()?;
        let (id, loaded) = self.load_workspace("id", place).await?;
        let workspace = message(id, &wire::parent_path(place), &loaded);
        let workspace = workspace.ok_or(workspace::Rejection::Missing)?;
        Ok(Response::new(pb::GetWorkspaceResponse {
            workspace: Some(workspace),
        }))
    }

    async fn update_workspace(
        &self,
        request: Request<pb::UpdateWorkspaceRequest>,
    ) -> Result<Response<pb::UpdateWorkspaceResponse>, Status> {
        let call = Call::of(&request)?;
        let (metadata, _, message) = request.into_parts();
        let wanted = message.workspace.clone().unwrap_or_default();
        let mut violations = Violations::default();
        let mask = violations.merge(request::update_mask(
            message.update_mask.as_ref(),
            &["description", "max_job_duration"],
        ));
        let changes = |field| mask.as_ref().is_some_and(|mask| mask.has(field));
        let description = changes("description")
            .then(|| violations.check("workspace.description", wanted.description.parse()))
            .flatten();
        let max_job_duration = changes("max_job_duration")
            .then(|| wire::max_job_duration(&wanted, &mut violations))
            .flatten();
        violations.finish(|| Some(()))?;
        let mutation = Mutation::new(&call, &metadata, &message, |m| {
            [&mut m.request_id, &mut m.consistency_token]
        });
        let answer = |reply: &mut pb::UpdateWorkspaceResponse, time| {
            if let Some(workspace) = &mut reply.workspace {
                workspace.update_time = Some(request::timestamp(time));
            }
        };
        let decide = || {
            let description = description.clone();
            self.decide_update_workspace(&call, &wanted.etag, description, max_job_duration)
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

    async fn move_workspace(
        &self,
        request: Request<pb::MoveWorkspaceRequest>,
    ) -> Result<Response<pb::MoveWorkspaceResponse>, Status> {
        self.move_a_workspace(request).await
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
    pub(super) async fn load_workspace(
        &self,
        field: &str,
        place: &Place,
    ) -> Result<(WorkspaceId, Loaded<workspace::State>), Status> {
        let id = WorkspaceId::try_from(place.id())
            .map_err(|_| Violations::of(field, "must name a workspace").into_status())?;
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
        with: Option<pb::InitialAssignments>,
    ) -> Result<Decision<pb::CreateWorkspaceResponse>, Status> {
        let group = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or_else(|| status::not_found("the group"))?;
        let room = self
            .room(Sibling::Workspace, Some(&group), &workspace.name, 0)
            .await?;
        let command = workspace::Command::Create {
            workspace: workspace.clone(),
            destination: room.destination,
        };
        let events: Vec<_> = workspace::decide(&workspace::State::Absent, command)?
            .iter()
            .map(|event| wire::with(wire::write_workspace(event), with.clone()))
            .collect();
        let mut guards = room.guards;
        guards.extend(grows(&group.nodes, 1..=1));
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

    async fn decide_update_workspace(
        &self,
        call: &Call,
        given_etag: &str,
        description: Option<Description>,
        max_job_duration: Option<MaxJobDuration>,
    ) -> Result<Decision<pb::UpdateWorkspaceResponse>, Status> {
        let place = call
            .relocate(&self.hierarchy)
            .await?
            .ok_or(workspace::Rejection::Missing)?;
        let (id, loaded) = self.load_workspace("workspace.id", &place).await?;
        loaded.check_etag("workspace.etag", given_etag)?;
        let command = workspace::Command::Update {
            description,
            max_job_duration,
        };
        let events = workspace::decide(&loaded.state, command)?;
        let mut after = loaded.clone();
        for event in &events {
            workspace::evolve(&mut after.state, event);
            after.version += 1;
        }
        let events: Vec<_> = events.iter().map(wire::write_workspace).collect();
        let mut guards = place.guards();
        guards.extend(changes(&events)?);
        let streams = aggregate::append(
            stream("workspace", id),
            Expected::Version(loaded.version),
            encoded(events),
        );
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::UpdateWorkspaceResponse {
                workspace: message(id, &wire::parent_path(&place), &after),
                ..Default::default()
            },
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
        let (id, loaded) = self.load_workspace("id", &place).await?;
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
        let ending = self.ending_by_deletion(call, &place).await?;
        Ok(Decision {
            streams: streams.into_iter().collect(),
            guards,
            reply: pb::DeleteWorkspaceResponse {
                ending_assignments: ending.assignments,
                ending_assignment_count: ending.count,
                ..Default::default()
            },
        })
    }
}

fn token(reply: &mut pb::CreateWorkspaceResponse) -> &mut String {
    &mut reply.consistency_token
}

/// A workspace as callers see it; none if it does not exist.
pub(super) fn message(
    id: WorkspaceId,
    group_path: &str,
    loaded: &Loaded<workspace::State>,
) -> Option<pb::Workspace> {
    let workspace::State::Live(workspace) = &loaded.state else {
        return None;
    };
    Some(pb::Workspace {
        etag: loaded.etag(),
        create_time: loaded.create_time.map(request::timestamp),
        update_time: loaded.update_time.map(request::timestamp),
        ..wire::workspace_message(id, group_path, workspace)
    })
}
