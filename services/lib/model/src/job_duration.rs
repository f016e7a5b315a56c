//! How long a job may live.

use std::fmt;
use std::str::FromStr;

/// From 1 second to [`JobDuration::LONGEST`], in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobDuration(i64);

/// The time is not a [`JobDuration`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be from 1 second to {} hours, in whole seconds", JobDuration::LONGEST.0 / 3_600)]
pub struct InvalidJobDuration;

impl JobDuration {
    /// Of a job that asks for nothing, in a workspace that says nothing.
    pub const DEFAULT: Self = Self(12 * 3_600);
    /// Of any job.
    pub const LONGEST: Self = Self(24 * 3_600);

    /// This many seconds.
    pub fn from_seconds(seconds: i64) -> Result<Self, InvalidJobDuration> {
        if (1..=Self::LONGEST.0).contains(&seconds) {
            Ok(Self(seconds))
        } else {
            Err(InvalidJobDuration)
        }
    }

    /// In seconds.
    #[must_use]
    pub const fn seconds(self) -> i64 {
        self.0
    }
}

impl fmt::Display for JobDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for JobDuration {
    type Err = InvalidJobDuration;

    fn from_str(text: &str) -> Result<Self, InvalidJobDuration> {
        text.parse()
            .map_err(|_| InvalidJobDuration)
            .and_then(Self::from_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_a_second_to_a_day() {
        for good in [1, 86_400] {
            let duration = JobDuration::from_seconds(good).expect("allowed");
            assert_eq!(duration.to_string().parse(), Ok(duration));
        }
        for bad in [0, -1, 86_401] {
            assert_eq!(JobDuration::from_seconds(bad), Err(InvalidJobDuration));
        }
    }
}
