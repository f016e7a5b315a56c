//! Durations as people write them: `90s`, `15m`, `1h`, `30d`.

use std::time::Duration;

/// Reads a duration: a whole number and a unit.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?} is not a duration such as 90s, 15m, 1h or 30d");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (count, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(expected()),
    };
    let count: u32 = count.parse().map_err(|_| expected())?;
    Ok(Duration::from_secs(u64::from(count) * unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("720h"), Ok(Duration::from_hours(720)));
        for bad in [
            "",
            "s",
            "1",
            "-1s",
            "1.5h",
            "1w",
            "1 h",
            "99999999999d",
            "é",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
