//! What was taken from a job is not issued to it any more, whatever happens at the same time.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bed::eventually;
use e2e::refusal::reason;
use e2e::user::{
    OpenedJob, access_rule, assignment, credential, job, mask, membership, team_member,
    unassignment,
};
use e2e::world::Setup;
use e2e::{Service, User, World};
use eventlog::ConsistencyToken;
use futures::future::join_all;
use proto::access::v1::Role;
use proto::identity::v1 as identity;
use proto::issuer::v1 as issuer;
use proto::namespace::v1 as namespace;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::chance::Chance;
use crate::history::{Ask, Audit, Change, Clock, Decision, Outcome, check};

/// What a job needs: everything below a group of its own.
pub(crate) struct Scene {
    pub(crate) group: namespace::Group,
    pub(crate) workspace: namespace::Workspace,
    pub(crate) identity: identity::ManagedIdentity,
    membership: namespace::Membership,
    pub(crate) job: OpenedJob,
}

impl Scene {
    /// In the group `name`, which holds nothing else.
    pub(crate) async fn set(admin: &User, name: &str) -> Self {
        let group = admin.creates_group(name).await;
        let workspace = admin.creates_workspace(&format!("{name}/web")).await;
        let identity = admin.creates_identity(&format!("{name}/deployer")).await;
        admin.assigns(&identity.id, &workspace.id).await;
        // On behalf of somebody whose role can be lost.
        let worker = membership("dev/worker", Role::Deployer, &group.id);
        let made = admin.asks(worker).await.expect("a membership is made");
        let mut request = job(&workspace.id);
        let wanted = request.job.get_or_insert_default();
        "user:dev/worker".clone_into(&mut wanted.principal);
        let opened = admin.asks(request).await.expect("a job is opened");
        let job = OpenedJob {
            job: opened.job.expect("the job"),
            token: opened.job_token,
        };
        Self {
            group,
            workspace,
            identity,
            membership: made.membership.expect("the membership"),
            job,
        }
    }

    pub(crate) async fn gets_credential(
        &self,
        user: &User,
        consistency_token: &str,
    ) -> Result<issuer::IssueCredentialResponse, Status> {
        let request = issuer::IssueCredentialRequest {
            consistency_token: consistency_token.to_owned(),
            ..credential(&self.identity.id)
        };
        user.with_token(&self.job.token).asks(request).await
    }
}

/// How an identity is taken from a job.
#[derive(Clone, Copy, Debug)]
enum Revocation {
    Unassigned,
    WorkspaceDeleted,
    GroupDeleted,
    IdentityDeleted,
    MembershipLost,
    RuleMade,
    Masked,
    JobCancelled,
}

impl Revocation {
    const ALL: [Self; 8] = [
        Self::Unassigned,
        Self::WorkspaceDeleted,
        Self::GroupDeleted,
        Self::IdentityDeleted,
        Self::MembershipLost,
        Self::RuleMade,
        Self::Masked,
        Self::JobCancelled,
    ];

    /// Answers with the consistency token.
    async fn happens(self, user: &User, scene: &Scene) -> String {
        match self {
            Self::Unassigned => {
                let request = unassignment(&scene.identity.id, &scene.workspace.id);
                user.asks(request)
                    .await
                    .expect("unassigned")
                    .consistency_token
            }
            Self::WorkspaceDeleted => {
                let request = namespace::DeleteWorkspaceRequest {
                    id: scene.workspace.id.clone(),
                    ..Default::default()
                };
                user.asks(request).await.expect("deleted").consistency_token
            }
            Self::GroupDeleted => user.deletes_group(&scene.group.id).await,
            Self::IdentityDeleted => {
                let request = identity::DeleteManagedIdentityRequest {
                    id: scene.identity.id.clone(),
                    force: true,
                    ..Default::default()
                };
                user.asks(request).await.expect("deleted").consistency_token
            }
            Self::MembershipLost => {
                let request = namespace::DeleteMembershipRequest {
                    id: scene.membership.id.clone(),
                    ..Default::default()
                };
                user.asks(request).await.expect("deleted").consistency_token
            }
            Self::RuleMade => {
                let request = access_rule(&scene.identity.id, &["dev/somebody-else"]);
                user.asks(request).await.expect("made").consistency_token
            }
            Self::Masked => {
                let request = mask(&scene.workspace.id);
                user.asks(request).await.expect("made").consistency_token
            }
            Self::JobCancelled => {
                let request = issuer::CancelJobRequest {
                    id: scene.job.job.id.clone(),
                    ..Default::default()
                };
                user.asks(request)
                    .await
                    .expect("cancelled")
                    .consistency_token
            }
        }
    }

    /// Whether this is what a job is answered from then on.
    fn refuses_with(self, status: &Status) -> bool {
        let reason = reason(status);
        // The assignment ends too, a moment later; and of a deletion in another log, that may be seen first.
        let ends = matches!(
            self,
            Self::Masked | Self::WorkspaceDeleted | Self::GroupDeleted
        );
        let has_ended = ends && reason == "NOT_ASSIGNED";
        has_ended || (status.code(), reason.as_str()) == self.refusal()
    }

    fn refusal(self) -> (Code, &'static str) {
        match self {
            Self::RuleMade => (Code::FailedPrecondition, "RULES_REFUSED"),
            Self::Masked => (Code::FailedPrecondition, "MASKED"),
            Self::Unassigned => (Code::FailedPrecondition, "NOT_ASSIGNED"),
            Self::MembershipLost => (Code::FailedPrecondition, "PRINCIPAL_NOT_MEMBER"),
            Self::JobCancelled => (Code::FailedPrecondition, "JOB_CANCELLED"),
            Self::WorkspaceDeleted | Self::GroupDeleted => {
                (Code::FailedPrecondition, "WORKSPACE_DELETED")
            }
            Self::IdentityDeleted => (Code::NotFound, "RESOURCE_NOT_FOUND"),
        }
    }
}

/// While jobs ask without pause, the identity is taken from them. No request that began after the revoking rpc had
/// answered, and presents its consistency token, gets a credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_is_not_issued_any_more() {
    let world = World::start().await;
    // The token alone has to do it, not the wait for visibility.
    let admin = world.admin();
    let hasty = admin.in_a_hurry();
    for revocation in Revocation::ALL {
        for round in 0..2 {
            let name = format!("{revocation:?}{round}").to_ascii_lowercase();
            let scene = Arc::new(Scene::set(&admin, &name).await);
            let revoked: Arc<Mutex<String>> = Arc::default();
            let enough = Arc::new(AtomicBool::new(false));
            let mut askers = JoinSet::new();
            for _ in 0..3 {
                let (scene, revoked, enough, admin) = (
                    Arc::clone(&scene),
                    Arc::clone(&revoked),
                    Arc::clone(&enough),
                    admin.clone(),
                );
                askers.spawn(async move {
                    let (mut before, mut after) = (0, vec![]);
                    while !enough.load(Ordering::Relaxed) {
                        let token = revoked.lock().expect("not poisoned").clone();
                        let outcome = scene.gets_credential(&admin, &token).await;
                        if token.is_empty() {
                            before += usize::from(outcome.is_ok());
                        } else {
                            after.push(outcome);
                            if after.len() == 3 {
                                break;
                            }
                        }
                    }
                    (before, after)
                });
            }
            // Some have been issued, and are in full flow.
            eventually(async || {
                let audit = world.log(Service::Issuer).await;
                let issued = audit
                    .iter()
                    .filter(|event| event.stream_id.ends_with(&scene.job.job.id))
                    .count();
                if issued > 6 {
                    Ok(())
                } else {
                    Err(format!("{issued} were issued"))
                }
            })
            .await;
            let token = revocation.happens(&hasty, &scene).await;
            *revoked.lock().expect("not poisoned") = token;
            let outcomes = askers.join_all().await;
            enough.store(true, Ordering::Relaxed);
            assert!(outcomes.iter().map(|(before, _)| before).sum::<usize>() > 0);
            for outcome in outcomes.into_iter().flat_map(|(_, after)| after) {
                let status = outcome.expect_err("it was revoked");
                let refused = revocation.refuses_with(&status);
                assert!(refused, "{revocation:?}: {status:?}");
            }
        }
    }
}

/// Without a consistency token it takes a moment, and no longer while NATS is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_revoked_is_refused_soon_without_a_token_too() {
    let mut world = Setup::default().own_nats().start().await;
    let admin = world.admin();
    let hasty = admin.in_a_hurry();
    let mut scenes = Vec::new();
    for nats in ["up", "down"] {
        for revocation in Revocation::ALL {
            let name = format!("{revocation:?}-{nats}").to_ascii_lowercase();
            let scene = Scene::set(&admin, &name).await;
            eventually(async || scene.gets_credential(&admin, "").await).await;
            scenes.push(scene);
        }
    }
    let mut scenes = scenes.into_iter();
    for nats in ["up", "down"] {
        if nats == "down" {
            world.nats().kill();
        }
        let mut moments = Vec::new();
        for (revocation, scene) in Revocation::ALL.into_iter().zip(&mut scenes) {
            revocation.happens(&hasty, &scene).await;
            let revoked = Instant::now();
            let status = eventually(async || {
                let issued = scene.gets_credential(&admin, "").await;
                issued.err().ok_or("it is still issued")
            })
            .await;
            moments.push(revoked.elapsed());
            let refused = revocation.refuses_with(&status);
            assert!(refused, "{revocation:?}: {status:?}");
        }
        // One alone may be late on a busy machine.
        moments.sort();
        let usual = moments[moments.len() / 2];
        assert!(usual < Duration::from_secs(1), "NATS {nats}: {moments:?}");
    }
}

/// What a job's credentials hang on, and can be taken and given back.
#[derive(Clone, Copy, Debug)]
enum Switch {
    Assignment,
    Membership,
    Role,
    Team,
    Rule,
}

impl Switch {
    const ALL: [Self; 5] = [
        Self::Assignment,
        Self::Membership,
        Self::Role,
        Self::Team,
        Self::Rule,
    ];

    /// Whose events turn it.
    fn log(self) -> &'static str {
        match self {
            Self::Assignment | Self::Rule => "identity",
            Self::Membership | Self::Role | Self::Team => "namespace",
        }
    }

    /// How far a revision, `namespace=7,identity=9`, knows of its turns.
    fn position_in(self, revision: &str) -> u64 {
        let mut logs = revision.split(',').filter_map(|log| log.split_once('='));
        let position = logs.find(|(log, _)| *log == self.log());
        let position = position.and_then(|(_, position)| position.parse().ok());
        position.expect("the log's position")
    }

    /// Where the event of a turn stands that was answered with this consistency token.
    fn position_of(self, token: &str) -> u64 {
        let token: ConsistencyToken = token.parse().expect("a consistency token");
        let head = token.logs().find(|(log, _)| *log == self.log());
        head.expect("the log's head").1.position
    }
}

/// A scene, and the switch that is turned in it.
struct Switched {
    switch: Switch,
    scene: Scene,
    worker: User,
    team: String,
    /// Of the worker, as it is now.
    membership: namespace::Membership,
    /// What keeps the worker out.
    rule: String,
}

impl Switched {
    async fn set(world: &World, switch: Switch) -> Self {
        let (admin, worker) = (world.admin(), world.user("worker"));
        let name = format!("{switch:?}").to_ascii_lowercase();
        let scene = Scene::set(&admin, &name).await;
        let membership = scene.membership.clone();
        let team = admin.creates_team(&name, &[]).await.id;
        let switched = Self {
            switch,
            scene,
            worker,
            team,
            membership,
            rule: String::new(),
        };
        if let Switch::Team = switch {
            let Self { scene, team, .. } = &switched;
            admin
                .grants_team(team, Role::Deployer, &scene.group.id)
                .await;
            admin.adds(&switched.worker, team).await;
            switched.loses_membership(&admin).await;
        }
        switched
    }

    async fn loses_membership(&self, user: &User) -> String {
        let request = namespace::DeleteMembershipRequest {
            id: self.membership.id.clone(),
            ..Default::default()
        };
        let deleted = user.asks(request).await.expect("deleted");
        deleted.consistency_token
    }

    async fn comes_to_role(&self, user: &User, role: Role) -> String {
        let request = namespace::UpdateMembershipRequest {
            membership: Some(namespace::Membership {
                role: role.into(),
                etag: String::new(),
                ..self.membership.clone()
            }),
            ..Default::default()
        };
        let updated = user.asks(request).await.expect("updated");
        updated.consistency_token
    }

    /// Answers with the consistency token.
    async fn takes(&mut self, user: &User) -> String {
        let Scene {
            identity,
            workspace,
            ..
        } = &self.scene;
        match self.switch {
            Switch::Assignment => {
                let request = unassignment(&identity.id, &workspace.id);
                let unassigned = user.asks(request).await.expect("unassigned");
                unassigned.consistency_token
            }
            Switch::Membership => self.loses_membership(user).await,
            Switch::Role => self.comes_to_role(user, Role::Viewer).await,
            Switch::Team => {
                let request = namespace::RemoveTeamMemberRequest {
                    team_id: self.team.clone(),
                    user: self.worker.principal().to_owned(),
                    ..Default::default()
                };
                let removed = user.asks(request).await.expect("removed");
                removed.consistency_token
            }
            Switch::Rule => {
                let request = access_rule(&identity.id, &["dev/somebody-else"]);
                let made = user.asks(request).await.expect("made");
                self.rule = made.access_rule.expect("the rule").id;
                made.consistency_token
            }
        }
    }

    /// Answers with the consistency token.
    async fn gives(&mut self, user: &User) -> String {
        let Scene {
            identity,
            workspace,
            group,
            ..
        } = &self.scene;
        match self.switch {
            Switch::Assignment => {
                let request = assignment(&identity.id, &workspace.id);
                let assigned = user.asks(request).await.expect("assigned");
                assigned.consistency_token
            }
            Switch::Membership => {
                let request = membership(self.worker.principal(), Role::Deployer, &group.id);
                let made = user.asks(request).await.expect("made");
                self.membership = made.membership.expect("the membership");
                made.consistency_token
            }
            Switch::Role => self.comes_to_role(user, Role::Deployer).await,
            Switch::Team => {
                let request = team_member(&self.worker, &self.team);
                let added = user.asks(request).await.expect("added");
                added.consistency_token
            }
            Switch::Rule => {
                let request = identity::DeleteAccessRuleRequest {
                    id: self.rule.clone(),
                    ..Default::default()
                };
                let deleted = user.asks(request).await.expect("deleted");
                deleted.consistency_token
            }
        }
    }
}

/// How often each switch is turned.
const TURNS: usize = 8;
/// Who ask at the same time, for each switch.
const ASKERS: u64 = 2;

/// What is shared by those who ask and the one who turns a switch.
struct Course {
    clock: Clock,
    /// How many turns have been answered, and the consistency token of the last one.
    known: Mutex<(usize, String)>,
    asked: AtomicUsize,
    over: AtomicBool,
}

impl Course {
    fn known(&self) -> (usize, String) {
        self.known.lock().expect("not poisoned").clone()
    }

    /// Waits until some have asked since.
    async fn is_asked(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        eventually(async || {
            let asked = self.asked.load(Ordering::Relaxed) - before;
            (asked > 6)
                .then_some(())
                .ok_or(format!("{asked} have asked"))
        })
        .await;
    }

    /// Turns the switch again and again.
    async fn turns(&self, mut switched: Switched, user: User) -> Vec<Change> {
        let mut changes = Vec::new();
        for turn in 1..=TURNS {
            self.is_asked().await;
            let begun = self.clock.tick();
            let gives = turn % 2 == 0;
            let token = if gives {
                switched.gives(&user).await
            } else {
                switched.takes(&user).await
            };
            changes.push(Change {
                begun,
                gives,
                position: switched.switch.position_of(&token),
            });
            *self.known.lock().expect("not poisoned") = (turn, token);
        }
        self.is_asked().await;
        self.over.store(true, Ordering::Relaxed);
        changes
    }

    /// Asks without pause, at one issuer or the other, with the last consistency token or without one.
    async fn asks(
        &self,
        issuers: [User; 2],
        request: issuer::IssueCredentialRequest,
        seed: u64,
    ) -> Vec<Ask> {
        let (mut asks, mut chance) = (Vec::new(), Chance::new(seed));
        while !self.over.load(Ordering::Relaxed) {
            let mut request = request.clone();
            let (mut knowing, token) = self.known();
            if chance.below(2) == 0 {
                request.consistency_token = token;
            } else {
                knowing = 0;
            }
            let begun = self.clock.tick();
            let outcome = issuers[chance.below(2)].asks(request).await;
            asks.push(Ask {
                begun,
                ended: self.clock.tick(),
                knowing,
                outcome: match outcome {
                    Ok(issued) => Outcome::Issued(issued.token_id),
                    Err(status) if status.code() == Code::FailedPrecondition => {
                        Outcome::Refused(reason(&status))
                    }
                    // Nothing is known of whether it was issued.
                    Err(_) => Outcome::Unknown,
                },
            });
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        asks
    }
}

/// Switches are turned while jobs ask, at two issuers, and while NATS goes and comes back. Every answer must be one that
/// the turns allow which it knew of, or may have seen; and the audit must tell of exactly what was issued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_is_one_that_the_history_allows() {
    let mut world = Setup::default().own_nats().start().await;
    let sibling = world.runs_another_issuer().await;
    let (mut courses, mut turners, mut askers) = (vec![], vec![], vec![]);
    for (switch, seed) in Switch::ALL.into_iter().zip(0..) {
        let switched = Switched::set(&world, switch).await;
        let job = world.admin().with_token(&switched.scene.job.token);
        let issuers = [sibling.for_user(&job), job];
        let request = credential(&switched.scene.identity.id);
        let job = switched.scene.job.job.id.clone();
        let course = Arc::new(Course {
            clock: Clock::default(),
            known: Mutex::default(),
            asked: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        });
        let asks = (0..ASKERS).map(|asker| {
            let (issuers, request) = (issuers.clone(), request.clone());
            let course = Arc::clone(&course);
            async move { course.asks(issuers, request, seed * ASKERS + asker).await }
        });
        askers.push(join_all(asks));
        let (turner, user) = (Arc::clone(&course), world.admin().in_a_hurry());
        turners.push(async move { turner.turns(switched, user).await });
        courses.push((switch, job, course));
    }
    let all_have_turned = async |turns: usize| {
        eventually(async || {
            let mut turned = courses.iter().map(|(_, _, course)| course.known().0);
            let all = turned.all(|turned| turned >= turns);
            all.then_some(()).ok_or("not all have turned so often")
        })
        .await;
    };
    let faults = async {
        all_have_turned(2).await;
        world.nats().kill();
        all_have_turned(4).await;
        world.nats().restart().await;
    };
    let ((), turns, asks) = tokio::join!(faults, join_all(turners), join_all(askers));
    let log = world.log(Service::Issuer).await;
    for (((switch, job, _), changes), asks) in courses.iter().zip(turns).zip(asks) {
        let asks: Vec<_> = asks.into_iter().flatten().collect();
        let of_job = log.iter();
        let of_job = of_job.filter(|event| event.stream_id.ends_with(job.as_str()));
        let mut audit = Audit::default();
        for event in of_job {
            match issuer::Event::decode(&event.event_type, &event.payload).expect("an event") {
                issuer::Event::CredentialIssued(issued) => {
                    audit.issued.push(issued.token_id);
                    audit.decisions.push(Decision {
                        issued: true,
                        revision: switch.position_in(&issued.revision),
                    });
                }
                issuer::Event::CredentialRefused(refused) => {
                    audit.refused.extend(refused.reasons);
                    audit.decisions.push(Decision {
                        issued: false,
                        revision: switch.position_in(&refused.revision),
                    });
                }
                _ => {}
            }
        }
        assert_eq!(check(&changes, &asks, &audit), Ok(()), "{switch:?}");
        let issued = asks
            .iter()
            .filter(|ask| matches!(ask.outcome, Outcome::Issued(_)));
        let refused = asks
            .iter()
            .filter(|ask| matches!(ask.outcome, Outcome::Refused(_)));
        let (issued, refused) = (issued.count(), refused.count());
        assert!(
            issued > TURNS && refused > TURNS,
            "{switch:?}: {issued} issued, {refused} refused"
        );
    }
}

/// An issuer that is held up between deciding and recording does not know, when it goes on, what was revoked meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_took_longer_than_the_bound_to_record_is_not_issued() {
    let world = Setup::default().staleness_bound(2).start().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    eventually(async || scene.gets_credential(&admin, "").await).await;
    let pool = world.database(Service::Issuer).pool();
    let held = eventually(async || {
        let mut held = pool.begin().await.map_err(|error| error.to_string())?;
        let lock = sqlx::query("SELECT FROM log_head FOR UPDATE");
        lock.execute(&mut *held)
            .await
            .map_err(|error| error.to_string())?;
        Ok::<_, String>(held)
    })
    .await;
    let begun = Instant::now();
    let revokes = async {
        // The issuer waits behind the lock.
        eventually(async || {
            let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
            let waiting: i64 = sqlx::query_scalar(waiting).fetch_one(pool).await.expect("counted");
            (waiting > 0).then_some(()).ok_or("nobody waits")
        })
        .await;
        Revocation::Unassigned
            .happens(&admin.in_a_hurry(), &scene)
            .await;
        eventually(async || {
            let passed = begun.elapsed();
            (passed > Duration::from_millis(2_100))
                .then_some(())
                .ok_or(format!("{passed:?}"))
        })
        .await;
        held.rollback().await.expect("released");
    };
    let (outcome, ()) = tokio::join!(scene.gets_credential(&admin, ""), revokes);
    let status = outcome.expect_err("it was revoked");
    let word = reason(&status);
    assert!(
        ["REPLICA_STALE", "NOT_ASSIGNED"].contains(&word.as_str()),
        "{status:?}"
    );
}

/// An issuer that was stopped while it held the lock keeps its sibling from applying what was revoked, but not from hearing
/// of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_known_to_be_revoked_and_can_t_be_applied_is_not_issued() {
    let world = World::start().await;
    let admin = world.admin();
    let scene = Scene::set(&admin, "acme").await;
    eventually(async || scene.gets_credential(&admin, "").await).await;
    let pool = world.database(Service::Issuer).pool();
    let mut held = pool.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM checkpoints FOR UPDATE")
        .execute(&mut *held)
        .await
        .expect("held");
    Revocation::Unassigned
        .happens(&admin.in_a_hurry(), &scene)
        .await;
    let revoked = Instant::now();
    let status = eventually(async || {
        let begun = revoked.elapsed();
        let issued = scene.gets_credential(&admin, "").await;
        assert!(
            issued.is_err() || begun < Duration::from_secs(1),
            "issued {begun:?} later"
        );
        issued.err().ok_or("it is still issued")
    })
    .await;
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::Unavailable, "REPLICA_STALE"),
        "{status:?}"
    );
    held.rollback().await.expect("released");
    let status = eventually(async || {
        let status = scene.gets_credential(&admin, "").await;
        let status = status.expect_err("it was revoked");
        (reason(&status) == "NOT_ASSIGNED")
            .then_some(())
            .ok_or(status)
    });
    status.await;
}
