//! The part of a Terraform run that a job does.

use std::fmt;
use std::str::FromStr;

/// The part of a run that a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// It looks what would change.
    Plan,
    /// It changes it.
    Apply,
}

/// The text is not a [`Stage`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a stage")]
pub struct InvalidStage;

impl Stage {
    /// Each.
    pub const ALL: [Self; 2] = [Self::Plan, Self::Apply];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plan => "plan",
            Self::Apply => "apply",
        })
    }
}

impl FromStr for Stage {
    type Err = InvalidStage;

    fn from_str(text: &str) -> Result<Self, InvalidStage> {
        match text {
            "plan" => Ok(Self::Plan),
            "apply" => Ok(Self::Apply),
            _ => Err(InvalidStage),
        }
    }
}
