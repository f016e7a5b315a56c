//! A caller, and what a caller does, as sentences. What must succeed panics otherwise; `asks` answers with the refusal.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proto::access::v1 as access;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::rpc::Rpc;
use crate::world::Service;

/// Whoever has this token. Cheap to clone.
#[derive(Clone)]
pub struct User {
    channels: Arc<BTreeMap<Service, Channel>>,
    principal: String,
    token: String,
    deadline: Option<Duration>,
    metadata: MetadataMap,
}

/// What a job was given.
#[derive(Clone, Debug)]
pub struct OpenedJob {
    /// The job.
    pub job: issuer::Job,
    /// Its bearer token.
    pub token: String,
}

impl User {
    /// Someone, `dev/alice`, with this token, who talks to these services.
    #[must_use]
    pub fn new(
        channels: Arc<BTreeMap<Service, Channel>>,
        principal: String,
        token: String,
    ) -> Self {
        Self {
            channels,
            principal,
            token,
            deadline: None,
            metadata: MetadataMap::new(),
        }
    }

    /// `dev/alice`.
    #[must_use]
    pub fn principal(&self) -> &str {
        &self.principal
    }

    /// The bearer token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The same, with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: token.to_owned(),
            ..self.clone()
        }
    }

    /// The same, with a deadline for each request.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self {
            deadline: Some(deadline),
            ..self.clone()
        }
    }

    /// The same, with this metadata in each request.
    #[must_use]
    pub fn saying(&self, key: &'static str, value: &'static str) -> Self {
        let mut user = self.clone();
        user.metadata
            .insert(key, tonic::metadata::MetadataValue::from_static(value));
        user
    }

    /// The same, not waiting until what it changes is visible.
    #[must_use]
    pub fn in_a_hurry(&self) -> Self {
        self.saying("tharsis-wait", "none")
    }

    /// Sends any request to the service that serves it.
    pub async fn asks<R: Rpc>(&self, message: R) -> Result<R::Answer, Status> {
        self.calls(R::SERVICE, message)
            .await
            .map(Response::into_inner)
    }

    /// Sends any request to one service; answers with the metadata too.
    pub async fn calls<R: Rpc>(
        &self,
        service: Service,
        message: R,
    ) -> Result<Response<R::Answer>, Status> {
        let mut grpc = Grpc::new(self.channels[&service].clone());
        let not_ready = |error: tonic::transport::Error| Status::unavailable(error.to_string());
        grpc.ready().await.map_err(not_ready)?;
        let request = self.request(message);
        grpc.unary(request, R::path(), ProstCodec::default()).await
    }

    /// A request with this caller's token.
    #[must_use]
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        if !self.token.is_empty() {
            let bearer = format!("Bearer {}", self.token);
            let bearer = bearer.parse().expect("a token is a header value");
            request.metadata_mut().insert("authorization", bearer);
        }
        if let Some(deadline) = self.deadline {
            request.set_timeout(deadline);
        }
        request
    }

    /// For a client that was generated.
    #[must_use]
    pub fn channel(&self, service: Service) -> Channel {
        self.channels[&service].clone()
    }

    /// Makes a group; `acme/prod` below `acme`.
    pub async fn creates_group(&self, path: &str) -> namespace::Group {
        let made = self.asks(group(path)).await;
        made.expect("a group is made").group.expect("the group")
    }

    /// Makes a workspace.
    pub async fn creates_workspace(&self, path: &str) -> namespace::Workspace {
        let made = self.asks(workspace(path)).await;
        made.expect("a workspace is made")
            .workspace
            .expect("the workspace")
    }

    /// Makes an AWS identity.
    pub async fn creates_identity(&self, path: &str) -> identity::ManagedIdentity {
        let made = self.asks(aws_identity(path)).await;
        made.expect("a managed identity is made")
            .managed_identity
            .expect("the identity")
    }

    /// Makes an identity of any type.
    pub async fn registers(
        &self,
        path: &str,
        configuration: identity::configuration::Type,
    ) -> identity::ManagedIdentity {
        let mut request = aws_identity(path);
        let wanted = request.managed_identity.get_or_insert_default();
        wanted.configuration = Some(identity::Configuration {
            r#type: Some(configuration),
        });
        let made = self.asks(request).await;
        made.expect("a managed identity is made")
            .managed_identity
            .expect("the identity")
    }

    /// Makes an alias of an identity, by id or TRN.
    pub async fn creates_alias(&self, path: &str, source: &str) -> identity::ManagedIdentity {
        let made = self.asks(alias(path, source)).await;
        made.expect("an alias is made")
            .managed_identity
            .expect("the alias")
    }

    /// Makes a service account, which stands for the tokens of one repository.
    pub async fn creates_service_account(&self, path: &str) -> identity::ServiceAccount {
        let made = self.asks(service_account(path)).await;
        made.expect("a service account is made")
            .service_account
            .expect("the service account")
    }

    /// Gives someone a role in a group or workspace, by id or TRN.
    pub async fn grants(
        &self,
        to: &User,
        role: access::Role,
        namespace: &str,
    ) -> namespace::Membership {
        let made = self.asks(membership(&to.principal, role, namespace)).await;
        made.expect("a membership is made")
            .membership
            .expect("the membership")
    }

    /// Makes a team of these people.
    pub async fn creates_team(&self, name: &str, members: &[&User]) -> namespace::Team {
        let made = self.asks(team(name)).await;
        let team = made.expect("a team is made").team.expect("the team");
        for member in members {
            self.adds(member, &team.id).await;
        }
        team
    }

    /// Takes someone into a team, by id or TRN.
    pub async fn adds(&self, member: &User, team: &str) -> namespace::Team {
        let added = self.asks(team_member(member, team)).await;
        added.expect("a member is added").team.expect("the team")
    }

    /// Gives a team a role, each by id or TRN.
    pub async fn grants_team(
        &self,
        team: &str,
        role: access::Role,
        namespace: &str,
    ) -> namespace::Membership {
        let made = self.asks(team_membership(team, role, namespace)).await;
        made.expect("a membership is made")
            .membership
            .expect("the membership")
    }

    /// Assigns an identity to a workspace, each by id or TRN; answers with the consistency token.
    pub async fn assigns(&self, identity: &str, workspace: &str) -> String {
        let assigned = self.asks(assignment(identity, workspace)).await;
        assigned.expect("it is assigned").consistency_token
    }

    /// Makes an access rule for both stages: only these users, `dev/bob`.
    pub async fn restricts(&self, identity: &str, users: &[&str]) -> identity::AccessRule {
        let made = self.asks(access_rule(identity, users)).await;
        made.expect("an access rule is made")
            .access_rule
            .expect("the rule")
    }

    /// Hides everything inherited from a group or workspace down.
    pub async fn masks(&self, namespace: &str) -> identity::Mask {
        let made = self.asks(mask(namespace)).await;
        made.expect("the mask is made").mask.expect("a mask")
    }

    /// Opens a job in a workspace.
    pub async fn opens_job(&self, workspace: &str) -> OpenedJob {
        let opened = self.asks(job(workspace)).await.expect("a job is opened");
        OpenedJob {
            job: opened.job.expect("the job"),
            token: opened.job_token,
        }
    }

    /// Asks, with a job's token, for an identity's credential.
    pub async fn asks_as(
        &self,
        job_token: &str,
        identity: &str,
    ) -> Result<issuer::IssueCredentialResponse, Status> {
        self.with_token(job_token).asks(credential(identity)).await
    }

    /// Puts a group, by id or TRN, elsewhere; an empty parent is the top.
    pub async fn moves_group(&self, group: &str, new_parent: &str) -> namespace::Group {
        let moved = self.asks(group_move(group, new_parent)).await;
        moved.expect("the group is moved").group.expect("the group")
    }

    /// Puts a workspace, by id or TRN, into another group.
    pub async fn moves_workspace(&self, workspace: &str, new_group: &str) -> namespace::Workspace {
        let moved = self.asks(workspace_move(workspace, new_group)).await;
        moved
            .expect("the workspace is moved")
            .workspace
            .expect("the workspace")
    }

    /// Sets a limit.
    pub async fn sets_limit(&self, limit: &str, value: i64) -> namespace::Limit {
        let updated = self.asks(limit_update(limit, value)).await;
        updated.expect("the limit is set").limit.expect("the limit")
    }

    /// Deletes a group and everything below; answers with the consistency token.
    pub async fn deletes_group(&self, id: &str) -> String {
        let request = namespace::DeleteGroupRequest {
            id: id.to_owned(),
            force: true,
            ..Default::default()
        };
        let deleted = self.asks(request).await;
        deleted.expect("the group is deleted").consistency_token
    }

    /// The names of what is right below a group; of what the caller may see, at the top.
    pub async fn lists_children(&self, group: &str) -> Vec<String> {
        let request = directory::ListChildrenRequest {
            group_id: group.to_owned(),
            ..Default::default()
        };
        let listed = self.asks(request).await.expect("children are listed");
        listed.children.iter().map(child_name).collect()
    }
}

/// The name of a group or workspace.
#[must_use]
pub fn child_name(child: &directory::Child) -> String {
    use directory::child::Kind;
    match &child.kind {
        Some(Kind::Group(group)) => group.name.clone(),
        Some(Kind::Workspace(workspace)) => workspace.name.clone(),
        None => String::new(),
    }
}

/// The path above, as a group's TRN, and the name.
fn split(path: &str) -> (String, String) {
    match path.rsplit_once('/') {
        Some((above, name)) => (format!("trn:group:{above}"), name.to_owned()),
        None => (String::new(), path.to_owned()),
    }
}

/// The request that makes the group of this path.
#[must_use]
pub fn group(path: &str) -> namespace::CreateGroupRequest {
    let (parent_id, name) = split(path);
    let group = namespace::Group {
        parent_id,
        name,
        ..Default::default()
    };
    namespace::CreateGroupRequest {
        group: Some(group),
        ..Default::default()
    }
}

/// The request that makes the workspace of this path.
#[must_use]
pub fn workspace(path: &str) -> namespace::CreateWorkspaceRequest {
    let (group_id, name) = split(path);
    let workspace = namespace::Workspace {
        group_id,
        name,
        ..Default::default()
    };
    namespace::CreateWorkspaceRequest {
        workspace: Some(workspace),
        ..Default::default()
    }
}

/// The same, which has these managed identities from its beginning.
#[must_use]
pub fn workspace_with(path: &str, identities: &[&str]) -> namespace::CreateWorkspaceRequest {
    namespace::CreateWorkspaceRequest {
        managed_identity_ids: identities.iter().map(ToString::to_string).collect(),
        ..workspace(path)
    }
}

/// The request that puts a group elsewhere.
#[must_use]
pub fn group_move(group: &str, new_parent: &str) -> namespace::MoveGroupRequest {
    namespace::MoveGroupRequest {
        id: group.to_owned(),
        new_parent_id: new_parent.to_owned(),
        ..Default::default()
    }
}

/// The request that puts a workspace into another group.
#[must_use]
pub fn workspace_move(workspace: &str, new_group: &str) -> namespace::MoveWorkspaceRequest {
    namespace::MoveWorkspaceRequest {
        id: workspace.to_owned(),
        new_group_id: new_group.to_owned(),
        ..Default::default()
    }
}

/// The request that sets a limit.
#[must_use]
pub fn limit_update(limit: &str, value: i64) -> namespace::UpdateLimitRequest {
    let limit = namespace::Limit {
        id: limit.to_owned(),
        value,
        ..Default::default()
    };
    namespace::UpdateLimitRequest {
        limit: Some(limit),
        ..Default::default()
    }
}

/// The request that makes the AWS identity of this path.
#[must_use]
pub fn aws_identity(path: &str) -> identity::CreateManagedIdentityRequest {
    let (group_id, name) = split(path);
    let managed_identity = identity::ManagedIdentity {
        configuration: Some(aws(&format!("arn:aws:iam::123456789012:role/{name}"))),
        group_id,
        name,
        ..Default::default()
    };
    identity::CreateManagedIdentityRequest {
        managed_identity: Some(managed_identity),
        ..Default::default()
    }
}

/// The request that makes the alias of this path, of an identity by id or TRN.
#[must_use]
pub fn alias(path: &str, source: &str) -> identity::CreateManagedIdentityAliasRequest {
    let (group_id, name) = split(path);
    identity::CreateManagedIdentityAliasRequest {
        group_id,
        name,
        source_id: source.to_owned(),
        ..Default::default()
    }
}

/// The configuration of an IAM role.
#[must_use]
pub fn aws(role_arn: &str) -> identity::Configuration {
    let aws = identity::AwsConfiguration {
        role_arn: role_arn.to_owned(),
    };
    identity::Configuration {
        r#type: Some(identity::configuration::Type::Aws(aws)),
    }
}

/// A mask that hides everything inherited.
#[must_use]
pub fn mask(namespace: &str) -> identity::CreateMaskRequest {
    let mask = identity::Mask {
        namespace_id: namespace.to_owned(),
        hidden: Some(identity::mask::Hidden::Everything(true)),
        ..Default::default()
    };
    identity::CreateMaskRequest {
        mask: Some(mask),
        ..Default::default()
    }
}

/// The request that makes an access rule, for both stages: only these users.
#[must_use]
pub fn access_rule(identity: &str, users: &[&str]) -> identity::CreateAccessRuleRequest {
    let rule = identity::AccessRule {
        managed_identity_id: identity.to_owned(),
        condition: Some(eligible(users)),
        ..Default::default()
    };
    identity::CreateAccessRuleRequest {
        access_rule: Some(rule),
        ..Default::default()
    }
}

/// A rule's condition: only these users, `dev/bob`.
#[must_use]
pub fn eligible(users: &[&str]) -> identity::access_rule::Condition {
    let user = |user: &&str| access::Principal {
        kind: Some(access::principal::Kind::User((*user).to_owned())),
    };
    identity::access_rule::Condition::EligiblePrincipals(identity::EligiblePrincipals {
        principals: users.iter().map(user).collect(),
    })
}

/// The request that gives a principal, `dev/bob`, a role.
#[must_use]
pub fn membership(
    principal: &str,
    role: access::Role,
    namespace: &str,
) -> namespace::CreateMembershipRequest {
    let principal = access::Principal {
        kind: Some(access::principal::Kind::User(principal.to_owned())),
    };
    let membership = namespace::Membership {
        namespace_id: namespace.to_owned(),
        principal: Some(principal),
        role: role.into(),
        ..Default::default()
    };
    namespace::CreateMembershipRequest {
        membership: Some(membership),
        ..Default::default()
    }
}

/// The request that makes a team.
#[must_use]
pub fn team(name: &str) -> namespace::CreateTeamRequest {
    let team = namespace::Team {
        name: name.to_owned(),
        ..Default::default()
    };
    namespace::CreateTeamRequest {
        team: Some(team),
        ..Default::default()
    }
}

/// The request that takes someone into a team.
#[must_use]
pub fn team_member(member: &User, team: &str) -> namespace::AddTeamMemberRequest {
    namespace::AddTeamMemberRequest {
        team_id: team.to_owned(),
        user: member.principal.clone(),
        ..Default::default()
    }
}

/// The request that makes the service account of this path.
#[must_use]
pub fn service_account(path: &str) -> identity::CreateServiceAccountRequest {
    let (group_id, name) = split(path);
    let account = identity::ServiceAccount {
        group_id,
        name,
        trust_policies: vec![trust("https://ci.example.com", "repo:acme/web:*")],
        ..Default::default()
    };
    identity::CreateServiceAccountRequest {
        service_account: Some(account),
        ..Default::default()
    }
}

/// Trust in the tokens of an issuer whose `sub` is like this.
#[must_use]
pub fn trust(issuer: &str, subject: &str) -> identity::TrustPolicy {
    let condition = identity::claim_condition::Condition::Glob(subject.to_owned());
    let claim = identity::ClaimCondition {
        claim: "sub".to_owned(),
        condition: Some(condition),
    };
    identity::TrustPolicy {
        issuer: issuer.to_owned(),
        audience: "tharsis".to_owned(),
        claims: vec![claim],
        ..Default::default()
    }
}

/// The request that gives a team a role.
#[must_use]
pub fn team_membership(
    team: &str,
    role: access::Role,
    namespace: &str,
) -> namespace::CreateMembershipRequest {
    let mut request = membership("", role, namespace);
    request.membership.get_or_insert_default().principal = Some(access::Principal {
        kind: Some(access::principal::Kind::Team(team.to_owned())),
    });
    request
}

/// The request that assigns an identity.
#[must_use]
pub fn assignment(identity: &str, workspace: &str) -> identity::AssignManagedIdentityRequest {
    identity::AssignManagedIdentityRequest {
        workspace_id: workspace.to_owned(),
        managed_identity_id: identity.to_owned(),
        ..Default::default()
    }
}

/// The request that takes an identity away.
#[must_use]
pub fn unassignment(identity: &str, workspace: &str) -> identity::UnassignManagedIdentityRequest {
    identity::UnassignManagedIdentityRequest {
        workspace_id: workspace.to_owned(),
        managed_identity_id: identity.to_owned(),
        ..Default::default()
    }
}

/// The request that opens a job.
#[must_use]
pub fn job(workspace: &str) -> issuer::OpenJobRequest {
    let job = issuer::Job {
        workspace_id: workspace.to_owned(),
        stage: issuer::Stage::Apply.into(),
        ..Default::default()
    };
    issuer::OpenJobRequest {
        job: Some(job),
        ..Default::default()
    }
}

/// The request for a credential.
#[must_use]
pub fn credential(identity: &str) -> issuer::IssueCredentialRequest {
    issuer::IssueCredentialRequest {
        managed_identity_id: identity.to_owned(),
        ..Default::default()
    }
}
