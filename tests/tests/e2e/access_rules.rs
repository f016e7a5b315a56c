//! Access rules: who makes them, and which jobs they let have an identity's credentials.

use bed::unique_id;
use e2e::refusal::{invalid, not_found, obstacles, refused};
use e2e::user::{
    OpenedJob, access_rule, aws_identity, credential, eligible, job, service_account, team_member,
};
use e2e::{Service, User, World};
use futures::future::join_all;
use prost_types::FieldMask;
use proto::access::v1::principal::Kind;
use proto::access::v1::{Principal, Role};
use proto::identity::v1::access_rule::Condition;
use proto::identity::v1::{
    AccessRule, DeleteAccessRuleRequest, DeleteManagedIdentityRequest, EligiblePrincipals,
    GetAccessRuleRequest, ListAccessRulesRequest, ManagedIdentity, RuleStage,
    UpdateAccessRuleRequest,
};
use proto::issuer::v1::{
    ExplainCredentialRequest, IssueCredentialRequest, IssueCredentialResponse, RuleVerdict, Stage,
    Verdict,
};
use proto::namespace::v1::{DeleteTeamRequest, RemoveTeamMemberRequest};
use tonic::{Code, Status};

const PRINCIPALS: &str = "access_rule.eligible_principals.principals";

struct Scene {
    admin: User,
    bob: User,
    identity: ManagedIdentity,
    workspace: String,
}

/// An identity that a workspace has, where bob is a deployer.
async fn scene(world: &World) -> Scene {
    let (admin, bob) = (world.admin(), world.user("bob"));
    let acme = admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let identity = admin.creates_identity("acme/deployer").await;
    admin.assigns(&identity.id, &web.id).await;
    admin.grants(&bob, Role::Deployer, &acme.id).await;
    Scene {
        admin,
        bob,
        identity,
        workspace: web.id,
    }
}

impl Scene {
    async fn opens(&self, user: &User, stage: Stage) -> OpenedJob {
        let mut request = job(&self.workspace);
        request.job.get_or_insert_default().set_stage(stage);
        let opened = user.asks(request).await.expect("a job is opened");
        OpenedJob {
            job: opened.job.expect("the job"),
            token: opened.job_token,
        }
    }

    async fn gets(&self, job: &OpenedJob, token: &str) -> Result<IssueCredentialResponse, Status> {
        let request = IssueCredentialRequest {
            consistency_token: token.to_owned(),
            ..credential(&self.identity.id)
        };
        self.admin.with_token(&job.token).asks(request).await
    }

    async fn rules(&self) -> Vec<AccessRule> {
        let request = ListAccessRulesRequest {
            managed_identity_id: self.identity.id.clone(),
            ..Default::default()
        };
        let listed = self.admin.asks(request).await;
        listed.expect("rules are listed").access_rules
    }
}

fn for_stages(
    identity: &str,
    users: &[&str],
    stages: &[RuleStage],
) -> proto::identity::v1::CreateAccessRuleRequest {
    let mut request = access_rule(identity, users);
    let rule = request.access_rule.get_or_insert_default();
    rule.stages = stages.iter().copied().map(i32::from).collect();
    request
}

/// What access rules keep for some, a deployer does not get by opening a job on behalf of one of these.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_opens_a_job_for_another_has_to_be_eligible_too() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let (admin, bob, alice) = (&scene.admin, &scene.bob, world.user("alice"));
    admin.grants(&alice, Role::Deployer, &scene.workspace).await;
    let rule = admin
        .restricts(&scene.identity.id, &[alice.principal()])
        .await;
    let for_alice = async |user: &User| {
        let mut request = job(&scene.workspace);
        "user:dev/alice".clone_into(&mut request.job.get_or_insert_default().principal);
        let opened = user.asks(request).await.expect("a job is opened");
        OpenedJob {
            job: opened.job.expect("the job"),
            token: opened.job_token,
        }
    };
    let (by_bob, by_alice, by_admin) = (
        for_alice(bob).await,
        for_alice(&alice).await,
        for_alice(admin).await,
    );
    let openers = [&by_bob, &by_alice, &by_admin].map(|opened| opened.job.opener.as_str());
    assert_eq!(openers, ["user:dev/bob", "", ""]);
    let refusal = (Code::FailedPrecondition, "RULES_REFUSED");
    refused(scene.gets(&by_bob, "").await, refusal.0, refusal.1);
    scene.gets(&by_alice, "").await.expect("she is eligible");
    // Whom the operator trusts with everything.
    scene.gets(&by_admin, "").await.expect("she is eligible");
    let explain = ExplainCredentialRequest {
        workspace_id: scene.workspace.clone(),
        managed_identity_id: scene.identity.id.clone(),
        job_id: by_bob.job.id.clone(),
        ..Default::default()
    };
    let explained = admin.asks(explain).await.expect("explained");
    assert!(!explained.allowed, "{explained:?}");
    let verdicts: Vec<_> = explained.rules.iter().map(RuleVerdict::verdict).collect();
    assert_eq!(verdicts, [Verdict::DoesNotHold]);

    let mut both = rule.clone();
    both.condition = Some(eligible(&[alice.principal(), bob.principal()]));
    let changed = admin.asks(change(&both, &[])).await;
    let token = changed.expect("changed").consistency_token;
    scene
        .gets(&by_bob, &token)
        .await
        .expect("both are eligible");
}

fn change(rule: &AccessRule, mask: &[&str]) -> UpdateAccessRuleRequest {
    UpdateAccessRuleRequest {
        access_rule: Some(rule.clone()),
        update_mask: Some(FieldMask {
            paths: mask.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    }
}

fn delete(id: &str) -> DeleteAccessRuleRequest {
    DeleteAccessRuleRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

fn get(id: &str) -> GetAccessRuleRequest {
    GetAccessRuleRequest {
        id: id.to_owned(),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_gets_credentials_if_one_of_the_rules_for_its_stage_lets_it() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let (admin, bob) = (&scene.admin, &scene.bob);
    let bobs_plan = scene.opens(bob, Stage::Plan).await;
    let bobs_apply = scene.opens(bob, Stage::Apply).await;
    let admins_apply = scene.opens(admin, Stage::Apply).await;
    for job in [&bobs_plan, &bobs_apply, &admins_apply] {
        scene.gets(job, "").await.expect("nothing asks for more");
    }

    // For the one stage, and not for the other.
    let only_admin = for_stages(
        &scene.identity.id,
        &[admin.principal()],
        &[RuleStage::Apply],
    );
    let made = admin.asks(only_admin).await.expect("a rule");
    let token = made.consistency_token;
    let rule = made.access_rule.expect("the rule");
    let status = refused(
        scene.gets(&bobs_apply, &token).await,
        Code::FailedPrecondition,
        "RULES_REFUSED",
    );
    assert_eq!(
        obstacles(&status),
        [("RULES_REFUSED".to_owned(), "eligible_principals".to_owned())]
    );
    scene.gets(&bobs_plan, &token).await.expect("bob may plan");
    scene
        .gets(&admins_apply, &token)
        .await
        .expect("the admin may apply");

    // A second one of the type lets others in.
    let also_bob = admin
        .asks(access_rule(&scene.identity.id, &[bob.principal()]))
        .await
        .expect("a rule");
    let token = also_bob.consistency_token;
    for job in [&bobs_plan, &bobs_apply, &admins_apply] {
        scene.gets(job, &token).await.expect("one of the two");
    }

    // Changed and deleted, it counts at once.
    let nobody_else = AccessRule {
        condition: Some(eligible(&["dev/carol"])),
        ..also_bob.access_rule.expect("the rule")
    };
    let changed = admin.asks(change(&nobody_else, &[])).await;
    let token = changed.expect("changed").consistency_token;
    for job in [&bobs_plan, &bobs_apply] {
        refused(
            scene.gets(job, &token).await,
            Code::FailedPrecondition,
            "RULES_REFUSED",
        );
    }
    for id in [&nobody_else.id, &rule.id] {
        admin.asks(delete(id)).await.expect("deleted");
    }
    assert!(scene.rules().await.is_empty());
    for job in [&bobs_plan, &bobs_apply] {
        scene.gets(job, "").await.expect("no rule is left");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_made_changed_and_deleted() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let admin = &scene.admin;
    let rule = admin.restricts(&scene.identity.trn, &["dev/carol"]).await;
    assert_eq!(rule.managed_identity_id, scene.identity.id);
    assert_eq!(
        rule.trn,
        format!("trn:access_rule:acme/deployer/{}", rule.id)
    );
    assert_eq!(
        rule.stages,
        [RuleStage::Plan, RuleStage::Apply].map(i32::from),
        "none means both"
    );
    let got = admin.asks(get(&rule.trn)).await.expect("got").access_rule;
    assert_eq!(got, Some(rule.clone()));
    let second = admin.restricts(&scene.identity.id, &["dev/dave"]).await;
    let ids: Vec<String> = scene
        .rules()
        .await
        .into_iter()
        .map(|rule| rule.id)
        .collect();
    assert_eq!(ids, [rule.id.clone(), second.id.clone()]);

    // Only what the mask names; the etag is that of this rule alone.
    let plan = AccessRule {
        stages: vec![RuleStage::Plan.into()],
        condition: None,
        ..rule.clone()
    };
    let changed = admin.asks(change(&plan, &["stages"])).await;
    let changed = changed.expect("changed").access_rule.expect("the rule");
    assert_eq!(
        (&changed.stages, &changed.condition),
        (&plan.stages, &rule.condition)
    );
    assert_ne!(changed.etag, rule.etag);
    assert_ne!(changed.update_time, rule.update_time);
    assert_eq!(changed.create_time, rule.create_time);
    assert_eq!(scene.rules().await, [changed.clone(), second.clone()]);
    refused(
        admin.asks(change(&rule, &[])).await,
        Code::Aborted,
        "ETAG_MISMATCH",
    );
    let stale = DeleteAccessRuleRequest {
        etag: rule.etag.clone(),
        ..delete(&rule.id)
    };
    refused(admin.asks(stale).await, Code::Aborted, "ETAG_MISMATCH");
    let before = world.log(Service::Identity).await.len();
    admin.asks(change(&changed, &[])).await.expect("as it is");
    assert_eq!(world.log(Service::Identity).await.len(), before);

    // The same request twice is one rule.
    let request = proto::identity::v1::CreateAccessRuleRequest {
        request_id: unique_id().to_string(),
        ..access_rule(&scene.identity.id, &["dev/erin"])
    };
    let first = admin.asks(request.clone()).await.expect("made");
    let again = admin.asks(request).await.expect("made before");
    assert_eq!(first.access_rule, again.access_rule);
    assert_eq!(scene.rules().await.len(), 3);

    // Gone is gone, and with the identity all are.
    admin.asks(delete(&rule.id)).await.expect("deleted");
    not_found(admin.asks(delete(&rule.id)).await);
    not_found(admin.asks(get(&rule.id)).await);
    not_found(admin.asks(change(&changed, &[])).await);
    let identity = DeleteManagedIdentityRequest {
        id: scene.identity.id.clone(),
        force: true,
        ..Default::default()
    };
    admin.asks(identity).await.expect("deleted");
    not_found(admin.asks(get(&second.id)).await);
    not_found(admin.asks(delete(&second.id)).await);
    not_found(
        admin
            .asks(access_rule(&scene.identity.id, &["dev/x"]))
            .await,
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_fields_of_rules_are_named() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let (admin, id) = (&scene.admin, scene.identity.id.as_str());
    let many: Vec<String> = (0..101).map(|number| format!("dev/u{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    for (users, wrong) in [
        (&[][..], PRINCIPALS.to_owned()),
        (&many[..], PRINCIPALS.to_owned()),
        (&["dev/bob", "bob"][..], format!("{PRINCIPALS}[1].user")),
    ] {
        invalid(admin.asks(access_rule(id, users)).await, &[&wrong]);
    }
    let of_no_stage = for_stages(id, &["dev/bob"], &[RuleStage::Plan, RuleStage::Unspecified]);
    invalid(admin.asks(of_no_stage).await, &["access_rule.stages[1]"]);
    let mut without = access_rule(id, &[]);
    without.access_rule.get_or_insert_default().condition = None;
    invalid(
        admin.asks(without).await,
        &["access_rule.eligible_principals"],
    );
    invalid(
        admin
            .asks(access_rule("trn:group:acme", &["dev/bob"]))
            .await,
        &["access_rule.managed_identity_id"],
    );
    let rule = admin.restricts(id, &["dev/bob"]).await;
    invalid(
        admin.asks(change(&rule, &["managed_identity_id"])).await,
        &["update_mask"],
    );
    invalid(admin.asks(get(id)).await, &["id"]);
    invalid(admin.asks(delete("rule_?")).await, &["id"]);
    assert_eq!(scene.rules().await, [rule]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_made_at_once_are_all_there() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let hasty = scene.admin.in_a_hurry();
    let all = (0..8).map(|number| {
        let (hasty, id) = (hasty.clone(), scene.identity.id.clone());
        async move { hasty.restricts(&id, &[&format!("dev/u{number}")]).await }
    });
    let mut made: Vec<String> = join_all(all)
        .await
        .into_iter()
        .map(|rule| rule.id)
        .collect();
    made.sort();
    let mut etags = std::collections::BTreeSet::new();
    let mut ids = Vec::new();
    for rule in scene.rules().await {
        etags.insert(rule.etag);
        ids.push(rule.id);
    }
    assert_eq!((ids, etags.len()), (made, 8));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_identity_may_have_its_rules_from_the_beginning() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let web = admin.creates_workspace("acme/web").await;
    let rule = |users: &[&str]| {
        let made = access_rule("", users).access_rule;
        made.expect("a rule")
    };
    let request = proto::identity::v1::CreateManagedIdentityRequest {
        access_rules: vec![rule(&["dev/carol"]), rule(&["dev/dave"])],
        ..aws_identity("acme/deployer")
    };
    let made = admin.asks(request.clone()).await.expect("made");
    let identity = made.managed_identity.expect("the identity");
    admin.assigns(&identity.id, &web.id).await;
    let job = admin.opens_job(&web.id).await;
    refused(
        admin.asks_as(&job.token, &identity.id).await,
        Code::FailedPrecondition,
        "RULES_REFUSED",
    );
    let scene = Scene {
        admin: admin.clone(),
        bob: world.user("bob"),
        identity,
        workspace: web.id,
    };
    assert_eq!(scene.rules().await.len(), 2);
    // One more is the third change, whoever made the first two.
    let third = admin
        .restricts(&scene.identity.id, &[admin.principal()])
        .await;
    assert_eq!(third.etag, "v3");
    scene.gets(&job, "").await.expect("the third lets it");

    let wrong = proto::identity::v1::CreateManagedIdentityRequest {
        access_rules: vec![rule(&["dev/carol"]), rule(&[])],
        ..aws_identity("acme/_")
    };
    invalid(
        admin.asks(wrong).await,
        &[
            "managed_identity.name",
            "access_rules[1].eligible_principals.principals",
        ],
    );
    let many = proto::identity::v1::CreateManagedIdentityRequest {
        access_rules: vec![rule(&["dev/carol"]); 101],
        ..aws_identity("acme/many")
    };
    invalid(admin.asks(many).await, &["access_rules"]);
}

/// Once a rule has returned, an issue that knows of it is refused, whatever was remembered or under way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_counts_for_whoever_knows_of_it() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let job = scene.opens(&scene.bob, Stage::Apply).await;
    let hasty = scene.admin.in_a_hurry();
    for _ in 0..10 {
        let (made, ()) = tokio::join!(
            hasty.asks(access_rule(&scene.identity.id, &["dev/carol"])),
            async {
                for outcome in join_all((0..4).map(|_| scene.gets(&job, ""))).await {
                    if outcome.is_err() {
                        refused(outcome, Code::FailedPrecondition, "RULES_REFUSED");
                    }
                }
            }
        );
        let made = made.expect("a rule");
        refused(
            scene.gets(&job, &made.consistency_token).await,
            Code::FailedPrecondition,
            "RULES_REFUSED",
        );
        let gone = hasty.asks(delete(&made.access_rule.expect("it").id)).await;
        let token = gone.expect("deleted").consistency_token;
        scene.gets(&job, &token).await.expect("no rule is left");
    }
}

fn for_principal(identity: &str, kind: Kind) -> proto::identity::v1::CreateAccessRuleRequest {
    let mut request = access_rule(identity, &[]);
    let rule = request.access_rule.get_or_insert_default();
    let principals = vec![Principal { kind: Some(kind) }];
    let eligible = EligiblePrincipals { principals };
    rule.condition = Some(Condition::EligiblePrincipals(eligible));
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_for_a_team_lets_its_members_in_for_as_long_as_they_are() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let (admin, bob) = (&scene.admin, &scene.bob);
    let team = admin.creates_team("platform", &[]).await;
    let named = Kind::Team("trn:team:platform".to_owned());
    let made = admin.asks(for_principal(&scene.identity.id, named)).await;
    let made = made.expect("a rule").access_rule.expect("the rule");
    let kept = EligiblePrincipals {
        principals: vec![Principal {
            kind: Some(Kind::Team(team.id.clone())),
        }],
    };
    assert_eq!(made.condition, Some(Condition::EligiblePrincipals(kept)));
    let job = scene.opens(bob, Stage::Apply).await;
    let is_refused = |result| refused(result, Code::FailedPrecondition, "RULES_REFUSED");
    is_refused(scene.gets(&job, "").await);

    let joined = admin
        .asks(team_member(bob, &team.id))
        .await
        .expect("he joins");
    let got = scene.gets(&job, &joined.consistency_token).await;
    got.expect("a member's job gets credentials");
    let leaves = RemoveTeamMemberRequest {
        team_id: team.id.clone(),
        user: bob.principal().to_owned(),
        ..Default::default()
    };
    let left = admin.asks(leaves).await.expect("he leaves");
    is_refused(scene.gets(&job, &left.consistency_token).await);

    let again = admin
        .asks(team_member(bob, &team.id))
        .await
        .expect("he joins");
    let got = scene.gets(&job, &again.consistency_token).await;
    got.expect("a member's job gets credentials");
    let delete_team = DeleteTeamRequest {
        id: team.id.clone(),
        ..Default::default()
    };
    let deleted = admin.asks(delete_team).await.expect("the team goes");
    is_refused(scene.gets(&job, &deleted.consistency_token).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whom_a_rule_names_must_be_there_and_known() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let (admin, carol) = (&scene.admin, world.user("carol"));
    admin.grants(&carol, Role::Owner, "trn:group:acme").await;
    let other = admin.creates_group("other").await;
    let hidden = admin.asks(service_account("other/ci")).await;
    let hidden = hidden.expect("made").service_account.expect("it");
    let id = scene.identity.id.as_str();
    let rule = |kind| carol.asks(for_principal(id, kind));
    not_found(rule(Kind::Team("trn:team:nobody".to_owned())).await);
    not_found(rule(Kind::ServiceAccount(hidden.id.clone())).await);
    invalid(
        rule(Kind::Team("platform".to_owned())).await,
        &[&format!("{PRINCIPALS}[0].team")],
    );
    invalid(
        rule(Kind::ServiceAccount(other.id)).await,
        &[&format!("{PRINCIPALS}[0].service_account")],
    );
    assert_eq!(scene.rules().await, []);
    let made = admin
        .asks(for_principal(id, Kind::ServiceAccount(hidden.trn)))
        .await;
    made.expect("who knows of it may name it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_may_name_a_service_account_that_is_inherited() {
    let world = World::start().await;
    let (admin, carol) = (world.admin(), world.user("carol"));
    for path in ["acme", "acme/team", "acme/other"] {
        admin.creates_group(path).await;
    }
    let above = admin.creates_service_account("acme/ci").await;
    let beside = admin.creates_service_account("acme/other/ci").await;
    admin
        .grants(&carol, Role::Owner, "trn:group:acme/team")
        .await;
    let rule = |identity: &str, account: &str| {
        for_principal(identity, Kind::ServiceAccount(account.to_owned()))
    };
    let from_the_beginning = |name: &str, account: &str| {
        let rule = rule("", account).access_rule.expect("a rule");
        proto::identity::v1::CreateManagedIdentityRequest {
            access_rules: vec![rule],
            ..aws_identity(&format!("acme/team/{name}"))
        }
    };
    let made = carol.asks(from_the_beginning("a", &above.id)).await;
    let identity = made.expect("made").managed_identity.expect("the identity");
    not_found(carol.asks(from_the_beginning("b", &beside.id)).await);
    not_found(carol.asks(rule(&identity.id, &beside.trn)).await);
    let made = carol.asks(rule(&identity.id, &above.trn)).await;
    let made = made.expect("made").access_rule.expect("the rule");
    let update = |account: &str| UpdateAccessRuleRequest {
        access_rule: Some(AccessRule {
            id: made.id.clone(),
            ..rule("", account).access_rule.expect("a rule")
        }),
        update_mask: Some(FieldMask {
            paths: vec!["eligible_principals".to_owned()],
        }),
        ..Default::default()
    };
    carol.asks(update(&above.id)).await.expect("updated");
    not_found(carol.asks(update(&beside.id)).await);
}

/// Each of them is looked up, but no more than once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn as_many_rules_for_as_many_as_there_may_be_are_made() {
    let world = World::start().await;
    let admin = world.admin();
    admin.creates_group("acme").await;
    let account = admin.creates_service_account("acme/ci").await;
    let named = Principal {
        kind: Some(Kind::ServiceAccount(account.id)),
    };
    let mut rule = access_rule("", &[]).access_rule.expect("a rule");
    rule.condition = Some(Condition::EligiblePrincipals(EligiblePrincipals {
        principals: vec![named; 100],
    }));
    let request = proto::identity::v1::CreateManagedIdentityRequest {
        access_rules: vec![rule; 100],
        ..aws_identity("acme/deployer")
    };
    admin.asks(request).await.expect("made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_takes_the_place_of_another_refuses_nobody_whom_both_let_in() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let bobs = [scene.bob.principal()];
    scene
        .admin
        .restricts(&scene.identity.id, &["dev/zoe"])
        .await;
    let mut old = scene.admin.restricts(&scene.identity.id, &bobs).await.id;
    let mut jobs = Vec::new();
    for _ in 0..8 {
        jobs.push(scene.opens(&scene.bob, Stage::Apply).await);
    }
    let changed = std::sync::atomic::AtomicBool::new(false);
    let changes = async {
        let hasty = scene.admin.in_a_hurry();
        for _ in 0..40 {
            let made = hasty.asks(access_rule(&scene.identity.id, &bobs)).await;
            let new = made.expect("made").access_rule.expect("the rule").id;
            let delete = DeleteAccessRuleRequest {
                id: std::mem::replace(&mut old, new),
                ..Default::default()
            };
            hasty.asks(delete).await.expect("deleted");
        }
        changed.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let asks = jobs.iter().map(|job| async {
        while !changed.load(std::sync::atomic::Ordering::Relaxed) {
            match scene.gets(job, "").await {
                Ok(_) => {}
                // Only that it kept changing.
                Err(status) => assert_eq!(status.code(), Code::Aborted, "{status:?}"),
            }
        }
    });
    tokio::join!(changes, futures::future::join_all(asks));
    let log = world.log(e2e::Service::Issuer).await;
    let refused = log
        .iter()
        .filter(|event| event.event_type.ends_with("CredentialRefused"));
    assert_eq!(refused.count(), 0);
}
