//! Masks: what is hidden of what is inherited, from a group or workspace down.

use bed::{eventually, unique_id};
use e2e::refusal::{invalid, not_found, obstacles, refused};
use e2e::user::{
    OpenedJob, assignment, aws_identity, credential, mask, service_account, workspace_move,
};
use e2e::{Service, User, World};
use futures::future::join_all;
use proto::access::v1::Role;
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::identity::v1::mask::Hidden;
use tonic::Code;

fn hides(namespace: &str, hidden: Hidden, exceptions: &[&str]) -> identity::CreateMaskRequest {
    let mut request = mask(namespace);
    let wanted = request.mask.get_or_insert_default();
    wanted.hidden = Some(hidden);
    wanted.exception_ids = exceptions.iter().map(ToString::to_string).collect();
    request
}

fn delete(id: &str) -> identity::DeleteMaskRequest {
    identity::DeleteMaskRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

/// An identity of a cloud that has one more type, so that one workspace has room for both.
pub(crate) async fn creates_kubernetes(user: &User, path: &str) -> identity::ManagedIdentity {
    let mut request = aws_identity(path);
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(identity::Configuration {
        r#type: Some(identity::configuration::Type::Kubernetes(
            identity::KubernetesConfiguration::default(),
        )),
    });
    let made = user.asks(request).await.expect("made");
    made.managed_identity.expect("an identity")
}

/// What a workspace has, and what of it is masked, by id.
async fn has(user: &User, workspace: &str) -> Vec<(String, bool)> {
    let request = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: workspace.to_owned(),
        include_unusable: true,
        ..Default::default()
    };
    let listed = user.asks(request).await.expect("listed").managed_identities;
    let listed = listed.into_iter().map(|listed| {
        let masked = listed.unusable_reason() == directory::UnusableReason::Masked;
        assert_eq!(masked, !listed.mask_id.is_empty());
        (listed.managed_identity.expect("it").id, masked)
    });
    listed.collect()
}

/// What a workspace has or could be given, a page for each: the id, whether it is assigned, and what hides it.
async fn effective(user: &User, workspace: &str, unusable: bool) -> Vec<(String, bool, String)> {
    let mut request = directory::ListWorkspaceManagedIdentitiesRequest {
        workspace_id: workspace.to_owned(),
        page_size: 1,
        include_unassigned: true,
        include_unusable: unusable,
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let page = user.asks(request.clone()).await.expect("listed");
        found.extend(page.managed_identities.into_iter().map(|listed| {
            let id = listed.managed_identity.expect("it").id;
            (id, listed.assigned, listed.mask_id)
        }));
        if page.next_page_token.is_empty() {
            found.sort();
            return found;
        }
        request.page_token = page.next_page_token;
    }
}

/// Waits until a workspace has these and nothing more.
async fn comes_to_have(user: &User, workspace: &str, ids: &[&str]) {
    eventually(async || {
        let mut has = has(user, workspace).await;
        has.sort();
        let expected: Vec<_> = ids.iter().map(|id| ((*id).to_owned(), false)).collect();
        if has == expected {
            Ok(())
        } else {
            Err(format!("{has:?}"))
        }
    })
    .await;
}

/// The ids of what can be assigned in a group.
async fn inherited(user: &User, group: &str) -> Vec<String> {
    let request = directory::ListManagedIdentitiesRequest {
        group_id: group.to_owned(),
        ..Default::default()
    };
    let listed = user.asks(request).await.expect("listed").managed_identities;
    let ids = listed.into_iter();
    ids.map(|listed| listed.managed_identity.expect("it").id)
        .collect()
}

/// acme, with acme/prod and a workspace in each; an identity of acme, one of Kubernetes, and one of acme/prod.
struct Scene {
    admin: User,
    prod: String,
    web: String,
    beside: String,
    aws: String,
    kubernetes: String,
    own: String,
}

impl Scene {
    async fn set(world: &World) -> Self {
        let admin = world.admin();
        admin.creates_group("acme").await;
        let prod = admin.creates_group("acme/prod").await.id;
        let web = admin.creates_workspace("acme/prod/web").await.id;
        let beside = admin.creates_workspace("acme/beside").await.id;
        let aws = admin.creates_identity("acme/deployer").await.id;
        let kubernetes = creates_kubernetes(&admin, "acme/cluster").await.id;
        let own = admin.creates_identity("acme/prod/own").await.id;
        for workspace in [&web, &beside] {
            admin.assigns(&aws, workspace).await;
            admin.assigns(&kubernetes, workspace).await;
        }
        Self {
            admin,
            prod,
            web,
            beside,
            aws,
            kubernetes,
            own,
        }
    }

    fn both(&self) -> [&str; 2] {
        let mut both = [self.aws.as_str(), self.kubernetes.as_str()];
        both.sort_unstable();
        both
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_hidden_is_shown_before_and_ends_when_it_is() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, prod) = (&scene.admin, scene.prod.as_str());
    let job = admin.opens_job(&scene.web).await;
    let asker = admin.with_token(&job.token);
    asker.asks(credential(&scene.aws)).await.expect("issued");

    let by_type = hides("trn:group:acme/prod", Hidden::Type("aws".to_owned()), &[]);
    let planned = identity::CreateMaskRequest {
        validate_only: true,
        ..by_type.clone()
    };
    let before = admin.asks(planned).await.expect("planned");
    assert_eq!(before.planned_events.len(), 1);
    assert_eq!(before.hidden_assignment_count, 1);
    let hidden = &before.hidden_assignments[0];
    assert_eq!(hidden.workspace_path, "acme/prod/web");
    assert_eq!(hidden.managed_identity_id, scene.aws);
    asker.asks(credential(&scene.aws)).await.expect("still");

    let made = admin.asks(by_type).await.expect("made");
    assert_eq!(made.hidden_assignments, before.hidden_assignments);
    let mut request = credential(&scene.aws);
    request.consistency_token = made.consistency_token;
    assert!(asker.asks(request).await.is_err());
    comes_to_have(admin, &scene.web, &[&scene.kubernetes]).await;
    comes_to_have(admin, &scene.beside, &scene.both()).await;
    asker
        .asks(credential(&scene.kubernetes))
        .await
        .expect("not hidden");
    // What the group has itself is not inherited there, and so not hidden.
    let mut expected = vec![scene.own.clone(), scene.kubernetes.clone()];
    expected.sort();
    let mut listed = inherited(admin, prod).await;
    listed.sort();
    assert_eq!(listed, expected);
    let mask = made.mask.expect("the mask");
    assert_eq!(mask.trn, format!("trn:mask:acme/prod/{}", mask.id));
    let mut expected = vec![
        (scene.kubernetes.clone(), true, String::new()),
        (scene.own.clone(), false, String::new()),
    ];
    expected.sort();
    assert_eq!(effective(admin, &scene.web, false).await, expected);
    expected.push((scene.aws.clone(), false, mask.id.clone()));
    expected.sort();
    assert_eq!(effective(admin, &scene.web, true).await, expected);
    let all = directory::ListManagedIdentitiesRequest {
        group_id: prod.to_owned(),
        include_masked: true,
        ..Default::default()
    };
    let all = admin.asks(all).await.expect("listed").managed_identities;
    let hidden = all.iter().filter(|listed| !listed.mask_id.is_empty());
    let hidden: Vec<_> = hidden.map(|listed| &listed.mask_id).collect();
    assert_eq!((all.len(), hidden), (3, vec![&mask.id]));
    let again = assignment(&scene.aws, &scene.web);
    let status = refused(
        admin.asks(again.clone()).await,
        Code::FailedPrecondition,
        "MASKED",
    );
    assert_eq!(obstacles(&status), [("MASKED".to_owned(), mask.id.clone())]);
    admin.assigns(&scene.own, &scene.web).await;
    admin
        .asks(identity::UnassignManagedIdentityRequest {
            workspace_id: scene.web.clone(),
            managed_identity_id: scene.own.clone(),
            ..Default::default()
        })
        .await
        .expect("unassigned");

    // Without the mask it is inherited again, and has to be assigned again.
    admin.asks(delete(&mask.trn)).await.expect("deleted");
    not_found(admin.asks(delete(&mask.id)).await);
    comes_to_have(admin, &scene.web, &[&scene.kubernetes]).await;
    admin.asks(again).await.expect("assigned");
    asker.asks(credential(&scene.aws)).await.expect("issued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_all_and_all_but_some_are_hidden_and_moves_meet_masks() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let admin = &scene.admin;
    let all_but_one = hides(&scene.prod, Hidden::Everything(true), &[&scene.kubernetes]);
    admin.asks(all_but_one).await.expect("made");
    comes_to_have(admin, &scene.web, &[&scene.kubernetes]).await;
    // At a workspace itself, by TRN.
    let one = Hidden::ManagedIdentityId("trn:managed_identity:acme/cluster".to_owned());
    admin.asks(hides(&scene.web, one, &[])).await.expect("made");
    comes_to_have(admin, &scene.web, &[]).await;
    let listed = identity::ListMasksRequest {
        namespace_id: scene.web.clone(),
        ..Default::default()
    };
    let listed = admin.asks(listed).await.expect("listed").masks;
    assert_eq!(listed.len(), 1);
    assert_eq!(
        listed[0].hidden,
        Some(Hidden::ManagedIdentityId(scene.kubernetes.clone()))
    );
    assert!(listed[0].create_time.is_some());
    // What moves below a mask loses what it hides.
    let moved = workspace_move(&scene.beside, &scene.prod);
    admin.asks(moved).await.expect("moved");
    comes_to_have(admin, &scene.beside, &[&scene.kubernetes]).await;
    // An identity that moves above a mask becomes inherited there, and so hidden.
    admin.assigns(&scene.own, &scene.beside).await;
    let up = identity::MoveManagedIdentityRequest {
        id: scene.own.clone(),
        new_group_id: "trn:group:acme".to_owned(),
        ..Default::default()
    };
    admin.asks(up).await.expect("moved");
    comes_to_have(admin, &scene.beside, &[&scene.kubernetes]).await;
    // The masks go with their group.
    admin.deletes_group("trn:group:acme/prod").await;
    eventually(async || {
        let events = world.log(Service::Identity).await;
        let gone = events
            .iter()
            .filter(|event| event.event_type.ends_with("MaskDeleted"));
        match gone.count() {
            2 => Ok(()),
            count => Err(format!("{count} masks are gone")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_mask_and_what_is_wrong() {
    let world = World::start().await;
    let scene = Scene::set(&world).await;
    let (admin, dan, eve) = (&scene.admin, world.user("dan"), world.user("eve"));
    admin.grants(&dan, Role::Deployer, &scene.prod).await;
    admin.grants(&eve, Role::Owner, &scene.prod).await;
    refused(
        dan.asks(mask(&scene.prod)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    not_found(eve.asks(mask("trn:group:acme")).await);
    invalid(
        eve.asks(identity::CreateMaskRequest::default()).await,
        &["mask.namespace_id"],
    );
    let nothing = identity::CreateMaskRequest {
        mask: Some(identity::Mask {
            namespace_id: scene.prod.clone(),
            exception_ids: vec!["x".to_owned(), scene.web.clone()],
            ..Default::default()
        }),
        ..Default::default()
    };
    let wrong = [
        "mask.hidden",
        "mask.exception_ids[0]",
        "mask.exception_ids[1]",
    ];
    invalid(eve.asks(nothing).await, &wrong);
    for (hidden, wrong) in [
        (Hidden::Everything(false), "mask.everything"),
        (Hidden::Type("AWS".to_owned()), "mask.type"),
        (
            Hidden::ManagedIdentityId(scene.prod.clone()),
            "mask.managed_identity_id",
        ),
    ] {
        invalid(eve.asks(hides(&scene.prod, hidden, &[])).await, &[wrong]);
    }
    let many = vec![scene.aws.as_str(); 101];
    let many = hides(&scene.prod, Hidden::Everything(true), &many);
    invalid(eve.asks(many).await, &["mask.exception_ids"]);
    // Its own is not inherited there; what is elsewhere does not exist for her.
    let own = Hidden::ManagedIdentityId(scene.own.clone());
    refused(
        eve.asks(hides(&scene.prod, own, &[])).await,
        Code::FailedPrecondition,
        "NOT_INHERITED",
    );
    admin.creates_group("other").await;
    let other = admin.creates_identity("other/deployer").await.id;
    let other = Hidden::ManagedIdentityId(other);
    not_found(eve.asks(hides(&scene.prod, other, &[])).await);
    // The same request twice makes one mask.
    let mut request = mask(&scene.prod);
    request.request_id = unique_id().to_string();
    let made = join_all((0..3).map(|_| eve.asks(request.clone()))).await;
    let mut ids = made
        .into_iter()
        .map(|made| made.expect("made").mask.expect("a mask").id);
    let first = ids.next().expect("an answer");
    assert!(ids.all(|id| id == first));
    let found = dan
        .asks(identity::GetMaskRequest {
            id: first.clone(),
            ..Default::default()
        })
        .await;
    assert_eq!(found.expect("found").mask.expect("it").id, first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_mask_and_an_assignment_at_once_nothing_hidden_is_left() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let deployer = admin.creates_identity("acme/deployer").await.id;
    admin.asks(service_account("acme/ci")).await.expect("made");
    let mut workspaces = Vec::new();
    for number in 0..6 {
        let path = format!("acme/g{number}");
        let group = admin.creates_group(&path).await.id;
        let made = admin.creates_workspace(&format!("{path}/web")).await.id;
        workspaces.push((group, made));
    }
    let hasty = admin.in_a_hurry();
    let races = workspaces.iter().map(|(group, workspace)| async {
        let (assigned, masked) = futures::join!(
            hasty.asks(assignment(&deployer, workspace)),
            hasty.asks(mask(group)),
        );
        masked.expect("it is masked");
        drop(assigned);
    });
    join_all(races).await;
    for (_, workspace) in &workspaces {
        comes_to_have(&admin, workspace, &[]).await;
        let job: OpenedJob = admin.opens_job(workspace).await;
        let asker = admin.with_token(&job.token);
        assert!(asker.asks(credential(&deployer)).await.is_err());
    }
}
