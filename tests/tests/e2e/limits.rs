//! The limits that administrators set.

use bed::eventually;
use e2e::World;
use e2e::refusal::{invalid, refused};
use e2e::user::{aws_identity, group, limit_update, service_account, workspace};
use proto::namespace::v1 as namespace;
use tonic::Code;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anybody_sees_the_limits_and_administrators_set_them() {
    let world = World::start().await;
    let (admin, bob) = (world.admin(), world.user("bob"));
    let listed = bob.asks(namespace::ListLimitsRequest::default()).await;
    let listed = listed.expect("listed").limits;
    let values: Vec<_> = listed
        .iter()
        .map(|limit| (limit.id.as_str(), limit.value, limit.default_value))
        .collect();
    assert_eq!(
        values,
        [
            ("namespace_depth", 20, 20),
            ("group_subgroups", 1_000, 1_000),
            ("group_workspaces", 1_000, 1_000),
            ("group_managed_identities", 1_000, 1_000),
            ("group_service_accounts", 1_000, 1_000),
            ("managed_identity_aliases", 1_000, 1_000)
        ]
    );
    refused(
        bob.asks(limit_update("namespace_depth", 3)).await,
        Code::PermissionDenied,
        "PERMISSION_DENIED",
    );
    for value in [0, -1, 41] {
        invalid(
            admin.asks(limit_update("namespace_depth", value)).await,
            &["limit.value"],
        );
    }
    invalid(admin.asks(limit_update("depth", 3)).await, &["limit.id"]);
    let mut request = limit_update("namespace_depth", 3);
    request.update_mask = Some(prost_types::FieldMask {
        paths: vec!["default_value".to_owned()],
    });
    invalid(admin.asks(request).await, &["update_mask"]);
    let set = admin.sets_limit("namespace_depth", 3).await;
    assert_eq!((set.value, set.update_time.is_some()), (3, true));
    let mut stale = limit_update("namespace_depth", 4);
    stale
        .limit
        .get_or_insert_default()
        .etag
        .clone_from(&listed[0].etag);
    refused(admin.asks(stale).await, Code::Aborted, "ETAG_MISMATCH");
    let listed = bob.asks(namespace::ListLimitsRequest::default()).await;
    assert_eq!(listed.expect("listed").limits[0], set);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_keeps_more_from_being_made_and_takes_nothing_away() {
    let world = World::start().await;
    let admin = world.admin();
    for path in ["acme", "acme/a", "acme/a/b"] {
        admin.creates_group(path).await;
    }
    admin.creates_workspace("acme/web").await;
    admin.creates_identity("acme/deployer").await;
    admin.creates_service_account("acme/ci").await;
    for limit in [
        "namespace_depth",
        "group_subgroups",
        "group_workspaces",
        "group_managed_identities",
        "group_service_accounts",
    ] {
        admin.sets_limit(limit, 1).await;
    }
    let limited =
        |reason| move |outcome| drop(refused::<()>(outcome, Code::FailedPrecondition, reason));
    limited("DEPTH_LIMIT")(admin.asks(group("acme/c")).await.map(drop));
    limited("DEPTH_LIMIT")(admin.asks(workspace("acme/api")).await.map(drop));
    admin.sets_limit("namespace_depth", 4).await;
    limited("SUBGROUP_LIMIT")(admin.asks(group("acme/c")).await.map(drop));
    limited("WORKSPACE_LIMIT")(admin.asks(workspace("acme/api")).await.map(drop));
    // The other service has it a little later.
    eventually(async || match admin.asks(aws_identity("acme/n")).await {
        Ok(_) => Err("made".to_owned()),
        Err(status) => {
            limited("MANAGED_IDENTITY_LIMIT")(Err(status));
            Ok(())
        }
    })
    .await;
    eventually(async || match admin.asks(service_account("acme/n")).await {
        Ok(_) => Err("made".to_owned()),
        Err(status) => {
            limited("SERVICE_ACCOUNT_LIMIT")(Err(status));
            Ok(())
        }
    })
    .await;
    // Wherever there was less, there is room for one.
    admin.creates_group("acme/a/b/c").await;
    limited("DEPTH_LIMIT")(admin.asks(group("acme/a/b/c/d")).await.map(drop));
    admin.creates_workspace("acme/a/web").await;
    admin.creates_identity("acme/a/deployer").await;
    // Raised, there is room again, beyond the first value too.
    admin.sets_limit("namespace_depth", 22).await;
    admin.sets_limit("group_subgroups", 2).await;
    let mut path = "acme/c".to_owned();
    for _ in 2..=22 {
        admin.creates_group(&path).await;
        path.push_str("/c");
    }
    limited("DEPTH_LIMIT")(admin.asks(group(&path)).await.map(drop));
}
