//! Who may call what: every rpc by every role in every relation, against the golden file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use e2e::refusal::{invalid, not_found, refused};
use e2e::rpc::Rpc;
use e2e::user::{self, membership};
use e2e::{Service, User, World};
use futures::future::BoxFuture;
use model::ResourceId;
use prost_reflect::DescriptorPool;
use proto::access::v1::{self as access, Role};
use proto::directory::v1 as directory;
use proto::eventlog::v1 as eventlog;
use proto::eventlog::v1::event_log_service_client::EventLogServiceClient;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use serde_json::Value;
use tonic::{Code, Status};

use crate::{golden, reference};

const GOLDEN: &str = "access.txt";
const NOT_COVERED: &str = "access_not_covered.txt";
const READ_EVENTS: &str = "/tharsis.eventlog.v1.EventLogService/ReadEvents";
/// No aggregate has come so far: who may do it is refused for this, and so nothing changes.
const OTHER_ETAG: &str = "v999";

/// What the callers ask about.
struct Target {
    group: namespace::Group,
    workspace: namespace::Workspace,
    membership: namespace::Membership,
    team: namespace::Team,
    account: identity::ServiceAccount,
    identity: identity::ManagedIdentity,
    /// Of a group in which all callers are deployers.
    lent: identity::ManagedIdentity,
    /// In the group, of an identity elsewhere.
    alias: identity::ManagedIdentity,
    /// Elsewhere, of the identity in the group.
    alias_elsewhere: identity::ManagedIdentity,
    rule: identity::AccessRule,
    mask: identity::Mask,
    /// The id of the one that signs.
    key: String,
    job: user::OpenedJob,
}

/// One rpc, and what comes of it for a caller.
struct Row {
    path: &'static str,
    note: &'static str,
    /// The request.
    example: Value,
    ask: Ask,
}

type Ask = Box<dyn Fn(User, &Value) -> BoxFuture<'static, Result<(), Status>> + Send + Sync>;

#[expect(clippy::needless_pass_by_value, reason = "each is made for its row")]
fn row<R: Rpc>(note: &'static str, request: R) -> Row {
    Row {
        path: R::PATH,
        note,
        example: reference::json(R::PATH, &request),
        ask: Box::new(move |user, example| {
            let request: R = reference::request(R::PATH, example);
            Box::pin(async move { user.asks(request).await.map(drop) })
        }),
    }
}

impl Target {
    /// A request with names for its ids.
    fn named(&self, example: &Value) -> Value {
        let mut text = example.to_string();
        for (id, trn) in [
            (&self.group.id, &self.group.trn),
            (&self.workspace.id, &self.workspace.trn),
            (&self.team.id, &self.team.trn),
            (&self.account.id, &self.account.trn),
            (&self.identity.id, &self.identity.trn),
            (&self.lent.id, &self.lent.trn),
            (&self.alias.id, &self.alias.trn),
            (&self.alias_elsewhere.id, &self.alias_elsewhere.trn),
        ] {
            text = text.replace(id.as_str(), trn);
        }
        serde_json::from_str(&text).expect("it is JSON still")
    }

    /// The same for the reference: with names for what has none, and without what keeps it from being done.
    fn shown(&self, example: &Value) -> String {
        let mut example = self.named(example);
        make_readable(&mut example);
        let text = example.to_string();
        text.replace("\":", "\": ").replace(",\"", ", \"")
    }
}

/// The name for which a thing is not made.
const NO_NAME: &str = "_";

fn make_readable(example: &mut Value) {
    match example {
        Value::Object(fields) => {
            fields.remove("etag");
            fields.remove("validate_only");
            // Into a workspace, and so refused; without it, to the top.
            let into_workspace =
                |to: &Value| to.as_str().is_some_and(|to| to.contains("workspace"));
            if fields.get("new_parent_id").is_some_and(into_workspace) {
                fields.remove("new_parent_id");
            }
            fields.values_mut().for_each(make_readable);
        }
        Value::Array(values) => values.iter_mut().for_each(make_readable),
        Value::String(text) if text == NO_NAME => "new".clone_into(text),
        Value::String(text) if text.parse::<ResourceId>().is_ok() => {
            let kind = text.split('_').next().unwrap_or_default();
            *text = format!("{kind}_…");
        }
        _ => {}
    }
}

/// Every rpc on the target. Where it would change something, the request is one that is refused after the permission.
fn rows(target: &Target) -> Vec<Row> {
    let mut rows = namespace_rows(target);
    rows.extend(membership_rows(target));
    rows.extend(move_rows(target));
    rows.extend(team_rows(target));
    rows.extend(identity_rows(target));
    rows.extend(alias_rows(target));
    rows.extend(access_rule_rows(target));
    rows.extend(mask_rows(target));
    rows.extend(service_account_rows(target));
    rows.extend(issuer_rows(target));
    rows.extend(directory_rows(target));
    rows.extend(audit_rows(target));
    rows
}

fn text(text: &str) -> String {
    text.to_owned()
}

fn namespace_rows(target: &Target) -> Vec<Row> {
    let mut create_group = user::group("_");
    let mut create_top = create_group.clone();
    create_group.group.get_or_insert_default().parent_id = text(&target.group.id);
    create_top.group.get_or_insert_default().parent_id = String::new();
    let mut create_workspace = user::workspace("_");
    create_workspace.workspace.get_or_insert_default().group_id = text(&target.group.id);
    create_workspace.managed_identity_ids = vec![text(&target.identity.id)];
    vec![
        row(" (top level)", create_top),
        row("", create_group),
        row(
            "",
            namespace::GetGroupRequest {
                id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::DeleteGroupRequest {
                id: text(&target.group.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::UpdateGroupRequest {
                group: Some(namespace::Group {
                    etag: OTHER_ETAG.to_owned(),
                    ..target.group.clone()
                }),
                ..Default::default()
            },
        ),
        row("", create_workspace),
        row(
            "",
            namespace::GetWorkspaceRequest {
                id: text(&target.workspace.id),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::DeleteWorkspaceRequest {
                id: text(&target.workspace.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::UpdateWorkspaceRequest {
                workspace: Some(namespace::Workspace {
                    etag: OTHER_ETAG.to_owned(),
                    ..target.workspace.clone()
                }),
                ..Default::default()
            },
        ),
    ]
}

fn membership_rows(target: &Target) -> Vec<Row> {
    let changed_membership = namespace::Membership {
        etag: OTHER_ETAG.to_owned(),
        ..target.membership.clone()
    };
    vec![
        row(
            "",
            namespace::CreateMembershipRequest {
                validate_only: true,
                ..membership("dev/alice", Role::Viewer, &target.group.id)
            },
        ),
        row(
            " (workspace)",
            namespace::CreateMembershipRequest {
                validate_only: true,
                ..membership("dev/alice", Role::Viewer, &target.workspace.id)
            },
        ),
        row(
            "",
            namespace::GetMembershipRequest {
                id: text(&target.membership.id),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::UpdateMembershipRequest {
                membership: Some(changed_membership),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::DeleteMembershipRequest {
                id: text(&target.membership.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
    ]
}

/// Moves ask for two resources; and limits, which are nowhere.
fn move_rows(target: &Target) -> Vec<Row> {
    let move_group = |to: &str| namespace::MoveGroupRequest {
        etag: OTHER_ETAG.to_owned(),
        ..user::group_move(&target.group.id, to)
    };
    // Into a workspace, which is refused once it is known who asks.
    let into = |to: &str| namespace::MoveGroupRequest {
        etag: String::new(),
        ..move_group(to)
    };
    let workspace_into = |to: &str| user::workspace_move(&target.workspace.id, to);
    vec![
        row("", move_group(&target.workspace.id)),
        row(" (to the workspace)", into(&target.workspace.id)),
        row(
            "",
            namespace::MoveWorkspaceRequest {
                validate_only: true,
                ..workspace_into("trn:group:acme/team/below")
            },
        ),
        row(
            " (into the workspace)",
            workspace_into(&target.workspace.id),
        ),
        row("", namespace::ListLimitsRequest::default()),
        row(
            "",
            namespace::UpdateLimitRequest {
                validate_only: true,
                ..user::limit_update("namespace_depth", 15)
            },
        ),
    ]
}

fn team_rows(target: &Target) -> Vec<Row> {
    let of = |id: &str| text(id);
    let changed = namespace::Team {
        etag: OTHER_ETAG.to_owned(),
        ..target.team.clone()
    };
    vec![
        row(
            "",
            namespace::GetAccessRequest {
                namespace_id: of(&target.workspace.id),
                ..Default::default()
            },
        ),
        row("", user::team("_")),
        row(
            "",
            namespace::GetTeamRequest {
                id: of(&target.team.id),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::UpdateTeamRequest {
                team: Some(changed),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::DeleteTeamRequest {
                id: of(&target.team.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::AddTeamMemberRequest {
                team_id: of(&target.team.id),
                user: text("dev/alice"),
                validate_only: true,
                ..Default::default()
            },
        ),
        row(
            "",
            namespace::RemoveTeamMemberRequest {
                team_id: of(&target.team.id),
                user: text("dev/somebody-else"),
                validate_only: true,
                ..Default::default()
            },
        ),
    ]
}

fn identity_rows(target: &Target) -> Vec<Row> {
    let mut create_identity = user::aws_identity("_");
    create_identity
        .managed_identity
        .get_or_insert_default()
        .group_id = text(&target.group.id);
    let changed_identity = identity::ManagedIdentity {
        etag: OTHER_ETAG.to_owned(),
        ..target.identity.clone()
    };
    vec![
        row("", create_identity),
        row(
            "",
            identity::GetManagedIdentityRequest {
                id: text(&target.identity.id),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::GetSetupInstructionsRequest {
                id: text(&target.identity.id),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::UpdateManagedIdentityRequest {
                managed_identity: Some(changed_identity),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::MoveManagedIdentityRequest {
                id: text(&target.identity.id),
                new_group_id: text(&target.group.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::DeleteManagedIdentityRequest {
                id: text(&target.identity.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::AssignManagedIdentityRequest {
                validate_only: true,
                ..user::assignment(&target.identity.id, &target.workspace.id)
            },
        ),
        row(
            "",
            identity::UnassignManagedIdentityRequest {
                validate_only: true,
                ..user::unassignment(&target.identity.id, &target.workspace.id)
            },
        ),
    ]
}

fn alias_rows(target: &Target) -> Vec<Row> {
    let create = |group: &str, source: &str| identity::CreateManagedIdentityAliasRequest {
        group_id: text(group),
        name: text("shared"),
        source_id: text(source),
        validate_only: true,
        ..Default::default()
    };
    let delete = |id: &str| identity::DeleteManagedIdentityAliasRequest {
        id: text(id),
        etag: OTHER_ETAG.to_owned(),
        ..Default::default()
    };
    vec![
        row("", create(&target.group.id, &target.lent.id)),
        row(
            " (the identity is there)",
            create(&target.lent.group_id, &target.identity.id),
        ),
        row("", delete(&target.alias.id)),
        row(
            " (the identity is there)",
            delete(&target.alias_elsewhere.id),
        ),
    ]
}

fn mask_rows(target: &Target) -> Vec<Row> {
    vec![
        row("", user::mask(&target.group.id)),
        row(
            "",
            identity::GetMaskRequest {
                id: text(&target.mask.id),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::DeleteMaskRequest {
                id: text(&target.mask.id),
                validate_only: true,
                ..Default::default()
            },
        ),
        row(
            "",
            identity::ListMasksRequest {
                namespace_id: text(&target.group.id),
                ..Default::default()
            },
        ),
    ]
}

fn access_rule_rows(target: &Target) -> Vec<Row> {
    let changed = identity::AccessRule {
        etag: OTHER_ETAG.to_owned(),
        ..target.rule.clone()
    };
    vec![
        row(
            "",
            identity::CreateAccessRuleRequest {
                validate_only: true,
                ..user::access_rule(&target.identity.id, &["dev/alice"])
            },
        ),
        row(
            "",
            identity::GetAccessRuleRequest {
                id: text(&target.rule.id),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::UpdateAccessRuleRequest {
                access_rule: Some(changed),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::DeleteAccessRuleRequest {
                id: text(&target.rule.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::ListAccessRulesRequest {
                managed_identity_id: text(&target.identity.id),
                ..Default::default()
            },
        ),
    ]
}

fn service_account_rows(target: &Target) -> Vec<Row> {
    let mut create = user::service_account("_");
    create.service_account.get_or_insert_default().group_id = text(&target.group.id);
    let changed = identity::ServiceAccount {
        etag: OTHER_ETAG.to_owned(),
        ..target.account.clone()
    };
    vec![
        row("", create),
        row(
            "",
            identity::GetServiceAccountRequest {
                id: text(&target.account.id),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::UpdateServiceAccountRequest {
                service_account: Some(changed),
                ..Default::default()
            },
        ),
        row(
            "",
            identity::DeleteServiceAccountRequest {
                id: text(&target.account.id),
                etag: OTHER_ETAG.to_owned(),
                ..Default::default()
            },
        ),
    ]
}

fn issuer_rows(target: &Target) -> Vec<Row> {
    let mut open_job = issuer::OpenJobRequest {
        validate_only: true,
        ..user::job(&target.workspace.id)
    };
    open_job.job.get_or_insert_default().module = Some(e2e::attestation::module(1, &[]));
    vec![
        row("", open_job),
        row(
            "",
            issuer::GetJobRequest {
                id: text(&target.job.job.id),
                ..Default::default()
            },
        ),
        row("", user::credential(&target.identity.id)),
        row("", issuer::ListJobManagedIdentitiesRequest::default()),
        row(
            "",
            issuer::CancelJobRequest {
                id: text(&target.job.job.id),
                validate_only: true,
                ..Default::default()
            },
        ),
        row(
            "",
            issuer::HeartbeatJobRequest {
                validate_only: true,
                ..Default::default()
            },
        ),
        row(
            "",
            issuer::FinishJobRequest {
                validate_only: true,
                ..Default::default()
            },
        ),
        row("", issuer::IssueCredentialsRequest::default()),
        row(
            "",
            issuer::ExplainCredentialRequest {
                workspace_id: text(&target.workspace.id),
                managed_identity_id: text(&target.identity.id),
                stage: issuer::Stage::Apply.into(),
                ..Default::default()
            },
        ),
        row(
            "",
            issuer::GetSigningKeyRequest {
                id: text(&target.key),
                ..Default::default()
            },
        ),
        // Without a token to exchange it is refused for what it asks, and not for who asks.
        row(
            "",
            issuer::ExchangeTokenRequest {
                service_account_id: text(&target.account.id),
                ..Default::default()
            },
        ),
        row("", issuer::ListSigningKeysRequest::default()),
        row("", issuer::RotateSigningKeyRequest::default()),
        row(
            "",
            issuer::RevokeSigningKeyRequest {
                id: text(&target.key),
                reason: text("somebody has it"),
                validate_only: true,
                ..Default::default()
            },
        ),
        row(
            "",
            issuer::ListLiveTokensRequest {
                signing_key_id: text(&target.key),
                ..Default::default()
            },
        ),
    ]
}

fn directory_rows(target: &Target) -> Vec<Row> {
    vec![
        row(" (top level)", directory::ListChildrenRequest::default()),
        row(
            "",
            directory::ListChildrenRequest {
                group_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListManagedIdentitiesRequest {
                group_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListWorkspaceManagedIdentitiesRequest {
                workspace_id: text(&target.workspace.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListManagedIdentityWorkspacesRequest {
                managed_identity_id: text(&target.identity.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListManagedIdentityAliasesRequest {
                managed_identity_id: text(&target.identity.id),
                ..Default::default()
            },
        ),
        row(
            " (top level)",
            directory::SearchNamespacesRequest::default(),
        ),
        row(
            "",
            directory::SearchNamespacesRequest {
                group_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            " (top level)",
            directory::SearchManagedIdentitiesRequest::default(),
        ),
        row(
            "",
            directory::SearchManagedIdentitiesRequest {
                group_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListMembershipsRequest {
                namespace_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            " (workspace)",
            directory::ListMembershipsRequest {
                namespace_id: text(&target.workspace.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListPrincipalMembershipsRequest {
                principal: Some(access::Principal {
                    kind: Some(access::principal::Kind::Team(text(&target.team.id))),
                }),
                ..Default::default()
            },
        ),
        row("", directory::ListTeamsRequest::default()),
        row(
            "",
            directory::ListTeamMembersRequest {
                team_id: text(&target.team.id),
                ..Default::default()
            },
        ),
        row(
            "",
            directory::ListServiceAccountsRequest {
                group_id: text(&target.group.id),
                ..Default::default()
            },
        ),
    ]
}

/// And those that every service has.
fn audit_rows(target: &Target) -> Vec<Row> {
    vec![
        row(
            "",
            directory::ListJobsRequest {
                workspace_id: text(&target.workspace.id),
                ..Default::default()
            },
        ),
        row(" (top level)", directory::ListJobsRequest::default()),
        row(
            " (group)",
            directory::ListJobsRequest {
                parent_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(" (top level)", directory::ListCredentialsRequest::default()),
        row(
            " (group)",
            directory::ListCredentialsRequest {
                parent_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            " (workspace)",
            directory::ListCredentialsRequest {
                parent_id: text(&target.workspace.id),
                ..Default::default()
            },
        ),
        row(
            " (managed identity)",
            directory::ListCredentialsRequest {
                parent_id: text(&target.identity.id),
                ..Default::default()
            },
        ),
        row(
            " (job)",
            directory::ListCredentialsRequest {
                parent_id: text(&target.job.job.id),
                ..Default::default()
            },
        ),
        row(" (top level)", directory::ListActivitiesRequest::default()),
        row(
            "",
            directory::ListActivitiesRequest {
                resource_id: text(&target.group.id),
                ..Default::default()
            },
        ),
        row(
            " (workspace)",
            directory::ListActivitiesRequest {
                resource_id: text(&target.workspace.id),
                ..Default::default()
            },
        ),
        row("", eventlog::GetHeadRequest::default()),
        row("", eventlog::AwaitRequest::default()),
        Row {
            path: READ_EVENTS,
            note: "",
            example: reference::json(READ_EVENTS, &eventlog::ReadEventsRequest::default()),
            ask: Box::new(|user, _| {
                Box::pin(async move {
                    let mut client = EventLogServiceClient::new(user.channel(Service::Namespace));
                    let request = user.request(eventlog::ReadEventsRequest::default());
                    client.read_events(request).await.map(drop)
                })
            }),
        },
    ]
}

/// Those who ask, by relation and role.
async fn callers(world: &World) -> (Target, Vec<(String, User)>) {
    let admin = world.admin();
    admin.creates_group("acme").await;
    admin.creates_group("other").await;
    let group = admin.creates_group("acme/team").await;
    admin.creates_group("acme/team/below").await;
    let workspace = admin.creates_workspace("acme/team/web").await;
    let identity = admin.creates_identity("acme/team/deployer").await;
    admin.assigns(&identity.id, &workspace.id).await;
    let rule = admin.restricts(&identity.id, &[admin.principal()]).await;
    let mask = admin.masks(&group.id).await;
    let membership = admin
        .grants(&world.user("somebody-else"), Role::Viewer, &group.id)
        .await;
    let somebody = world.user("somebody-else");
    let team = admin.creates_team("platform", &[&somebody]).await;
    let keys = admin.asks(issuer::ListSigningKeysRequest::default()).await;
    let key = keys.expect("the keys").signing_keys[0].id.clone();
    let account = admin.creates_service_account("acme/team/ci").await;
    let job = admin.opens_job(&workspace.id).await;
    admin.creates_group("lender").await;
    let lent = admin.creates_identity("lender/deployer").await;
    admin.creates_group("closed").await;
    let closed = admin.creates_identity("closed/deployer").await;
    let alias = admin.creates_alias("acme/team/borrowed", &closed.id).await;
    let alias_elsewhere = admin.creates_alias("closed/team", &identity.id).await;
    let mut callers = vec![("nowhere".to_owned(), world.user("nobody"))];
    for (relation, at) in [
        ("above", "trn:group:acme"),
        ("there", "trn:group:acme/team"),
        ("below", "trn:group:acme/team/below"),
        ("elsewhere", "trn:group:other"),
    ] {
        for role in [Role::Viewer, Role::Deployer, Role::Owner] {
            let name = role
                .as_str_name()
                .trim_start_matches("ROLE_")
                .to_ascii_lowercase();
            let user = world.user(&format!("{relation}-{name}"));
            admin.grants(&user, role, at).await;
            admin
                .grants(&user, Role::Deployer, "trn:group:lender")
                .await;
            callers.push((format!("{relation} {name}"), user));
        }
    }
    callers.push(("administrator".to_owned(), admin.clone()));
    callers.push(("event reader".to_owned(), world.user("projector")));
    callers.push(("its job".to_owned(), admin.with_token(&job.token)));
    callers.push(("no token".to_owned(), world.stranger()));
    let target = Target {
        group,
        workspace,
        membership,
        team,
        account,
        identity,
        lent,
        alias,
        alias_elsewhere,
        rule,
        mask,
        key,
        job,
    };
    (target, callers)
}

fn verdict(outcome: Result<(), Status>) -> &'static str {
    match outcome.map_err(|status| status.code()) {
        // Refused for what it asks, not for who asks.
        Ok(()) | Err(Code::InvalidArgument | Code::Aborted) => "yes",
        Err(Code::PermissionDenied) => "denied",
        Err(Code::NotFound) => "hidden",
        Err(Code::Unauthenticated) => "unknown",
        Err(_) => "?",
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_call_what_is_as_the_golden_file_says() {
    let world = World::start().await;
    let (target, callers) = callers(&world).await;
    let mut table = String::from(
        "# yes: the caller may; hidden: NOT_FOUND; denied: PERMISSION_DENIED; unknown: UNAUTHENTICATED.\n\
         # The resource is in acme/team; callers hold their role above it, there, below it, or elsewhere.\n",
    );
    let (mut examples, mut plain) = (BTreeMap::new(), BTreeSet::new());
    for row in rows(&target) {
        writeln!(table, "\n{}{}", row.path, row.note).expect("a string takes text");
        let example = target.named(&row.example);
        let mut by_verdict: Vec<(&str, Vec<&str>)> = Vec::new();
        for (caller, user) in &callers {
            let verdict = verdict((row.ask)(user.clone(), &example).await);
            match by_verdict.iter_mut().find(|(seen, _)| *seen == verdict) {
                Some((_, callers)) => callers.push(caller),
                None => by_verdict.push((verdict, vec![caller])),
            }
        }
        let shown = target.shown(&row.example);
        // The one that needs no note is the plain one.
        if row.note.is_empty() && !plain.contains(row.path) {
            plain.insert(row.path);
            examples.insert(row.path, shown);
        } else {
            examples.entry(row.path).or_insert(shown);
        }
        by_verdict.sort_by_key(|(verdict, _)| std::cmp::Reverse(*verdict));
        for (verdict, callers) in by_verdict {
            writeln!(table, "    {verdict:8} {}", callers.join(", ")).expect("a string takes text");
        }
    }
    golden::compare(GOLDEN, &table);
    reference::compare(&examples);
}

#[test]
fn every_rpc_is_in_the_golden_file() {
    let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("descriptors");
    let rpcs: BTreeSet<String> = pool
        .services()
        .filter(|service| service.package_name().starts_with("tharsis."))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
        .collect();
    assert!(rpcs.len() > 20, "{rpcs:?}");
    let named = |file: &str| -> BTreeSet<String> {
        let text = golden::read(file);
        let lines = text.lines().filter(|line| line.starts_with('/'));
        lines
            .filter_map(|line| line.split(' ').next())
            .map(str::to_owned)
            .collect()
    };
    let (covered, excused) = (named(GOLDEN), named(NOT_COVERED));
    let missing: Vec<_> = rpcs
        .iter()
        .filter(|rpc| !covered.contains(*rpc) && !excused.contains(*rpc))
        .collect();
    assert!(
        missing.is_empty(),
        "in neither {GOLDEN} nor {NOT_COVERED}: {missing:?}"
    );
    let stale: Vec<_> = excused
        .iter()
        .filter(|rpc| covered.contains(*rpc) || !rpcs.contains(*rpc))
        .collect();
    assert!(
        stale.is_empty(),
        "in {NOT_COVERED} for no reason: {stale:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_membership_counts_and_a_hidden_thing_looks_like_none() {
    let world = World::start().await;
    let (admin, mallory) = (world.admin(), world.user("mallory"));
    let acme = admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    let web = admin.creates_workspace("acme/team/web").await;

    // What is hidden is answered as what does not exist, but for its name.
    let get = |id: &str| namespace::GetGroupRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let hidden = mallory
        .asks(get("trn:group:acme"))
        .await
        .expect_err("hidden");
    let missing = mallory
        .asks(get("trn:group:nope"))
        .await
        .expect_err("missing");
    assert_eq!(hidden.code(), missing.code());
    assert_eq!(hidden.message(), missing.message().replace("nope", "acme"));
    assert_eq!(hidden.details().len(), missing.details().len());
    not_found(mallory.asks(get(&acme.id)).await);

    // Owner above, viewer nearer.
    admin.grants(&mallory, Role::Owner, &acme.id).await;
    mallory.creates_group("acme/hers").await;
    let nearer = admin.grants(&mallory, Role::Viewer, &team.id).await;
    refused(
        mallory.asks(user::group("acme/team/x")).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    refused(
        mallory.asks(user::workspace("acme/team/x")).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    mallory
        .asks(get(&team.id))
        .await
        .expect("she still sees it");
    // And deployer nearer still.
    admin.grants(&mallory, Role::Deployer, &web.id).await;
    mallory.opens_job(&web.id).await;
    refused(
        mallory.asks(user::workspace("acme/team/x")).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    // Once it is gone, the one above counts again, in every service.
    let request = namespace::DeleteMembershipRequest {
        id: nearer.trn.clone(),
        ..Default::default()
    };
    admin.asks(request).await.expect("deleted");
    mallory.creates_workspace("acme/team/x").await;
    mallory.creates_identity("acme/team/x").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_level_group_keeps_an_owner() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let second = admin.grants(&bob, Role::Owner, &acme.id).await;
    let delete = |id: &str| namespace::DeleteMembershipRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let change =
        |membership: &namespace::Membership, role: Role| namespace::UpdateMembershipRequest {
            membership: Some(namespace::Membership {
                role: role.into(),
                ..membership.clone()
            }),
            ..Default::default()
        };
    // Whoever made the group owns it, by a membership that its event tells of.
    let log = world.log(Service::Namespace).await;
    let first = log
        .iter()
        .find_map(|event| event.stream_id.strip_prefix("membership/"))
        .expect("the founder's membership");
    // Both at once: one of the two must stay.
    let (one, other) = tokio::join!(admin.asks(delete(first)), admin.asks(delete(&second.id)));
    assert_ne!(one.is_ok(), other.is_ok(), "{one:?} {other:?}");
    let (left, refusal) = if one.is_ok() {
        (second.id.clone(), other.map(drop))
    } else {
        (first.to_owned(), one.map(drop))
    };
    refused(refusal, Code::FailedPrecondition, "LAST_OWNER");
    let last = admin
        .asks(namespace::GetMembershipRequest {
            id: left.clone(),
            ..Default::default()
        })
        .await
        .expect("it stays")
        .membership
        .expect("the membership");
    refused(
        admin.asks(change(&last, Role::Deployer)).await,
        Code::FailedPrecondition,
        "LAST_OWNER",
    );
    invalid(
        admin.asks(change(&last, Role::Unspecified)).await,
        &["membership.role"],
    );
    // With another owner it may go; in a group further down there need not be one.
    admin
        .grants(&world.user("carol"), Role::Owner, &acme.id)
        .await;
    let changed = admin
        .asks(change(&last, Role::Deployer))
        .await
        .expect("changed")
        .membership
        .expect("it");
    assert_eq!(
        (changed.role(), changed.etag != last.etag),
        (Role::Deployer, true)
    );
    let team = admin.creates_group("acme/team").await;
    let only = admin.grants(&bob, Role::Owner, &team.id).await;
    admin.asks(delete(&only.id)).await.expect("deleted");
    not_found(admin.asks(delete(&only.id)).await);
    // One membership of a principal in a group.
    let twice = admin
        .asks(membership("dev/carol", Role::Viewer, &acme.id))
        .await;
    refused(twice, Code::AlreadyExists, "MEMBERSHIP_EXISTS");
}
