//! The texts in messages of any type. PostgreSQL keeps no U+0000 in one
//! (<https://www.postgresql.org/docs/current/datatype-character.html>).

use prost_reflect::{DynamicMessage, MapKey, Value};

const NUL: char = '\0';

/// The paths of the fields whose text holds a NUL.
#[must_use]
pub fn with_nul(message: &DynamicMessage) -> Vec<String> {
    let mut found = Vec::new();
    in_message(message, "", &mut found);
    found
}

fn in_message(message: &DynamicMessage, path: &str, found: &mut Vec<String>) {
    for (field, value) in message.fields() {
        let name = field.name();
        if path.is_empty() {
            in_value(value, name, found);
        } else {
            in_value(value, &format!("{path}.{name}"), found);
        }
    }
}

fn in_value(value: &Value, path: &str, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.contains(NUL) => found.push(path.to_owned()),
        Value::Message(message) => in_message(message, path, found),
        Value::List(values) => {
            for (index, value) in values.iter().enumerate() {
                in_value(value, &format!("{path}[{index}]"), found);
            }
        }
        Value::Map(values) => {
            let in_key = |key: &MapKey| key.as_str().is_some_and(|key| key.contains(NUL));
            if values.keys().any(in_key) {
                found.push(path.to_owned());
            }
            for value in values.values() {
                in_value(value, path, found);
            }
        }
        _ => {}
    }
}

/// Takes the NULs out of all texts but the keys of maps.
pub fn strip_nul(message: &mut DynamicMessage) {
    for (_, value) in message.fields_mut() {
        strip(value);
    }
}

fn strip(value: &mut Value) {
    match value {
        Value::String(text) => text.retain(|c| c != NUL),
        Value::Message(message) => strip_nul(message),
        Value::List(values) => values.iter_mut().for_each(strip),
        Value::Map(values) => values.values_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use prost_reflect::DescriptorPool;
    use proto::identity::v1 as identity;

    #[test]
    fn every_text_is_looked_at_and_named_by_its_path() {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors");
        let claim = |claim: &str| identity::ClaimCondition {
            claim: claim.to_owned(),
            ..Default::default()
        };
        let policy = identity::TrustPolicy {
            claims: vec![claim("sub"), claim("s\0ub")],
            ..Default::default()
        };
        let request = identity::CreateServiceAccountRequest {
            service_account: Some(identity::ServiceAccount {
                name: "ci".to_owned(),
                description: "\0a\0\nb".to_owned(),
                trust_policies: vec![policy],
                ..Default::default()
            }),
            request_id: "\0".to_owned(),
            ..Default::default()
        };
        let descriptor =
            pool.get_message_by_name("tharsis.identity.v1.CreateServiceAccountRequest");
        let encoded = request.encode_to_vec();
        let message = DynamicMessage::decode(descriptor.expect("known"), encoded.as_slice());
        let mut message = message.expect("a message");
        let mut found = with_nul(&message);
        found.sort();
        assert_eq!(
            found,
            [
                "request_id",
                "service_account.description",
                "service_account.trust_policies[0].claims[1].claim"
            ]
        );
        strip_nul(&mut message);
        assert_eq!(with_nul(&message), [""; 0]);
        let stripped: identity::CreateServiceAccountRequest =
            message.transcode_to().expect("the same type");
        let account = stripped.service_account.expect("an account");
        assert_eq!(account.description, "a\nb");
        assert_eq!(account.trust_policies[0].claims[1].claim, "sub");
    }
}
