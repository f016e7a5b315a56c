//! What a move, a deletion and a mask would take from whom, and give: told before, and then so.

use std::collections::BTreeSet;

use bed::eventually;
use e2e::user::{group_move, workspace_move};
use e2e::{User, World};
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::identity::v1::{EndingAssignment, GainedIdentity};
use proto::namespace::v1 as namespace;

use crate::chance::Chance;
use crate::masks::creates_kubernetes;

/// acme, with acme/team and acme/team/web; an identity of acme and one of acme/team, both assigned to the workspace.
struct Scene {
    admin: User,
    team: String,
    web: namespace::Workspace,
    from_above: String,
    own: String,
    /// After which both are assigned.
    token: String,
}

impl Scene {
    async fn set(world: &World) -> Self {
        let admin = world.admin();
        admin.creates_group("acme").await;
        let team = admin.creates_group("acme/team").await.id;
        admin.creates_group("acme/dark").await;
        admin.creates_group("other").await;
        let web = admin.creates_workspace("acme/team/web").await;
        let from_above = admin.creates_identity("acme/aws").await.id;
        let own = creates_kubernetes(&admin, "acme/team/cluster").await.id;
        admin.assigns(&from_above, &web.id).await;
        let token = admin.assigns(&own, &web.id).await;
        Self {
            admin,
            team,
            web,
            from_above,
            own,
            token,
        }
    }

    /// The end of assignments of these to the workspace.
    fn ends(&self, identities: &[&String]) -> Vec<EndingAssignment> {
        let mut ids: Vec<_> = identities.to_vec();
        ids.sort();
        let ending = ids.into_iter().map(|id| EndingAssignment {
            workspace_id: self.web.id.clone(),
            workspace_path: "acme/team/web".to_owned(),
            managed_identity_id: id.clone(),
        });
        ending.collect()
    }

    async fn masks(&self, namespace: &str, hidden: &str) -> String {
        let request = identity::CreateMaskRequest {
            mask: Some(identity::Mask {
                namespace_id: namespace.to_owned(),
                hidden: Some(identity::mask::Hidden::Type(hidden.to_owned())),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.admin
            .asks(request)
            .await
            .expect("made")
            .consistency_token
    }

    async fn by_group_move(&self, to: &str, token: &str) -> Vec<EndingAssignment> {
        let answer = self.admin.asks(namespace::MoveGroupRequest {
            validate_only: true,
            consistency_token: token.to_owned(),
            ..group_move(&self.team, to)
        });
        let answer = answer.await.expect("it could be moved");
        assert_eq!(
            usize::try_from(answer.ending_assignment_count),
            Ok(answer.ending_assignments.len())
        );
        answer.ending_assignments
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_takes_what_it_said_it_would() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let token = &scene.token;
    // What lies in the group goes along; what is above, and still is, stays, unless it is hidden there.
    assert_eq!(scene.by_group_move("trn:group:acme/dark", token).await, []);
    let token = scene.masks("trn:group:acme/dark", "aws").await;
    let lost = scene.ends(&[&scene.from_above]);
    assert_eq!(
        scene.by_group_move("trn:group:acme/dark", &token).await,
        lost
    );
    assert_eq!(scene.by_group_move("trn:group:other", &token).await, lost);
    assert_eq!(scene.by_group_move("", &token).await, lost);
    let workspace = admin.asks(namespace::MoveWorkspaceRequest {
        validate_only: true,
        consistency_token: token.clone(),
        ..workspace_move(&scene.web.id, "trn:group:acme")
    });
    assert_eq!(
        workspace.await.expect("valid").ending_assignments,
        scene.ends(&[&scene.own])
    );

    admin.moves_group(&scene.team, "trn:group:other").await;
    eventually(async || {
        let request = directory::ListWorkspaceManagedIdentitiesRequest {
            workspace_id: scene.web.id.clone(),
            include_unusable: true,
            ..Default::default()
        };
        let has = admin.asks(request).await.expect("listed");
        let has = has.managed_identities.into_iter();
        let has: Vec<_> = has.filter_map(|has| has.managed_identity).collect();
        match has.as_slice() {
            [one] if one.id == scene.own => Ok(()),
            others => Err(format!("{others:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_says_what_it_would_take() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, token) = (&scene.admin, &scene.token);
    let both = scene.ends(&[&scene.from_above, &scene.own]);
    let group = admin.asks(namespace::DeleteGroupRequest {
        id: scene.team.clone(),
        force: true,
        validate_only: true,
        consistency_token: token.clone(),
        ..Default::default()
    });
    assert_eq!(group.await.expect("valid").ending_assignments, both);
    let workspace = admin.asks(namespace::DeleteWorkspaceRequest {
        id: scene.web.id.clone(),
        validate_only: true,
        consistency_token: token.clone(),
        ..Default::default()
    });
    let workspace = workspace.await.expect("valid");
    assert_eq!(workspace.ending_assignments, both);
    assert_eq!(workspace.ending_assignment_count, 2);
    let deletion = identity::DeleteManagedIdentityRequest {
        id: scene.from_above.clone(),
        force: true,
        ..Default::default()
    };
    let asked = admin.asks(identity::DeleteManagedIdentityRequest {
        validate_only: true,
        ..deletion.clone()
    });
    let lost = scene.ends(&[&scene.from_above]);
    assert_eq!(asked.await.expect("valid").ending_assignments, lost);
    // Upwards nobody loses it, unless something hides it on the way down again.
    let upwards = |validate_only| identity::MoveManagedIdentityRequest {
        id: scene.own.clone(),
        new_group_id: "trn:group:acme".to_owned(),
        validate_only,
        ..Default::default()
    };
    let free = admin.asks(upwards(true)).await.expect("valid");
    assert_eq!(free.ending_assignments, []);
    scene.masks(&scene.team, "kubernetes").await;
    let masked = admin.asks(upwards(true)).await.expect("valid");
    assert_eq!(masked.ending_assignments, scene.ends(&[&scene.own]));
    // Who does it is not told at length.
    let gone = admin.asks(deletion).await.expect("deleted");
    assert_eq!(gone.ending_assignment_count, 0);
}

/// Who could be given what: workspace and identity.
type Inherited = BTreeSet<(String, String)>;

async fn inherited(admin: &User, workspaces: &[String], token: &str) -> Inherited {
    let mut inherited = BTreeSet::new();
    for workspace in workspaces {
        let request = directory::ListWorkspaceManagedIdentitiesRequest {
            workspace_id: workspace.clone(),
            include_unassigned: true,
            consistency_token: token.to_owned(),
            ..Default::default()
        };
        let listed = admin.asks(request).await.expect("listed");
        let listed = listed.managed_identities.into_iter();
        let ids = listed.filter_map(|listed| Some(listed.managed_identity?.id));
        inherited.extend(ids.map(|id| (workspace.clone(), id)));
    }
    inherited
}

fn pairs(gained: Vec<GainedIdentity>, count: i32) -> Inherited {
    assert_eq!(usize::try_from(count), Ok(gained.len()));
    let pair = |gained: GainedIdentity| {
        assert!(gained.workspace_path.starts_with("acme/"), "{gained:?}");
        (gained.workspace_id, gained.managed_identity_id)
    };
    gained.into_iter().map(pair).collect()
}

/// What a request says that it would give, and the state after it.
async fn gain(admin: &User, deed: &Deed) -> Option<(Inherited, String)> {
    macro_rules! tried_and_done {
        ($request:expr) => {{
            let mut request = $request;
            request.validate_only = true;
            let tried = admin.asks(request.clone()).await.ok()?;
            let gained = pairs(tried.gained_identities, tried.gained_identity_count);
            request.validate_only = false;
            let done = admin.asks(request).await.expect("it was valid");
            Some((gained, done.consistency_token))
        }};
    }
    match deed {
        Deed::MoveGroup(id, to) => tried_and_done!(group_move(id, to)),
        Deed::MoveWorkspace(id, to) => tried_and_done!(workspace_move(id, to)),
        Deed::MoveIdentity(id, to) => tried_and_done!(identity::MoveManagedIdentityRequest {
            id: id.clone(),
            new_group_id: to.clone(),
            ..Default::default()
        }),
        Deed::Unmask(id) => tried_and_done!(identity::DeleteMaskRequest {
            id: id.clone(),
            ..Default::default()
        }),
    }
}

#[derive(Debug)]
enum Deed {
    MoveGroup(String, String),
    MoveWorkspace(String, String),
    MoveIdentity(String, String),
    Unmask(String),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_comes_to_be_inherited_is_what_was_said() {
    let world = World::start().await;
    let admin = world.admin();
    let mut chance = Chance::new(7);
    let (mut groups, mut workspaces, mut identities) = (vec![], vec![], vec![]);
    for path in [
        "acme",
        "acme/a",
        "acme/b",
        "acme/a/x",
        "acme/b/y",
        "acme/a/x/z",
    ] {
        let below = path.replace('/', "-");
        groups.push(admin.creates_group(path).await.id);
        let made = admin.creates_workspace(&format!("{path}/w-{below}")).await;
        workspaces.push(made.id);
        let aws = admin.creates_identity(&format!("{path}/aws-{below}")).await;
        let cluster = creates_kubernetes(&admin, &format!("{path}/cluster-{below}")).await;
        identities.extend([aws.id, cluster.id]);
    }
    let (mut gains, mut losses) = (0, 0);
    let mut token = String::new();
    for round in 0..40 {
        let group = chance.one_of(&groups).expect("there is one");
        let to = chance.one_of(&groups).expect("there is one");
        let workspace = chance.one_of(&workspaces).expect("there is one");
        let moved = chance.one_of(&identities).expect("there is one");
        // Not all of them go again, so more and more is hidden.
        let mut request = e2e::user::mask(match round % 3 {
            0 => &workspace,
            _ => &group,
        });
        let wanted = request.mask.get_or_insert_default();
        wanted.hidden = Some(match chance.below(3) {
            0 => identity::mask::Hidden::Everything(true),
            1 => identity::mask::Hidden::Type("aws".to_owned()),
            _ => identity::mask::Hidden::Type("kubernetes".to_owned()),
        });
        let mask = admin.asks(request).await;
        if let Ok(mask) = &mask {
            token.clone_from(&mask.consistency_token);
        }
        let mask = mask.ok().and_then(|made| made.mask).map(|mask| mask.id);
        let deed = match (chance.below(5), mask) {
            (0 | 1, Some(mask)) => Deed::Unmask(mask),
            (2, _) => Deed::MoveWorkspace(workspace, to),
            (3, _) => Deed::MoveIdentity(moved, to),
            _ => Deed::MoveGroup(group, to),
        };
        let before = inherited(&admin, &workspaces, &token).await;
        let Some((said, after_token)) = gain(&admin, &deed).await else {
            continue;
        };
        token = after_token;
        let after = inherited(&admin, &workspaces, &token).await;
        let gained: Inherited = after.difference(&before).cloned().collect();
        assert_eq!(said, gained, "{deed:?}");
        gains += gained.len();
        losses += before.difference(&after).count();
    }
    assert!(gains > 0 && losses > 0, "{gains} {losses}");
}
