//! The managed identities that a workspace is made with, as facts: `namespace` says which are asked for, `identity` what
//! came of them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use eventlog::Change;
use prost::Message;
use proto::{identity, namespace};

const REQUESTED: &str = "initial-assignments/";
const DECIDED: &str = "initial-assignments-decided/";

/// The key of what a workspace was to be made with: [`namespace::v1::InitialAssignments`].
#[must_use]
pub fn requested_key(workspace: impl std::fmt::Display) -> String {
    format!("{REQUESTED}{workspace}")
}

/// The key of what came of it: [`identity::v1::InitialAssignmentsDecided`].
#[must_use]
pub fn decided_key(workspace: impl std::fmt::Display) -> String {
    format!("{DECIDED}{workspace}")
}

/// Whether a fact says what came of it.
#[must_use]
pub fn is_of_decisions(key: &str) -> bool {
    key.starts_with(DECIDED)
}

/// The message that such a fact holds. `None` if it is not one.
#[must_use]
pub fn read<M: Message + Default>(fact: &str) -> Option<M> {
    let encoded = STANDARD_NO_PAD.decode(fact).ok()?;
    M::decode(encoded.as_slice()).ok()
}

fn held(message: &impl Message) -> String {
    STANDARD_NO_PAD.encode(message.encode_to_vec())
}

pub(crate) fn are_requested(event: &namespace::v1::WorkspaceCreated) -> Option<Change> {
    let requested = event.initial_assignments.as_ref()?;
    Some((requested_key(&event.workspace_id), Some(held(requested))))
}

pub(crate) fn are_decided(event: &identity::v1::InitialAssignmentsDecided) -> Change {
    (decided_key(&event.workspace_id), Some(held(event)))
}

/// The workspace is gone.
pub(crate) fn are_forgotten(workspace: &str) -> [Change; 2] {
    [
        (requested_key(workspace), None),
        (decided_key(workspace), None),
    ]
}
