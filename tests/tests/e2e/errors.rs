//! What is refused, and what the refusal says.

use bed::unique_id;
use e2e::refusal::{fields, invalid, not_found, obstacles, refused};
use e2e::user::{
    assignment, aws, aws_identity, credential, group, job, membership, service_account,
    unassignment, workspace,
};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

fn get_group(id: &str) -> namespace::GetGroupRequest {
    namespace::GetGroupRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn get_workspace(id: &str) -> namespace::GetWorkspaceRequest {
    namespace::GetWorkspaceRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn get_identity(id: &str) -> identity::GetManagedIdentityRequest {
    identity::GetManagedIdentityRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn get_job(id: &str) -> issuer::GetJobRequest {
    issuer::GetJobRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn get_membership(id: &str) -> namespace::GetMembershipRequest {
    namespace::GetMembershipRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn delete_group(id: &str) -> namespace::DeleteGroupRequest {
    namespace::DeleteGroupRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_wrong_field_is_named_by_its_path() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    let long = || "x".repeat(1_025);

    let mut request = group("Acme");
    request.group.get_or_insert_default().description = long();
    invalid(
        admin.asks(request).await,
        &["group.name", "group.description"],
    );
    invalid(
        admin.asks(namespace::CreateGroupRequest::default()).await,
        &["group.name"],
    );
    invalid(admin.asks(workspace("acme")).await, &["workspace.group_id"]);
    let mut request = workspace("acme/-");
    request.workspace.get_or_insert_default().description = long();
    invalid(
        admin.asks(request).await,
        &["workspace.name", "workspace.description"],
    );
    let mut request = membership("alice", Role::Unspecified, &acme.id);
    invalid(
        admin.asks(request.clone()).await,
        &["membership.principal.user", "membership.role"],
    );
    request.membership.get_or_insert_default().principal = None;
    invalid(
        admin.asks(request).await,
        &["membership.principal", "membership.role"],
    );
    let mut request = aws_identity("acme/x");
    request
        .managed_identity
        .get_or_insert_default()
        .configuration = Some(aws("arn:aws:s3:::x"));
    invalid(
        admin.asks(request.clone()).await,
        &["managed_identity.configuration.aws.role_arn"],
    );
    request.managed_identity = Some(identity::ManagedIdentity {
        group_id: acme.id.clone(),
        description: long(),
        ..Default::default()
    });
    invalid(
        admin.asks(request).await,
        &[
            "managed_identity.name",
            "managed_identity.description",
            "managed_identity.configuration",
        ],
    );
    let mut request = identity::UpdateManagedIdentityRequest {
        managed_identity: Some(identity::ManagedIdentity {
            etag: "new".to_owned(),
            ..deployer.clone()
        }),
        ..Default::default()
    };
    invalid(
        admin.asks(request.clone()).await,
        &["managed_identity.etag"],
    );
    request.update_mask = Some(prost_types::FieldMask {
        paths: vec!["name".to_owned()],
    });
    invalid(admin.asks(request).await, &["update_mask"]);
    let mut request = job(&web.id);
    let wanted = request.job.get_or_insert_default();
    (wanted.stage, wanted.max_duration) = (
        7,
        Some(prost_types::Duration {
            seconds: 86_401,
            nanos: 0,
        }),
    );
    invalid(
        admin.asks(request).await,
        &["job.stage", "job.max_duration"],
    );
    for (seconds, nanos) in [(i64::MAX, i32::MAX), (10, -1), (10, 1_000_000_000), (-1, 0)] {
        let mut request = job(&web.id);
        request.job.get_or_insert_default().max_duration =
            Some(prost_types::Duration { seconds, nanos });
        invalid(admin.asks(request).await, &["job.max_duration"]);
    }
    let bad_etag = namespace::DeleteGroupRequest {
        etag: "1".to_owned(),
        ..delete_group(&acme.id)
    };
    invalid(admin.asks(bad_etag).await, &["etag"]);
    let paging = directory::ListChildrenRequest {
        page_size: -1,
        page_token: "?".to_owned(),
        ..Default::default()
    };
    invalid(admin.asks(paging).await, &["page_size", "page_token"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_names_no_resource_of_the_type_is_a_wrong_field() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let opened = admin.opens_job(&web.id).await;
    let bobs = admin
        .grants(&world.user("bob"), Role::Viewer, &acme.id)
        .await;
    // No id and no TRN; empty; of another type.
    for id in ["acme", "", "trn:group:", "grp_1", "trn:teams:acme"] {
        invalid(admin.asks(get_group(id)).await, &["id"]);
    }
    invalid(admin.asks(job("acme/web")).await, &["job.workspace_id"]);
    invalid(
        admin.asks(assignment("deployer", &web.id)).await,
        &["managed_identity_id"],
    );
    invalid(
        admin.asks(unassignment("", &web.id)).await,
        &["managed_identity_id"],
    );
    invalid(
        admin.asks_as(&opened.token, "deployer").await,
        &["managed_identity_id"],
    );
    invalid(admin.asks(get_group(&web.id)).await, &["id"]);
    invalid(admin.asks(get_workspace(&acme.id)).await, &["id"]);
    invalid(admin.asks(get_identity(&web.id)).await, &["id"]);
    invalid(admin.asks(get_job(&web.id)).await, &["id"]);
    invalid(
        admin.asks(workspace_in(&web.id)).await,
        &["workspace.group_id"],
    );
    invalid(admin.asks(job(&acme.id)).await, &["job.workspace_id"]);
    invalid(
        admin.asks(assignment(&web.id, &web.id)).await,
        &["managed_identity_id"],
    );
    invalid(
        admin.asks(assignment(&deployer.id, &acme.id)).await,
        &["workspace_id"],
    );
    let of_workspace = directory::ListChildrenRequest {
        group_id: web.id.clone(),
        ..Default::default()
    };
    invalid(admin.asks(of_workspace).await, &["group_id"]);
    let nested = membership("dev/alice", Role::Viewer, &bobs.id);
    invalid(admin.asks(nested).await, &["membership.namespace_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_names_nothing_is_told_how_what_is_wanted_is_named() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let opened = admin.opens_job(&web.id).await;
    let says = |outcome: Result<(), Status>, hint: &str| {
        let refusal = outcome.expect_err(hint);
        assert_eq!(refusal.code(), Code::InvalidArgument, "{refusal}");
        assert!(refusal.message().contains(hint), "{refusal}");
    };
    says(admin.asks(get_group("x")).await.map(drop), "grp_…");
    says(admin.asks(get_workspace("x")).await.map(drop), "ws_…");
    let identity = "mi_…, or a TRN, such as trn:managed_identity:acme/prod/deployer";
    says(admin.asks(get_identity("x")).await.map(drop), identity);
    let assigned = admin.asks(assignment("x", &web.id)).await;
    says(assigned.map(drop), identity);
    let issued = admin.asks_as(&opened.token, "x").await;
    says(issued.map(drop), identity);
    says(admin.asks(get_job("x")).await.map(drop), "job_…");
    let mut by_account = job(&web.id);
    "service_account:trn:service_account:acme/ci"
        .clone_into(&mut by_account.job.get_or_insert_default().principal);
    let refused = admin.asks(by_account).await;
    says(refused.map(drop), "service_account:sa_…");
    let activities = directory::ListActivitiesRequest {
        affected_id: "x".to_owned(),
        ..Default::default()
    };
    let refused = admin.asks(activities).await;
    says(
        refused.map(drop),
        "affected_id must be the id of a resource",
    );
}

fn workspace_in(group_id: &str) -> namespace::CreateWorkspaceRequest {
    let mut request = workspace("acme/x");
    group_id.clone_into(&mut request.workspace.get_or_insert_default().group_id);
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_exist_is_not_found() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let other = admin.creates_group("other").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let job_of = admin.opens_job(&web.id).await;
    let bobs = admin
        .grants(&world.user("bob"), Role::Viewer, &acme.id)
        .await;

    let id = unique_id();
    let (grp, ws) = (
        model::GroupId::from_uuid(id).to_string(),
        model::WorkspaceId::from_uuid(id).to_string(),
    );
    let mi = model::ManagedIdentityId::from_uuid(id).to_string();
    not_found(admin.asks(get_group(&grp)).await);
    not_found(admin.asks(delete_group(&grp)).await);
    not_found(admin.asks(get_workspace(&ws)).await);
    not_found(admin.asks(workspace_in(&grp)).await);
    not_found(admin.asks(job(&ws)).await);
    not_found(admin.asks(get_identity(&mi)).await);
    not_found(admin.asks(assignment(&mi, &web.id)).await);
    not_found(admin.asks(assignment(&deployer.id, &ws)).await);
    not_found(
        admin
            .asks(get_job(&model::JobId::from_uuid(id).to_string()))
            .await,
    );
    not_found(
        admin
            .asks(get_membership(
                &model::MembershipId::from_uuid(id).to_string(),
            ))
            .await,
    );
    not_found(admin.asks_as(&job_of.token, &mi).await);

    // By TRN: the type and the whole path count, also where the last part is a right id.
    admin.asks(get_membership(&bobs.trn)).await.expect("by TRN");
    admin.asks(get_job(&job_of.job.trn)).await.expect("by TRN");
    for trn in ["trn:group:acme/web", "trn:group:web", "trn:group:acme/nope"] {
        not_found(admin.asks(get_group(trn)).await);
    }
    for trn in [
        "trn:workspace:acme",
        "trn:workspace:other/web",
        "trn:workspace:web",
    ] {
        not_found(admin.asks(get_workspace(trn)).await);
    }
    not_found(
        admin
            .asks(get_identity("trn:managed_identity:other/deployer"))
            .await,
    );
    not_found(
        admin
            .asks(get_membership(&format!(
                "trn:membership:{}/{}",
                other.path, bobs.id
            )))
            .await,
    );
    not_found(
        admin
            .asks(get_membership(&format!("trn:membership:{}", bobs.id)))
            .await,
    );
    not_found(
        admin
            .asks(get_job(&format!("trn:job:acme/{}", job_of.job.id)))
            .await,
    );
}

fn wins_alone<T: std::fmt::Debug>(outcomes: Vec<Result<T, Status>>) -> T {
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:#?}");
    for outcome in lost {
        refused(outcome, Code::AlreadyExists, "NAME_TAKEN");
    }
    won.into_iter().flatten().next().expect("the one")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_who_want_a_name_one_gets_it() {
    let world = World::start().await;
    let admin = world.admin();
    wins_alone(join_all((0..20).map(|_| admin.asks(group("acme")))).await);
    // Groups and workspaces share their names.
    let groups = join_all((0..10).map(|_| async { admin.asks(group("acme/x")).await.map(drop) }));
    let workspaces =
        join_all((0..10).map(|_| async { admin.asks(workspace("acme/x")).await.map(drop) }));
    let (mut groups, workspaces) = tokio::join!(groups, workspaces);
    groups.extend(workspaces);
    wins_alone(groups);
    wins_alone(join_all((0..20).map(|_| admin.asks(aws_identity("acme/x")))).await);
    let log = world.log(Service::Identity).await;
    assert_eq!(log.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_only_empty_or_by_force_and_then_at_once() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    let below = admin.creates_group("acme/team/below").await;
    let web = admin.creates_workspace("acme/team/below/web").await;
    let deployer = admin.creates_identity("acme/team/deployer").await;
    let bobs = admin.grants(&world.user("bob"), Role::Owner, &web.id).await;
    admin.assigns(&deployer.id, &web.id).await;
    let opened = admin.opens_job(&web.id).await;

    let status = refused(
        admin.asks(delete_group(&team.id)).await,
        Code::FailedPrecondition,
        "GROUP_NOT_EMPTY",
    );
    assert_eq!(
        obstacles(&status),
        [("GROUP_NOT_EMPTY".to_owned(), "group".to_owned())]
    );
    let other_etag = namespace::DeleteGroupRequest {
        etag: "v7".to_owned(),
        force: true,
        ..delete_group(&team.id)
    };
    refused(admin.asks(other_etag).await, Code::Aborted, "ETAG_MISMATCH");
    let status = refused(
        admin
            .asks(identity::DeleteManagedIdentityRequest {
                id: deployer.id.clone(),
                ..Default::default()
            })
            .await,
        Code::FailedPrecondition,
        "MANAGED_IDENTITY_ASSIGNED",
    );
    assert_eq!(
        obstacles(&status),
        [("ASSIGNED".to_owned(), "acme/team/below/web".to_owned())]
    );

    let before = world.asked_for(Service::Namespace).await.len();
    let force = namespace::DeleteGroupRequest {
        etag: team.etag.clone(),
        force: true,
        ..delete_group(&team.id)
    };
    let token = admin
        .in_a_hurry()
        .asks(force)
        .await
        .expect("deleted")
        .consistency_token;
    assert_eq!(world.asked_for(Service::Namespace).await.len() - before, 1);
    gone_everywhere(&admin, &token, [&team.id, &below.id], &web.id, &deployer.id).await;
    not_found(admin.asks(get_membership(&bobs.id)).await);
    not_found(admin.asks(get_job(&opened.job.id)).await);
    let request = issuer::IssueCredentialRequest {
        consistency_token: token,
        ..credential(&deployer.id)
    };
    refused(
        admin.with_token(&opened.token).asks(request).await,
        Code::FailedPrecondition,
        "WORKSPACE_DELETED",
    );

    // The name is free, and what was below does not come back with it.
    let again = admin.creates_group("acme/team").await;
    assert_ne!(again.id, team.id);
    assert!(admin.lists_children(&again.id).await.is_empty());
    not_found(
        admin
            .asks(get_identity("trn:managed_identity:acme/team/deployer"))
            .await,
    );
    let deployer = admin.creates_identity("acme/team/deployer").await;
    let delete = identity::DeleteManagedIdentityRequest {
        id: deployer.trn.clone(),
        ..Default::default()
    };
    admin.asks(delete).await.expect("deleted");
    admin.creates_identity("acme/team/deployer").await;
    // Empty, it goes without force.
    admin
        .asks(delete_group("trn:group:acme/team"))
        .await
        .expect("deleted");
    assert!(admin.lists_children(&acme.id).await.is_empty());
}

async fn gone_everywhere(user: &User, token: &str, groups: [&str; 2], web: &str, deployer: &str) {
    let token = || token.to_owned();
    for id in groups {
        not_found(user.asks(get_group(id)).await);
        let list = directory::ListChildrenRequest {
            group_id: id.to_owned(),
            consistency_token: token(),
            ..Default::default()
        };
        not_found(user.asks(list).await);
        let mut create = aws_identity("acme/team/x");
        id.clone_into(&mut create.managed_identity.get_or_insert_default().group_id);
        not_found(
            user.asks(identity::CreateManagedIdentityRequest {
                consistency_token: token(),
                ..create
            })
            .await,
        );
    }
    not_found(user.asks(get_workspace(web)).await);
    not_found(
        user.asks(identity::GetManagedIdentityRequest {
            consistency_token: token(),
            ..get_identity(deployer)
        })
        .await,
    );
    not_found(
        user.asks(identity::AssignManagedIdentityRequest {
            consistency_token: token(),
            ..assignment(deployer, web)
        })
        .await,
    );
    not_found(
        user.asks(issuer::OpenJobRequest {
            consistency_token: token(),
            ..job(web)
        })
        .await,
    );
    let list = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: web.to_owned(),
        consistency_token: token(),
        ..Default::default()
    };
    not_found(user.asks(list).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_for_the_version_that_was_seen() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let seen = admin.creates_identity("acme/deployer").await;
    let describe =
        |seen: &identity::ManagedIdentity, text: &str| identity::UpdateManagedIdentityRequest {
            managed_identity: Some(identity::ManagedIdentity {
                description: text.to_owned(),
                ..seen.clone()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["description".to_owned()],
            }),
            ..Default::default()
        };
    // Ten who saw the same: one gets through.
    let outcomes = join_all((0..10).map(|n| admin.asks(describe(&seen, &format!("by {n}"))))).await;
    let (won, lost): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1, "{lost:?}");
    for outcome in lost {
        refused(outcome, Code::Aborted, "ETAG_MISMATCH");
    }
    let now = won
        .into_iter()
        .flatten()
        .next()
        .and_then(|won| won.managed_identity)
        .expect("it");
    assert_ne!(now.etag, seen.etag);
    assert_eq!(
        admin
            .asks(get_identity(&seen.id))
            .await
            .expect("it")
            .managed_identity,
        Some(now.clone())
    );
    // The directory tells the same, etag and times too.
    let list = directory::ListManagedIdentitiesRequest {
        group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    let listed = admin.asks(list).await.expect("listed").managed_identities;
    assert_eq!(listed[0].managed_identity, Some(now.clone()));
    // Without an etag the last one wins.
    let blind = identity::ManagedIdentity {
        etag: String::new(),
        ..seen.clone()
    };
    admin
        .asks(describe(&blind, "blind"))
        .await
        .expect("updated");
    refused(
        admin
            .asks(identity::DeleteManagedIdentityRequest {
                id: seen.id.clone(),
                etag: now.etag,
                ..Default::default()
            })
            .await,
        Code::Aborted,
        "ETAG_MISMATCH",
    );
    // The type of an identity is for ever, and so is its name: an update without a mask leaves it.
    let renamed = identity::ManagedIdentity {
        name: "other".to_owned(),
        etag: String::new(),
        ..seen.clone()
    };
    let request = identity::UpdateManagedIdentityRequest {
        managed_identity: Some(renamed),
        ..Default::default()
    };
    assert_eq!(
        admin
            .asks(request)
            .await
            .expect("updated")
            .managed_identity
            .expect("it")
            .name,
        "deployer"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_underscore_is_an_underscore() {
    let world = World::start().await;
    let admin = world.admin();
    for name in ["a_b", "axb"] {
        admin.creates_group(name).await;
        admin.creates_workspace(&format!("{name}/w_b")).await;
        admin.creates_workspace(&format!("{name}/wxb")).await;
        admin.creates_identity(&format!("{name}/i_b")).await;
        admin.creates_identity(&format!("{name}/ixb")).await;
    }
    admin
        .assigns("trn:managed_identity:axb/i_b", "trn:workspace:axb/wxb")
        .await;
    let delete = |id: &str| identity::DeleteManagedIdentityRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    admin
        .asks(delete("trn:managed_identity:axb/ixb"))
        .await
        .expect("nobody has that one");
    admin.deletes_group("trn:group:a_b").await;
    assert_eq!(admin.lists_children("").await, ["axb"]);
    assert_eq!(admin.lists_children("trn:group:axb").await, ["w_b", "wxb"]);
    not_found(
        admin
            .asks(get_identity("trn:managed_identity:a_b/i_b"))
            .await,
    );
    admin
        .asks(get_identity("trn:managed_identity:axb/i_b"))
        .await
        .expect("it stays");
}

/// PostgreSQL keeps it in no text: recorded, it would be in the way of whoever follows the log for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_text_holds_a_nul() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let opened = admin.opens_job(&web.id).await;
    let nul = || "a\0b".to_owned();

    let mut request = group("acme/x");
    request.group.get_or_insert_default().description = nul();
    invalid(admin.asks(request).await, &["group.description"]);
    let mut request = workspace("acme/x");
    request.workspace.get_or_insert_default().description = nul();
    invalid(admin.asks(request).await, &["workspace.description"]);
    let update = namespace::UpdateWorkspaceRequest {
        workspace: Some(namespace::Workspace {
            description: nul(),
            ..web.clone()
        }),
        ..Default::default()
    };
    invalid(admin.asks(update).await, &["workspace.description"]);
    let mut request = aws_identity("acme/x");
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.description = nul();
    invalid(admin.asks(request).await, &["managed_identity.description"]);
    let mut request = service_account("acme/x");
    let wanted = request.service_account.get_or_insert_default();
    (wanted.description, wanted.trust_policies[0].audience) = (nul(), nul());
    let refusal = admin.asks(request).await.expect_err("it is refused");
    let mut wrong = fields(&refusal);
    wrong.sort();
    assert_eq!(
        wrong,
        [
            "service_account.description",
            "service_account.trust_policies[0].audience"
        ]
    );
    invalid(
        admin
            .asks(membership("dev/a\0", Role::Viewer, &acme.id))
            .await,
        &["membership.principal.user"],
    );
    invalid(
        admin.asks_as(&opened.token, "a\0").await,
        &["managed_identity_id"],
    );

    // Nor is one found.
    let identities = directory::ListManagedIdentitiesRequest {
        group_id: acme.id.clone(),
        name_contains: nul(),
        ..Default::default()
    };
    invalid(admin.asks(identities).await, &["name_contains"]);
    let credentials = directory::ListCredentialsRequest {
        kid: nul(),
        ..Default::default()
    };
    invalid(admin.asks(credentials).await, &["kid"]);
    let activities = directory::ListActivitiesRequest {
        event_type: nul(),
        ..Default::default()
    };
    invalid(admin.asks(activities).await, &["event_type"]);
    assert_eq!(admin.lists_children(&acme.id).await, ["web"]);
}
