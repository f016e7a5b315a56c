//! Between the domain and the wire: requests into commands, events and resources into messages.

pub(crate) mod access_rule;
pub(crate) mod mask;
pub(crate) mod service_account;

use edge::hierarchy::token_settings;
use edge::naming;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::token_settings::SubjectMode;
use model::{Description, Kind, Name, Reference, SigningAlgorithm, TokenSettings};
use proto::EventError;
use proto::identity::v1::{self as pb, Event, configuration::Type};
use tonic::Status;

use crate::domain::access_rules::MAX_RULES;
use crate::domain::alias::Alias;
use crate::domain::managed_identity::{Configuration, ManagedIdentity};
use crate::domain::{assignment, managed_identity};

/// A recorded event of ours does not read as one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unreadable {
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("the event's {0} is malformed")]
    Field(&'static str),
    #[error("the event {0} is of another aggregate")]
    Foreign(String),
}

fn parse<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<T, Unreadable> {
    text.parse().map_err(|_| Unreadable::Field(field))
}

pub(crate) fn read_identity(
    recorded: &RecordedEvent,
) -> Result<managed_identity::Event, Unreadable> {
    let configuration = |configuration: Option<pb::Configuration>| {
        configuration
            .and_then(|configuration| read_configuration(&configuration.r#type?).ok())
            .ok_or(Unreadable::Field("configuration"))
    };
    let tokens = |given: Option<pb::TokenSettings>| {
        token_settings(given.as_ref()).map_err(|_| Unreadable::Field("token settings"))
    };
    match Event::decode(&recorded.event_type, &recorded.payload)? {
        Event::ManagedIdentityCreated(event) => {
            Ok(managed_identity::Event::Created(ManagedIdentity {
                id: parse("managed identity id", &event.managed_identity_id)?,
                group: parse("group id", &event.group_id)?,
                name: parse("name", &event.name)?,
                description: parse("description", &event.description)?,
                configuration: configuration(event.configuration)?,
                token_settings: tokens(event.token_settings)?,
            }))
        }
        Event::ManagedIdentityUpdated(event) => Ok(managed_identity::Event::Updated {
            id: parse("managed identity id", &event.managed_identity_id)?,
            description: parse("description", &event.description)?,
            configuration: configuration(event.configuration)?,
            token_settings: tokens(event.token_settings)?,
        }),
        Event::ManagedIdentityMoved(event) => Ok(managed_identity::Event::Moved {
            id: parse("managed identity id", &event.managed_identity_id)?,
            from: parse("old group id", &event.old_group_id)?,
            to: parse("new group id", &event.new_group_id)?,
            name: parse("name", &event.name)?,
        }),
        Event::ManagedIdentityDeleted(event) => Ok(managed_identity::Event::Deleted {
            id: parse("managed identity id", &event.managed_identity_id)?,
            group: parse("group id", &event.group_id)?,
            name: parse("name", &event.name)?,
        }),
        Event::ManagedIdentityAliasCreated(event) => Ok(managed_identity::Event::AliasCreated(
            Alias {
                id: parse("managed identity id", &event.managed_identity_id)?,
                group: parse("group id", &event.group_id)?,
                name: parse("name", &event.name)?,
                source: parse("source id", &event.source_id)?,
            },
            event.r#type,
        )),
        Event::ManagedIdentityAliasDeleted(event) => {
            Ok(managed_identity::Event::AliasDeleted(Alias {
                id: parse("managed identity id", &event.managed_identity_id)?,
                group: parse("group id", &event.group_id)?,
                name: parse("name", &event.name)?,
                source: parse("source id", &event.source_id)?,
            }))
        }
        event => Err(Unreadable::Foreign(event.event_type().to_owned())),
    }
}

pub(crate) fn write_identity(event: &managed_identity::Event) -> Event {
    match event {
        managed_identity::Event::Created(identity) => {
            Event::ManagedIdentityCreated(pb::ManagedIdentityCreated {
                managed_identity_id: identity.id.to_string(),
                group_id: identity.group.to_string(),
                name: identity.name.to_string(),
                description: identity.description.to_string(),
                configuration: Some(write_configuration(&identity.configuration)),
                token_settings: Some(write_token_settings(identity.token_settings)),
            })
        }
        managed_identity::Event::Updated {
            id,
            description,
            configuration,
            token_settings,
        } => Event::ManagedIdentityUpdated(pb::ManagedIdentityUpdated {
            managed_identity_id: id.to_string(),
            description: description.to_string(),
            configuration: Some(write_configuration(configuration)),
            token_settings: Some(write_token_settings(*token_settings)),
        }),
        managed_identity::Event::Moved { id, from, to, name } => {
            Event::ManagedIdentityMoved(pb::ManagedIdentityMoved {
                managed_identity_id: id.to_string(),
                old_group_id: from.to_string(),
                new_group_id: to.to_string(),
                name: name.to_string(),
            })
        }
        managed_identity::Event::Deleted { id, group, name } => {
            Event::ManagedIdentityDeleted(pb::ManagedIdentityDeleted {
                managed_identity_id: id.to_string(),
                group_id: group.to_string(),
                name: name.to_string(),
            })
        }
        managed_identity::Event::AliasCreated(alias, identity_type) => {
            Event::ManagedIdentityAliasCreated(pb::ManagedIdentityAliasCreated {
                managed_identity_id: alias.id.to_string(),
                group_id: alias.group.to_string(),
                name: alias.name.to_string(),
                source_id: alias.source.to_string(),
                r#type: identity_type.clone(),
            })
        }
        managed_identity::Event::AliasDeleted(alias) => {
            Event::ManagedIdentityAliasDeleted(pb::ManagedIdentityAliasDeleted {
                managed_identity_id: alias.id.to_string(),
                group_id: alias.group.to_string(),
                name: alias.name.to_string(),
                source_id: alias.source.to_string(),
            })
        }
    }
}

pub(crate) fn read_assignment(recorded: &RecordedEvent) -> Result<assignment::Event, Unreadable> {
    match Event::decode(&recorded.event_type, &recorded.payload)? {
        Event::ManagedIdentityAssigned(event) => Ok(assignment::Event::Assigned(
            parse("workspace id", &event.workspace_id)?,
            parse("managed identity id", &event.managed_identity_id)?,
        )),
        Event::ManagedIdentityUnassigned(event) => Ok(assignment::Event::Unassigned(
            parse("workspace id", &event.workspace_id)?,
            parse("managed identity id", &event.managed_identity_id)?,
        )),
        Event::InitialAssignmentsDecided(event) => Ok(assignment::Event::Begun(
            parse("workspace id", &event.workspace_id)?,
            event
                .outcomes
                .into_iter()
                .map(read_outcome)
                .collect::<Result<_, _>>()?,
        )),
        event => Err(Unreadable::Foreign(event.event_type().to_owned())),
    }
}

fn read_outcome(outcome: pb::InitialAssignmentOutcome) -> Result<assignment::Outcome, Unreadable> {
    let assigned = if outcome.managed_identity_id.is_empty() {
        Err(assignment::Refusal {
            reason: outcome.reason,
            message: outcome.message,
        })
    } else {
        Ok(parse("managed identity id", &outcome.managed_identity_id)?)
    };
    Ok(assignment::Outcome {
        named: outcome.managed_identity,
        assigned,
    })
}

fn outcome_message(outcome: &assignment::Outcome) -> pb::InitialAssignmentOutcome {
    let named = pb::InitialAssignmentOutcome {
        managed_identity: outcome.named.clone(),
        ..Default::default()
    };
    match &outcome.assigned {
        Ok(identity) => pb::InitialAssignmentOutcome {
            managed_identity_id: identity.to_string(),
            ..named
        },
        Err(refusal) => pb::InitialAssignmentOutcome {
            reason: refusal.reason.clone(),
            message: refusal.message.clone(),
            ..named
        },
    }
}

pub(crate) fn write_assignment(event: &assignment::Event) -> Event {
    match event {
        assignment::Event::Assigned(workspace, identity) => {
            Event::ManagedIdentityAssigned(pb::ManagedIdentityAssigned {
                workspace_id: workspace.to_string(),
                managed_identity_id: identity.to_string(),
            })
        }
        assignment::Event::Unassigned(workspace, identity) => {
            Event::ManagedIdentityUnassigned(pb::ManagedIdentityUnassigned {
                workspace_id: workspace.to_string(),
                managed_identity_id: identity.to_string(),
            })
        }
        assignment::Event::Begun(workspace, outcomes) => {
            Event::InitialAssignmentsDecided(pb::InitialAssignmentsDecided {
                workspace_id: workspace.to_string(),
                outcomes: outcomes.iter().map(outcome_message).collect(),
            })
        }
    }
}

fn read_configuration(configuration: &Type) -> Result<Configuration, Violations> {
    let mut violations = Violations::default();
    match configuration {
        Type::Aws(aws) => {
            let role = violations.check("aws.role_arn", aws.role_arn.parse());
            violations.finish(|| Some(Configuration::Aws { role: role? }))
        }
        Type::Azure(azure) => {
            let client = violations.check("azure.client_id", azure.client_id.parse());
            let tenant = violations.check("azure.tenant_id", azure.tenant_id.parse());
            let audience = violations.check("azure.audience", azure.audience.parse());
            violations.finish(|| {
                Some(Configuration::Azure {
                    client: client?,
                    tenant: tenant?,
                    audience: audience?,
                })
            })
        }
        Type::Google(google) => {
            let provider = violations.check(
                "google.workload_identity_provider",
                google.workload_identity_provider.parse(),
            );
            let service_account = match google.service_account.as_str() {
                "" => None,
                email => violations.check("google.service_account", email.parse()),
            };
            violations.finish(|| {
                Some(Configuration::Google {
                    provider: provider?,
                    service_account,
                })
            })
        }
        Type::Tharsis(tharsis) => {
            let account = tharsis.service_account_id.parse();
            let account = violations.check(ACCOUNT, account);
            violations.finish(|| Some(Configuration::Tharsis { account: account? }))
        }
        Type::Kubernetes(kubernetes) => {
            let audience = violations.check("kubernetes.audience", kubernetes.audience.parse());
            violations.finish(|| {
                Some(Configuration::Kubernetes {
                    audience: audience?,
                })
            })
        }
    }
}

pub(crate) fn write_configuration(configuration: &Configuration) -> pb::Configuration {
    let configuration = match configuration {
        Configuration::Aws { role } => Type::Aws(pb::AwsConfiguration {
            role_arn: role.to_string(),
        }),
        Configuration::Azure {
            client,
            tenant,
            audience,
        } => Type::Azure(pb::AzureConfiguration {
            client_id: client.to_string(),
            tenant_id: tenant.to_string(),
            audience: audience.to_string(),
        }),
        Configuration::Google {
            provider,
            service_account,
        } => Type::Google(pb::GoogleConfiguration {
            workload_identity_provider: provider.to_string(),
            service_account: service_account
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        }),
        Configuration::Kubernetes { audience } => Type::Kubernetes(pb::KubernetesConfiguration {
            audience: audience.to_string(),
        }),
        Configuration::Tharsis { account } => Type::Tharsis(pb::TharsisConfiguration {
            service_account_id: account.to_string(),
        }),
    };
    pb::Configuration {
        r#type: Some(configuration),
    }
}

fn write_token_settings(settings: TokenSettings) -> pb::TokenSettings {
    let mode = match settings.subject {
        SubjectMode::Identity => pb::SubjectMode::Identity,
        SubjectMode::IdentityAndStage => pb::SubjectMode::IdentityAndStage,
    };
    let lifetime = prost_types::Duration {
        seconds: settings.lifetime.seconds(),
        nanos: 0,
    };
    let algorithm = match settings.algorithm {
        SigningAlgorithm::Rs256 => pb::SigningAlgorithm::Rs256,
        SigningAlgorithm::Es256 => pb::SigningAlgorithm::Es256,
    };
    pb::TokenSettings {
        lifetime: Some(lifetime),
        subject_mode: mode.into(),
        signing_algorithm: algorithm.into(),
    }
}

/// What a request says of the tokens; the default, where it says nothing.
pub(crate) fn wanted_tokens(
    identity: &pb::ManagedIdentity,
    violations: &mut Violations,
) -> Option<TokenSettings> {
    const FIELD: &str = "managed_identity.token_settings";
    let given = identity.token_settings.as_ref();
    let mode = given.map(|given| pb::SubjectMode::try_from(given.subject_mode));
    if matches!(mode, Some(Err(_))) {
        let wrong = "must be a known mode, or not set";
        violations.add(&format!("{FIELD}.subject_mode"), wrong);
    }
    let algorithm = given.map(|given| pb::SigningAlgorithm::try_from(given.signing_algorithm));
    if matches!(algorithm, Some(Err(_))) {
        let wrong = "must be a known algorithm, or not set";
        violations.add(&format!("{FIELD}.signing_algorithm"), wrong);
    }
    violations.check(&format!("{FIELD}.lifetime"), token_settings(given))
}

/// Where a configuration names its service account.
const ACCOUNT: &str = "tharsis.service_account_id";

/// A configuration as a request gives it.
#[derive(Clone, Debug)]
pub(crate) enum Given {
    /// All of it.
    Complete(Configuration),
    /// A service account, and how the request names it: where it is has to be looked up.
    OfAccount(Reference, String),
}

/// The configuration that a request gives.
pub(crate) fn configuration(
    identity: &pb::ManagedIdentity,
    violations: &mut Violations,
) -> Option<Given> {
    const FIELD: &str = "managed_identity.configuration";
    let given = identity.configuration.as_ref();
    let Some(given) = given.and_then(|configuration| configuration.r#type.as_ref()) else {
        violations.add(
            FIELD,
            "must be set, to one of: aws, azure, google, kubernetes, tharsis",
        );
        return None;
    };
    violations.nested(
        FIELD,
        match given {
            Type::Tharsis(tharsis) => account(&tharsis.service_account_id),
            given => read_configuration(given).map(Given::Complete),
        },
    )
}

fn account(named: &str) -> Result<Given, Violations> {
    let reference = naming::reference(ACCOUNT, named)?;
    if reference.kind() == Kind::ServiceAccount {
        Ok(Given::OfAccount(reference, named.to_owned()))
    } else {
        Err(Violations::of(ACCOUNT, "must name a service account"))
    }
}

/// What a request says of an identity to be made.
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) description: Description,
    pub(crate) configuration: Given,
    pub(crate) token_settings: TokenSettings,
}

fn wanted(identity: &pb::ManagedIdentity) -> Result<Wanted, Violations> {
    let mut violations = Violations::default();
    let name = violations.check("managed_identity.name", identity.name.parse());
    let description =
        violations.check("managed_identity.description", identity.description.parse());
    let configuration = configuration(identity, &mut violations);
    let token_settings = wanted_tokens(identity, &mut violations);
    violations.finish(|| {
        Some(Wanted {
            name: name?,
            description: description?,
            configuration: configuration?,
            token_settings: token_settings?,
        })
    })
}

/// What a request says of an identity to be made, and of the rules that it has from the beginning.
pub(crate) fn wanted_with_rules(
    identity: &pb::ManagedIdentity,
    rules: &[pb::AccessRule],
) -> Result<(Wanted, Vec<access_rule::Asked>), Status> {
    const FIELD: &str = "access_rules";
    let mut violations = Violations::default();
    let identity = violations.merge(wanted(identity));
    if rules.len() > MAX_RULES {
        violations.add(FIELD, format!("must be at most {MAX_RULES}"));
    }
    let mut checked = Vec::new();
    for (index, rule) in rules.iter().enumerate().take(MAX_RULES) {
        let rule = access_rule::asked(rule);
        checked.extend(violations.nested(&format!("{FIELD}[{index}]"), rule));
    }
    Ok(violations.finish(|| Some((identity?, checked)))?)
}

/// An identity as callers see it. Times and etag are filled in by whoever knows them.
pub(crate) fn message(group_path: &str, identity: &ManagedIdentity) -> pb::ManagedIdentity {
    pb::ManagedIdentity {
        id: identity.id.to_string(),
        trn: format!("trn:managed_identity:{group_path}/{}", identity.name),
        group_id: identity.group.to_string(),
        name: identity.name.to_string(),
        description: identity.description.to_string(),
        configuration: Some(write_configuration(&identity.configuration)),
        token_settings: Some(write_token_settings(identity.token_settings)),
        ..pb::ManagedIdentity::default()
    }
}

/// The same of an alias, by what its source is like.
pub(crate) fn alias_message(
    group_path: &str,
    alias: &Alias,
    source: &ManagedIdentity,
) -> pb::ManagedIdentity {
    let presented = ManagedIdentity {
        id: alias.id,
        group: alias.group,
        name: alias.name.clone(),
        ..source.clone()
    };
    pb::ManagedIdentity {
        alias_source_id: alias.source.to_string(),
        ..message(group_path, &presented)
    }
}
