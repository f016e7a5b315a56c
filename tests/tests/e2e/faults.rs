//! What breaks, and what goes on meanwhile and afterwards.

use bed::eventually;
use e2e::refusal::refused;
use e2e::user::{aws_identity, group};
use e2e::world::Setup;
use e2e::{Service, World};
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::namespace::v1 as namespace;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

use crate::load::Load;
use crate::main_job::holds_what_the_log_holds;
use crate::revocations::Scene;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_dies_and_loses_its_disk_under_load() {
    let mut world = Setup::default().own_nats().start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let load = Load::begin(&world, &admin, "acme").await;
    load.goes_on(20).await;
    world.nats().kill();
    // Without NATS, followers read the logs: a read that asks for it sees what was written just now.
    load.goes_on(20).await;
    let made = admin
        .in_a_hurry()
        .asks(group("acme/while-nats-was-away"))
        .await
        .expect("made");
    let list = directory::ListChildrenRequest {
        group_id: made.group.expect("a group").id,
        consistency_token: made.consistency_token,
        ..Default::default()
    };
    admin.asks(list).await.expect("it is in the directory");
    world.nats().wipe();
    world.nats().restart().await;
    load.goes_on(20).await;
    let made = load.ends(&world).await;
    for service in Service::WITH_LOG {
        holds_what_the_log_holds(&world, service).await;
    }
    is_in_the_directory(&world, &acme.id, made.len()).await;
    // The bus brings what comes now.
    admin.creates_group("acme/after").await;
    holds_what_the_log_holds(&world, Service::Namespace).await;
    for service in Service::ALL {
        assert_eq!(
            world.health(service).await,
            ServingStatus::Serving,
            "{service:?}"
        );
    }
}

/// All identities of the group are listed, page by page.
async fn is_in_the_directory(world: &World, group: &str, identities: usize) {
    eventually(async || {
        let (mut seen, mut page_token) = (0, String::new());
        loop {
            let request = directory::ListManagedIdentitiesRequest {
                group_id: group.to_owned(),
                page_size: 100,
                page_token,
                ..Default::default()
            };
            let page = world.admin().asks(request).await.expect("listed");
            seen += page.managed_identities.len();
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        if seen == identities {
            Ok(())
        } else {
            Err(format!("{seen} of {identities}"))
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_to_postgres_are_cut_under_load() {
    let world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let load = Load::begin(&world, &admin, "acme").await;
    load.goes_on(10).await;
    for _ in 0..5 {
        for service in Service::ALL {
            // All but the one that asks; that one is of this test.
            let cut = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                       WHERE datname = current_database() AND pid <> pg_backend_pid()";
            let pool = world.database(service).pool();
            let _: i64 = sqlx::query_scalar(cut)
                .fetch_one(pool)
                .await
                .expect("connections are cut");
        }
        load.goes_on(10).await;
    }
    let made = load.ends(&world).await;
    is_in_the_directory(&world, &acme.id, made.len()).await;
    for service in Service::WITH_LOG {
        holds_what_the_log_holds(&world, service).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_service_goes_on_after_a_restart() {
    let mut world = World::start().await;
    let admin = world.admin();
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let opened = admin.opens_job(&web.id).await;
    let load = Load::begin(&world, &admin, "acme").await;
    for service in Service::ALL {
        // Whoever depends on it waits or does without; the callers repeat what fails.
        world.stops(service).await;
        if service == Service::Projector || service == Service::Issuer {
            load.goes_on(5).await;
        }
        world.starts(service).await;
        world.is_serving(service).await;
        load.goes_on(5).await;
    }
    let made = load.ends(&world).await;
    // The issuer's key is the same as before: the job's token is still good.
    admin
        .asks_as(&opened.token, &deployer.id)
        .await
        .expect("a credential");
    is_in_the_directory(&world, &acme.id, 1 + made.len()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_log_that_was_swapped_stands_still_and_says_so() {
    let mut world = Setup::default().staleness_bound(2).start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let deployer = admin.creates_identity("acme/deployer").await;
    admin.assigns(&deployer.id, &web.id).await;
    let opened = admin.opens_job(&web.id).await;

    world.loses_database(Service::Namespace).await;
    world.starts(Service::Namespace).await;
    world.is_serving(Service::Namespace).await;
    for service in [Service::Identity, Service::Issuer, Service::Projector] {
        eventually(async || match world.health(service).await {
            ServingStatus::NotServing => Ok(()),
            status => Err(format!("{service:?} is {status:?}")),
        })
        .await;
    }
    // What the new log says does not get through, and credentials are not issued on what is known no longer.
    let made = admin.in_a_hurry().asks(group("new")).await.expect("made");
    let request = identity::CreateManagedIdentityRequest {
        consistency_token: made.consistency_token,
        ..aws_identity("new/x")
    };
    refused(
        admin.asks(request).await,
        Code::FailedPrecondition,
        "CONSISTENCY_TOKEN_OTHER_EPOCH",
    );
    let status = eventually(
        async || match admin.asks_as(&opened.token, &deployer.id).await {
            Ok(_) => Err("the swap has not been noticed yet"),
            Err(status) => Ok(status),
        },
    )
    .await;
    // Why is for operators, and may be what a database said.
    assert!(!status.message().contains("epoch"), "{status:?}");
    refused::<()>(Err(status), Code::Unavailable, "FOLLOWER_HALTED");
    let get = namespace::GetGroupRequest {
        id: "trn:group:new".to_owned(),
        ..Default::default()
    };
    admin
        .asks(get)
        .await
        .expect("the namespace service itself is well");
}

/// The alarm on a relay that is behind its log looks at any one process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_process_tells_where_the_log_ends_whichever_made_it_grow() {
    let mut world = Setup::default().own_nats().start().await;
    let sibling = world.runs_another_issuer().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    world.nats().kill();
    admin.in_a_hurry().opens_job(&scene.workspace.id).await;
    let end = world.log(Service::Issuer).await.len();
    eventually(async || {
        let metrics = sibling.metrics().await.map_err(|error| error.to_string())?;
        let line = format!(r#"tharsis_log_position{{log="issuer"}} {end}"#);
        let told = metrics.lines().any(|told| told == line);
        told.then_some(()).ok_or(metrics)
    })
    .await;
}
