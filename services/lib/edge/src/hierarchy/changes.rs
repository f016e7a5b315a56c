//! What an event changes of the facts: the same for the owner of its log, and for who keeps a replica.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use eventlog::{Change, Fold, FoldError, Guard, RecordedEvent};
use model::token_settings::{InvalidTokenLifetime, SubjectMode, TokenLifetime};
use model::{Limit, Principal, Role, SigningAlgorithm, TokenSettings};
use prost::Message as _;
use proto::access::v1 as access;
use proto::{identity, namespace};
use sqlx::PgConnection;

use super::keys::{
    assignment_key, identity_audience_key, identity_configuration_key, identity_name_key,
    identity_type_key, limit_key, max_job_duration_key, member_key, name_key, node_key,
    service_account_name_key, team_name_key, token_settings_key, trust_key,
};
use crate::roles::team_of_key;
use crate::{access_rules, aliases, initial_assignments, masks};

/// An event names something in a way that no writer of ours does.
#[derive(Debug, thiserror::Error)]
pub enum MalformedEvent {
    /// The principal is missing or malformed.
    #[error("the event has no valid principal")]
    Principal,
    /// The role is missing.
    #[error("the event has no role")]
    Role,
    /// The configuration is missing.
    #[error("the event has no configuration")]
    Configuration,
    /// The token settings are out of bounds.
    #[error("the event has no valid token settings")]
    TokenSettings,
    /// The limit is none of ours, or its value is no value of it.
    #[error("the event has no valid limit")]
    Limit,
    /// The mask is malformed.
    #[error("the event has no valid mask")]
    Mask,
    /// The access rule is malformed.
    #[error("the event has no valid access rule")]
    AccessRule,
}

/// The role of a message.
#[must_use]
pub fn role(role: access::Role) -> Option<Role> {
    match role {
        access::Role::Unspecified => None,
        access::Role::Viewer => Some(Role::Viewer),
        access::Role::Deployer => Some(Role::Deployer),
        access::Role::Owner => Some(Role::Owner),
    }
}

/// The principal of a message.
#[must_use]
pub fn principal(principal: Option<&access::Principal>) -> Option<Principal> {
    match principal?.kind.as_ref()? {
        access::principal::Kind::User(user) => Principal::user(user).ok(),
        access::principal::Kind::Team(id) => id.parse().map(Principal::Team).ok(),
        access::principal::Kind::ServiceAccount(id) => {
            id.parse().map(Principal::ServiceAccount).ok()
        }
    }
}

/// A principal as messages have it: whom a membership or a rule may name.
#[must_use]
pub fn wire_principal(principal: &Principal) -> access::Principal {
    use access::principal::Kind;
    let kind = match principal {
        Principal::User { issuer, subject } => Some(Kind::User(format!("{issuer}/{subject}"))),
        Principal::Team(id) => Some(Kind::Team(id.to_string())),
        Principal::ServiceAccount(id) => Some(Kind::ServiceAccount(id.to_string())),
        // No request can name a job.
        Principal::Job(_) => None,
    };
    access::Principal { kind }
}

pub(crate) fn node(id: &str, parent: &str, name: &str) -> Change {
    (node_key(id), Some(format!("{parent}/{name}")))
}

fn max_job_duration(workspace: &str, duration: Option<&prost_types::Duration>) -> Change {
    let seconds = duration.map(|duration| duration.seconds.to_string());
    (max_job_duration_key(workspace), seconds)
}

fn team_of(team: &str, member: Option<&access::Principal>) -> Result<String, MalformedEvent> {
    principal(member)
        .map(|member| team_of_key(&member, team))
        .ok_or(MalformedEvent::Principal)
}

/// The facts that an event of the `namespace` log changes.
pub fn namespace_changes(event: &namespace::v1::Event) -> Result<Vec<Change>, MalformedEvent> {
    use namespace::v1::Event;
    let named = |id: &str, parent: &str, name: &str| {
        vec![
            node(id, parent, name),
            (name_key(parent, name), Some(id.to_owned())),
        ]
    };
    let gone = |id: &str, parent: &str, name: &str| {
        vec![(node_key(id), None), (name_key(parent, name), None)]
    };
    let moved = |id: &str, from: &str, to: &str, name: &str| {
        vec![
            node(id, to, name),
            (name_key(from, name), None),
            (name_key(to, name), Some(id.to_owned())),
        ]
    };
    let member = |namespace: &str, of: Option<&access::Principal>| {
        principal(of)
            .map(|principal| member_key(namespace, &principal))
            .ok_or(MalformedEvent::Principal)
    };
    let holds = |id: &str, held: access::Role| {
        role(held)
            .map(|role| Some(format!("{role}/{id}")))
            .ok_or(MalformedEvent::Role)
    };
    Ok(match event {
        Event::GroupCreated(event) => named(&event.group_id, &event.parent_id, &event.name),
        // One event for the subtree: what is below loses its way to the top, and so does not exist any more.
        Event::GroupDeleted(event) => gone(&event.group_id, &event.parent_id, &event.name),
        // One event for the subtree here too: only the way up from the group itself is another.
        Event::GroupMoved(event) => moved(
            &event.group_id,
            &event.old_parent_id,
            &event.new_parent_id,
            &event.name,
        ),
        Event::GroupUpdated(_) | Event::TeamUpdated(_) => vec![],
        Event::WorkspaceCreated(event) => {
            let mut changes = named(&event.workspace_id, &event.group_id, &event.name);
            changes.push(max_job_duration(
                &event.workspace_id,
                event.max_job_duration.as_ref(),
            ));
            changes.extend(initial_assignments::are_requested(event));
            changes
        }
        Event::WorkspaceMoved(event) => moved(
            &event.workspace_id,
            &event.old_group_id,
            &event.new_group_id,
            &event.name,
        ),
        Event::WorkspaceUpdated(event) => {
            vec![max_job_duration(
                &event.workspace_id,
                event.max_job_duration.as_ref(),
            )]
        }
        Event::WorkspaceDeleted(event) => {
            let mut changes = gone(&event.workspace_id, &event.group_id, &event.name);
            changes.push(max_job_duration(&event.workspace_id, None));
            changes.extend(initial_assignments::are_forgotten(&event.workspace_id));
            changes
        }
        Event::LimitChanged(event) => {
            let limit: Limit = event.limit_id.parse().map_err(|_| MalformedEvent::Limit)?;
            vec![(limit_key(limit), Some(event.value.to_string()))]
        }
        Event::MembershipCreated(event) => vec![
            node(&event.membership_id, &event.namespace_id, ""),
            (
                member(&event.namespace_id, event.principal.as_ref())?,
                holds(&event.membership_id, event.role())?,
            ),
        ],
        Event::MembershipUpdated(event) => vec![(
            member(&event.namespace_id, event.principal.as_ref())?,
            holds(&event.membership_id, event.role())?,
        )],
        Event::MembershipDeleted(event) => vec![
            (node_key(&event.membership_id), None),
            (member(&event.namespace_id, event.principal.as_ref())?, None),
        ],
        Event::TeamCreated(event) => vec![
            node(&event.team_id, "", &event.name),
            (team_name_key(&event.name), Some(event.team_id.clone())),
        ],
        Event::TeamDeleted(event) => vec![
            (node_key(&event.team_id), None),
            (team_name_key(&event.name), None),
        ],
        Event::TeamMemberAdded(event) => vec![(
            team_of(&event.team_id, event.member.as_ref())?,
            Some(String::new()),
        )],
        Event::TeamMemberRemoved(event) => {
            vec![(team_of(&event.team_id, event.member.as_ref())?, None)]
        }
    })
}

/// The facts that an event of the `identity` log changes.
pub fn identity_changes(event: &identity::v1::Event) -> Result<Vec<Change>, MalformedEvent> {
    use identity::v1::Event;
    Ok(match event {
        Event::ManagedIdentityCreated(event) => vec![
            node(&event.managed_identity_id, &event.group_id, &event.name),
            (
                identity_name_key(&event.group_id, &event.name),
                Some(event.managed_identity_id.clone()),
            ),
            (
                identity_type_key(&event.managed_identity_id),
                Some(identity_type(event.configuration.as_ref())?.to_owned()),
            ),
            audience(&event.managed_identity_id, event.configuration.as_ref()),
            configuration(&event.managed_identity_id, event.configuration.as_ref()),
            tokens(&event.managed_identity_id, event.token_settings.as_ref())?,
        ],
        Event::ManagedIdentityUpdated(event) => vec![
            audience(&event.managed_identity_id, event.configuration.as_ref()),
            configuration(&event.managed_identity_id, event.configuration.as_ref()),
            tokens(&event.managed_identity_id, event.token_settings.as_ref())?,
        ],
        Event::ManagedIdentityMoved(event) => vec![
            node(&event.managed_identity_id, &event.new_group_id, &event.name),
            (identity_name_key(&event.old_group_id, &event.name), None),
            (
                identity_name_key(&event.new_group_id, &event.name),
                Some(event.managed_identity_id.clone()),
            ),
        ],
        Event::ManagedIdentityDeleted(event) => vec![
            (node_key(&event.managed_identity_id), None),
            (identity_name_key(&event.group_id, &event.name), None),
            (identity_type_key(&event.managed_identity_id), None),
            (identity_audience_key(&event.managed_identity_id), None),
            (identity_configuration_key(&event.managed_identity_id), None),
            (token_settings_key(&event.managed_identity_id), None),
        ],
        Event::ManagedIdentityAliasCreated(event) => aliases::is_made(event),
        Event::ManagedIdentityAliasDeleted(event) => aliases::is_gone(event),
        Event::InitialAssignmentsDecided(event) => vec![initial_assignments::are_decided(event)],
        Event::ManagedIdentityAssigned(event) => {
            vec![(
                assignment_key(&event.workspace_id, &event.managed_identity_id),
                Some(String::new()),
            )]
        }
        Event::ServiceAccountCreated(event) => vec![
            node(&event.service_account_id, &event.group_id, &event.name),
            (
                service_account_name_key(&event.group_id, &event.name),
                Some(event.service_account_id.clone()),
            ),
            trusted(&event.service_account_id, &event.trust_policies),
        ],
        Event::ServiceAccountUpdated(event) => {
            vec![trusted(&event.service_account_id, &event.trust_policies)]
        }
        Event::ServiceAccountDeleted(event) => vec![
            (node_key(&event.service_account_id), None),
            (service_account_name_key(&event.group_id, &event.name), None),
            (trust_key(&event.service_account_id), None),
        ],
        Event::ManagedIdentityUnassigned(event) => {
            vec![(
                assignment_key(&event.workspace_id, &event.managed_identity_id),
                None,
            )]
        }
        Event::MaskCreated(event) => masks::is_made(event)?,
        Event::MaskDeleted(event) => masks::is_gone(event),
        Event::AccessRuleCreated(event) => {
            let (identity, id) = (&event.managed_identity_id, &event.access_rule_id);
            let rule = access_rules::created(event);
            let mut changes = access_rules::is_now(identity, id, rule, event.revision)?;
            changes.push(node(id, identity, ""));
            changes
        }
        Event::AccessRuleUpdated(event) => access_rules::is_now(
            &event.managed_identity_id,
            &event.access_rule_id,
            access_rules::updated(event),
            event.revision,
        )?,
        Event::AccessRuleDeleted(event) => {
            let (identity, id) = (&event.managed_identity_id, &event.access_rule_id);
            let mut changes = access_rules::is_gone(identity, id, event.revision);
            changes.push((node_key(id), None));
            changes
        }
    })
}

/// The words for the types that there are.
pub const IDENTITY_TYPES: [&str; 5] = ["aws", "azure", "google", "kubernetes", "tharsis"];

/// The word for a managed identity's type, one of [`IDENTITY_TYPES`].
pub fn identity_type(
    configuration: Option<&identity::v1::Configuration>,
) -> Result<&'static str, MalformedEvent> {
    use identity::v1::configuration::Type;
    match configuration.and_then(|configuration| configuration.r#type.as_ref()) {
        Some(Type::Aws(_)) => Ok("aws"),
        Some(Type::Azure(_)) => Ok("azure"),
        Some(Type::Google(_)) => Ok("google"),
        Some(Type::Kubernetes(_)) => Ok("kubernetes"),
        Some(Type::Tharsis(_)) => Ok("tharsis"),
        None => Err(MalformedEvent::Configuration),
    }
}

fn audience(id: &str, configuration: Option<&identity::v1::Configuration>) -> Change {
    (identity_audience_key(id), identity_audience(configuration))
}

/// What the cloud expects as audience, where that is not the type's word. Google's is the one that a provider takes by
/// default (<https://cloud.google.com/iam/docs/workload-identity-federation-with-other-providers>).
#[must_use]
pub fn identity_audience(configuration: Option<&identity::v1::Configuration>) -> Option<String> {
    use identity::v1::configuration::Type;
    let given = configuration.and_then(|configuration| configuration.r#type.as_ref());
    given.and_then(|given| match given {
        Type::Aws(_) | Type::Tharsis(_) => None,
        Type::Azure(azure) => Some(azure.audience.clone()),
        Type::Google(google) => Some(format!(
            "https://iam.googleapis.com/{}",
            google.workload_identity_provider
        )),
        Type::Kubernetes(kubernetes) => Some(kubernetes.audience.clone()),
    })
}

fn tokens(id: &str, given: Option<&identity::v1::TokenSettings>) -> Result<Change, MalformedEvent> {
    let settings = token_settings(given).map_err(|_| MalformedEvent::TokenSettings)?;
    let told = (settings != TokenSettings::default()).then(|| settings.to_string());
    Ok((token_settings_key(id), told))
}

/// What a message says of tokens; the default, where it says nothing.
pub fn token_settings(
    given: Option<&identity::v1::TokenSettings>,
) -> Result<TokenSettings, InvalidTokenLifetime> {
    use identity::v1::SubjectMode as Mode;
    let Some(given) = given else {
        return Ok(TokenSettings::default());
    };
    let lifetime = match given.lifetime {
        None => TokenLifetime::default(),
        Some(lifetime) if lifetime.nanos == 0 => TokenLifetime::from_seconds(lifetime.seconds)?,
        Some(_) => return Err(InvalidTokenLifetime),
    };
    let subject = match given.subject_mode() {
        Mode::Unspecified | Mode::Identity => SubjectMode::Identity,
        Mode::IdentityAndStage => SubjectMode::IdentityAndStage,
    };
    let algorithm = match given.signing_algorithm() {
        identity::v1::SigningAlgorithm::Unspecified | identity::v1::SigningAlgorithm::Rs256 => {
            SigningAlgorithm::Rs256
        }
        identity::v1::SigningAlgorithm::Es256 => SigningAlgorithm::Es256,
    };
    Ok(TokenSettings {
        lifetime,
        subject,
        algorithm,
    })
}

fn configuration(id: &str, configuration: Option<&identity::v1::Configuration>) -> Change {
    let encoded = configuration.map(|given| STANDARD_NO_PAD.encode(given.encode_to_vec()));
    (identity_configuration_key(id), encoded)
}

fn trusted(id: &str, policies: &[identity::v1::TrustPolicy]) -> Change {
    let account = identity::v1::ServiceAccount {
        trust_policies: policies.to_vec(),
        ..Default::default()
    };
    let encoded = STANDARD_NO_PAD.encode(account.encode_to_vec());
    (trust_key(id), Some(encoded))
}

/// The changes as guards of the append that writes the event.
pub fn sets(changes: Vec<Change>) -> impl Iterator<Item = Guard> {
    changes
        .into_iter()
        .map(|(key, value)| Guard::Set { key, value })
}

/// The changes that recorded events make, by the log that they are of.
pub fn changes(log: &str, events: &[RecordedEvent]) -> Result<Vec<Change>, FoldError> {
    let mut all = Vec::new();
    for event in events {
        let inapplicable =
            |reason: Box<dyn std::error::Error + Send + Sync>| FoldError::Inapplicable {
                position: event.position,
                reason,
            };
        let (event_type, payload) = (event.event_type.as_str(), event.payload.as_ref());
        let changes = match log {
            "namespace" => namespace::v1::Event::decode(event_type, payload)
                .map_err(|error| inapplicable(error.into()))
                .and_then(|event| {
                    namespace_changes(&event).map_err(|error| inapplicable(error.into()))
                }),
            "identity" => identity::v1::Event::decode(event_type, payload)
                .map_err(|error| inapplicable(error.into()))
                .and_then(|event| {
                    identity_changes(&event).map_err(|error| inapplicable(error.into()))
                }),
            _ => Ok(vec![]),
        };
        all.append(&mut changes?);
    }
    Ok(all)
}

/// Keeps a replica of other services' facts.
pub struct Replica;

impl Fold for Replica {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        Ok(eventlog::replicate_facts(connection, log, &changes(log, events)?).await?)
    }
}
