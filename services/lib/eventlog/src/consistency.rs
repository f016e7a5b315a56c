//! Consistency tokens: how far the logs had come when something was written.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use prost::Message as _;
use proto::eventlog::v1 as wire;

use crate::log::Head;

/// For each log that matters, its epoch and position. As text it is opaque to callers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsistencyToken(BTreeMap<String, Head>);

/// The text is not a consistency token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a consistency_token from an answer of one of the services")]
pub struct InvalidToken;

/// More bytes than any token of ours has.
const MAX_BYTES: usize = 1024;

impl ConsistencyToken {
    /// The token for a position in one log.
    #[must_use]
    pub fn of(log: &str, head: Head) -> Self {
        Self(BTreeMap::from([(log.to_owned(), head)]))
    }

    /// Adds what another token asks for.
    pub fn merge(&mut self, other: Self) {
        for (log, head) in other.0 {
            let own = self.0.entry(log).or_insert(head);
            if head.epoch != own.epoch || head.position > own.position {
                *own = head;
            }
        }
    }

    /// What is asked of each log.
    pub fn logs(&self) -> impl Iterator<Item = (&str, Head)> {
        self.0.iter().map(|(log, head)| (log.as_str(), *head))
    }
}

/// Of logs that are named once each.
impl<'a> FromIterator<(&'a str, Head)> for ConsistencyToken {
    fn from_iter<T: IntoIterator<Item = (&'a str, Head)>>(logs: T) -> Self {
        let logs = logs.into_iter();
        Self(logs.map(|(log, head)| (log.to_owned(), head)).collect())
    }
}

impl fmt::Display for ConsistencyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let logs = self.logs().map(|(log, head)| wire::consistency_token::Log {
            name: log.to_owned(),
            epoch: head.epoch.to_string(),
            position: head.position,
        });
        let token = wire::ConsistencyToken {
            logs: logs.collect(),
        };
        f.write_str(&URL_SAFE_NO_PAD.encode(token.encode_to_vec()))
    }
}

impl FromStr for ConsistencyToken {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        if text.len() > MAX_BYTES {
            return Err(InvalidToken);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidToken)?;
        let token = wire::ConsistencyToken::decode(bytes.as_slice()).map_err(|_| InvalidToken)?;
        let logs = token.logs.into_iter().map(|log| {
            let epoch = log.epoch.parse().map_err(|_| InvalidToken)?;
            Ok((
                log.name,
                Head {
                    epoch,
                    position: log.position,
                },
            ))
        });
        logs.collect::<Result<_, _>>().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    proptest! {
        #[test]
        fn a_token_reads_back(logs in prop::collection::btree_map("[a-z]{1,9}", (any::<u128>(), any::<u64>()), 0..4)) {
            let heads = logs.into_iter().map(|(log, (epoch, position))| {
                (log, Head { epoch: Uuid::from_u128(epoch), position })
            });
            let token = ConsistencyToken(heads.collect());
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in ".{0,64}|[A-Za-z0-9_-]{0,64}") {
            let _ = text.parse::<ConsistencyToken>();
        }
    }
}
