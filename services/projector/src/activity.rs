//! The number of an event among those of all logs.

/// In the order in which they are numbered: never changed.
const LOGS: [&str; 3] = ["namespace", "identity", "issuer"];
/// Room for one more log than there is.
const STRIDE: i64 = 4;

/// Of an event; none for a log that has no number, and for a position that no log comes to.
pub(crate) fn id(log: &str, position: u64) -> Option<i64> {
    let number = LOGS.iter().position(|known| *known == log)?;
    i64::try_from(position)
        .ok()?
        .checked_mul(STRIDE)?
        .checked_add(i64::try_from(number).ok()?)
}

/// The log and position of an event.
pub(crate) fn event(id: i64) -> (&'static str, u64) {
    let log = usize::try_from(id % STRIDE)
        .ok()
        .and_then(|number| LOGS.get(number));
    (
        log.copied().unwrap_or_default(),
        (id / STRIDE).cast_unsigned(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_found_by_its_number() {
        for log in LOGS {
            for position in [1, 2, 1 << 40] {
                assert_eq!(id(log, position).map(event), Some((log, position)));
            }
        }
        assert_eq!(id("other", 1), None);
        assert_eq!(id("namespace", u64::MAX), None);
    }
}
