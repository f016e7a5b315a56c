//! A token for a cloud, as far as its keeper has to know it: how long it holds, and when to get the next.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::time::Instant;

/// A signed token, with the times that it says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token {
    text: String,
    times: Times,
    /// From when its life is counted, so that a clock that differs from the issuer's does no harm.
    received: Instant,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
struct Times {
    iat: u64,
    exp: u64,
}

/// What the issuer answered with is no JWT with `iat` and `exp`.
#[derive(Debug, thiserror::Error)]
#[error("the issuer's answer holds no token")]
pub(crate) struct Malformed;

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.times.fmt(f)
    }
}

impl Token {
    /// Reads the times; whether it is signed well is for the cloud to see.
    pub(crate) fn read(text: String, received: Instant) -> Result<Self, Malformed> {
        let claims = text.split('.').nth(1).ok_or(Malformed)?;
        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| Malformed)?;
        let times = serde_json::from_slice(&claims).map_err(|_| Malformed)?;
        Ok(Self {
            text,
            times,
            received,
        })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// From its issue to its end.
    pub(crate) fn life(&self) -> Duration {
        Duration::from_secs(self.times.exp.saturating_sub(self.times.iat))
    }

    /// Unix time, in seconds.
    pub(crate) fn ends(&self) -> u64 {
        self.times.exp
    }

    /// When it is no good any more.
    pub(crate) fn over(&self) -> Instant {
        self.received + self.life()
    }

    /// How long it holds from now on.
    pub(crate) fn left(&self) -> Duration {
        self.over().saturating_duration_since(Instant::now())
    }

    /// When the next one is due: so many thirds of its life after it came. Tokens that live shorter and shorter, as they do
    /// at the end of a job, are not asked for without pause.
    pub(crate) fn due(&self, thirds: u32) -> Instant {
        self.received + (self.life() * thirds / 3).max(Duration::from_secs(5))
    }

    /// When it has been there for so long.
    pub(crate) fn aged(&self, time: Duration) -> Instant {
        self.received + time
    }

    /// Whether it holds longer than the other.
    pub(crate) fn outlives(&self, other: &Self) -> bool {
        self.times.exp > other.times.exp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(iat: u64, exp: u64) -> Token {
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"sub":"mi_1","iat":{iat},"exp":{exp}}}"#));
        Token::read(format!("e30.{claims}.c2ln"), Instant::now()).expect("a token")
    }

    #[test]
    fn its_life_is_counted_from_when_it_came() {
        for (exp, thirds, due) in [(1_900, 2, 600), (1_900, 1, 300), (1_001, 2, 5)] {
            let token = token(1_000, exp);
            let due = token.received + Duration::from_secs(due);
            assert_eq!(token.due(thirds), due, "{exp} {thirds}");
        }
        let mut old = token(1_000, 1_900);
        old.received -= Duration::from_mins(10);
        assert!(old.left() <= Duration::from_mins(5));
        assert!(old.due(2) <= Instant::now());
        assert!(token(1_600, 2_500).outlives(&token(1_000, 1_900)));
        assert!(!token(1_600, 1_900).outlives(&token(1_000, 1_900)));
    }

    #[test]
    fn it_is_not_shown() {
        let token = token(1, 2);
        assert!(!format!("{token:?}").contains(token.text()));
        for bad in ["", "a.b", "a.!.c", "e30.e30.e30"] {
            let read = Token::read(bad.to_owned(), Instant::now());
            assert!(read.is_err(), "{bad}");
        }
    }
}
