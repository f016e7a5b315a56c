//! What the tokens of a managed identity are like.

use std::fmt;
use std::str::FromStr;

use crate::{ManagedIdentityId, SigningAlgorithm, Stage};

/// What the tokens of a managed identity are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenSettings {
    /// How long they live, if the job does not end before.
    pub lifetime: TokenLifetime,
    /// What their subject tells apart.
    pub subject: SubjectMode,
    /// How they are signed.
    pub algorithm: SigningAlgorithm,
}

/// From 1 minute to [`TokenLifetime::LONGEST`], in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenLifetime(i64);

/// The time is not a [`TokenLifetime`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be from 1 minute to 1 hour, in whole seconds")]
pub struct InvalidTokenLifetime;

/// What the `sub` of an identity's tokens tells apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SubjectMode {
    /// The identity.
    #[default]
    Identity,
    /// The identity, and what the job does: so that a plan can have other rights in the cloud than an apply.
    IdentityAndStage,
}

/// The text is not [`TokenSettings`] as they are kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not the settings of tokens")]
pub struct InvalidTokenSettings;

impl TokenSettings {
    /// The `sub` of the identity's tokens at a stage.
    #[must_use]
    pub fn subject_at(&self, identity: ManagedIdentityId, stage: Stage) -> String {
        match self.subject {
            SubjectMode::Identity => identity.to_string(),
            SubjectMode::IdentityAndStage => format!("{identity}:{stage}"),
        }
    }

    /// Each `sub` that the identity's tokens can have, in the order of the stages.
    #[must_use]
    pub fn subjects(&self, identity: ManagedIdentityId) -> Vec<String> {
        let each = Stage::ALL.map(|stage| self.subject_at(identity, stage));
        match self.subject {
            SubjectMode::Identity => each.into_iter().take(1).collect(),
            SubjectMode::IdentityAndStage => each.into(),
        }
    }
}

impl TokenLifetime {
    /// Of any token.
    pub const LONGEST: Self = Self(3_600);
    /// Shorter, and a token would be over before what it was asked for has begun.
    const SHORTEST: Self = Self(60);

    /// This many seconds.
    pub fn from_seconds(seconds: i64) -> Result<Self, InvalidTokenLifetime> {
        if (Self::SHORTEST.0..=Self::LONGEST.0).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(InvalidTokenLifetime)
        }
    }

    /// In seconds.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0
    }
}

/// Short, because nobody can call a token back: the cloud that got it does not ask us again.
impl Default for TokenLifetime {
    fn default() -> Self {
        Self(15 * 60)
    }
}

/// As they are kept: `900/identity`, and `900/identity/ES256` where the algorithm is not the default.
impl fmt::Display for TokenSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let subject = match self.subject {
            SubjectMode::Identity => "identity",
            SubjectMode::IdentityAndStage => "identity-and-stage",
        };
        write!(f, "{}/{subject}", self.lifetime.0)?;
        match self.algorithm {
            SigningAlgorithm::Rs256 => Ok(()),
            other @ SigningAlgorithm::Es256 => write!(f, "/{other}"),
        }
    }
}

impl FromStr for TokenSettings {
    type Err = InvalidTokenSettings;

    fn from_str(text: &str) -> Result<Self, InvalidTokenSettings> {
        let (lifetime, rest) = text.split_once('/').ok_or(InvalidTokenSettings)?;
        let (subject, algorithm) = match rest.split_once('/') {
            Some((subject, algorithm)) => (subject, algorithm.parse()),
            None => (rest, Ok(SigningAlgorithm::default())),
        };
        let seconds = lifetime.parse().map_err(|_| InvalidTokenSettings)?;
        Ok(Self {
            lifetime: TokenLifetime::from_seconds(seconds).map_err(|_| InvalidTokenSettings)?,
            subject: match subject {
                "identity" => SubjectMode::Identity,
                "identity-and-stage" => SubjectMode::IdentityAndStage,
                _ => return Err(InvalidTokenSettings),
            },
            algorithm: algorithm.map_err(|_| InvalidTokenSettings)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn from_a_minute_to_an_hour() {
        for good in [60, 900, 3_600] {
            assert_eq!(
                TokenLifetime::from_seconds(good).map(TokenLifetime::seconds),
                Ok(good)
            );
        }
        for bad in [i64::MIN, 0, 59, 3_601] {
            assert_eq!(TokenLifetime::from_seconds(bad), Err(InvalidTokenLifetime));
        }
    }

    #[test]
    fn they_are_kept_as_text() {
        for subject in [SubjectMode::Identity, SubjectMode::IdentityAndStage] {
            for algorithm in SigningAlgorithm::ALL {
                let settings = TokenSettings {
                    lifetime: TokenLifetime::LONGEST,
                    subject,
                    algorithm,
                };
                assert_eq!(settings.to_string().parse(), Ok(settings));
            }
        }
        for text in [
            "",
            "900",
            "59/identity",
            "900/",
            "900/stage",
            "900/identity/",
            "900/identity/none",
        ] {
            assert_eq!(
                text.parse::<TokenSettings>(),
                Err(InvalidTokenSettings),
                "{text}"
            );
        }
    }

    #[test]
    fn a_subject_is_short_enough_for_every_cloud() {
        let identity = ManagedIdentityId::from_uuid(Uuid::from_u128(u128::MAX));
        let each = TokenSettings {
            subject: SubjectMode::IdentityAndStage,
            ..TokenSettings::default()
        };
        assert_eq!(
            TokenSettings::default().subjects(identity),
            [identity.to_string()]
        );
        assert_eq!(
            each.subjects(identity),
            [format!("{identity}:plan"), format!("{identity}:apply")]
        );
        // Google's 127 bytes are the least.
        assert!(
            each.subjects(identity)
                .iter()
                .all(|subject| subject.len() <= 127)
        );
    }
}
