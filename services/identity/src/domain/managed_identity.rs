//! A managed identity.

use model::{
    Description, GroupId, ManagedIdentityId, Name, ServiceAccountId, SigningAlgorithm,
    TokenSettings,
};

use super::alias::{self, Alias};
use super::aws::RoleArn;
use super::azure::{AzureAudience, Guid};
use super::google::{Provider, ServiceAccount};
use super::kubernetes::KubernetesAudience;

/// A managed identity's life so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It was never made.
    #[default]
    Absent,
    /// It exists, as far as its own stream knows: its group may be gone.
    Live(ManagedIdentity),
    /// The same of an alias.
    Alias(Alias),
    /// It was deleted.
    Deleted,
}

/// A managed identity that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManagedIdentity {
    /// Its id, the subject of its tokens.
    pub id: ManagedIdentityId,
    /// Its group.
    pub group: GroupId,
    /// Unique in the group. Never changes.
    pub name: Name,
    /// Free text.
    pub description: Description,
    /// What it stands for.
    pub configuration: Configuration,
    /// What its tokens are like.
    pub token_settings: TokenSettings,
}

/// What a managed identity stands for in its cloud, or here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Configuration {
    /// An IAM role.
    Aws {
        /// The role.
        role: RoleArn,
    },
    /// An app registration or a user-assigned managed identity.
    Azure {
        /// Its application id.
        client: Guid,
        /// The directory that it is in.
        tenant: Guid,
        /// Of its federated credential.
        audience: AzureAudience,
    },
    /// A principal of a workload identity pool.
    Google {
        /// The pool's provider that trusts us.
        provider: Provider,
        /// The service account that jobs impersonate, if they do.
        service_account: Option<ServiceAccount>,
    },
    /// A user of a cluster.
    Kubernetes {
        /// The audience that the cluster takes.
        audience: KubernetesAudience,
    },
    /// A service account of ours.
    Tharsis {
        /// The account, of the identity's group or of one above it.
        account: ServiceAccountId,
    },
}

impl ManagedIdentity {
    /// Refuses tokens of which it is known that its cloud does not take them.
    fn is_taken_by_its_cloud(&self) -> Result<(), Rejection> {
        let is_azure = matches!(self.configuration, Configuration::Azure { .. });
        if is_azure && self.token_settings.algorithm != SigningAlgorithm::Rs256 {
            return Err(Rejection::AlgorithmNotTaken);
        }
        Ok(())
    }
}

impl Configuration {
    /// Whether both are for the same cloud.
    #[must_use]
    pub fn same_type(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

/// What may be asked of a managed identity.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make it.
    Create {
        /// The identity to be.
        identity: ManagedIdentity,
        /// Whether an identity of the group has the name.
        name_taken: bool,
        /// Identities that the group has already.
        siblings: i64,
        /// The most of them.
        max_siblings: i64,
    },
    /// Make an alias.
    CreateAlias(alias::Wanted),
    /// Change it.
    Update {
        /// The new description, if it changes.
        description: Option<Description>,
        /// The new configuration, if it changes.
        configuration: Option<Configuration>,
        /// What its tokens are to be like, if that changes.
        token_settings: Option<TokenSettings>,
    },
    /// Take it to another group.
    Move {
        /// Which.
        to: GroupId,
        /// Whether an identity of that group has the name.
        name_taken: bool,
        /// Identities that the group has already.
        siblings: i64,
        /// The most of them.
        max_siblings: i64,
        /// Whether the service account that it stands for, if it does, is of that group or of one above it.
        account_within_reach: bool,
        /// The paths of workspaces that have it, and would not inherit it from there; not all, if they are many.
        losing: Vec<String>,
    },
    /// Delete it.
    Delete {
        /// Workspaces that have it, or an alias of it; not all, if they are many.
        assigned: Vec<Having>,
        /// Their assignments end too.
        force: bool,
    },
}

/// A workspace that has an identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Having {
    /// The path of the workspace, or its id alone.
    pub workspace: String,
    /// The path of the alias through which it has it, or its id alone, if it does.
    pub through: Option<String>,
}

impl std::fmt::Display for Having {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.workspace)?;
        self.through
            .iter()
            .try_for_each(|alias| write!(f, " (through the alias {alias})"))
    }
}

/// What happened to a managed identity. As it is afterwards, or was until its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(ManagedIdentity),
    /// Its description, its configuration or what its tokens are like changed.
    Updated {
        /// Which.
        id: ManagedIdentityId,
        /// As it is now.
        description: Description,
        /// As it is now.
        configuration: Configuration,
        /// As they are now.
        token_settings: TokenSettings,
    },
    /// It is of another group.
    Moved {
        /// Which.
        id: ManagedIdentityId,
        /// Where it was.
        from: GroupId,
        /// Where it is.
        to: GroupId,
        /// What it is called.
        name: Name,
    },
    /// It is gone.
    Deleted {
        /// Which.
        id: ManagedIdentityId,
        /// Where it was.
        group: GroupId,
        /// What it was called.
        name: Name,
    },
    /// An alias of another one was made; of this type.
    AliasCreated(Alias, String),
    /// An alias is gone.
    AliasDeleted(Alias),
}

/// Why a command was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such identity.
    #[error("the managed identity does not exist")]
    Missing,
    /// The name is used in the group.
    #[error("a managed identity with this name exists in the group already; choose another name")]
    NameTaken,
    /// The group is full.
    #[error("the group has {0} managed identities, more are not allowed")]
    TooMany(i64),
    /// The type never changes.
    #[error("the type of a managed identity never changes; make another one")]
    OtherType,
    /// The cloud does not take it: <https://learn.microsoft.com/entra/workload-id/workload-identity-federation-considerations>
    #[error("Azure takes tokens that are signed with RS256 only")]
    AlgorithmNotTaken,
    /// The service account that it stands for is out of its reach.
    #[error(
        "the service account is neither of the managed identity's group nor of a group above it; choose one that is"
    )]
    AccountOutOfReach,
    /// It is there already.
    #[error("the managed identity is of this group already")]
    SameGroup,
    /// Workspaces would lose it.
    #[error("workspaces have the managed identity that would not inherit it from there; unassign it first: {}", .0.join(", "))]
    Losing(Vec<String>),
    /// Workspaces have it.
    #[error("the managed identity is assigned to workspaces; unassign it first, or set force: {}", listed(.0))]
    Assigned(Vec<Having>),
    /// What it is to be an alias of is one.
    #[error("an alias has no aliases; make one of its source, {0}")]
    AliasOfAlias(ManagedIdentityId),
    /// An alias would be of no use there.
    #[error(
        "the group inherits the managed identity anyway; make an alias in a group that does not"
    )]
    InheritedAnyway,
    /// The identity has all the aliases that it may have.
    #[error("the managed identity has {0} aliases, more are not allowed")]
    TooManyAliases(i64),
    /// An alias never changes.
    #[error(
        "an alias can't be changed or moved, and has no access rules of its own; change its source, {0}, or make another alias"
    )]
    IsAlias(ManagedIdentityId),
}

fn listed(workspaces: &[Having]) -> String {
    let named: Vec<String> = workspaces.iter().map(ToString::to_string).collect();
    named.join(", ")
}

/// Decides a command.
pub fn decide(state: &State, command: Command) -> Result<Vec<Event>, Rejection> {
    match (state, command) {
        (
            State::Absent,
            Command::Create {
                name_taken: true, ..
            },
        ) => Err(Rejection::NameTaken),
        (
            State::Absent,
            Command::Create {
                siblings,
                max_siblings,
                ..
            },
        ) if siblings >= max_siblings => Err(Rejection::TooMany(siblings)),
        (State::Absent, Command::Create { identity, .. }) => {
            identity.is_taken_by_its_cloud()?;
            Ok(vec![Event::Created(identity)])
        }
        (State::Absent, Command::CreateAlias(wanted)) => alias::create(wanted),
        // Ids are made anew for each identity and never used again.
        (_, Command::Create { .. } | Command::CreateAlias(_)) => Err(Rejection::NameTaken),
        (State::Absent | State::Deleted, _) => Err(Rejection::Missing),
        (State::Alias(alias), Command::Update { .. } | Command::Move { .. }) => {
            Err(Rejection::IsAlias(alias.source))
        }
        (
            State::Live(identity),
            Command::Update {
                description,
                configuration,
                token_settings,
            },
        ) => update(identity, description, configuration, token_settings),
        (State::Live(identity), Command::Move { to, .. }) if to == identity.group => {
            Err(Rejection::SameGroup)
        }
        (
            State::Live(_),
            Command::Move {
                name_taken: true, ..
            },
        ) => Err(Rejection::NameTaken),
        (
            State::Live(_),
            Command::Move {
                siblings,
                max_siblings,
                ..
            },
        ) if siblings >= max_siblings => Err(Rejection::TooMany(siblings)),
        (
            State::Live(_),
            Command::Move {
                account_within_reach: false,
                ..
            },
        ) => Err(Rejection::AccountOutOfReach),
        (State::Live(_), Command::Move { losing, .. }) if !losing.is_empty() => {
            Err(Rejection::Losing(losing))
        }
        (State::Live(identity), Command::Move { to, .. }) => Ok(vec![Event::Moved {
            id: identity.id,
            from: identity.group,
            to,
            name: identity.name.clone(),
        }]),
        (
            State::Live(_) | State::Alias(_),
            Command::Delete {
                assigned,
                force: false,
            },
        ) if !assigned.is_empty() => Err(Rejection::Assigned(assigned)),
        (State::Alias(alias), Command::Delete { .. }) => {
            Ok(vec![Event::AliasDeleted(alias.clone())])
        }
        (State::Live(identity), Command::Delete { .. }) => Ok(vec![Event::Deleted {
            id: identity.id,
            group: identity.group,
            name: identity.name.clone(),
        }]),
    }
}

fn update(
    identity: &ManagedIdentity,
    description: Option<Description>,
    configuration: Option<Configuration>,
    token_settings: Option<TokenSettings>,
) -> Result<Vec<Event>, Rejection> {
    let description = description.unwrap_or_else(|| identity.description.clone());
    let configuration = configuration.unwrap_or_else(|| identity.configuration.clone());
    if !configuration.same_type(&identity.configuration) {
        return Err(Rejection::OtherType);
    }
    let after = ManagedIdentity {
        description,
        configuration,
        token_settings: token_settings.unwrap_or(identity.token_settings),
        ..identity.clone()
    };
    after.is_taken_by_its_cloud()?;
    if after == *identity {
        return Ok(vec![]);
    }
    Ok(vec![Event::Updated {
        id: after.id,
        description: after.description,
        configuration: after.configuration,
        token_settings: after.token_settings,
    }])
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Event) {
    match event {
        Event::Created(identity) => *state = State::Live(identity.clone()),
        Event::Updated {
            description,
            configuration,
            token_settings,
            ..
        } => {
            if let State::Live(identity) = state {
                identity.description = description.clone();
                identity.configuration = configuration.clone();
                identity.token_settings = *token_settings;
            }
        }
        Event::Moved { to, .. } => {
            if let State::Live(identity) = state {
                identity.group = *to;
            }
        }
        Event::AliasCreated(alias, _) => *state = State::Alias(alias.clone()),
        Event::Deleted { .. } | Event::AliasDeleted(_) => *state = State::Deleted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployer() -> ManagedIdentity {
        ManagedIdentity {
            id: ManagedIdentityId::from_uuid(uuid::Uuid::from_u128(1)),
            group: GroupId::from_uuid(uuid::Uuid::from_u128(2)),
            name: "deployer".parse().expect("a name"),
            description: Description::default(),
            configuration: aws("arn:aws:iam::123456789012:role/deployer"),
            token_settings: TokenSettings::default(),
        }
    }

    fn aws(arn: &str) -> Configuration {
        Configuration::Aws {
            role: arn.parse().expect("an arn"),
        }
    }

    fn live() -> State {
        let mut state = State::default();
        evolve(&mut state, &Event::Created(deployer()));
        state
    }

    #[test]
    fn it_is_made_once_and_within_the_limits() {
        let create = |name_taken, siblings| Command::Create {
            identity: deployer(),
            name_taken,
            siblings,
            max_siblings: 1_000,
        };
        assert_eq!(
            decide(&State::Absent, create(false, 999)),
            Ok(vec![Event::Created(deployer())])
        );
        assert_eq!(
            decide(&State::Absent, create(true, 0)),
            Err(Rejection::NameTaken)
        );
        assert_eq!(
            decide(&State::Absent, create(false, 1_000)),
            Err(Rejection::TooMany(1_000))
        );
        assert_eq!(decide(&live(), create(false, 0)), Err(Rejection::NameTaken));
    }

    #[test]
    fn an_update_changes_what_it_names() {
        let other = aws("arn:aws:iam::123456789012:role/other");
        let update = |configuration| Command::Update {
            description: None,
            configuration,
            token_settings: None,
        };
        let events = decide(&live(), update(Some(other.clone()))).expect("allowed");
        let mut state = live();
        events.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(
            state,
            State::Live(ManagedIdentity {
                configuration: other,
                ..deployer()
            })
        );
        assert_eq!(decide(&live(), update(None)), Ok(vec![]));
        assert_eq!(
            decide(&State::Deleted, update(None)),
            Err(Rejection::Missing)
        );
    }

    #[test]
    fn it_moves_to_where_there_is_room_and_nobody_loses_it() {
        let other = GroupId::from_uuid(uuid::Uuid::from_u128(3));
        let to = |to, name_taken, siblings, losing: &[&str]| Command::Move {
            to,
            name_taken,
            siblings,
            max_siblings: 10,
            account_within_reach: true,
            losing: losing.iter().map(ToString::to_string).collect(),
        };
        for (command, rejection) in [
            (
                to(deployer().group, true, 10, &["acme/web"]),
                Rejection::SameGroup,
            ),
            (to(other, true, 10, &["acme/web"]), Rejection::NameTaken),
            (to(other, false, 10, &["acme/web"]), Rejection::TooMany(10)),
            (
                to(other, false, 9, &["acme/web"]),
                Rejection::Losing(vec!["acme/web".to_owned()]),
            ),
        ] {
            assert_eq!(decide(&live(), command), Err(rejection));
        }
        let Command::Move { losing, .. } = to(other, false, 9, &["acme/web"]) else {
            panic!("a move")
        };
        let away_from_its_account = Command::Move {
            to: other,
            name_taken: false,
            siblings: 9,
            max_siblings: 10,
            account_within_reach: false,
            losing,
        };
        assert_eq!(
            decide(&live(), away_from_its_account),
            Err(Rejection::AccountOutOfReach)
        );
        let events = decide(&live(), to(other, false, 9, &[])).expect("allowed");
        let mut state = live();
        events.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(
            state,
            State::Live(ManagedIdentity {
                group: other,
                ..deployer()
            })
        );
        assert_eq!(
            decide(&State::Deleted, to(other, false, 0, &[])),
            Err(Rejection::Missing)
        );
    }

    #[test]
    fn an_assigned_one_goes_only_by_force() {
        let having = |workspace: &str, through: Option<&str>| Having {
            workspace: workspace.to_owned(),
            through: through.map(str::to_owned),
        };
        let assigned = vec![
            having("acme/web", None),
            having("other/web", Some("other/shared")),
        ];
        let delete = |force| Command::Delete {
            assigned: assigned.clone(),
            force,
        };
        let refused = decide(&live(), delete(false)).expect_err("assigned");
        assert_eq!(refused, Rejection::Assigned(assigned.clone()));
        assert!(
            refused
                .to_string()
                .ends_with("acme/web, other/web (through the alias other/shared)")
        );
        let gone = decide(&live(), delete(true)).expect("allowed");
        let mut state = live();
        gone.iter().for_each(|event| evolve(&mut state, event));
        assert_eq!(decide(&state, delete(true)), Err(Rejection::Missing));
    }
}
