//! Service accounts: which tokens they stand for, and what they may where.

use bed::unique_id;
use e2e::refusal::{invalid, not_found, refused};
use e2e::user::{self, service_account, trust};
use e2e::{Service, User, World};
use proto::access::v1 as access;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::{Code, Status};

fn get(id: &str) -> identity::GetServiceAccountRequest {
    identity::GetServiceAccountRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn delete(id: &str) -> identity::DeleteServiceAccountRequest {
    identity::DeleteServiceAccountRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn principal(account: &str) -> access::Principal {
    access::Principal {
        kind: Some(access::principal::Kind::ServiceAccount(account.to_owned())),
    }
}

fn membership(account: &str, role: Role, place: &str) -> namespace::CreateMembershipRequest {
    let mut request = user::membership("", role, place);
    request.membership.get_or_insert_default().principal = Some(principal(account));
    request
}

async fn role(asker: &User, account: &str, place: &str) -> Result<Role, Status> {
    let request = namespace::GetAccessRequest {
        namespace_id: place.to_owned(),
        principal: Some(principal(account)),
        ..Default::default()
    };
    asker.asks(request).await.map(|answer| answer.role())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_made_changed_and_deleted_by_owners() {
    let world = World::start().await;
    let (admin, dan) = (world.admin(), world.user("dan"));
    let acme = admin.creates_group("acme").await;
    admin.grants(&dan, Role::Deployer, &acme.id).await;
    let mut request = service_account("acme/ci");
    request.request_id = unique_id().to_string();
    refused(
        dan.asks(request.clone()).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    let made = admin.asks(request.clone()).await.expect("made");
    assert_eq!(admin.asks(request).await.expect("the same"), made);
    let made = made.service_account.expect("the service account");
    assert_eq!(made.trn, "trn:service_account:acme/ci");
    let seen = dan.asks(get(&made.trn)).await.expect("seen");
    assert_eq!(seen.service_account.as_ref(), Some(&made));
    // A managed identity may have the same name.
    admin.creates_identity("acme/ci").await;
    let (one, other) = tokio::join!(
        admin.asks(service_account("acme/twice")),
        admin.asks(service_account("acme/twice"))
    );
    let refusal = if one.is_ok() { other } else { one };
    refused(refusal, Code::AlreadyExists, "NAME_TAKEN");

    let update = identity::UpdateServiceAccountRequest {
        service_account: Some(identity::ServiceAccount {
            trust_policies: vec![trust("https://other.example.com/", "a?c")],
            description: "not asked for".to_owned(),
            ..made.clone()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["trust_policies".to_owned()],
        }),
        ..Default::default()
    };
    let changed = admin.asks(update.clone()).await.expect("changed");
    let changed = changed.service_account.expect("the service account");
    assert_eq!(
        changed.trust_policies[0].issuer,
        "https://other.example.com/"
    );
    assert_eq!(changed.description, "");
    refused(admin.asks(update).await, Code::Aborted, "ETAG_MISMATCH");

    admin.asks(delete(&made.id)).await.expect("deleted");
    not_found(admin.asks(get(&made.id)).await);
    not_found(admin.asks(delete(&made.trn)).await);
    admin.creates_service_account("acme/ci").await;
    // With its group it is gone too.
    let again = dan.asks(get("trn:service_account:acme/ci")).await;
    let again = again.expect("seen").service_account.expect("it");
    admin.deletes_group(&acme.id).await;
    not_found(admin.asks(get(&again.id)).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_let_everybody_in_is_refused_with_the_field_named() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let asks = async |policies: Vec<identity::TrustPolicy>| {
        let mut request = service_account("acme/ci");
        request
            .service_account
            .get_or_insert_default()
            .trust_policies = policies;
        admin.asks(request).await
    };
    let at = |field: &str| format!("service_account.trust_policies{field}");
    let good = || trust("https://ci.example.com", "repo:acme/*");
    for star in ["*", "**", "?*"] {
        invalid(
            asks(vec![good(), trust("https://ci.example.com", star)]).await,
            &[&at("[1].claims[0].glob")],
        );
    }
    for issuer in [
        "http://ci.example.com",
        "https://a@b",
        "http://127.0.0.1.example.com",
    ] {
        invalid(asks(vec![trust(issuer, "a*")]).await, &[&at("[0].issuer")]);
    }
    let mut nobody = good();
    nobody.claims.clear();
    nobody.audience = String::new();
    invalid(
        asks(vec![nobody]).await,
        &[&at("[0].audience"), &at("[0].claims")],
    );
    let mut odd = good();
    odd.claims.push(odd.claims[0].clone());
    odd.claims.push(identity::ClaimCondition {
        claim: "aud".to_owned(),
        condition: None,
    });
    invalid(
        asks(vec![odd]).await,
        &[
            &at("[0].claims[1].claim"),
            &at("[0].claims[2].claim"),
            &at("[0].claims[2]"),
        ],
    );
    for algorithm in ["none", "HS256", "rs256"] {
        let mut wrong = good();
        algorithm.clone_into(&mut wrong.signing_algorithm);
        invalid(asks(vec![wrong]).await, &[&at("[0].signing_algorithm")]);
    }
    invalid(asks(vec![good(); 11]).await, &[&at("")]);
    asks(vec![good(); 10]).await.expect("made");
    invalid(admin.asks(get(&acme.id)).await, &["id"]);
    invalid(admin.asks(get("ci")).await, &["id"]);
    invalid(
        admin.asks(service_account("CI")).await,
        &["service_account.group_id"],
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_a_member_where_it_lies_and_below_until_it_is_gone() {
    let world = World::start().await;
    let (admin, owen) = (world.admin(), world.user("owen"));
    let acme = admin.creates_group("acme").await;
    let inner = admin.creates_group("acme/inner").await;
    let other = admin.creates_group("other").await;
    admin.grants(&owen, Role::Owner, &other.id).await;
    admin.grants(&owen, Role::Owner, &inner.id).await;
    let web = admin.creates_workspace("acme/inner/web").await;
    let ci = admin.creates_service_account("acme/ci").await;
    let low = admin.creates_service_account("acme/inner/low").await;

    // Inherited, so an owner further down may name it without seeing the group that it is in.
    owen.asks(membership(&ci.trn, Role::Deployer, &inner.id))
        .await
        .expect("a member");
    assert_eq!(
        role(&owen, &ci.id, &web.id).await.expect("told"),
        Role::Deployer
    );
    assert_eq!(
        role(&admin, &ci.id, &acme.id).await.expect("told"),
        Role::Unspecified
    );
    refused(
        admin
            .asks(membership(&low.id, Role::Viewer, &acme.id))
            .await,
        Code::FailedPrecondition,
        "NOT_INHERITED",
    );
    // What lies elsewhere is not shown by being named.
    not_found(owen.asks(membership(&ci.id, Role::Viewer, &other.id)).await);
    not_found(role(&owen, &ci.id, &other.id).await);
    let hidden = owen
        .asks(membership(&ci.trn, Role::Viewer, &other.id))
        .await;
    let none = ci.trn.replace("acme/ci", "acme/no");
    let missing = owen.asks(membership(&none, Role::Viewer, &other.id)).await;
    let (hidden, missing) = (hidden.expect_err("hidden"), missing.expect_err("missing"));
    assert_eq!(
        hidden.message(),
        missing.message().replace("acme/no", "acme/ci")
    );
    not_found(
        owen.asks(membership(
            "trn:service_account:acme/none",
            Role::Viewer,
            &inner.id,
        ))
        .await,
    );
    invalid(
        owen.asks(membership("ci", Role::Viewer, &inner.id)).await,
        &["membership.principal.service_account"],
    );
    refused(
        owen.asks(membership(&ci.id, Role::Viewer, &inner.id)).await,
        Code::AlreadyExists,
        "MEMBERSHIP_EXISTS",
    );

    admin.asks(delete(&ci.id)).await.expect("deleted");
    not_found(role(&admin, &ci.id, &web.id).await);
    not_found(admin.asks(membership(&ci.id, Role::Viewer, &acme.id)).await);
    // A new one of the same name is another one.
    let again = admin.creates_service_account("acme/ci").await;
    assert_eq!(
        role(&admin, &again.id, &web.id).await.expect("told"),
        Role::Unspecified
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_moves_away_from_its_group_is_closed_to_it_at_once() {
    let world = World::start().await;
    let (admin, dan) = (world.admin(), world.user("dan"));
    for path in ["acme", "acme/team", "other"] {
        admin.creates_group(path).await;
    }
    let web = admin.creates_workspace("acme/team/web").await;
    let api = admin.creates_workspace("acme/api").await;
    let ci = admin.creates_service_account("acme/ci").await.id;
    let own = admin.creates_service_account("acme/team/own").await.id;
    let mut members = Vec::new();
    for (account, place) in [
        (&ci, "trn:group:acme/team"),
        (&ci, &web.id),
        (&own, &web.id),
        (&ci, &api.id),
    ] {
        let made = admin.asks(membership(account, Role::Deployer, place)).await;
        members.push(made.expect("a member").membership.expect("it").id);
    }
    members.push(admin.grants(&dan, Role::Deployer, &web.id).await.id);
    let identity = admin.creates_identity("acme/team/deployer").await.id;
    admin.assigns(&identity, &web.id).await;
    let mut request = user::job(&web.id);
    request.job.get_or_insert_default().principal = format!("service_account:{ci}");
    let job = admin.asks(request).await.expect("opened").job_token;

    let hasty = admin.in_a_hurry();
    let moves = user::group_move("trn:group:acme/team", "trn:group:other");
    let token = hasty.asks(moves).await.expect("moved").consistency_token;
    assert_eq!(
        role(&hasty, &ci, &web.id).await.expect("told"),
        Role::Unspecified
    );
    let request = issuer::IssueCredentialRequest {
        consistency_token: token,
        ..user::credential(&identity)
    };
    refused(
        hasty.with_token(&job).asks(request).await,
        Code::FailedPrecondition,
        "PRINCIPAL_NOT_MEMBER",
    );
    assert_eq!(
        role(&admin, &own, &web.id).await.expect("told"),
        Role::Deployer
    );
    // The same of a workspace alone; and a moment later such memberships are over.
    let to = user::workspace_move(&api.id, "trn:group:other");
    hasty.asks(to).await.expect("moved");
    assert_eq!(
        role(&hasty, &ci, &api.id).await.expect("told"),
        Role::Unspecified
    );
    bed::eventually(async || {
        let mut there = Vec::new();
        for id in &members {
            let request = namespace::GetMembershipRequest {
                id: id.clone(),
                ..Default::default()
            };
            there.push(admin.asks(request).await.is_ok());
        }
        if there == [false, false, true, false, true] {
            Ok(())
        } else {
            Err(format!("{there:?}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_account_alone_does_not_own_a_top_level_group() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let log = world.log(Service::Namespace).await;
    let founder = log
        .iter()
        .find_map(|event| event.stream_id.strip_prefix("membership/"))
        .expect("the founder's membership");
    let ci = admin.creates_service_account("acme/ci").await;
    let its = admin.asks(membership(&ci.id, Role::Owner, &acme.id)).await;
    let its = its.expect("a member").membership.expect("the membership");
    assert_eq!(
        role(&admin, &ci.id, &acme.id).await.expect("told"),
        Role::Owner
    );
    let end = |id: &str| namespace::DeleteMembershipRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    refused(
        admin.asks(end(founder)).await,
        Code::FailedPrecondition,
        "LAST_OWNER",
    );
    // Its own membership may go whoever else owns the group, and takes nobody's place.
    admin.asks(end(&its.id)).await.expect("ended");
    refused(
        admin.asks(end(founder)).await,
        Code::FailedPrecondition,
        "LAST_OWNER",
    );
}
