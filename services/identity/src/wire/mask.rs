//! Masks between the domain and the wire.

use edge::masks;
use edge::violations::Violations;
use eventlog::RecordedEvent;
use model::mask::Hidden;
use model::{Kind, Reference};
use proto::identity::v1::mask::Hidden as Shown;
use proto::identity::v1::mask_created::Hidden as Written;
use proto::identity::v1::{self as pb, Event};
use tonic::Status;

use super::{Unreadable, parse};
use crate::domain::mask::{Event as Happened, MAX_EXCEPTIONS, Mask};

pub(crate) fn read(recorded: &RecordedEvent) -> Result<Happened, Unreadable> {
    match Event::decode(&recorded.event_type, &recorded.payload)? {
        Event::MaskCreated(event) => Ok(Happened::Created(Mask {
            id: parse("mask id", &event.mask_id)?,
            namespace: namespace(&event.namespace_id)?,
            content: masks::mask(&event).ok_or(Unreadable::Field("mask"))?,
        })),
        Event::MaskDeleted(event) => Ok(Happened::Deleted(
            parse("mask id", &event.mask_id)?,
            namespace(&event.namespace_id)?,
        )),
        event => Err(Unreadable::Foreign(event.event_type().to_owned())),
    }
}

fn namespace(text: &str) -> Result<model::NamespaceId, Unreadable> {
    let id: model::ResourceId = parse("namespace id", text)?;
    id.try_into().map_err(|_| Unreadable::Field("namespace id"))
}

pub(crate) fn write(event: &Happened) -> Event {
    match event {
        Happened::Created(mask) => {
            let message = message("", mask);
            Event::MaskCreated(pb::MaskCreated {
                mask_id: message.id,
                namespace_id: message.namespace_id,
                hidden: message.hidden.map(|hidden| match hidden {
                    Shown::ManagedIdentityId(id) => Written::ManagedIdentityId(id),
                    Shown::Type(word) => Written::Type(word),
                    Shown::Everything(everything) => Written::Everything(everything),
                }),
                exception_ids: message.exception_ids,
            })
        }
        Happened::Deleted(id, namespace) => Event::MaskDeleted(pb::MaskDeleted {
            mask_id: id.to_string(),
            namespace_id: namespace.to_string(),
        }),
    }
}

/// A mask as a request gives it: identities may be named by TRN.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) hides: Hides,
    pub(crate) exceptions: Vec<Named>,
}

/// What it is to hide.
#[derive(Clone, Debug)]
pub(crate) enum Hides {
    Identity(Named),
    Type(&'static str),
    Everything,
}

/// An identity, as the request names it.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) reference: Reference,
    pub(crate) text: String,
}

pub(crate) fn wanted(mask: &pb::Mask) -> Result<Wanted, Status> {
    let mut violations = Violations::default();
    let hides = match mask.hidden.as_ref() {
        Some(Shown::ManagedIdentityId(text)) => violations
            .check("mask.managed_identity_id", named(text))
            .map(Hides::Identity),
        Some(Shown::Type(word)) => {
            let known = edge::hierarchy::IDENTITY_TYPES.join(", ");
            let known = masks::identity_type(word).ok_or(format!("must be one of {known}"));
            violations.check("mask.type", known).map(Hides::Type)
        }
        Some(Shown::Everything(true)) => Some(Hides::Everything),
        Some(Shown::Everything(false)) => {
            violations.add("mask.everything", "must be true, or another field set");
            None
        }
        None => {
            let wrong = "one of managed_identity_id, type and everything must be set";
            violations.add("mask.hidden", wrong);
            None
        }
    };
    if mask.exception_ids.len() > MAX_EXCEPTIONS {
        let wrong = format!("must be at most {MAX_EXCEPTIONS}");
        violations.add("mask.exception_ids", wrong);
    }
    let mut exceptions = Vec::new();
    for (index, text) in mask.exception_ids.iter().enumerate().take(MAX_EXCEPTIONS) {
        let field = format!("mask.exception_ids[{index}]");
        exceptions.extend(violations.check(&field, named(text)));
    }
    Ok(violations.finish(|| {
        Some(Wanted {
            hides: hides?,
            exceptions,
        })
    })?)
}

fn named(text: &str) -> Result<Named, &'static str> {
    let reference = text.parse::<Reference>().ok();
    let reference = reference.filter(|reference| reference.kind() == Kind::ManagedIdentity);
    Ok(Named {
        reference: reference.ok_or("must be the id or the TRN of a managed identity")?,
        text: text.to_owned(),
    })
}

/// A mask as callers see it. The time is filled in by whoever knows it.
pub(crate) fn message(namespace_path: &str, mask: &Mask) -> pb::Mask {
    pb::Mask {
        id: mask.id.to_string(),
        trn: format!("trn:mask:{namespace_path}/{}", mask.id),
        namespace_id: mask.namespace.to_string(),
        hidden: Some(match &mask.content.hides {
            Hidden::Identity(id) => Shown::ManagedIdentityId(id.to_string()),
            Hidden::Type(word) => Shown::Type(word.clone()),
            Hidden::Everything => Shown::Everything(true),
        }),
        exception_ids: mask
            .content
            .exceptions
            .iter()
            .map(ToString::to_string)
            .collect(),
        create_time: None,
    }
}
