//! What a credential is decided on, and a memory of it: most jobs ask for the same identities again and again.
//!
//! The memory can be wrong without harm. What it says goes with the audit event as guards, which the append checks under
//! the head lock that the replica's follower takes too; a refused guard forgets and looks again. So that the revision that
//! a token names is right as well, what is remembered is compared with the facts whenever more of the logs is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use edge::access_rules;
use edge::aliases::{self, Source};
use edge::attestation::{Envelope, InvalidEnvelope};
use edge::caller::Caller;
use edge::hierarchy::{
    Hierarchy, Place, assignment_key, identity_audience_key, identity_type_key, node_key,
    token_settings_key,
};
use edge::masks::{self, Inherited};
use edge::roles::team_of_key;
use edge::violations::Violations;
use edge::{authorization, status};
use eventlog::{EventLog, Facts, Guard};
use model::access_rule::{AccessRule, InvalidAccessRule, RuleType, Run, Verdict, refusing};
use model::attestation::{Attested, ModuleDigest, PublicKey};
use model::token_settings::InvalidTokenSettings;
use model::{
    AccessRuleId, InvalidReference, InvalidReferenceTo, JobId, Kind, ManagedIdentityId, Principal,
    Reference, ResourceId, Role, Stage, TeamId, WorkspaceId,
};
use time::OffsetDateTime;
use tonic::Status;

use super::IssuerRpc;
use super::admission::Admission;
use super::jobs::workspace_deleted;
use super::refusals::{About, Denied, IDENTITY_NOT_FOUND, Refused, WORKSPACE_DELETED};
use crate::domain::credential::{Party, Question};
use crate::domain::job::{Job, Life, Module};

/// The field that names one.
pub(super) const IDENTITY: &str = "managed_identity_id";
pub(super) const NOT_AN_IDENTITY: &str = "must name a managed identity";
/// Remembered at most; beyond, all is forgotten.
const REMEMBERED: usize = 10_000;

/// What is known of a job and an identity.
pub(super) struct Ground {
    pub(super) stage: Stage,
    pub(super) workspace_path: String,
    /// The question, as of the time it was looked up.
    pub(super) question: Question,
    /// What must still hold when the audit event is appended.
    pub(super) guards: Arc<[Guard]>,
}

/// What is known of a job and an identity, and what says so.
pub(super) struct Weighed {
    pub(super) question: Question,
    /// What each access rule says.
    pub(super) verdicts: Vec<(AccessRuleId, RuleType, Verdict)>,
    pub(super) guards: Vec<Guard>,
}

/// That what was read is so still.
fn still(facts: &Facts, keys: impl IntoIterator<Item = String>) -> Vec<Guard> {
    let guards = keys.into_iter().map(|key| Guard::Expect {
        value: facts.get(&key).map(str::to_owned),
        key,
    });
    guards.collect()
}

/// The facts that a question is answered from.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) log: &'a EventLog,
    pub(super) hierarchy: &'a Hierarchy,
    /// For what of them takes long to be computed.
    pub(super) admission: &'a Admission,
}

/// What is asked for.
pub(super) struct Asked<'a> {
    pub(super) identity: ManagedIdentityId,
    pub(super) place: &'a Place,
    pub(super) source: &'a Source,
}

/// Who asks.
pub(super) struct Subject {
    pub(super) job: Job,
    pub(super) life: Life,
    /// Where the job is, with its principal's role there.
    pub(super) place: Place,
    /// The same with the role of who opened it, where that is somebody else.
    pub(super) opener_place: Option<Place>,
}

impl Subject {
    /// Who may not open jobs there, if its principal or who opened it may not.
    pub(super) fn without_role(&self) -> Option<Party> {
        let opener_may = self.opener_place.as_ref().is_some_and(may_open);
        if !may_open(&self.place) {
            Some(Party::Principal)
        } else if self.job.opener.is_some() && !opener_may {
            Some(Party::Opener)
        } else {
            None
        }
    }

    /// What must still hold of where it is, and of both roles there.
    pub(super) fn guards(&self) -> Vec<Guard> {
        let places = std::iter::once(&self.place).chain(&self.opener_place);
        places.flat_map(Place::guards).collect()
    }
}

/// Whether somebody may open jobs at a place that was looked up for them.
pub(super) fn may_open(place: &Place) -> bool {
    place.role >= Some(Role::Deployer)
}

/// What is known of a job and an identity, and a revision at which it was so.
#[derive(Clone)]
pub(super) struct Remembered {
    pub(super) ground: Arc<Ground>,
    pub(super) revision: String,
}

#[derive(Default)]
pub(super) struct Grounds(Mutex<BTreeMap<(JobId, String), Remembered>>);

impl Grounds {
    pub(super) fn get(&self, job: JobId, identity: &str) -> Option<Remembered> {
        let grounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        grounds.get(&(job, identity.to_owned())).cloned()
    }

    /// The workspace of a job that something is remembered of; a job's never changes.
    pub(super) fn workspace(&self, job: JobId) -> Option<WorkspaceId> {
        let grounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ((first, _), known) = grounds.range((job, String::new())..).next()?;
        (*first == job).then_some(known.ground.question.workspace)
    }

    pub(super) fn remember(&self, job: JobId, identity: &str, known: Remembered) {
        let mut grounds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if grounds.len() >= REMEMBERED {
            grounds.clear();
        }
        grounds.insert((job, identity.to_owned()), known);
    }

    pub(super) fn forget(&self, job: JobId, identity: &str) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&(job, identity.to_owned()));
    }
}

impl IssuerRpc {
    /// As things are.
    pub(super) fn present(&self) -> View<'_> {
        View {
            log: self.shared.commands.log(),
            hierarchy: &self.shared.hierarchy,
            admission: &self.admission,
        }
    }

    /// Where a job is, with the role that the principal has there on whose behalf it runs.
    pub(super) async fn place_of_job(&self, job: &Job) -> Result<Option<Place>, Status> {
        self.place_for(self.present(), job.id.into(), &job.principal)
            .await
    }

    /// A job where it is; `id` is its own, or that of its workspace. `None` if that does not exist.
    pub(super) async fn subject(
        &self,
        view: View<'_>,
        id: ResourceId,
        job: Job,
        life: Life,
    ) -> Result<Option<Subject>, Status> {
        let place = self.place_for(view, id, &job.principal).await?;
        let opener_place = match &job.opener {
            Some(opener) => self.place_for(view, id, opener).await?,
            None => None,
        };
        Ok(place.map(|place| Subject {
            job,
            life,
            place,
            opener_place,
        }))
    }

    /// Where something is, with a principal's role there.
    pub(super) async fn place_for(
        &self,
        view: View<'_>,
        id: ResourceId,
        principal: &Principal,
    ) -> Result<Option<Place>, Status> {
        let principal = Caller {
            principal: principal.clone(),
            administrator: self.shared.administrators.contains(principal),
            event_reader: false,
            leans_on: None,
        };
        authorization::locate(view.hierarchy, id, &principal).await
    }

    /// The identities that are assigned to a workspace.
    pub(super) async fn assigned(
        &self,
        workspace: WorkspaceId,
    ) -> Result<Vec<ManagedIdentityId>, Status> {
        let prefix = assignment_key(workspace, "");
        let keys = self.shared.commands.log().fact_keys(&prefix).await;
        let keys = keys.map_err(|error| status::log(&error))?;
        let ids = keys
            .iter()
            .filter_map(|key| key.strip_prefix(&prefix)?.parse().ok());
        Ok(ids.collect())
    }

    /// Looks up what a job's request for an identity is decided on.
    pub(super) async fn look_up(
        &self,
        job: JobId,
        caller: &Caller,
        named: &str,
    ) -> Result<Ground, Denied> {
        let hierarchy = &self.shared.hierarchy;
        let reference =
            identity_named(named).map_err(|error| Violations::of(IDENTITY, error).into_status())?;
        let known = self.known_job(job).await?;
        let known = known.ok_or_else(|| status::not_found(&job.to_string()))?;
        let refused = async |reason, status| match self.revision_now().await {
            Ok(revision) => Denied::from(Refused {
                job,
                workspace: known.job.workspace,
                stage: known.job.stage,
                about: About::Named(named.to_owned()),
                reasons: vec![reason],
                revision,
                is_of_the_job: reason == WORKSPACE_DELETED,
                status,
            }),
            Err(status) => status.into(),
        };
        let view = self.present();
        let subject = self.subject(view, job.into(), known.job.clone(), known.life);
        let Some(subject) = subject.await? else {
            return Err(refused(WORKSPACE_DELETED, workspace_deleted()).await);
        };
        let Some(identity_place) = authorization::find(hierarchy, &reference, caller).await? else {
            return Err(refused(IDENTITY_NOT_FOUND, status::not_found(named)).await);
        };
        let identity = ManagedIdentityId::try_from(identity_place.id())
            .map_err(|_| Violations::of(IDENTITY, NOT_AN_IDENTITY).into_status())?;
        let Some(source) = view.source(identity).await? else {
            return Err(refused(IDENTITY_NOT_FOUND, status::not_found(named)).await);
        };
        let asked = Asked {
            identity,
            place: &identity_place,
            source: &source,
        };
        let weighed = view.weigh(&subject, asked).await?;
        let mut guards = subject.guards();
        guards.extend(identity_place.guards());
        guards.extend(known.guards());
        guards.extend(weighed.guards);
        Ok(Ground {
            stage: subject.job.stage,
            workspace_path: subject.place.path(),
            question: weighed.question,
            guards: guards.into(),
        })
    }
}

/// The managed identity that is named. What is none is refused before anyone looks whether it is there: who asks may not
/// know.
pub(super) fn identity_named(named: &str) -> Result<Reference, String> {
    let reference: Reference = named
        .parse()
        .map_err(|InvalidReference| InvalidReferenceTo(Kind::ManagedIdentity).to_string())?;
    if reference.kind() == Kind::ManagedIdentity {
        Ok(reference)
    } else {
        Err(NOT_AN_IDENTITY.to_owned())
    }
}

impl View<'_> {
    /// Whose subject, audience, token settings and access rules an identity has. `None` if that is gone.
    pub(super) async fn source(
        &self,
        identity: ManagedIdentityId,
    ) -> Result<Option<Source>, Status> {
        aliases::source(self.log, self.hierarchy, identity).await
    }

    /// What is known of a job and an identity, and the facts that say so.
    pub(super) async fn weigh(
        &self,
        subject: &Subject,
        asked: Asked<'_>,
    ) -> Result<Weighed, Status> {
        let Subject {
            job, life, place, ..
        } = subject;
        let Asked {
            identity,
            place: identity_place,
            source,
        } = asked;
        let (assignment, kind, audience, tokens, revision) = (
            assignment_key(job.workspace, identity),
            identity_type_key(source.id),
            identity_audience_key(source.id),
            token_settings_key(source.id),
            access_rules::revision_key(source.id),
        );
        let keys = [&assignment, &kind, &audience, &tokens, &revision].map(String::clone);
        let facts = self.log.facts(&keys).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        let inherited = |group| place.is_within(group);
        let rules = match facts.get(&revision) {
            Some(_) => self.access_rules(source.id).await?,
            None => vec![],
        };
        let token_settings = facts.get(&tokens).map(str::parse).transpose();
        let token_settings =
            token_settings.map_err(|error: InvalidTokenSettings| status::internal(&error))?;
        let (masked, masks) = match identity_place.parent() {
            Some(group) => {
                let inherited = Inherited {
                    id: identity,
                    identity_type: facts.get(&kind).unwrap_or_default(),
                    group,
                };
                masks::hiding(self.log, place, inherited).await?
            }
            None => (None, vec![]),
        };
        let (ids, rules): (Vec<AccessRuleId>, Vec<AccessRule>) = rules.into_iter().unzip();
        let (parties, of_parties) = self.parties(job, source.id, &rules).await?;
        let run = Run {
            stage: job.stage,
            parties: &parties,
            attestations: &self.attested(subject, &rules).await?,
        };
        let verdicts = ids.into_iter().zip(&rules);
        let verdicts =
            verdicts.map(|(id, rule)| (id, rule.condition.rule_type(), rule.verdict(&run)));
        let question = Question {
            job: job.id,
            workspace: job.workspace,
            job_life: *life,
            without_role: subject.without_role(),
            identity,
            source: source.id,
            assigned: facts.get(&assignment).is_some(),
            inherited: identity_place.parent().is_some_and(inherited),
            masked,
            refusing: refusing(&rules, &run),
            audience: facts
                .get(&audience)
                .or_else(|| facts.get(&kind))
                .unwrap_or_default()
                .to_owned(),
            stage: job.stage,
            token_settings: token_settings.unwrap_or_default(),
            now: OffsetDateTime::UNIX_EPOCH,
        };
        let mut guards = still(&facts, keys);
        guards.extend(source.guards.iter().cloned());
        guards.extend(of_parties);
        guards.extend(masks);
        Ok(Weighed {
            verdicts: verdicts.collect(),
            question,
            guards,
        })
    }

    /// As whom a job runs whom rules are for: its principal, and who opened it on that one's behalf; and what says so.
    async fn parties(
        &self,
        job: &Job,
        identity: ManagedIdentityId,
        rules: &[AccessRule],
    ) -> Result<(Vec<Vec<Principal>>, Vec<Guard>), Status> {
        let (mut parties, mut guards) = (vec![], vec![]);
        let (principals, of_principal) = self.run_as(&job.principal, rules).await?;
        parties.push(principals);
        guards.extend(of_principal);
        let opener = job.opener.as_deref();
        if let Some(opener) = opener.filter(|opener| **opener != job.principal && !rules.is_empty())
        {
            let (vouched, of_opener) = self.is_vouched_for(opener, identity).await?;
            guards.extend(of_opener);
            if !vouched {
                let (principals, of_opener) = self.run_as(opener, rules).await?;
                parties.push(principals);
                guards.extend(of_opener);
            }
        }
        Ok((parties, guards))
    }

    /// Whether the rules of an identity are not for who opens jobs for others, and what says so: for a service account of
    /// the identity's group, or of one above. Whoever can make one there, and say whose tokens it takes, can change the
    /// rules as well.
    async fn is_vouched_for(
        &self,
        opener: &Principal,
        identity: ManagedIdentityId,
    ) -> Result<(bool, Vec<Guard>), Status> {
        let Principal::ServiceAccount(account) = opener else {
            return Ok((false, vec![]));
        };
        let way_up = async |id: ResourceId| {
            let place = self.hierarchy.way_up(id).await;
            place.map_err(|error| status::database(&error))
        };
        let places = (
            way_up((*account).into()).await?,
            way_up(identity.into()).await?,
        );
        let (Some(account), Some(identity)) = places else {
            return Ok((false, vec![]));
        };
        let vouched = identity.is_in_reach_of(&account);
        let guards = [account.existence(), identity.existence()].concat();
        Ok((vouched, guards))
    }

    /// As whom a principal's job runs, as far as the rules ask: itself, and those of the teams they name that it belongs
    /// to; and what says so.
    async fn run_as(
        &self,
        principal: &Principal,
        rules: &[AccessRule],
    ) -> Result<(Vec<Principal>, Vec<Guard>), Status> {
        let named: BTreeSet<TeamId> = rules.iter().flat_map(AccessRule::teams).collect();
        let keys: Vec<String> = named
            .iter()
            .flat_map(|team| [node_key(team), team_of_key(principal, team)])
            .collect();
        let facts = self.log.facts(&keys).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        let belongs = |team: &TeamId| {
            let of_it = team_of_key(principal, team);
            facts.get(&node_key(team)).is_some() && facts.get(&of_it).is_some()
        };
        let teams = named.iter().copied().filter(belongs).map(Principal::Team);
        let principals = [principal.clone()].into_iter().chain(teams).collect();
        Ok((principals, still(&facts, keys)))
    }

    /// An identity's access rules. They are read after their revision, which is guarded: what came or went since makes
    /// the append refuse, and a refusal look again.
    async fn access_rules(
        &self,
        identity: ManagedIdentityId,
    ) -> Result<Vec<(AccessRuleId, AccessRule)>, Status> {
        let log = self.log;
        let prefix = access_rules::rules_prefix(identity);
        let keys = log.fact_keys(&prefix).await;
        let keys = keys.map_err(|error| status::log(&error))?;
        let facts = log.facts(&keys).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        // One that can't be read refuses: to leave it out could be to let someone in.
        let rules = keys.iter().filter_map(|key| {
            let (id, rule) = (key.strip_prefix(&prefix)?, facts.get(key)?);
            let id = id.parse().map_err(|_| InvalidAccessRule);
            Some(id.and_then(|id| Ok((id, rule.parse()?))))
        });
        rules
            .collect::<Result<_, _>>()
            .map_err(|error: InvalidAccessRule| status::internal(&error))
    }

    /// The attestations of what a job runs, as far as the rules for its stage ask.
    async fn attested(
        &self,
        subject: &Subject,
        rules: &[AccessRule],
    ) -> Result<Vec<Attested>, Status> {
        let Subject { job, place, .. } = subject;
        let rules = rules.iter().filter(|rule| rule.stages.contains(&job.stage));
        let keys: BTreeSet<PublicKey> = rules.flat_map(AccessRule::public_keys).cloned().collect();
        let Some(Module {
            digest: Some(digest),
            attestations,
            ..
        }) = job.module.clone().filter(|_| !keys.is_empty())
        else {
            return Ok(vec![]);
        };
        let group = place.top().to_string();
        let verify = move || verified(&attestations, &digest, &keys);
        let verified = self.admission.compute(&group, verify).await;
        let verified = verified.ok_or_else(|| {
            let message = "the issuer is busy verifying attestations; try again";
            status::unavailable("ATTESTATION_BUSY", message)
        })?;
        verified.map_err(|error| status::internal(&error))
    }
}

/// Those of these attestations that are about a module, each with those of the keys that have signed it.
fn verified(
    attestations: &[Vec<u8>],
    digest: &ModuleDigest,
    keys: &BTreeSet<PublicKey>,
) -> Result<Vec<Attested>, InvalidEnvelope> {
    let mut verified = Vec::new();
    for json in attestations {
        let envelope = Envelope::read(json)?;
        if envelope.is_about(digest) {
            let signed_by = keys.iter().filter(|key| envelope.is_signed_by(key));
            verified.push(Attested {
                signed_by: signed_by.cloned().collect(),
                predicate_type: envelope.predicate_type().clone(),
            });
        }
    }
    Ok(verified)
}
