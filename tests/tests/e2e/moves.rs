//! Groups and workspaces that are put elsewhere.

use std::collections::BTreeMap;

use e2e::refusal::{invalid, not_found, reason, refused};
use e2e::user::{assignment, group, group_move, membership, workspace, workspace_move};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

use crate::chance::Chance;
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

/// The tree as it should be, and what should come of what is done to it.
#[derive(Default)]
struct Model {
    /// Parent and name of each group and workspace, by id.
    places: BTreeMap<String, (String, String)>,
}

const DEPTH: usize = 4;
const CHILDREN: usize = 3;

impl Model {
    fn depth(&self, id: &str) -> usize {
        match self.places.get(id) {
            Some((parent, _)) => 1 + self.depth(parent),
            None => 0,
        }
    }

    fn is_within(&self, id: &str, group: &str) -> bool {
        id == group
            || self
                .places
                .get(id)
                .is_some_and(|(parent, _)| self.is_within(parent, group))
    }

    fn height(&self, id: &str) -> usize {
        let within = self.places.keys().filter(|below| self.is_within(below, id));
        let deepest = within.map(|below| self.depth(below)).max();
        deepest.map_or(0, |deepest| deepest - self.depth(id))
    }

    /// What stands in the way of something of this name and height in a group.
    fn obstacle(
        &self,
        parent: &str,
        name: &str,
        kind: &str,
        height: usize,
    ) -> Option<&'static str> {
        let here: Vec<_> = self
            .places
            .iter()
            .filter(|(_, (above, _))| above == parent)
            .collect();
        let alike = here.iter().filter(|(id, _)| id.starts_with(kind)).count();
        if here.iter().any(|(_, (_, taken))| taken == name) {
            Some("NAME_TAKEN")
        } else if self.depth(parent) + 1 + height > DEPTH {
            Some("DEPTH_LIMIT")
        } else if alike >= CHILDREN && kind == "grp_" {
            Some("SUBGROUP_LIMIT")
        } else if alike >= CHILDREN {
            Some("WORKSPACE_LIMIT")
        } else {
            None
        }
    }

    fn obstacle_to_move(&self, id: &str, to: &str) -> Option<&'static str> {
        let (parent, name) = &self.places[id];
        let kind = if id.starts_with("grp_") {
            "grp_"
        } else {
            "ws_"
        };
        if self.is_within(to, id) {
            Some("MOVE_INTO_ITSELF")
        } else if parent == to {
            Some("SAME_PARENT")
        } else {
            self.obstacle(to, name, kind, self.height(id))
        }
    }

    fn delete(&mut self, id: &str) {
        let gone: Vec<_> = self
            .places
            .keys()
            .filter(|below| self.is_within(below, id))
            .cloned()
            .collect();
        gone.iter().for_each(|id| drop(self.places.remove(id)));
    }
}

#[track_caller]
fn came_out<T: std::fmt::Debug>(
    outcome: Result<T, Status>,
    expected: Option<&'static str>,
) -> Option<T> {
    match (outcome, expected) {
        (Ok(done), None) => Some(done),
        (Err(status), Some(expected)) => {
            assert_eq!(reason(&status), expected, "{status:?}");
            None
        }
        (outcome, expected) => panic!("{outcome:?}, and {expected:?} was expected"),
    }
}

/// One thing at random, and what comes of it.
async fn acts(user: &User, model: &mut Model, chance: &mut Chance, top: &str) {
    let all: Vec<String> = model.places.keys().cloned().collect();
    let groups: Vec<String> = all
        .iter()
        .filter(|id| id.starts_with("grp_"))
        .cloned()
        .collect();
    let group_id = chance.one_of(&groups).expect("the first one stays");
    let name = ["a", "b_c", "bxc", "d", "e"][chance.below(5)].to_owned();
    match chance.below(8) {
        0 | 1 => {
            let expected = model.obstacle(&group_id, &name, "grp_", 0);
            let mut request = group(&name);
            request
                .group
                .get_or_insert_default()
                .parent_id
                .clone_from(&group_id);
            if let Some(made) = came_out(user.asks(request).await, expected) {
                let id = made.group.expect("the group").id;
                model.places.insert(id, (group_id, name));
            }
        }
        2 | 3 => {
            let expected = model.obstacle(&group_id, &name, "ws_", 0);
            let mut request = workspace(&name);
            request
                .workspace
                .get_or_insert_default()
                .group_id
                .clone_from(&group_id);
            if let Some(made) = came_out(user.asks(request).await, expected) {
                let id = made.workspace.expect("the workspace").id;
                model.places.insert(id, (group_id, name));
            }
        }
        4..=6 => {
            let id = chance.one_of(&all).expect("the first one stays");
            let expected = model.obstacle_to_move(&id, &group_id);
            let moved = if id.starts_with("grp_") {
                user.asks(group_move(&id, &group_id)).await.map(drop)
            } else {
                user.asks(workspace_move(&id, &group_id)).await.map(drop)
            };
            if came_out(moved, expected).is_some() {
                let place = model.places.get_mut(&id).expect("it is there");
                place.0 = group_id;
            }
        }
        _ => {
            let id = chance.one_of(&all).expect("the first one stays");
            if id.starts_with("grp_") && id != top {
                user.deletes_group(&id).await;
                model.delete(&id);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_done_comes_out_as_in_the_model() {
    let world = World::start().await;
    let admin = world.admin();
    let depth = i64::try_from(DEPTH).expect("it is small");
    admin.sets_limit("namespace_depth", depth).await;
    let children = i64::try_from(CHILDREN).expect("it is small");
    admin.sets_limit("group_subgroups", children).await;
    admin.sets_limit("group_workspaces", children).await;
    let hasty = admin.in_a_hurry();
    let mut everything = BTreeMap::new();
    for history in 0..6 {
        let name = format!("acme-{history}");
        let top = hasty.creates_group(&name).await.id;
        let mut model = Model::default();
        model.places.insert(top.clone(), (String::new(), name));
        let mut chance = Chance::new(history);
        for _ in 0..60 {
            acts(&hasty, &mut model, &mut chance, &top).await;
        }
        everything.append(&mut model.places);
    }
    let tree = is_the_same_everywhere(&world).await;
    assert_eq!(tree.0, everything);
    assert!(tree.depth() <= DEPTH);
}
