//! Groups and workspaces that are put elsewhere.

use e2e::refusal::{invalid, not_found, reason, refused};
use e2e::user::{assignment, group, group_move, membership, workspace, workspace_move};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

use crate::tree::{facts_of, is_the_same_everywhere};

async fn group_of(user: &User, id: &str) -> Result<namespace::Group, Status> {
    let request = namespace::GetGroupRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let answer = user.asks(request).await?;
    Ok(answer.group.expect("the group"))
}

async fn workspace_of(user: &User, id: &str) -> Result<namespace::Workspace, Status> {
    let request = namespace::GetWorkspaceRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    let answer = user.asks(request).await?;
    Ok(answer.workspace.expect("the workspace"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_takes_everything_below_along_and_keeps_every_id() {
    let world = World::start().await;
    let (admin, above, there) = (world.admin(), world.user("above"), world.user("there"));
    for path in ["a_b", "a_b/team_x", "a_b/teamyx", "axb", "axb/new"] {
        admin.creates_group(path).await;
    }
    let team = group_of(&admin, "trn:group:a_b/team_x").await.expect("it");
    let below = admin.creates_group("a_b/team_x/below").await;
    let web = admin.creates_workspace("a_b/team_x/below/web").await;
    let along = admin.creates_identity("a_b/team_x/along").await;
    admin.assigns(&along.id, &web.id).await;
    admin.grants(&above, Role::Deployer, "trn:group:a_b").await;
    admin.grants(&there, Role::Deployer, "trn:group:axb").await;
    let job = admin.opens_job(&web.id).await;

    let before = world.log(Service::Namespace).await.len();
    let moved = admin.moves_group(&team.id, "trn:group:axb/new").await;
    assert_eq!(
        world.log(Service::Namespace).await.len() - before,
        1,
        "one event for the subtree"
    );
    assert_eq!(moved.id, team.id);
    assert_eq!(
        (moved.path.as_str(), moved.trn.as_str()),
        ("axb/new/team_x", "trn:group:axb/new/team_x")
    );
    assert_ne!(moved.etag, team.etag);
    assert_eq!(moved.create_time, team.create_time);
    assert_eq!(group_of(&admin, &team.id).await.expect("it"), moved);
    // Below it, ids and etags are the same, and paths are the new ones, in every service.
    let web_now = workspace_of(&admin, "trn:workspace:axb/new/team_x/below/web").await;
    let web_now = web_now.expect("it");
    assert_eq!((&web_now.id, &web_now.etag), (&web.id, &web.etag));
    not_found(workspace_of(&admin, &web.trn).await);
    assert_eq!(admin.lists_children(&below.id).await, ["web"]);
    assert_eq!(admin.lists_children("trn:group:a_b").await, ["teamyx"]);
    assert_eq!(admin.lists_children("trn:group:axb/new").await, ["team_x"]);
    let get = identity::GetManagedIdentityRequest {
        id: "trn:managed_identity:axb/new/team_x/along".to_owned(),
        ..Default::default()
    };
    let got = admin.asks(get).await.expect("it").managed_identity;
    assert_eq!(got.expect("it").id, along.id);
    // Roles follow the way up.
    not_found(workspace_of(&above, &web.id).await);
    there.opens_job(&web.id).await;
    // What moved along serves the job that was open.
    admin
        .asks_as(&job.token, &along.id)
        .await
        .expect("a credential");
    // The old name is free.
    admin.creates_group("a_b/team_x").await;
    is_the_same_everywhere(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workspace_moves_and_keeps_what_it_still_inherits() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/one", "acme/two"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/one/web").await;
    let from_acme = admin.creates_identity("acme/deployer").await;
    let in_two = admin.creates_identity("acme/two/deployer").await;
    admin.assigns(&from_acme.id, &web.id).await;
    let job = admin.opens_job(&web.id).await;
    let moved = admin.moves_workspace(&web.trn, "trn:group:acme/two").await;
    assert_eq!(
        (moved.id.as_str(), moved.path.as_str()),
        (web.id.as_str(), "acme/two/web")
    );
    assert_eq!(workspace_of(&admin, &web.id).await.expect("it"), moved);
    assert_eq!(admin.lists_children("trn:group:acme/two").await, ["web"]);
    assert!(admin.lists_children("trn:group:acme/one").await.is_empty());
    admin
        .asks_as(&job.token, &from_acme.id)
        .await
        .expect("still inherited");
    refused(
        admin.asks(assignment(&in_two.id, &web.id)).await,
        Code::FailedPrecondition,
        "TYPE_TAKEN",
    );
    is_the_same_everywhere(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_inherited_any_more_gives_no_credential_once_the_move_is_seen() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/team", "other"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    let from_acme = admin.creates_identity("acme/deployer").await;
    admin.assigns(&from_acme.id, &web.id).await;
    let job = admin.opens_job(&web.id).await;
    let hasty = admin.in_a_hurry();
    let moved = hasty
        .asks(group_move("trn:group:acme/team", "trn:group:other"))
        .await
        .expect("moved");
    let request = issuer::IssueCredentialRequest {
        consistency_token: moved.consistency_token,
        ..e2e::user::credential(&from_acme.id)
    };
    let refusal = hasty.with_token(&job.token).asks(request).await;
    let refusal = refusal.expect_err("refused");
    assert!(
        ["NOT_INHERITED", "NOT_ASSIGNED", "RESOURCE_NOT_FOUND"]
            .contains(&reason(&refusal).as_str()),
        "{refusal:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_there_is_no_room_nothing_moves() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/a", "acme/a/b", "acme/other", "acme/other/b"] {
        admin.creates_group(path).await;
    }
    admin.creates_workspace("acme/a/b/web").await;
    admin.creates_workspace("acme/other/web").await;
    let seen = group_of(&admin, "trn:group:acme/a").await.expect("it");
    let refused_for = |outcome: Result<namespace::MoveGroupResponse, Status>, reason: &str| {
        refused(outcome, Code::FailedPrecondition, reason);
    };
    let a = "trn:group:acme/a";
    refused_for(
        admin.asks(group_move(a, "trn:group:acme")).await,
        "SAME_PARENT",
    );
    refused_for(admin.asks(group_move(a, a)).await, "MOVE_INTO_ITSELF");
    refused_for(
        admin.asks(group_move(a, "trn:group:acme/a/b")).await,
        "MOVE_INTO_ITSELF",
    );
    refused(
        admin
            .asks(group_move("trn:group:acme/a/b", "trn:group:acme/other"))
            .await,
        Code::AlreadyExists,
        "NAME_TAKEN",
    );
    refused(
        admin
            .asks(workspace_move(
                "trn:workspace:acme/a/b/web",
                "trn:group:acme/other",
            ))
            .await,
        Code::AlreadyExists,
        "NAME_TAKEN",
    );
    refused(
        admin
            .asks(workspace_move(
                "trn:workspace:acme/a/b/web",
                "trn:group:acme/a/b",
            ))
            .await,
        Code::FailedPrecondition,
        "SAME_PARENT",
    );
    // The deepest thing below counts: a workspace too.
    admin.sets_limit("namespace_depth", 4).await;
    refused_for(
        admin.asks(group_move(a, "trn:group:acme/other")).await,
        "DEPTH_LIMIT",
    );
    admin.sets_limit("namespace_depth", 5).await;
    admin.sets_limit("group_subgroups", 1).await;
    refused_for(
        admin.asks(group_move(a, "trn:group:acme/other")).await,
        "SUBGROUP_LIMIT",
    );
    let other_etag = namespace::MoveGroupRequest {
        etag: "v7".to_owned(),
        ..group_move(a, "")
    };
    refused(admin.asks(other_etag).await, Code::Aborted, "ETAG_MISMATCH");
    let web = "trn:workspace:acme/other/web";
    invalid(admin.asks(group_move(a, "acme")).await, &["new_parent_id"]);
    invalid(admin.asks(group_move(a, web)).await, &["new_parent_id"]);
    invalid(admin.asks(group_move(web, "")).await, &["id"]);
    invalid(admin.asks(workspace_move(web, "")).await, &["new_group_id"]);
    invalid(
        admin.asks(workspace_move(web, web)).await,
        &["new_group_id"],
    );
    invalid(admin.asks(workspace_move(a, a)).await, &["id"]);
    not_found(admin.asks(group_move(a, "trn:group:nope")).await);
    not_found(admin.asks(group_move("trn:group:nope", a)).await);
    not_found(admin.asks(workspace_move("trn:workspace:nope", a)).await);
    assert_eq!(group_of(&admin, a).await.expect("it"), seen);
    admin.sets_limit("group_subgroups", 2).await;
    admin.moves_group(a, "trn:group:acme/other").await;
    is_the_same_everywhere(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_takes_rights_in_both_places() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    for path in ["one", "one/team", "two", "hidden"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("one/web").await;
    let (one, two) = ("trn:group:one", "trn:group:two");
    let team = "trn:group:one/team";
    let denied = |outcome: Result<(), Status>| {
        refused(outcome, Code::PermissionDenied, "PERMISSION_DENIED");
    };
    not_found(bob.asks(group_move(team, two)).await);
    let in_one = admin.grants(&bob, Role::Owner, one).await;
    let in_two = admin.grants(&bob, Role::Viewer, two).await;
    not_found(bob.asks(group_move(team, "trn:group:hidden")).await);
    denied(bob.asks(group_move(team, two)).await.map(drop));
    denied(bob.asks(group_move(team, "")).await.map(drop));
    denied(bob.asks(workspace_move(&web.id, two)).await.map(drop));
    let role =
        |membership: &namespace::Membership, role: Role| namespace::UpdateMembershipRequest {
            membership: Some(namespace::Membership {
                role: role.into(),
                etag: String::new(),
                ..membership.clone()
            }),
            ..Default::default()
        };
    // Deployers move workspaces, owners groups.
    admin
        .asks(role(&in_two, Role::Deployer))
        .await
        .expect("changed");
    denied(bob.asks(group_move(team, two)).await.map(drop));
    bob.moves_workspace(&web.id, two).await;
    admin
        .asks(role(&in_two, Role::Owner))
        .await
        .expect("changed");
    admin
        .asks(role(&in_one, Role::Deployer))
        .await
        .expect("changed");
    denied(bob.asks(group_move(team, two)).await.map(drop));
    admin
        .asks(role(&in_one, Role::Owner))
        .await
        .expect("changed");
    bob.moves_group(team, two).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_comes_to_the_top_has_an_owner() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    admin.creates_group("acme").await;
    for name in ["none", "hers", "his"] {
        admin.creates_group(&format!("acme/{name}")).await;
    }
    let memberships = |log: Vec<e2e::world::Event>| {
        let made = |event: &&e2e::world::Event| event.stream_id.starts_with("membership/");
        log.iter().filter(made).count()
    };
    // Nobody has a role of its own in the first; in the second the administrator is a viewer; the third is bob's.
    admin
        .asks(membership(
            admin.principal(),
            Role::Viewer,
            "trn:group:acme/hers",
        ))
        .await
        .expect("made");
    let bobs = admin.grants(&bob, Role::Owner, "trn:group:acme/his").await;
    for (name, changes) in [("none", 1), ("hers", 1), ("his", 0)] {
        let before = memberships(world.log(Service::Namespace).await);
        let moved = admin
            .moves_group(&format!("trn:group:acme/{name}"), "")
            .await;
        assert_eq!((moved.path.as_str(), moved.parent_id.as_str()), (name, ""));
        let after = memberships(world.log(Service::Namespace).await);
        assert_eq!(after - before, changes, "{name}");
        // Whoever the owner is, the last one stays.
        let owners = format!("owners/{}", moved.id);
        let owners = facts_of(&world, Service::Namespace, "facts", &owners).await;
        assert_eq!(owners.into_values().collect::<Vec<_>>(), ["1"]);
    }
    let delete = namespace::DeleteMembershipRequest {
        id: bobs.id,
        ..Default::default()
    };
    refused(
        admin.asks(delete.clone()).await,
        Code::FailedPrecondition,
        "LAST_OWNER",
    );
    // Further down there need not be one.
    admin.moves_group("trn:group:his", "trn:group:acme").await;
    admin.asks(delete).await.expect("deleted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_groups_that_move_below_each_other_never_make_a_loop() {
    let world = World::start().await;
    let admin = world.admin();
    let hasty = admin.in_a_hurry();
    for round in 0..10 {
        let top = format!("acme-{round}");
        for path in ["", "/a", "/a/x", "/b", "/b/y"] {
            hasty.creates_group(&format!("{top}{path}")).await;
        }
        let id = |path: &str| format!("trn:group:{top}/{path}");
        let (one, other) = tokio::join!(
            hasty.asks(group_move(&id("a"), &id("b/y"))),
            hasty.asks(group_move(&id("b"), &id("a/x")))
        );
        assert_ne!(one.is_ok(), other.is_ok(), "{one:?} {other:?}");
        for outcome in [one, other] {
            if let Err(status) = outcome {
                // What it named by its path is gone, or found below itself.
                let expected = ["MOVE_INTO_ITSELF", "RESOURCE_NOT_FOUND"];
                assert!(expected.contains(&reason(&status).as_str()), "{status:?}");
            }
        }
    }
    is_the_same_everywhere(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subtree_that_grows_while_it_moves_never_gets_too_deep() {
    let world = World::start().await;
    let admin = world.admin();
    admin.sets_limit("namespace_depth", 5).await;
    let hasty = admin.in_a_hurry();
    for round in 0..10 {
        let top = format!("acme-{round}");
        let mut ids = Vec::new();
        for path in ["", "/deep", "/deep/er", "/a", "/a/b"] {
            ids.push(hasty.creates_group(&format!("{top}{path}")).await.id);
        }
        let [_, _, deeper, a, b] = ids.as_slice() else {
            panic!("five groups")
        };
        // a with b below it is 4 and 5 deep at its new place: what is made in b does not fit any more.
        let in_b = |name: String| {
            let mut request = group(&name);
            b.clone_into(&mut request.group.get_or_insert_default().parent_id);
            hasty.asks(request)
        };
        let mut web = workspace("web");
        b.clone_into(&mut web.workspace.get_or_insert_default().group_id);
        let (moved, made, web) = tokio::join!(
            hasty.asks(group_move(a, deeper)),
            join_all((0..4).map(|n| in_b(format!("g{n}")))),
            hasty.asks(web)
        );
        let made: Vec<_> = made
            .into_iter()
            .map(|made| made.map(drop))
            .chain([web.map(drop)])
            .collect();
        if let Err(status) = &moved {
            assert_eq!(reason(status), "DEPTH_LIMIT");
            assert!(made.iter().all(Result::is_ok), "{made:?}");
        } else {
            for outcome in made {
                refused(outcome, Code::FailedPrecondition, "DEPTH_LIMIT");
            }
        }
    }
    let tree = is_the_same_everywhere(&world).await;
    assert!(tree.depth() <= 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_gets_through_while_others_make_things_where_there_is_room() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    admin.creates_group("other").await;
    let hasty = admin.in_a_hurry();
    let makers = join_all((0..4).map(|maker| {
        let (hasty, team) = (&hasty, &team);
        async move {
            for n in 0..15 {
                let mut request = workspace(&format!("w{maker}-{n}"));
                team.id
                    .clone_into(&mut request.workspace.get_or_insert_default().group_id);
                hasty.asks(request).await.expect("made");
            }
        }
    }));
    let mover = async {
        for _ in 0..10 {
            for parent in ["trn:group:other", "trn:group:acme"] {
                hasty
                    .asks(group_move(&team.id, parent))
                    .await
                    .expect("moved");
            }
        }
    };
    tokio::join!(makers, mover);
    let tree = is_the_same_everywhere(&world).await;
    assert_eq!(tree.0.len(), 3 + 60);
}
