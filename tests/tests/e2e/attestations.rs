//! Access rules that ask for attestations of what a job runs.

use e2e::attestation::{Attester, PROVENANCE, digest, module};
use e2e::refusal::{invalid, obstacles, refused};
use e2e::user::{OpenedJob, access_rule, assignment, credential, eligible, job};
use e2e::{Service, User, World};
use proto::identity::v1::access_rule::Condition;
use proto::identity::v1::{
    AccessRule, CreateAccessRuleRequest, ModuleAttestation, UpdateAccessRuleRequest,
};
use proto::issuer::v1 as issuer;
use proto::issuer::v1::{Check, Module, Verdict};
use tonic::{Code, Status};

use crate::golden;

/// The field of a rule.
const FIELD: &str = "access_rule.module_attestation";
const SCAN: &str = "https://example.com/scan/v1";

struct Scene {
    admin: User,
    identity: String,
    workspace: String,
}

async fn scene(world: &World) -> Scene {
    let admin = world.admin();
    admin.creates_group("acme").await;
    let workspace = admin.creates_workspace("acme/web").await.id;
    let identity = admin.creates_identity("acme/deployer").await.id;
    let assigned = admin.asks(assignment(&identity, &workspace)).await;
    assigned.expect("assigned");
    Scene {
        admin,
        identity,
        workspace,
    }
}

fn attested(keys: &[&str], predicate_type: &str) -> Condition {
    Condition::ModuleAttestation(ModuleAttestation {
        public_keys: keys.iter().map(ToString::to_string).collect(),
        predicate_type: predicate_type.to_owned(),
    })
}

impl Scene {
    fn rule(&self, condition: Condition) -> CreateAccessRuleRequest {
        let mut request = access_rule(&self.identity, &[]);
        request.access_rule.get_or_insert_default().condition = Some(condition);
        request
    }

    async fn asks_for(&self, keys: &[&str], predicate_type: &str) -> AccessRule {
        let made = self.admin.asks(self.rule(attested(keys, predicate_type)));
        made.await.expect("made").access_rule.expect("the rule")
    }

    fn job(&self, module: Module) -> issuer::OpenJobRequest {
        let mut request = job(&self.workspace);
        request.job.get_or_insert_default().module = Some(module);
        request
    }

    async fn runs(&self, module: Module) -> OpenedJob {
        let opened = self.admin.asks(self.job(module)).await.expect("opened");
        OpenedJob {
            job: opened.job.expect("the job"),
            token: opened.job_token,
        }
    }

    async fn gets(&self, job: &OpenedJob) -> Result<(), Status> {
        let job = self.admin.with_token(&job.token);
        job.asks(credential(&self.identity)).await.map(drop)
    }

    /// By whose type of rules the job is refused.
    async fn refused_by(&self, job: &OpenedJob) -> String {
        let outcome = self.gets(job).await;
        let status = refused(outcome, Code::FailedPrecondition, "RULES_REFUSED");
        let obstacles = obstacles(&status).into_iter();
        obstacles.map(|(_, subject)| subject).collect()
    }

    async fn explains(&self, module: Option<Module>) -> issuer::ExplainCredentialResponse {
        let request = issuer::ExplainCredentialRequest {
            workspace_id: self.workspace.clone(),
            managed_identity_id: self.identity.clone(),
            stage: issuer::Stage::Apply.into(),
            module,
            ..Default::default()
        };
        self.admin.asks(request).await.expect("explained")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_gets_credentials_if_what_it_runs_is_attested() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let (ci, other) = (Attester::default(), Attester::default());
    let provenance = |by: &Attester, number| by.attests(&digest(number), PROVENANCE);
    let rule = scene.asks_for(&[&ci.pem()], PROVENANCE).await;

    let good = scene.runs(module(1, &[provenance(&ci, 1)])).await;
    scene.gets(&good).await.expect("a credential");
    // What was attested is in no answer, and what runs is.
    let shown = good.job.module.clone().expect("the module");
    assert_eq!(shown, module(1, &[]));
    let silent = scene.admin.opens_job(&scene.workspace).await;
    let unsigned = scene.runs(module(1, &[])).await;
    let foreign = scene.runs(module(1, &[provenance(&other, 1)])).await;
    let scanned = scene.runs(module(1, &[ci.attests(&digest(1), SCAN)])).await;
    for job in [&silent, &unsigned, &foreign, &scanned] {
        assert_eq!(scene.refused_by(job).await, "module_attestation");
    }

    // Another rule of the type lets others in; of another type, it has to hold as well.
    let second = scene.asks_for(&[&other.pem(), &ci.pem()], "").await;
    for job in [&good, &foreign, &scanned] {
        scene.gets(job).await.expect("one of the two");
    }
    assert_eq!(scene.refused_by(&unsigned).await, "module_attestation");
    let nobody = scene
        .admin
        .asks(scene.rule(eligible(&["dev/nobody"])))
        .await;
    let nobody = nobody.expect("made").access_rule.expect("the rule");
    assert_eq!(scene.refused_by(&good).await, "eligible_principals");
    assert_eq!(
        scene.refused_by(&unsigned).await,
        "eligible_principalsmodule_attestation"
    );

    // Each rule is explained.
    let explained = scene.explains(Some(module(1, &[provenance(&ci, 1)]))).await;
    let verdicts: Vec<_> = explained
        .rules
        .iter()
        .map(|rule| (rule.access_rule_id.as_str(), rule.verdict()))
        .collect();
    assert_eq!(
        verdicts,
        [
            (rule.id.as_str(), Verdict::Holds),
            (second.id.as_str(), Verdict::Holds),
            (nobody.id.as_str(), Verdict::DoesNotHold),
        ]
    );
    assert!(!explained.allowed);
    let rules = |explained: &issuer::ExplainCredentialResponse| {
        let mut findings = explained.findings.iter();
        let finding = findings.find(|finding| finding.check() == Check::Rules);
        finding.expect("it is checked").description.clone()
    };
    assert!(!rules(&explained).contains("module_attestation"));
    assert!(rules(&scene.explains(None).await).contains("module_attestation"));

    // A key that is not trusted any more lets nobody in, at once.
    let change = UpdateAccessRuleRequest {
        access_rule: Some(AccessRule {
            condition: Some(attested(&[&other.pem()], PROVENANCE)),
            ..rule.clone()
        }),
        ..Default::default()
    };
    scene.admin.asks(change).await.expect("changed");
    for id in [&second.id, &nobody.id] {
        let delete = proto::identity::v1::DeleteAccessRuleRequest {
            id: id.clone(),
            ..Default::default()
        };
        scene.admin.asks(delete).await.expect("deleted");
    }
    assert_eq!(scene.refused_by(&good).await, "module_attestation");
    scene.gets(&foreign).await.expect("now it is the other's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_other_tools_have_signed_is_taken() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let read = |name: &str| golden::read(&format!("attestations/{name}"));
    let names = ["ecdsa", "ed25519", "rsa-pss"];
    for (name, next) in names.iter().zip(names.iter().cycle().skip(1)) {
        let rule = scene
            .asks_for(&[&read(&format!("{name}.pem"))], PROVENANCE)
            .await;
        let runs = |name: &str| {
            let attestations = vec![read(&format!("{name}.json")).into_bytes()];
            scene.runs(Module {
                source: String::new(),
                digest: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
                    .to_owned(),
                attestations,
            })
        };
        scene.gets(&runs(name).await).await.expect(name);
        assert_eq!(
            scene.refused_by(&runs(next).await).await,
            "module_attestation"
        );
        let delete = proto::identity::v1::DeleteAccessRuleRequest {
            id: rule.id,
            ..Default::default()
        };
        scene.admin.asks(delete).await.expect("deleted");
    }
}

/// The attestation with its signature so many times.
fn signed_often(attestation: &[u8], times: usize) -> Vec<u8> {
    let mut envelope: serde_json::Value = serde_json::from_slice(attestation).expect("JSON");
    let signature = envelope["signatures"][0].clone();
    envelope["signatures"] = vec![signature; times].into();
    envelope.to_string().into_bytes()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_attestations_are_named() {
    let world = World::start().await;
    let scene = scene(&world).await;
    let ci = Attester::default();
    let good = ci.attests(&digest(1), PROVENANCE);
    let of_other = ci.attests(&digest(2), PROVENANCE);
    let before = world.log(Service::Issuer).await.len();
    for (module, wrong) in [
        (
            module(1, &[good.clone(), b"{}".to_vec(), of_other]),
            &["job.module.attestations[1]", "job.module.attestations[2]"][..],
        ),
        (
            Module {
                digest: String::new(),
                ..module(1, std::slice::from_ref(&good))
            },
            &["job.module.digest"],
        ),
        (
            Module {
                source: "x".repeat(513),
                digest: "0A".repeat(32),
                attestations: vec![],
            },
            &["job.module.source", "job.module.digest"],
        ),
        (
            module(1, &vec![good.clone(); 11]),
            &["job.module.attestations"],
        ),
        (
            module(1, &[signed_often(&good, 6), signed_often(&good, 5)]),
            &["job.module.attestations"],
        ),
        (
            module(1, &[vec![b' '; 65 << 10]]),
            &["job.module.attestations"],
        ),
    ] {
        invalid(scene.admin.asks(scene.job(module)).await, wrong);
    }
    assert_eq!(world.log(Service::Issuer).await.len(), before);

    let keys = vec![ci.pem(); 11];
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    for (condition, wrong) in [
        (attested(&[], ""), &["public_keys"][..]),
        (attested(&keys, ""), &["public_keys"]),
        (
            attested(&[&ci.pem(), "a key"], "provenance"),
            &["public_keys[1]", "predicate_type"],
        ),
    ] {
        let wrong: Vec<String> = wrong.iter().map(|name| format!("{FIELD}.{name}")).collect();
        let wrong: Vec<&str> = wrong.iter().map(String::as_str).collect();
        invalid(scene.admin.asks(scene.rule(condition)).await, &wrong);
    }
    // All of them together may not have more, and what is there may become less.
    for number in 0..10 {
        let keys: Vec<String> = (0..10).map(|_| Attester::default().pem()).collect();
        let mut keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        keys.truncate(if number == 0 { 9 } else { 10 });
        scene.asks_for(&keys, "").await;
    }
    let more = scene.rule(attested(&[&Attester::default().pem(), &ci.pem()], ""));
    let more = scene.admin.asks(more).await;
    refused(more, Code::FailedPrecondition, "ACCESS_RULE_LIMIT");
    // The type of a rule never changes.
    let rule = scene.asks_for(&[&ci.pem()], "").await;
    let change = UpdateAccessRuleRequest {
        access_rule: Some(AccessRule {
            condition: Some(eligible(&["dev/bob"])),
            ..rule
        }),
        ..Default::default()
    };
    invalid(scene.admin.asks(change).await, &["access_rule"]);
    let beside = issuer::ExplainCredentialRequest {
        workspace_id: scene.workspace.clone(),
        managed_identity_id: scene.identity.clone(),
        job_id: scene.admin.opens_job(&scene.workspace).await.job.id,
        module: Some(module(1, &[])),
        ..Default::default()
    };
    invalid(scene.admin.asks(beside).await, &["module"]);
}
