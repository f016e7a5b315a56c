//! Teams: what their members may through them, from when, and until when.

use bed::unique_id;
use e2e::refusal::{invalid, not_found, obstacles, refused};
use e2e::user::{self, group, team, team_member, team_membership, workspace};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1 as access;
use proto::access::v1::{Permission, Role};
use proto::namespace::v1 as namespace;
use tonic::Code;

fn get_team(id: &str) -> namespace::GetTeamRequest {
    namespace::GetTeamRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn delete_team(id: &str) -> namespace::DeleteTeamRequest {
    namespace::DeleteTeamRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn removal(member: &User, team: &str) -> namespace::RemoveTeamMemberRequest {
    namespace::RemoveTeamMemberRequest {
        team_id: team.to_owned(),
        user: member.principal().to_owned(),
        ..Default::default()
    }
}

fn delete_membership(id: &str) -> namespace::DeleteMembershipRequest {
    namespace::DeleteMembershipRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn access_to(namespace: &str) -> namespace::GetAccessRequest {
    namespace::GetAccessRequest {
        namespace_id: namespace.to_owned(),
        ..Default::default()
    }
}

fn access_of(kind: access::principal::Kind, namespace: &str) -> namespace::GetAccessRequest {
    namespace::GetAccessRequest {
        principal: Some(access::Principal { kind: Some(kind) }),
        ..access_to(namespace)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_may_what_the_team_may_in_every_service_until_it_leaves() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let platform = admin.creates_team("platform", &[]).await;
    admin
        .grants_team("trn:team:platform", Role::Deployer, &acme.id)
        .await;
    not_found(bob.asks(workspace("acme/web")).await);
    assert_eq!(bob.lists_children("").await, Vec::<String>::new());

    let grown = admin.adds(&bob, &platform.id).await;
    assert_eq!(grown.member_count, 1);
    let web = bob.creates_workspace("acme/web").await;
    let deployer = bob.creates_identity("acme/deployer").await;
    bob.assigns(&deployer.id, &web.id).await;
    bob.opens_job(&web.id).await;
    assert_eq!(bob.lists_children("").await, ["acme"]);
    assert_eq!(bob.lists_children(&acme.id).await, ["web"]);
    refused(
        bob.asks(group("acme/x")).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );

    admin.asks(removal(&bob, &platform.id)).await.expect("left");
    not_found(bob.asks(workspace("acme/other")).await);
    not_found(bob.asks(user::aws_identity("acme/other")).await);
    not_found(bob.asks(user::job(&web.id)).await);
    assert_eq!(bob.lists_children("").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_membership_of_each_counts_and_the_highest_of_these_wins() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let inner = admin.creates_group("acme/inner").await;
    let owners = admin.creates_team("owners", &[&bob]).await;
    let viewers = admin.creates_team("viewers", &[&bob]).await;
    let above = admin.grants_team(&owners.id, Role::Owner, &acme.id).await;
    // What the user itself holds nearer does not take away what a team gives.
    let own = admin.grants(&bob, Role::Viewer, &inner.id).await;
    admin
        .grants_team(&viewers.id, Role::Viewer, &inner.id)
        .await;
    bob.creates_group("acme/inner/one").await;

    let answer = bob.asks(access_to(&inner.id)).await.expect("told");
    assert_eq!(answer.role(), Role::Owner);
    assert!(
        answer
            .permissions()
            .any(|held| held == Permission::GroupCreate)
    );
    assert!(!answer.administrator);
    let of_owners = namespace::AccessGrant {
        membership_id: above.id.clone(),
        namespace_id: acme.id.clone(),
        namespace_path: "acme".to_owned(),
        role: Role::Owner.into(),
        team_id: owners.id.clone(),
    };
    assert_eq!(answer.grants.len(), 3);
    assert_eq!(answer.grants[0], of_owners);
    assert_eq!(
        (
            answer.grants[1].membership_id.as_str(),
            answer.grants[1].team_id.as_str()
        ),
        (own.id.as_str(), "")
    );

    // The same team nearer: that counts for it, and it is less.
    admin.grants_team(&owners.id, Role::Viewer, &inner.id).await;
    refused(
        bob.asks(group("acme/inner/two")).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    let answer = bob
        .asks(access_to("trn:group:acme/inner"))
        .await
        .expect("told");
    assert_eq!(answer.role(), Role::Viewer);
    assert!(
        !answer
            .permissions()
            .any(|held| held == Permission::WorkspaceCreate)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn access_is_told_of_oneself_and_of_others() {
    use access::principal::Kind;
    let world = World::start().await;
    let (admin, bob, carol) = (world.admin(), world.user("bob"), world.user("carol"));
    let acme = admin.creates_group("acme").await;
    admin.creates_group("other").await;
    let web = admin.creates_workspace("acme/web").await;
    let team = admin.creates_team("platform", &[&bob]).await;
    let held = admin.grants_team(&team.id, Role::Deployer, &acme.id).await;
    admin.grants(&carol, Role::Viewer, &web.id).await;

    let of = async |asker: &User, kind: Kind| {
        let answer = asker.asks(access_of(kind, &web.id)).await;
        answer.map(|answer| (answer.role(), answer.grants.len(), answer.administrator))
    };
    let user = |name: &str| Kind::User(format!("dev/{name}"));
    assert_eq!(
        of(&carol, user("bob")).await.expect("told"),
        (Role::Deployer, 1, false)
    );
    assert_eq!(
        of(&carol, Kind::Team("trn:team:platform".to_owned()))
            .await
            .expect("told"),
        (Role::Deployer, 1, false)
    );
    assert_eq!(
        of(&carol, user("nobody")).await.expect("told"),
        (Role::Unspecified, 0, false)
    );
    // An owner by configuration, with the membership of who made the group.
    assert_eq!(
        of(&carol, user("admin")).await.expect("told"),
        (Role::Owner, 1, true)
    );
    let answer = bob.asks(access_to(&web.id)).await.expect("told");
    assert_eq!(answer.grants[0].membership_id, held.id);
    assert_eq!(answer.grants[0].namespace_path, "acme");

    not_found(world.user("mallory").asks(access_to(&web.id)).await);
    not_found(bob.asks(access_to("trn:group:other")).await);
    not_found(of(&carol, Kind::Team("trn:team:none".to_owned())).await);
    invalid(of(&carol, user("")).await, &["principal.user"]);
    invalid(
        of(&carol, Kind::Team("platform".to_owned())).await,
        &["principal.team"],
    );
    invalid(
        of(&carol, Kind::Team(web.id.clone())).await,
        &["principal.team"],
    );
    invalid(admin.asks(access_to(&held.id)).await, &["namespace_id"]);
    invalid(admin.asks(access_to("")).await, &["namespace_id"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_team_takes_its_memberships_along() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let gone = admin.creates_group("acme/gone").await;
    let below = admin.creates_group("acme/gone/below").await;
    let team = admin.creates_team("platform", &[&bob]).await;
    for place in [&acme, &gone, &below] {
        admin.grants_team(&team.id, Role::Owner, &place.id).await;
    }
    admin.deletes_group(&gone.id).await;
    bob.creates_workspace("acme/web").await;
    admin.asks(delete_team(&team.id)).await.expect("deleted");
    not_found(bob.asks(workspace("acme/other")).await);
    not_found(admin.asks(get_team(&team.id)).await);
    not_found(admin.asks(delete_team(&team.id)).await);
    not_found(
        admin
            .asks(team_membership(&team.id, Role::Viewer, &acme.id))
            .await,
    );
    not_found(admin.asks(team_member(&bob, &team.id)).await);
    // Each as an event, also of what lay in a group that is gone.
    let log = world.log(Service::Namespace).await;
    let ended = |name: &str| {
        let name = format!("tharsis.namespace.v1.{name}");
        log.iter().filter(|event| event.event_type == name).count()
    };
    assert_eq!(
        (
            ended("TeamMemberRemoved"),
            ended("TeamDeleted"),
            ended("MembershipDeleted")
        ),
        (1, 1, 3)
    );
    // The name is free, and the new team is another one.
    let again = admin.creates_team("platform", &[&bob]).await;
    assert_ne!(again.id, team.id);
    not_found(bob.asks(workspace("acme/other")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_top_level_group_keeps_an_owner_that_is_there() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let log = world.log(Service::Namespace).await;
    let founder = log
        .iter()
        .find_map(|event| event.stream_id.strip_prefix("membership/"))
        .expect("the founder's membership");
    let team = admin.creates_team("platform", &[&bob]).await;
    admin.grants_team(&team.id, Role::Owner, &acme.id).await;
    // Both at once: one of the two must stay.
    let (left, deleted) = tokio::join!(
        admin.asks(delete_membership(founder)),
        admin.asks(delete_team(&team.id))
    );
    assert_ne!(left.is_ok(), deleted.is_ok(), "{left:?} {deleted:?}");
    if let Err(refusal) = deleted {
        assert_eq!(
            obstacles(&refusal),
            [("LAST_OWNER".to_owned(), "acme".to_owned())]
        );
        let refusal = admin.asks(delete_team("trn:team:platform")).await;
        refused(refusal, Code::FailedPrecondition, "LAST_OWNER");
        bob.creates_group("acme/still").await;
        admin.grants(&bob, Role::Owner, &acme.id).await;
        admin.asks(delete_team(&team.id)).await.expect("deleted");
    } else {
        refused(left, Code::FailedPrecondition, "LAST_OWNER");
    }
    // Further down there need not be one.
    let inner = admin.creates_group("acme/inner").await;
    let other = admin.creates_team("other", &[]).await;
    admin.grants_team(&other.id, Role::Owner, &inner.id).await;
    admin.asks(delete_team(&other.id)).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_team_is_made_once_and_changed_by_administrators() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    admin.grants(&bob, Role::Owner, &acme.id).await;
    let mut request = team("platform");
    request.request_id = unique_id().to_string();
    let outcomes = join_all((0..3).map(|_| admin.asks(request.clone()))).await;
    let teams: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.expect("made").team.expect("the team"))
        .collect();
    assert!(teams.iter().all(|team| team.id == teams[0].id));
    let made = &teams[0];
    assert_eq!(made.trn, "trn:team:platform");
    // Two with the same name at once: one of them is made.
    let (one, other) = tokio::join!(admin.asks(team("twice")), admin.asks(team("twice")));
    let refusal = if one.is_ok() { other } else { one };
    refused(refusal, Code::AlreadyExists, "NAME_TAKEN");

    let stale = namespace::UpdateTeamRequest {
        team: Some(namespace::Team {
            description: "runs it".to_owned(),
            ..made.clone()
        }),
        ..Default::default()
    };
    let changed = admin.asks(stale.clone()).await.expect("changed");
    let changed = changed.team.expect("the team");
    assert_eq!(changed.description, "runs it");
    refused(admin.asks(stale).await, Code::Aborted, "ETAG_MISMATCH");
    // Adding and removing twice changes nothing.
    let added = admin.adds(&bob, &made.id).await;
    let twice = admin.adds(&bob, &made.id).await;
    assert_eq!(
        (added.etag.as_str(), added.member_count),
        (twice.etag.as_str(), twice.member_count)
    );
    for _ in 0..2 {
        let removed = admin.asks(removal(&bob, &made.trn)).await.expect("removed");
        assert_eq!(removed.team.expect("the team").member_count, 0);
    }
    let seen = bob.asks(get_team("trn:team:platform")).await.expect("seen");
    assert_eq!(seen.team.expect("the team").description, "runs it");
    refused(
        bob.asks(team_member(&bob, &made.id)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    // A team has at most one membership in a group.
    admin.grants_team(&made.id, Role::Viewer, &acme.id).await;
    refused(
        bob.asks(team_membership(&made.trn, Role::Viewer, &acme.id))
            .await,
        Code::AlreadyExists,
        "MEMBERSHIP_EXISTS",
    );

    invalid(admin.asks(team("Platform")).await, &["team.name"]);
    for id in ["", "platform", "trn:group:acme", acme.id.as_str()] {
        invalid(admin.asks(get_team(id)).await, &["id"]);
        invalid(admin.asks(team_member(&bob, id)).await, &["team_id"]);
        invalid(admin.asks(delete_team(id)).await, &["id"]);
        invalid(
            admin
                .asks(team_membership(id, Role::Viewer, &acme.id))
                .await,
            &["membership.principal.team"],
        );
    }
    not_found(admin.asks(get_team("trn:team:none")).await);
    not_found(
        admin
            .asks(team_membership("trn:team:none", Role::Viewer, &acme.id))
            .await,
    );
    let nobody = namespace::AddTeamMemberRequest {
        user: "bob".to_owned(),
        ..team_member(&bob, &made.id)
    };
    invalid(admin.asks(nobody).await, &["user"]);
    // The names of subjects that hold slashes are kept apart.
    let odd = world.user("bob/x");
    admin.adds(&odd, &made.id).await;
    not_found(bob_without_his_own(&world, &acme.id).await);
}

/// Someone whose name begins as that of a member does.
async fn bob_without_his_own(
    world: &World,
    group: &str,
) -> Result<namespace::GetGroupResponse, tonic::Status> {
    let admin = world.admin();
    let bobs = admin.asks(access_of(
        access::principal::Kind::User("dev/bob".to_owned()),
        group,
    ));
    let own = bobs.await.expect("told").grants;
    assert_eq!(own.len(), 1, "{own:?}");
    let delete = delete_membership(&own[0].membership_id);
    admin.asks(delete).await.expect("deleted");
    let get = namespace::GetGroupRequest {
        id: group.to_owned(),
        ..Default::default()
    };
    world.user("bob").asks(get).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_stops_with_the_team_that_allowed_it() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let team = admin.creates_team("platform", &[&bob]).await;
    admin.grants_team(&team.id, Role::Deployer, &acme.id).await;
    let hurried = bob.in_a_hurry();
    let making = async {
        let outcomes = (0..40).map(|n| hurried.asks(workspace(&format!("acme/w{n}"))));
        join_all(outcomes.collect::<Vec<_>>()).await
    };
    let leaving = admin.asks(removal(&bob, &team.id));
    let (made, left) = tokio::join!(making, leaving);
    left.expect("left");
    let log = world.log(Service::Namespace).await;
    let position = |name: &str| {
        let name = format!("tharsis.namespace.v1.{name}");
        let of_type = log.iter().filter(move |event| event.event_type == name);
        of_type.map(|event| event.position).collect::<Vec<_>>()
    };
    let removed = position("TeamMemberRemoved")[0];
    assert!(
        position("WorkspaceCreated")
            .iter()
            .all(|made| *made < removed)
    );
    let allowed = made.iter().filter(|outcome| outcome.is_ok()).count();
    assert_eq!(position("WorkspaceCreated").len(), allowed);
}
