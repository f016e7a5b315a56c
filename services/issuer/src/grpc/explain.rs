//! Whether somebody would get a credential, and why: the checks of an issue, one by one, and nothing recorded.

use edge::hierarchy::Place;
use edge::layer::Call;
use edge::past::{self, InvalidRevision, Past, Until};
use edge::violations::Violations;
use edge::{authorization, clock, status};
use model::access_rule::{RuleType, Verdict};
use model::{AccessRuleId, JobId, ManagedIdentityId, Principal, Reference, Stage, WorkspaceId};
use proto::issuer::v1 as pb;
use time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};
use tonic::Status;
use uuid::Uuid;

use super::IssuerRpc;
use super::credentials::reason;
use super::current::{Attempt, until_steady};
use super::ground::{self, IDENTITY, NOT_AN_IDENTITY, Subject, View, Weighed, identity_named};
use super::jobs::workspace_deleted;
use crate::domain::credential::{Check, Question, findings};
use crate::domain::job::{DEFAULT_HEARTBEAT_TIMEOUT, Job, Life, Module};
use crate::wire::{self, module};

/// Who would ask.
enum Asker {
    Job(JobId),
    Anybody(Principal, Stage, Option<Module>),
}

/// What is told of what was weighed.
struct Explained {
    subject: Subject,
    /// The identity's name, for the caller.
    identity: String,
    /// Whether the caller may know of the identity's rules and name.
    shown: bool,
    /// Whether there is no job whose life counts.
    hypothetical: bool,
    revision: String,
}

impl Explained {
    fn told(
        self,
        question: Question,
        verdicts: Vec<(AccessRuleId, RuleType, Verdict)>,
    ) -> pb::ExplainCredentialResponse {
        let question = Question {
            now: clock::now(),
            ..question
        };
        let findings: Vec<_> = findings(&question)
            .into_iter()
            .filter(|(check, _)| !self.hypothetical || *check != Check::Job)
            // It is out of the workspace's reach, for which it is refused whatever its rules say.
            .filter(|(check, _)| self.shown || *check != Check::Rules)
            .map(|(check, refusal)| pb::Finding {
                check: wire_check(check).into(),
                holds: refusal.is_none(),
                description: refusal.as_ref().map_or_else(
                    || holds(check, &self.subject, &self.identity),
                    ToString::to_string,
                ),
                reason: refusal.map_or_else(String::new, |refusal| reason(&refusal).to_owned()),
            })
            .collect();
        let rules = verdicts.into_iter().filter(|_| self.shown);
        pb::ExplainCredentialResponse {
            allowed: findings.iter().all(|finding| finding.holds),
            findings,
            principal: self.subject.job.principal.to_string(),
            stage: wire::job::wire_stage(self.subject.job.stage).into(),
            revision: self.revision,
            rules: rules.map(rule_verdict).collect(),
        }
    }
}

/// There is nobody who would ask.
fn no_subject(call: &Call, message: &pb::ExplainCredentialRequest) -> Status {
    match message.job_id.as_str() {
        "" => status::not_found(&message.workspace_id),
        // It was by the job that its workspace was found.
        _ if call.place.is_none() => workspace_deleted(),
        _ if !message.revision.is_empty() => {
            status::not_found("the job's workspace, at that revision,")
        }
        job => status::not_found(job),
    }
}

impl IssuerRpc {
    pub(super) async fn explain(
        &self,
        call: &Call,
        message: &pb::ExplainCredentialRequest,
    ) -> Result<pb::ExplainCredentialResponse, Status> {
        until_steady(|attempt| self.try_to_explain(call, message, attempt)).await
    }

    /// `None` if something of it has changed meanwhile.
    async fn try_to_explain(
        &self,
        call: &Call,
        message: &pb::ExplainCredentialRequest,
        attempt: Attempt,
    ) -> Result<Option<pb::ExplainCredentialResponse>, Status> {
        let before = self.revision_now().await?;
        let workspace = self.workspace_of(call, message).await?;
        let (asker, reference) = asked(call, message)?;
        let past = self.past_at(&message.revision).await?;
        let view = if let Some((past, _)) = &past {
            View {
                log: &past.log,
                hierarchy: &past.hierarchy,
                admission: &self.admission,
            }
        } else {
            self.refuse_on_stale_replica()?;
            self.present()
        };
        let named = message.managed_identity_id.as_str();
        let not_found = || status::not_found(named);
        // Before the identity: what is wrong with the rest must not tell whether it is there.
        let subject = match asker {
            Asker::Job(id) => self.job_in(view, workspace, id).await?,
            Asker::Anybody(principal, stage, module) => {
                self.somebody(view, workspace, (principal, stage, module))
                    .await?
            }
        };
        let subject = subject.ok_or_else(|| no_subject(call, message))?;
        if past.is_some() && !self.may_know_of_then(call, &subject.place).await? {
            return Err(status::not_found(&message.workspace_id));
        }
        let identity_place = authorization::find(view.hierarchy, &reference, &call.caller).await?;
        let identity_place = identity_place.ok_or_else(not_found)?;
        let identity = ManagedIdentityId::try_from(identity_place.id())
            .map_err(|_| Violations::of(IDENTITY, NOT_AN_IDENTITY).into_status())?;
        let source = view.source(identity).await?;
        let source = source.ok_or_else(not_found)?;
        let asked = ground::Asked {
            identity,
            place: &identity_place,
            source: &source,
        };
        let Weighed {
            question,
            verdicts,
            guards,
        } = view.weigh(&subject, asked).await?;
        // What the workspace does not inherit, who sees the workspace may not even know of. Of what it has, the id alone, by
        // which it is named then.
        let shown = self.is_shown(call, &identity_place).await?;
        let is_known = if past.is_some() {
            shown && self.may_know_of_then(call, &identity_place).await?
        } else {
            shown || question.assigned && named == identity.to_string()
        };
        if !is_known {
            return Err(not_found());
        }
        let revision = if past.is_some() {
            message.revision.clone()
        } else {
            let guards = [subject.guards(), identity_place.guards(), guards].concat();
            let has_role = subject.without_role().is_none();
            let at = self.found_at(&guards, has_role, &before, attempt);
            let Some(revision) = at.await? else {
                return Ok(None);
            };
            revision
        };
        let explained = Explained {
            subject,
            identity: if shown {
                identity_place.path()
            } else {
                identity.to_string()
            },
            shown,
            // Nobody knows at what time a revision was, and so whether the job was alive.
            hypothetical: message.job_id.is_empty() || past.is_some(),
            revision,
        };
        Ok(Some(explained.told(question, verdicts)))
    }

    /// Whether the caller may know now of an identity that was found, be it in the past: where it has a role, or where the
    /// workspace inherits from. Of an identity that is gone, its group tells.
    async fn is_shown(&self, call: &Call, identity: &Place) -> Result<bool, Status> {
        if call.caller.administrator {
            return Ok(true);
        }
        let hierarchy = &self.shared.hierarchy;
        let now = authorization::locate(hierarchy, identity.id(), &call.caller).await?;
        let group = match (&now, identity.parent()) {
            (None, Some(group)) => authorization::locate(hierarchy, group, &call.caller).await?,
            _ => None,
        };
        let has_role = [&now, &group]
            .into_iter()
            .flatten()
            .any(|place| place.role.is_some());
        let inherited = call
            .place
            .as_ref()
            .zip(now.as_ref().and_then(Place::parent))
            .is_some_and(|(workspace, group)| workspace.is_within(group));
        Ok(has_role || inherited)
    }

    /// Whether the caller may know of what was somewhere in the past: it is there still, or the caller has a role now in a
    /// group above it of then that is where it was.
    async fn may_know_of_then(&self, call: &Call, then: &Place) -> Result<bool, Status> {
        if call.caller.administrator {
            return Ok(true);
        }
        for number in 0..then.nodes.len() {
            let nodes = then.nodes.iter().skip(number).map(|node| node.id);
            let Some(id) = nodes.clone().next() else {
                break;
            };
            let now = authorization::locate(&self.shared.hierarchy, id, &call.caller).await?;
            let there = |now: &Place| now.nodes.iter().map(|node| node.id).eq(nodes);
            let now = now.filter(there);
            if now.is_some_and(|now| number == 0 || now.role.is_some()) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The workspace that the request names, or, of an administrator's request that names none, that of the job: it may be
    /// gone, and then no request can name it.
    async fn workspace_of(
        &self,
        call: &Call,
        message: &pb::ExplainCredentialRequest,
    ) -> Result<WorkspaceId, Status> {
        const FIELD: &str = "workspace_id";
        if call.place.is_some() {
            return call.id(FIELD, "workspace");
        }
        let job: JobId = message.job_id.parse().map_err(|_| {
            let wrong = "must be set, to an id or a TRN, where job_id does not name a job";
            Violations::of(FIELD, wrong).into_status()
        })?;
        let known = self.known_job(job).await?;
        let known = known.ok_or_else(|| status::not_found(&message.job_id))?;
        Ok(known.job.workspace)
    }

    /// What was so at a revision, if one is named. Who holds it is the only one in this process.
    async fn past_at(&self, revision: &str) -> Result<Option<(Past, SemaphorePermit<'_>)>, Status> {
        if revision.is_empty() {
            return Ok(None);
        }
        let until = self.until(revision)?;
        let alone = alone(&self.past)?;
        let past = Past::at(self.shared.commands.log(), &until).await?;
        Ok(Some((past, alone)))
    }

    /// How far the logs are to be read that a revision names.
    fn until(&self, revision: &str) -> Result<Vec<Until<'_>>, Violations> {
        const FIELD: &str = "revision";
        let mut positions =
            past::positions(revision).map_err(|error| Violations::of(FIELD, error))?;
        let form = || Violations::of(FIELD, InvalidRevision);
        let mut until = Vec::new();
        for ((name, _, known), (_, owner)) in self.known().zip(&self.shared.owners) {
            let position = positions.remove(name).ok_or_else(form)?;
            if position > known {
                let message = format!("{name}={position} is not reached yet");
                return Err(Violations::of(FIELD, message));
            }
            until.push(Until {
                name,
                owner,
                position,
            });
        }
        if positions.is_empty() {
            Ok(until)
        } else {
            Err(form())
        }
    }

    async fn job_in(
        &self,
        view: View<'_>,
        workspace: WorkspaceId,
        id: JobId,
    ) -> Result<Option<Subject>, Status> {
        let known = self.known_job(id).await?;
        let Some(known) = known.filter(|known| known.job.workspace == workspace) else {
            return Ok(None);
        };
        self.subject(view, workspace.into(), known.job, known.life)
            .await
    }

    /// A job that nobody has opened.
    async fn somebody(
        &self,
        view: View<'_>,
        workspace: WorkspaceId,
        (principal, stage, module): (Principal, Stage, Option<Module>),
    ) -> Result<Option<Subject>, Status> {
        let expires = clock::now() + Duration::HOUR;
        let job = Job {
            id: JobId::from_uuid(Uuid::nil()),
            workspace,
            stage,
            principal,
            opener: None,
            expires,
            heartbeat_timeout: DEFAULT_HEARTBEAT_TIMEOUT,
            module,
        };
        let life = Life {
            expires,
            silent_after: None,
            end: None,
        };
        self.subject(view, workspace.into(), job, life).await
    }
}

/// Who waited would wait for whoever asks again and again.
fn alone(past: &Semaphore) -> Result<SemaphorePermit<'_>, Status> {
    past.try_acquire().map_err(|_| {
        let message = "the issuer is busy explaining what was so in the past, one at a time; ask again in a second";
        status::busy("EXPLANATION_BUSY", message)
    })
}

fn asked(
    call: &Call,
    message: &pb::ExplainCredentialRequest,
) -> Result<(Asker, Reference), Violations> {
    let mut violations = Violations::default();
    let identity = identity_named(&message.managed_identity_id);
    let identity = violations.check(IDENTITY, identity);
    let asker = if message.job_id.is_empty() {
        let stage = wire::job::stage(message.stage());
        let wrong = "must be STAGE_PLAN or STAGE_APPLY, or job_id must be set";
        let stage = violations.check("stage", stage.ok_or(wrong));
        let principal = match message.principal.as_str() {
            "" => Some(call.caller.principal.clone()),
            text => violations.check("principal", wire::job::principal(text)),
        };
        let module = message.module.as_ref().map(module::wanted).transpose();
        let module = violations.nested("module", module);
        let asker = principal.zip(stage).zip(module);
        asker.map(|((principal, stage), module)| Asker::Anybody(principal, stage, module))
    } else {
        let alone = "must not be set beside job_id, which has its own";
        if message.stage != 0 {
            violations.add("stage", alone);
        }
        if !message.principal.is_empty() {
            violations.add("principal", alone);
        }
        if message.module.is_some() {
            violations.add("module", alone);
        }
        let wrong = "must be the id of a job";
        let job = violations.check("job_id", message.job_id.parse().map_err(|_| wrong));
        job.map(Asker::Job)
    };
    violations.finish(|| Some((asker?, identity?)))
}

fn rule_verdict((id, rule_type, verdict): (AccessRuleId, RuleType, Verdict)) -> pb::RuleVerdict {
    let verdict = match verdict {
        Verdict::OtherStage => pb::Verdict::OtherStage,
        Verdict::Holds => pb::Verdict::Holds,
        Verdict::DoesNotHold => pb::Verdict::DoesNotHold,
    };
    pb::RuleVerdict {
        access_rule_id: id.to_string(),
        r#type: rule_type.to_string(),
        verdict: verdict.into(),
    }
}

fn wire_check(check: Check) -> pb::Check {
    match check {
        Check::Job => pb::Check::Job,
        Check::Role => pb::Check::Role,
        Check::Assignment => pb::Check::Assignment,
        Check::Path => pb::Check::Path,
        Check::Mask => pb::Check::Mask,
        Check::Rules => pb::Check::Rules,
    }
}

fn holds(check: Check, subject: &Subject, identity: &str) -> String {
    let workspace = subject.place.path();
    match check {
        Check::Job => format!("the job lives until {} at most", subject.life.expires),
        Check::Role => {
            let role = subject
                .place
                .role
                .map_or_else(String::new, |role| role.to_string());
            let principal = &subject.job.principal;
            match &subject.job.opener {
                Some(opener) => format!(
                    "{principal} is {role} of {workspace}, and {opener}, who opened the job, may open jobs there"
                ),
                None => format!("{principal} is {role} of {workspace}"),
            }
        }
        Check::Assignment => format!("{identity} is assigned to the workspace"),
        Check::Path => format!("{workspace} lies below the group of {identity}"),
        Check::Mask => format!("no mask hides {identity} from {workspace}"),
        Check::Rules => format!("the access rules of {identity} let it"),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt as _;

    use super::*;

    #[test]
    fn one_at_a_time_looks_at_the_past_and_nobody_waits_for_it() {
        let past = Semaphore::new(1);
        let first = alone(&past).expect("nobody looks");
        let second = alone(&past).expect_err("the first one looks");
        assert_eq!(
            (second.code(), status::reason(&second).as_str()),
            (Code::ResourceExhausted, "EXPLANATION_BUSY")
        );
        assert!(second.get_details_retry_info().is_some());
        drop(first);
        assert!(alone(&past).is_ok());
    }
}
