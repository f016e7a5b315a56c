//! Whether a job gets an identity's credentials, and which.

use std::collections::BTreeSet;

use model::access_rule::RuleType;
use model::token_settings::TokenLifetime;
use model::{
    JobId, ManagedIdentityId, MaskId, SigningAlgorithm, Stage, TokenSettings, WorkspaceId,
};
use time::{Duration, OffsetDateTime};

use crate::domain::job::{Life, Over};

/// The longest life of a token.
pub const MAX_LIFETIME: Duration = Duration::seconds(TokenLifetime::LONGEST.seconds());

/// What is known when a job asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Which job.
    pub job: JobId,
    /// Where it runs.
    pub workspace: WorkspaceId,
    /// Until when it lives.
    pub job_life: Life,
    /// Who may not open jobs there any more.
    pub without_role: Option<Party>,
    /// Which identity.
    pub identity: ManagedIdentityId,
    /// Whose subject, audience, token settings and access rules it has: of an alias its source's, otherwise its own.
    pub source: ManagedIdentityId,
    /// Whether it is assigned to the workspace.
    pub assigned: bool,
    /// Whether the workspace lies below the identity's group.
    pub inherited: bool,
    /// What hides it from the workspace, if something does.
    pub masked: Option<MaskId>,
    /// The types of the identity's access rules that refuse the job.
    pub refusing: BTreeSet<RuleType>,
    /// What the identity's cloud expects as audience.
    pub audience: String,
    /// What the job does.
    pub stage: Stage,
    /// What the identity's tokens are like.
    pub token_settings: TokenSettings,
    /// The time.
    pub now: OffsetDateTime,
}

/// Whom a job needs to be a deployer of its workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// On whose behalf it runs.
    Principal,
    /// Who opened it on somebody else's behalf.
    Opener,
}

/// What the job gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Which job.
    pub job: JobId,
    /// Where it runs.
    pub workspace: WorkspaceId,
    /// Which identity.
    pub identity: ManagedIdentityId,
    /// Whom the token is about.
    pub subject: String,
    /// Who is to accept the token.
    pub audience: String,
    /// What the job does.
    pub stage: Stage,
    /// How it is to be signed.
    pub algorithm: SigningAlgorithm,
    /// From when it is valid.
    pub issued: OffsetDateTime,
    /// Until when.
    pub expires: OffsetDateTime,
}

/// Why the job gets nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The job is over.
    #[error(transparent)]
    JobOver(Over),
    /// The job's principal has lost its role.
    #[error(
        "the principal on whose behalf the job runs is no deployer of the workspace; ask an owner of it for \
         that role"
    )]
    PrincipalNotMember,
    /// Who opened the job for that principal has lost its role.
    #[error(
        "who opened the job is no deployer of the workspace; ask an owner of it for that role, or have \
         somebody else open another job"
    )]
    OpenerNotMember,
    /// The workspace does not have the identity.
    #[error("the managed identity is not assigned to the job's workspace; assign it first")]
    NotAssigned,
    /// The workspace lies elsewhere.
    #[error("the managed identity is not inherited by the job's workspace")]
    NotInherited,
    /// It is hidden there.
    #[error("the mask {0} hides the managed identity from the job's workspace")]
    Masked(MaskId),
    /// Its access rules don't let the job have it.
    #[error("the managed identity's access rules refuse the job: {}", named(.0))]
    RulesRefused(BTreeSet<RuleType>),
}

fn named(types: &BTreeSet<RuleType>) -> String {
    let names: Vec<String> = types.iter().map(ToString::to_string).collect();
    names.join(", ")
}

/// What is checked, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The job is alive.
    Job,
    /// Its principal is a deployer of the workspace, and so is who opened it.
    Role,
    /// The workspace has the identity.
    Assignment,
    /// The workspace lies below the identity's group.
    Path,
    /// No mask hides the identity from the workspace.
    Mask,
    /// The identity's access rules let the job have it.
    Rules,
}

/// A check, and why it refuses, if it does.
pub type Finding = (Check, Option<Refusal>);

/// Every check that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusals {
    /// The one that the job is refused for.
    pub first: Refusal,
    /// Those behind it.
    pub others: Vec<Refusal>,
}

impl Refusals {
    /// Those among the findings. `None` if every check holds.
    #[must_use]
    pub fn among(findings: Vec<Finding>) -> Option<Self> {
        let mut refusals = findings.into_iter().filter_map(|(_, refusal)| refusal);
        refusals.next().map(|first| Self {
            first,
            others: refusals.collect(),
        })
    }

    /// In the order of the checks.
    pub fn all(&self) -> impl Iterator<Item = &Refusal> {
        [&self.first].into_iter().chain(&self.others)
    }
}

impl From<Refusal> for Refusals {
    fn from(first: Refusal) -> Self {
        let others = vec![];
        Self { first, others }
    }
}

/// The checks that come out the same for any identity.
#[must_use]
pub fn job_findings(
    job_life: &Life,
    without_role: Option<Party>,
    now: OffsetDateTime,
) -> Vec<Finding> {
    let role = without_role.map(|party| match party {
        Party::Principal => Refusal::PrincipalNotMember,
        Party::Opener => Refusal::OpenerNotMember,
    });
    vec![
        (Check::Job, job_life.over(now).map(Refusal::JobOver)),
        (Check::Role, role),
    ]
}

/// Each check.
#[must_use]
pub fn findings(question: &Question) -> Vec<Finding> {
    let refusing = &question.refusing;
    let mut findings = job_findings(&question.job_life, question.without_role, question.now);
    findings.extend([
        (
            Check::Assignment,
            (!question.assigned).then_some(Refusal::NotAssigned),
        ),
        (
            Check::Path,
            (!question.inherited).then_some(Refusal::NotInherited),
        ),
        (Check::Mask, question.masked.map(Refusal::Masked)),
        (
            Check::Rules,
            (!refusing.is_empty()).then(|| Refusal::RulesRefused(refusing.clone())),
        ),
    ]);
    findings
}

/// Decides: every check must hold.
pub fn decide(question: Question) -> Result<Grant, Refusals> {
    if let Some(refusals) = Refusals::among(findings(&question)) {
        return Err(refusals);
    }
    // Tokens count in whole seconds (RFC 7519, 2: NumericDate), and a job's end is one.
    let issued = question.now.replace_nanosecond(0).unwrap_or(question.now);
    let lifetime = Duration::seconds(question.token_settings.lifetime.seconds());
    Ok(Grant {
        subject: question
            .token_settings
            .subject_at(question.source, question.stage),
        job: question.job,
        workspace: question.workspace,
        identity: question.identity,
        audience: question.audience,
        stage: question.stage,
        algorithm: question.token_settings.algorithm,
        issued,
        expires: (issued + lifetime).min(question.job_life.expires),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::job::End;
    use model::token_settings::SubjectMode;
    use uuid::Uuid;

    const NOON: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn lives_until(expires: OffsetDateTime) -> Life {
        Life {
            expires,
            silent_after: None,
            end: None,
        }
    }

    fn question() -> Question {
        Question {
            job: JobId::from_uuid(Uuid::from_u128(1)),
            workspace: WorkspaceId::from_uuid(Uuid::from_u128(2)),
            job_life: lives_until(NOON + Duration::hours(1)),
            without_role: None,
            identity: ManagedIdentityId::from_uuid(Uuid::from_u128(3)),
            source: ManagedIdentityId::from_uuid(Uuid::from_u128(3)),
            assigned: true,
            inherited: true,
            masked: None,
            refusing: BTreeSet::new(),
            audience: "aws".to_owned(),
            stage: Stage::Plan,
            token_settings: TokenSettings::default(),
            now: NOON,
        }
    }

    #[test]
    fn a_token_lives_a_quarter_of_an_hour_and_never_past_its_job() {
        assert_eq!(
            decide(question()).map(|grant| grant.expires),
            Ok(NOON + Duration::minutes(15))
        );
        let near = NOON + Duration::minutes(3);
        assert_eq!(
            decide(Question {
                job_life: lives_until(near),
                ..question()
            })
            .map(|grant| grant.expires),
            Ok(near)
        );
    }

    #[test]
    fn a_token_is_as_the_identity_says() {
        let token_settings = TokenSettings {
            lifetime: TokenLifetime::LONGEST,
            subject: SubjectMode::IdentityAndStage,
            algorithm: SigningAlgorithm::Es256,
        };
        for stage in Stage::ALL {
            let asked = Question {
                stage,
                token_settings,
                ..question()
            };
            let grant = decide(asked).expect("granted");
            assert_eq!(grant.expires, NOON + MAX_LIFETIME);
            assert_eq!(grant.algorithm, SigningAlgorithm::Es256);
            assert_eq!(grant.subject, format!("{}:{stage}", grant.identity));
        }
        let grant = decide(question()).expect("granted");
        assert_eq!(grant.subject, grant.identity.to_string());
    }

    #[test]
    fn an_alias_has_the_subject_of_its_source() {
        let source = ManagedIdentityId::from_uuid(Uuid::from_u128(4));
        let grant = decide(Question {
            source,
            ..question()
        })
        .expect("granted");
        assert_eq!(grant.identity, question().identity);
        assert_eq!(grant.subject, source.to_string());
    }

    #[test]
    fn refusals() {
        let finished = Life {
            end: Some(End::Finished),
            ..question().job_life
        };
        assert_eq!(
            decide(Question {
                job_life: finished,
                ..question()
            }),
            Err(Refusal::JobOver(Over::Finished).into())
        );
        assert_eq!(
            decide(Question {
                without_role: Some(Party::Principal),
                ..question()
            }),
            Err(Refusal::PrincipalNotMember.into())
        );
        assert_eq!(
            decide(Question {
                without_role: Some(Party::Opener),
                ..question()
            }),
            Err(Refusal::OpenerNotMember.into())
        );
        assert_eq!(
            decide(Question {
                job_life: lives_until(NOON),
                ..question()
            }),
            Err(Refusal::JobOver(Over::Overdue).into())
        );
        assert_eq!(
            decide(Question {
                assigned: false,
                ..question()
            }),
            Err(Refusal::NotAssigned.into())
        );
        assert_eq!(
            decide(Question {
                inherited: false,
                ..question()
            }),
            Err(Refusal::NotInherited.into())
        );
        let mask = MaskId::from_uuid(Uuid::from_u128(9));
        assert_eq!(
            decide(Question {
                masked: Some(mask),
                ..question()
            }),
            Err(Refusal::Masked(mask).into())
        );
        let refusing = BTreeSet::from([RuleType::EligiblePrincipals]);
        assert_eq!(
            decide(Question {
                refusing: refusing.clone(),
                ..question()
            }),
            Err(Refusal::RulesRefused(refusing).into())
        );
    }

    #[test]
    fn every_check_that_does_not_hold_is_told() {
        let refused = decide(Question {
            without_role: Some(Party::Principal),
            assigned: false,
            inherited: false,
            ..question()
        });
        assert_eq!(
            refused,
            Err(Refusals {
                first: Refusal::PrincipalNotMember,
                others: vec![Refusal::NotAssigned, Refusal::NotInherited],
            })
        );
    }
}
