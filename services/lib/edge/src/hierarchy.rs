//! The hierarchy as facts: what is above what, what it is called, who has which role where.
//!
//! One scheme of keys for the service that owns a thing, which writes its facts in the append's own transaction, and
//! for those that keep a replica, which write the same facts from the same events. So both decide alike.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use eventlog::{Change, Fold, FoldError, Guard, RecordedEvent};
use model::token_settings::{InvalidTokenLifetime, SubjectMode, TokenLifetime};
use model::trust::TrustPolicy;
use model::{
    Kind, Limit, Principal, Reference, ResourceId, Role, SigningAlgorithm, TeamId, TokenSettings,
    Trn, trn::Last,
};
use prost::Message as _;
use proto::access::v1 as access;
use proto::{identity, namespace};
use sqlx::{PgConnection, PgPool};

use crate::roles::{Found, Grant, team_of_key, teams_of};
use crate::{access_rules, aliases, initial_assignments, masks, trust};

/// The key of what stands above a resource, and its name: `<parent id>/<name>`. A thing without it does not exist.
#[must_use]
pub fn node_key(id: impl std::fmt::Display) -> String {
    format!("node/{id}")
}

/// The key of the group or workspace of a name in a group; at the top, the parent is empty.
#[must_use]
pub fn name_key(parent: &str, name: &str) -> String {
    format!("name/{parent}/{name}")
}

/// The key of the managed identity of a name in a group.
#[must_use]
pub fn identity_name_key(group: &str, name: &str) -> String {
    format!("identity-name/{group}/{name}")
}

/// The key of the service account of a name in a group.
#[must_use]
pub fn service_account_name_key(group: &str, name: &str) -> String {
    format!("{SERVICE_ACCOUNT_NAMES}{group}/{name}")
}

/// Whether a fact says that a service account exists, or what it is called.
#[must_use]
pub fn is_of_service_accounts(key: &str) -> bool {
    key.starts_with("node/sa_") || key.starts_with(SERVICE_ACCOUNT_NAMES)
}

/// The key of the team of a name. Teams belong to no group.
#[must_use]
pub fn team_name_key(name: &str) -> String {
    format!("{TEAM_NAME}/{name}")
}

/// The key of a principal's membership in a group or workspace: `<role>/<membership id>`.
#[must_use]
pub fn member_key(namespace: impl std::fmt::Display, principal: &Principal) -> String {
    format!("member/{namespace}/{principal}")
}

/// The key of a managed identity's type: `aws`.
#[must_use]
pub fn identity_type_key(id: impl std::fmt::Display) -> String {
    format!("{IDENTITY_TYPE}{id}")
}

/// The key of the audience that a managed identity's cloud expects, where that is not its type's word.
#[must_use]
pub fn identity_audience_key(id: impl std::fmt::Display) -> String {
    format!("identity-audience/{id}")
}

/// The key of what a managed identity's tokens are like, where that is not the default.
#[must_use]
pub fn token_settings_key(id: impl std::fmt::Display) -> String {
    format!("token-settings/{id}")
}

/// The key of a managed identity's configuration: the message, encoded, in base64.
#[must_use]
pub fn identity_configuration_key(id: impl std::fmt::Display) -> String {
    format!("identity-configuration/{id}")
}

/// The configuration that such a fact holds. `None` if it is not one.
#[must_use]
pub fn read_configuration(fact: &str) -> Option<identity::v1::Configuration> {
    let encoded = STANDARD_NO_PAD.decode(fact).ok()?;
    identity::v1::Configuration::decode(encoded.as_slice()).ok()
}

/// The key of which tokens a service account trusts: a message with its policies, encoded, in base64.
#[must_use]
pub fn trust_key(id: impl std::fmt::Display) -> String {
    format!("trust/{id}")
}

/// The policies that such a fact holds. `None` if it is not one.
#[must_use]
pub fn read_trust(fact: &str) -> Option<Vec<TrustPolicy>> {
    let encoded = STANDARD_NO_PAD.decode(fact).ok()?;
    let account = identity::v1::ServiceAccount::decode(encoded.as_slice()).ok()?;
    trust::policies(&account.trust_policies)
}

/// The key that says that a managed identity is assigned to a workspace.
#[must_use]
pub fn assignment_key(
    workspace: impl std::fmt::Display,
    identity: impl std::fmt::Display,
) -> String {
    format!("assignment/{workspace}/{identity}")
}

/// The key of a limit that is not its default any more.
#[must_use]
pub fn limit_key(limit: Limit) -> String {
    format!("limit/{limit}")
}

/// The key of how long the jobs of a workspace may live at most, where the workspace says so: seconds.
#[must_use]
pub fn max_job_duration_key(workspace: impl std::fmt::Display) -> String {
    format!("max-job-duration/{workspace}")
}

/// The keys of the types of managed identities start so.
pub const IDENTITY_TYPE: &str = "identity-type/";
/// The keys of everything assigned start so, followed by the workspace.
pub const ASSIGNMENTS: &str = "assignment/";
/// The keys of the names of managed identities start so, followed by the group.
pub const IDENTITY_NAMES: &str = "identity-name/";
/// The keys of the names of service accounts start so, followed by the group.
pub const SERVICE_ACCOUNT_NAMES: &str = "service-account-name/";
/// The keys of the members of everything start so, followed by the group or workspace.
pub const MEMBERS: &str = "member/";
const TEAM_NAME: &str = "team-name/";

/// Whether a fact is of those that a [`Hierarchy`] is read from.
#[must_use]
pub fn is_of_the_hierarchy(key: &str) -> bool {
    [
        "node/",
        "name/",
        "identity-name/",
        SERVICE_ACCOUNT_NAMES,
        TEAM_NAME,
        "member/",
        "team-of/",
    ]
    .iter()
    .any(|prefix| key.starts_with(prefix))
}

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

/// A resource that exists, with everything above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The resource itself first, then what is above it, to the top.
    pub nodes: Vec<Node>,
    /// The asking principal's role here: the highest of the nearest memberships of it and of its teams.
    pub role: Option<Role>,
    /// What that role rests on: the fact of that membership, that nothing nearer overrules it, and that the principal
    /// is in the team that has it. Nothing for a role that the configuration gives.
    pub granted_by: Vec<(String, Option<String>)>,
    /// The memberships that count here, the one that gives the role first.
    pub grants: Vec<Grant>,
}

/// A resource in a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Its id.
    pub id: ResourceId,
    /// Its name; empty for what has none.
    pub name: String,
}

impl Place {
    /// The resource itself.
    #[must_use]
    pub fn id(&self) -> ResourceId {
        self.nodes[0].id
    }

    /// The names from the top, joined by `/`.
    #[must_use]
    pub fn path(&self) -> String {
        self.path_of(0)
    }

    /// The same of one of the nodes.
    #[must_use]
    pub fn path_of(&self, node: usize) -> String {
        let names: Vec<&str> = self
            .nodes
            .iter()
            .skip(node)
            .rev()
            .map(|node| node.name.as_str())
            .filter(|name| !name.is_empty())
            .collect();
        names.join("/")
    }

    /// What the principal may know of it: its path, or without a role here its id alone.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.role.is_some() {
            self.path()
        } else {
            self.id().to_string()
        }
    }

    /// The name that people give it.
    #[must_use]
    pub fn trn(&self) -> String {
        match self.id().kind() {
            kind @ (Kind::Membership
            | Kind::Job
            | Kind::SigningKey
            | Kind::AccessRule
            | Kind::Mask) => {
                format!("trn:{kind}:{}/{}", self.path(), self.id())
            }
            kind => format!("trn:{kind}:{}", self.path()),
        }
    }

    /// Of the group right above, or of the workspace.
    #[must_use]
    pub fn parent(&self) -> Option<ResourceId> {
        self.nodes.get(1).map(|node| node.id)
    }

    /// The place right above, with the role that the principal has here.
    #[must_use]
    pub fn above(&self) -> Option<Self> {
        let nodes = self.nodes.get(1..).filter(|nodes| !nodes.is_empty())?;
        Some(Self {
            nodes: nodes.to_vec(),
            ..self.clone()
        })
    }

    /// Whether the resource is this one or below it.
    #[must_use]
    pub fn is_within(&self, id: ResourceId) -> bool {
        self.nodes.iter().any(|node| node.id == id)
    }

    /// Whether a service account can be of use here: its group is this place or above it.
    #[must_use]
    pub fn is_in_reach_of(&self, account: &Self) -> bool {
        account.parent().is_some_and(|group| self.is_within(group))
    }

    /// What must still hold when the append is made: everything from here to the top is where it was, and the
    /// membership that gives the role still does.
    #[must_use]
    pub fn guards(&self) -> Vec<Guard> {
        let granted_by = self.granted_by.iter().cloned();
        let granted_by = granted_by.map(|(key, value)| Guard::Expect { key, value });
        self.existence().into_iter().chain(granted_by).collect()
    }

    /// The same, whatever the asking principal's role: everything from here to the top is where it was.
    #[must_use]
    pub fn existence(&self) -> Vec<Guard> {
        let parents = self
            .nodes
            .iter()
            .skip(1)
            .map(|node| node.id.to_string())
            .chain([String::new()]);
        let nodes = self.nodes.iter().zip(parents);
        let way_up = nodes
            .map(|(node, parent)| (node_key(node.id), Some(format!("{parent}/{}", node.name))));
        way_up
            .map(|(key, value)| Guard::Expect { key, value })
            .collect()
    }
}

/// Reads the hierarchy from a service's facts. Cheap to clone.
#[derive(Clone)]
pub struct Hierarchy {
    pool: PgPool,
}

/// More than the depth of any hierarchy: a loop in the data must not become one of ours.
const MAX_DEPTH: i32 = 64;

impl Hierarchy {
    /// The facts of this database.
    #[must_use]
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The place of a resource, and the principal's role there. `None` if it does not exist.
    pub async fn locate(
        &self,
        id: ResourceId,
        principal: &Principal,
    ) -> sqlx::Result<Option<Place>> {
        let own = principal.resource().map(|id| id.to_string());
        let (teams_from, teams_to) = teams_of(principal);
        let rows = sqlx::query!(
            r#"WITH RECURSIVE up (id, value, depth) AS (
                   SELECT $1::text COLLATE "C", value, 0 FROM facts WHERE key = 'node/' || $1
                   UNION ALL
                   SELECT split_part(up.value, '/', 1), above.value, depth + 1
                   FROM up JOIN facts above ON above.key = 'node/' || split_part(up.value, '/', 1)
                   WHERE depth < $3
               ), way (id, value, depth) AS (
                   SELECT $6::text COLLATE "C", value, 0 FROM facts WHERE key = 'node/' || $6
                   UNION ALL
                   SELECT split_part(way.value, '/', 1), above.value, depth + 1
                   FROM way JOIN facts above ON above.key = 'node/' || split_part(way.value, '/', 1)
                   WHERE depth < $3
               ), teams (id, node) AS MATERIALIZED (
                   -- Each a look at one key: nothing that a plan could turn into reading all facts.
                   SELECT id, (SELECT node.value FROM facts node WHERE node.key = 'node/' || id)
                   FROM (SELECT substr(key, length($4) + 1) AS id FROM facts WHERE key > $4 AND key < $5) AS of_principal
                   WHERE strpos(id, '/') = 0
               )
               SELECT id AS "id!", value AS "value!",
                      (SELECT member.value FROM facts member WHERE member.key = 'member/' || up.id || '/' || $2) AS member,
                      ARRAY(
                          SELECT held FROM (
                              SELECT teams.id || teams.node || '/' || (
                                  SELECT member.value FROM facts member
                                  WHERE member.key = 'member/' || up.id || '/team:' || teams.id
                              ) AS held
                              FROM teams
                          ) AS of_teams
                          WHERE held IS NOT NULL
                      ) AS "teams!: Vec<String>",
                      ARRAY(SELECT way.id || '/' || way.value FROM way ORDER BY way.depth) AS "way!: Vec<String>"
               FROM up ORDER BY depth"#,
            id.to_string(),
            principal.to_string(),
            MAX_DEPTH,
            teams_from,
            teams_to,
            own.unwrap_or_default()
        )
        .fetch_all(&self.pool)
        .await?;
        let Some(nodes) = nodes(rows.iter().map(|row| (&row.id, &row.value)))? else {
            return Ok(None);
        };
        let found = Found {
            principal,
            nodes: rows.iter().map(|row| row.id.as_str()).collect(),
            own: rows.iter().map(|row| row.member.as_deref()).collect(),
            teams: rows.iter().map(|row| row.teams.as_slice()).collect(),
            way: rows.first().map_or(&[], |row| row.way.as_slice()),
        };
        let (grants, granted_by) = found.grants();
        Ok(Some(Place {
            nodes,
            role: grants.first().map(|grant| grant.role),
            granted_by,
            grants,
        }))
    }

    /// The place of a resource, whoever asks. `None` if it does not exist.
    pub async fn way_up(&self, id: ResourceId) -> sqlx::Result<Option<Place>> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE up (id, value, depth) AS (
                   SELECT $1::text COLLATE "C", value, 0 FROM facts WHERE key = 'node/' || $1
                   UNION ALL
                   SELECT split_part(up.value, '/', 1), above.value, depth + 1
                   FROM up JOIN facts above ON above.key = 'node/' || split_part(up.value, '/', 1)
                   WHERE depth < $2
               )
               SELECT id AS "id!", value AS "value!" FROM up ORDER BY depth"#,
            id.to_string(),
            MAX_DEPTH
        )
        .fetch_all(&self.pool)
        .await?;
        let nodes = nodes(rows.iter().map(|row| (&row.id, &row.value)))?;
        Ok(nodes.map(|nodes| Place {
            nodes,
            role: None,
            granted_by: vec![],
            grants: vec![],
        }))
    }

    /// The id of what a request names. `None` if there is no such thing; an id is not looked up.
    pub async fn resolve(&self, reference: &Reference) -> sqlx::Result<Option<ResourceId>> {
        match reference {
            Reference::Id(id)
            | Reference::Trn(Trn {
                last: Last::Id(id), ..
            }) => Ok(Some(*id)),
            Reference::Trn(trn) => self.walk(trn).await,
        }
    }

    /// The groups and workspaces below a group, each with how many levels below: as the names lead down, so that what
    /// lay below a group when it was deleted is found from there still.
    pub async fn below(&self, group: ResourceId) -> sqlx::Result<Vec<(ResourceId, usize)>> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE below (id, level) AS (
                   SELECT $1::text COLLATE "C", 0
                   UNION ALL
                   SELECT named.value, level + 1
                   FROM below CROSS JOIN LATERAL (
                       -- What is right below: 0 follows on / in the order of the keys. Of each by itself (OFFSET): a plan
                       -- that knows neither how many there are nor what they are called reads all facts for each.
                       SELECT value FROM facts
                       WHERE key > 'name/' || below.id || '/' AND key < 'name/' || below.id || '0' OFFSET 0
                   ) named
                   WHERE level < $2
               )
               SELECT id AS "id!", level AS "level!" FROM below WHERE level > 0"#,
            group.to_string(),
            MAX_DEPTH
        )
        .fetch_all(&self.pool)
        .await?;
        let below = rows.into_iter().map(|row| {
            let id = row.id.parse().map_err(|error| {
                let error: model::id::InvalidId = error;
                sqlx::Error::Decode(error.into())
            })?;
            Ok((id, usize::try_from(row.level).unwrap_or_default()))
        });
        below.collect()
    }

    /// As whom a principal may see and do things: itself, unless it is gone, and its teams.
    pub async fn acts_as(&self, principal: &Principal) -> sqlx::Result<Vec<Principal>> {
        if let Some(id) = principal.resource()
            && self.locate(id, principal).await?.is_none()
        {
            return Ok(vec![]);
        }
        let (from, to) = teams_of(principal);
        let teams = sqlx::query_scalar!(
            r#"SELECT id AS "id!" FROM (SELECT substr(key, length($1) + 1) AS id FROM facts WHERE key > $1 AND key < $2)
                   AS of_principal
               WHERE strpos(id, '/') = 0 AND (SELECT node.key FROM facts node WHERE node.key = 'node/' || id) IS NOT NULL"#,
            from,
            to
        )
        .fetch_all(&self.pool)
        .await?;
        let teams = teams.iter().filter_map(|id| id.parse::<TeamId>().ok());
        Ok([principal.clone()]
            .into_iter()
            .chain(teams.map(Principal::Team))
            .collect())
    }

    /// The facts `<prefix><id>/…` of a group or workspace and of everything below it, as the names lead down.
    pub async fn facts_below(
        &self,
        id: ResourceId,
        prefix: &str,
    ) -> sqlx::Result<Vec<(String, String)>> {
        let rows = sqlx::query!(
            r#"WITH RECURSIVE below (id, level) AS (
                   SELECT $1::text COLLATE "C", 0
                   UNION ALL
                   SELECT named.value, level + 1
                   FROM below CROSS JOIN LATERAL (
                       -- See `below`.
                       SELECT value FROM facts
                       WHERE key > 'name/' || below.id || '/' AND key < 'name/' || below.id || '0' OFFSET 0
                   ) named
                   WHERE level < $3
               )
               SELECT fact.key AS "key!", fact.value AS "value!"
               FROM below CROSS JOIN LATERAL (
                   SELECT key, value FROM facts
                   WHERE key > $2 || below.id || '/' AND key < $2 || below.id || '0' OFFSET 0
               ) fact
               ORDER BY fact.key"#,
            id.to_string(),
            prefix,
            MAX_DEPTH
        )
        .fetch_all(&self.pool)
        .await?;
        let facts = rows.into_iter().map(|row| (row.key, row.value));
        Ok(facts.collect())
    }

    async fn walk(&self, trn: &Trn) -> sqlx::Result<Option<ResourceId>> {
        let Last::Name(last) = &trn.last else {
            return Ok(None);
        };
        let names: Vec<String> = trn
            .parents
            .iter()
            .chain([last])
            .map(ToString::to_string)
            .collect();
        let last_prefix = match trn.kind {
            Kind::ManagedIdentity => "identity-name/",
            Kind::ServiceAccount => SERVICE_ACCOUNT_NAMES,
            Kind::Team => TEAM_NAME,
            _ => "name/",
        };
        let found = sqlx::query_scalar!(
            r#"WITH RECURSIVE down (id, depth) AS (
                   SELECT ''::text COLLATE "C", 0
                   UNION ALL
                   SELECT below.value, depth + 1
                   FROM down JOIN facts below ON below.key =
                       CASE WHEN depth + 1 = cardinality($1::text[]) THEN $2 ELSE 'name/' END
                       || down.id || '/' || ($1::text[])[depth + 1]
               )
               SELECT id AS "id!" FROM down WHERE depth = cardinality($1::text[])"#,
            &names,
            last_prefix
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(found
            .and_then(|id| id.parse::<ResourceId>().ok())
            .filter(|id| id.kind() == trn.kind))
    }
}

/// The nodes from a resource to the top, by their ids and facts. `None` if they don't reach it.
fn nodes<'a>(
    way_up: impl DoubleEndedIterator<Item = (&'a String, &'a String)> + Clone,
) -> sqlx::Result<Option<Vec<Node>>> {
    let top = way_up.clone().next_back();
    if !top.is_some_and(|(_, value)| value.starts_with('/')) {
        return Ok(None);
    }
    let nodes = way_up.map(|(id, value)| {
        let name = value.split_once('/').map_or("", |(_, name)| name);
        let id = id.parse();
        Ok(Node {
            id: id.map_err(|error: model::id::InvalidId| sqlx::Error::Decode(error.into()))?,
            name: name.to_owned(),
        })
    });
    nodes.collect::<sqlx::Result<_>>().map(Some)
}
