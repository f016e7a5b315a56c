//! How fields name resources: what a field takes, as its own name says it, for whoever names nothing with it.

use model::{InvalidReference, InvalidReferenceTo, Kind, Reference};

use crate::violations::Violations;

/// Reads what a field of a request names.
pub fn reference(field: &str, text: &str) -> Result<Reference, Violations> {
    reference_of("", field, text)
}

/// The same of a field of a service's rpc: an `id` is one of what the service is named after.
pub(crate) fn reference_of(
    service: &str,
    field: &str,
    text: &str,
) -> Result<Reference, Violations> {
    text.parse()
        .map_err(|error: InvalidReference| match kind(service, field) {
            Some(kind) => Violations::of(field, InvalidReferenceTo(kind)),
            None => Violations::of(field, error),
        })
}

fn kind(service: &str, field: &str) -> Option<Kind> {
    let name = field.rsplit('.').next().unwrap_or(field);
    match name.strip_prefix("new_").unwrap_or(name) {
        "id" => snake_case(service.strip_suffix("Service")?).parse().ok(),
        "parent_id" => Some(Kind::Group),
        "source_id" => Some(Kind::ManagedIdentity),
        name => name.strip_suffix("_id")?.parse().ok(),
    }
}

fn snake_case(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_says_what_it_takes() {
        for (service, field, takes) in [
            ("GroupService", "id", Some(Kind::Group)),
            (
                "ManagedIdentityService",
                "managed_identity.id",
                Some(Kind::ManagedIdentity),
            ),
            ("JobService", "job.workspace_id", Some(Kind::Workspace)),
            ("", "managed_identity_id", Some(Kind::ManagedIdentity)),
            ("", "service_account_id", Some(Kind::ServiceAccount)),
            ("", "new_parent_id", Some(Kind::Group)),
            ("", "new_group_id", Some(Kind::Group)),
            ("AuditService", "resource_id", None),
            ("MaskService", "mask.namespace_id", None),
        ] {
            assert_eq!(kind(service, field), takes, "{service} {field}");
        }
    }
}
