//! A limit that administrators set.

use model::Limit;

/// What somebody set it to; its default, if nobody did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State(Option<i64>);

/// It has another value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// Which.
    pub limit: Limit,
    /// As it is now.
    pub value: i64,
}

/// Why a change was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// Too little or too much.
    #[error("must be from {min} to {max}")]
    OutOfBounds {
        /// The least.
        min: i64,
        /// The most.
        max: i64,
    },
}

impl State {
    /// The limit as it is.
    #[must_use]
    pub fn value(self, limit: Limit) -> i64 {
        self.0.unwrap_or(limit.default_value())
    }
}

/// Decides to give it this value.
pub fn decide(state: State, limit: Limit, value: i64) -> Result<Vec<Changed>, Rejection> {
    let (min, max) = (Limit::MIN, limit.max_value());
    if !(min..=max).contains(&value) {
        Err(Rejection::OutOfBounds { min, max })
    } else if state.value(limit) == value {
        Ok(vec![])
    } else {
        Ok(vec![Changed { limit, value }])
    }
}

/// Applies what happened.
pub fn evolve(state: &mut State, event: &Changed) {
    state.0 = Some(event.value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_changes_within_its_bounds() {
        let limit = Limit::NamespaceDepth;
        let mut state = State::default();
        assert_eq!(decide(state, limit, 20), Ok(vec![]));
        let changed = decide(state, limit, 40).expect("allowed");
        assert_eq!(changed, [Changed { limit, value: 40 }]);
        evolve(&mut state, &changed[0]);
        assert_eq!(state.value(limit), 40);
        for bad in [0, -1, 41] {
            let refusal = Rejection::OutOfBounds { min: 1, max: 40 };
            assert_eq!(decide(state, limit, bad), Err(refusal));
        }
    }
}
