//! Masks: what of the inherited identities a group or workspace, and everything below it, does without. One function
//! decides, wherever it is asked.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::ManagedIdentityId;

/// Hides identities that are inherited where it is, from there down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Which.
    pub hides: Hidden,
    /// But these.
    pub exceptions: BTreeSet<ManagedIdentityId>,
}

/// What a mask hides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hidden {
    /// One identity.
    Identity(ManagedIdentityId),
    /// All of a type, by its word: `aws`.
    Type(String),
    /// All.
    Everything,
}

/// The text is not a [`Mask`] as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a mask")]
pub struct InvalidMask;

impl Mask {
    /// Whether it hides an identity of a type that is inherited where the mask is.
    #[must_use]
    pub fn hides(&self, identity: ManagedIdentityId, identity_type: &str) -> bool {
        let meant = match &self.hides {
            Hidden::Identity(hidden) => *hidden == identity,
            Hidden::Type(hidden) => hidden == identity_type,
            Hidden::Everything => true,
        };
        meant && !self.exceptions.contains(&identity)
    }
}

/// The word for all, which is no id and no type.
const EVERYTHING: &str = "*";

impl fmt::Display for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identity(id) => id.fmt(f),
            Self::Type(identity_type) => f.write_str(identity_type),
            Self::Everything => f.write_str(EVERYTHING),
        }
    }
}

/// As it is kept: what it hides, and the exceptions, with spaces between.
impl fmt::Display for Mask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.hides.fmt(f)?;
        self.exceptions.iter().try_for_each(|id| write!(f, " {id}"))
    }
}

impl FromStr for Hidden {
    type Err = InvalidMask;

    fn from_str(text: &str) -> Result<Self, InvalidMask> {
        if text == EVERYTHING {
            return Ok(Self::Everything);
        }
        if let Ok(id) = text.parse() {
            return Ok(Self::Identity(id));
        }
        let a_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase());
        a_word
            .then(|| Self::Type(text.to_owned()))
            .ok_or(InvalidMask)
    }
}

impl FromStr for Mask {
    type Err = InvalidMask;

    fn from_str(text: &str) -> Result<Self, InvalidMask> {
        let mut words = text.split(' ');
        let hides = words.next().ok_or(InvalidMask)?.parse()?;
        let exceptions = words.map(|word| word.parse().map_err(|_| InvalidMask));
        Ok(Self {
            hides,
            exceptions: exceptions.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn identity(number: u128) -> ManagedIdentityId {
        ManagedIdentityId::from_uuid(Uuid::from_u128(number))
    }

    fn mask(hides: Hidden, exceptions: &[u128]) -> Mask {
        Mask {
            hides,
            exceptions: exceptions.iter().copied().map(identity).collect(),
        }
    }

    #[test]
    fn it_hides_what_it_says_but_the_exceptions() {
        let aws = || Hidden::Type("aws".to_owned());
        for (hides, exceptions, hidden) in [
            (Hidden::Identity(identity(1)), &[][..], [true, false, false]),
            (aws(), &[], [true, true, false]),
            (aws(), &[2], [true, false, false]),
            (Hidden::Everything, &[], [true, true, true]),
            (Hidden::Everything, &[1, 3], [false, true, false]),
            (Hidden::Identity(identity(1)), &[1], [false, false, false]),
        ] {
            let mask = mask(hides, exceptions);
            let is = [(1, "aws"), (2, "aws"), (3, "azure")]
                .map(|(number, identity_type)| mask.hides(identity(number), identity_type));
            assert_eq!(is, hidden, "{mask}");
            assert_eq!(mask.to_string().parse(), Ok(mask));
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", " ", "AWS", "* ", "aws grp_0", "mi_", "aws  mi_0"] {
            assert_eq!(text.parse::<Mask>(), Err(InvalidMask), "{text:?}");
        }
    }
}
