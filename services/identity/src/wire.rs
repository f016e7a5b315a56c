//! Between the domain and the wire: requests into commands, events and resources into messages.

use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::{Description, Name};
use proto::EventError;
use proto::identity::v1::{self as pb, Event, configuration::Type};
use tonic::Status;

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
            .and_then(|configuration| read_configuration(&configuration).ok())
            .ok_or(Unreadable::Field("configuration"))
    };
    match Event::decode(&recorded.event_type, &recorded.payload)? {
        Event::ManagedIdentityCreated(event) => {
            Ok(managed_identity::Event::Created(ManagedIdentity {
                id: parse("managed identity id", &event.managed_identity_id)?,
                group: parse("group id", &event.group_id)?,
                name: parse("name", &event.name)?,
                description: parse("description", &event.description)?,
                configuration: configuration(event.configuration)?,
            }))
        }
        Event::ManagedIdentityUpdated(event) => Ok(managed_identity::Event::Updated {
            id: parse("managed identity id", &event.managed_identity_id)?,
            description: parse("description", &event.description)?,
            configuration: configuration(event.configuration)?,
        }),
        Event::ManagedIdentityDeleted(event) => Ok(managed_identity::Event::Deleted {
            id: parse("managed identity id", &event.managed_identity_id)?,
            group: parse("group id", &event.group_id)?,
            name: parse("name", &event.name)?,
        }),
        event @ (Event::ManagedIdentityAssigned(_) | Event::ManagedIdentityUnassigned(_)) => {
            Err(Unreadable::Foreign(event.event_type().to_owned()))
        }
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
            })
        }
        managed_identity::Event::Updated {
            id,
            description,
            configuration,
        } => Event::ManagedIdentityUpdated(pb::ManagedIdentityUpdated {
            managed_identity_id: id.to_string(),
            description: description.to_string(),
            configuration: Some(write_configuration(configuration)),
        }),
        managed_identity::Event::Deleted { id, group, name } => {
            Event::ManagedIdentityDeleted(pb::ManagedIdentityDeleted {
                managed_identity_id: id.to_string(),
                group_id: group.to_string(),
                name: name.to_string(),
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
        event @ (Event::ManagedIdentityCreated(_)
        | Event::ManagedIdentityUpdated(_)
        | Event::ManagedIdentityDeleted(_)) => {
            Err(Unreadable::Foreign(event.event_type().to_owned()))
        }
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
    }
}

/// A wrong field of a configuration: its path below the configuration, and what it must be.
pub(crate) struct WrongField {
    path: &'static str,
    message: String,
}

fn read_configuration(configuration: &pb::Configuration) -> Result<Configuration, WrongField> {
    match &configuration.r#type {
        Some(Type::Aws(aws)) => aws
            .role_arn
            .parse()
            .map(|role| Configuration::Aws { role })
            .map_err(|error| WrongField {
                path: ".aws.role_arn",
                message: format!("{error}"),
            }),
        None => Err(WrongField {
            path: "",
            message: "must be set, to one of: aws".to_owned(),
        }),
    }
}

fn write_configuration(configuration: &Configuration) -> pb::Configuration {
    let Configuration::Aws { role } = configuration;
    pb::Configuration {
        r#type: Some(Type::Aws(pb::AwsConfiguration {
            role_arn: role.to_string(),
        })),
    }
}

/// The configuration that a request gives.
pub(crate) fn configuration(
    identity: &pb::ManagedIdentity,
    violations: &mut Violations,
) -> Option<Configuration> {
    let unset = pb::Configuration::default();
    match read_configuration(identity.configuration.as_ref().unwrap_or(&unset)) {
        Ok(configuration) => Some(configuration),
        Err(wrong) => {
            violations.add(
                &format!("managed_identity.configuration{}", wrong.path),
                wrong.message,
            );
            None
        }
    }
}

/// What a request says of an identity to be made.
pub(crate) struct Wanted {
    pub(crate) name: Name,
    pub(crate) description: Description,
    pub(crate) configuration: Configuration,
}

pub(crate) fn wanted(identity: &pb::ManagedIdentity) -> Result<Wanted, Status> {
    let mut violations = Violations::default();
    let name = violations.check("managed_identity.name", identity.name.parse());
    let description =
        violations.check("managed_identity.description", identity.description.parse());
    let configuration = configuration(identity, &mut violations);
    let wanted = violations.finish(|| {
        Some(Wanted {
            name: name?,
            description: description?,
            configuration: configuration?,
        })
    })?;
    Ok(wanted)
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
        ..pb::ManagedIdentity::default()
    }
}
