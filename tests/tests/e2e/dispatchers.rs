//! Who opens jobs on behalf of others.

use bed::{eventually, unique_id};
use e2e::foreign::ForeignIssuer;
use e2e::refusal::refused;
use e2e::user::{OpenedJob, access_rule, group_move, job, membership};
use e2e::{Service, User, World};
use proto::access::v1::{Principal, Role, principal::Kind};
use proto::directory::v1 as directory;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tonic::Code;

use crate::token_exchange::exchanges;

const SUBJECT: &str = "repo:acme/infra:ref:refs/heads/main";

fn service_account(id: &str) -> Principal {
    Principal {
        kind: Some(Kind::ServiceAccount(id.to_owned())),
    }
}

/// A service account that is a deployer somewhere, its membership there, and one who calls with its token.
async fn dispatcher(
    world: &World,
    ci: &ForeignIssuer,
    path: &str,
    place: &str,
) -> (String, namespace::Membership, User) {
    let admin = world.admin();
    let made = admin.asks(ci.trusted_by(path, SUBJECT)).await;
    let id = made.expect("made").service_account.expect("it").id;
    let mut request = membership("", Role::Deployer, place);
    request.membership.get_or_insert_default().principal = Some(service_account(&id));
    let member = admin.asks(request).await.expect("a member").membership;
    let token = exchanges(world, &id, &ci.token(SUBJECT)).await.token();
    let calls = world.stranger().with_token(&token);
    (id, member.expect("it"), calls)
}

fn for_alice(workspace: &str) -> issuer::OpenJobRequest {
    let mut request = job(workspace);
    "user:dev/alice".clone_into(&mut request.job.get_or_insert_default().principal);
    request
}

async fn opens(user: &User, request: issuer::OpenJobRequest) -> OpenedJob {
    let opened = user.asks(request).await.expect("a job is opened");
    OpenedJob {
        job: opened.job.expect("the job"),
        token: opened.job_token,
    }
}

async fn ends(admin: &User, member: namespace::Membership) -> String {
    let request = namespace::DeleteMembershipRequest {
        id: member.id,
        ..Default::default()
    };
    admin.asks(request).await.expect("ended").consistency_token
}

/// Whoever owns a group below can make a service account there. What the rules of an identity above keep from them, they
/// don't get through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_ask_for_a_service_account_too_unless_it_is_of_those_who_own_the_rules() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let (admin, alice) = (world.admin(), world.user("alice"));
    let acme = admin.creates_group("acme").await;
    let team = admin.creates_group("acme/team").await;
    let web = admin.creates_workspace("acme/team/web").await.id;
    let deployer = admin.creates_identity("acme/deployer").await.id;
    admin.assigns(&deployer, &web).await;
    admin.grants(&alice, Role::Deployer, &acme.id).await;
    let rule = admin.restricts(&deployer, &[alice.principal()]).await;
    let (below, _, of_team) = dispatcher(&world, &ci, "acme/team/ci", &team.id).await;
    let (above, member, of_acme) = dispatcher(&world, &ci, "acme/ci", &web).await;

    let by_team = opens(&of_team, for_alice(&web)).await;
    let by_acme = opens(&of_acme, for_alice(&web)).await;
    let openers = [&by_team, &by_acme].map(|opened| opened.job.opener.as_str());
    let wanted = [&below, &above].map(|id| format!("service_account:{id}"));
    assert_eq!(openers, wanted.each_ref().map(String::as_str));
    let by_team_asks = world.stranger().with_token(&by_team.token);
    refused(
        by_team_asks.asks(e2e::user::credential(&deployer)).await,
        Code::FailedPrecondition,
        "RULES_REFUSED",
    );
    let by_acme_asks = world.stranger().with_token(&by_acme.token);
    let asked = by_acme_asks.asks(e2e::user::credential(&deployer)).await;
    asked.expect("its owners are the rule's");

    // What the owners of the rule name, it lets.
    let mut both = access_rule(&deployer, &[alice.principal()]).access_rule;
    let both = both.as_mut().expect("a rule");
    both.id = rule.id;
    let Some(identity::access_rule::Condition::EligiblePrincipals(eligible)) = &mut both.condition
    else {
        panic!("a rule on principals: {both:?}");
    };
    eligible.principals.push(service_account(&below));
    let change = identity::UpdateAccessRuleRequest {
        access_rule: Some(both.clone()),
        ..Default::default()
    };
    let token = admin.asks(change).await.expect("changed").consistency_token;
    let request = |consistency_token| issuer::IssueCredentialRequest {
        managed_identity_id: deployer.clone(),
        consistency_token,
    };
    by_team_asks.asks(request(token)).await.expect("named");

    // One that may not open jobs any more gets nothing for those that it has opened.
    let token = ends(&admin, member).await;
    refused(
        by_acme_asks.asks(request(token)).await,
        Code::FailedPrecondition,
        "OPENER_NOT_MEMBER",
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_open_jobs_any_more_gets_nothing_for_the_ones_of_others() {
    let world = World::start().await;
    let (admin, alice, bob) = (world.admin(), world.user("alice"), world.user("bob"));
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await.id;
    let deployer = admin.creates_identity("acme/deployer").await.id;
    admin.assigns(&deployer, &web).await;
    admin.grants(&alice, Role::Deployer, &web).await;
    let member = admin.grants(&bob, Role::Deployer, &web).await;
    let request = issuer::OpenJobRequest {
        request_id: unique_id().to_string(),
        ..for_alice(&web)
    };
    let opened = opens(&bob, request.clone()).await;
    assert_eq!(opens(&bob, request.clone()).await.job, opened.job);
    bob.asks_as(&opened.token, &deployer).await.expect("issued");

    let token = ends(&admin, member).await;
    let job = bob.with_token(&opened.token);
    let one = issuer::IssueCredentialRequest {
        managed_identity_id: deployer.clone(),
        consistency_token: token.clone(),
    };
    let all = issuer::IssueCredentialsRequest {
        consistency_token: token.clone(),
    };
    let refusal = (Code::FailedPrecondition, "OPENER_NOT_MEMBER");
    refused(job.asks(one).await, refusal.0, refusal.1);
    refused(job.asks(all).await, refusal.0, refusal.1);
    let explain = issuer::ExplainCredentialRequest {
        workspace_id: web.clone(),
        managed_identity_id: deployer,
        job_id: opened.job.id,
        ..Default::default()
    };
    let explained = admin.asks(explain).await.expect("explained");
    let reasons = explained.findings.iter().map(|it| it.reason.as_str());
    let reasons: Vec<_> = reasons.filter(|reason| !reason.is_empty()).collect();
    assert_eq!(reasons, ["OPENER_NOT_MEMBER"]);
    // Nor another token of that job, for the same request.
    let again = issuer::OpenJobRequest {
        consistency_token: token,
        ..request
    };
    e2e::refusal::not_found(bob.asks(again).await);
}

/// Lists, too, go by where things lie, and not by memberships that have not ended yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_moved_away_is_in_no_list_of_a_service_account() {
    let (world, ci) = tokio::join!(World::start(), ForeignIssuer::start());
    let admin = world.admin();
    for path in ["acme", "acme/team", "other"] {
        admin.creates_group(path).await;
    }
    admin.creates_workspace("acme/team/web").await;
    let (_, _, robot) = dispatcher(&world, &ci, "acme/ci", "trn:group:acme/team").await;
    let sees = async |consistency_token: String| {
        let request = directory::SearchNamespacesRequest {
            consistency_token,
            ..Default::default()
        };
        robot.asks(request).await.expect("a page").namespaces.len()
    };
    eventually(async || match sees(String::new()).await {
        2 => Ok(()),
        other => Err(other),
    })
    .await;
    // What ends the membership waits.
    let pool = world.database(Service::Namespace).pool();
    let mut waits = pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE reactions IN EXCLUSIVE MODE")
        .execute(&mut *waits)
        .await
        .expect("locked");
    let moves = group_move("trn:group:acme/team", "trn:group:other");
    let token = admin.asks(moves).await.expect("moved").consistency_token;
    assert_eq!(sees(token).await, 0);
    let to_the_top = group_move("trn:group:other/team", "");
    let moved = admin.asks(to_the_top).await.expect("moved");
    let at_the_top = robot.asks(directory::ListChildrenRequest {
        consistency_token: moved.consistency_token,
        ..Default::default()
    });
    assert_eq!(at_the_top.await.expect("a page").children, []);
    waits.rollback().await.expect("it ends");
}
