//! The order of a list, as requests ask for it (<https://google.aip.dev/132#ordering>).

use time::OffsetDateTime;

/// Microseconds are what PostgreSQL keeps.
const NANOSECONDS: i128 = 1_000;
/// From where on they are counted, and one of them, as PostgreSQL reads them.
const EPOCH: &str = "timestamptz 'epoch'";
const MICROSECOND: &str = "interval '1 microsecond'";

/// By what, and in which direction; rows that are equal in it by id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Order {
    /// What it goes by.
    pub by: By,
    /// From the end.
    pub descending: bool,
}

/// What rows are ordered by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum By {
    /// Their name, or what stands for one.
    Name,
    /// When they were made.
    CreateTime,
    /// When they last changed.
    UpdateTime,
}

/// The text is no order; with what the name is called.
#[derive(Debug, thiserror::Error)]
#[error("must be {0}, create_time or update_time, with or without ` desc`, or empty")]
pub struct InvalidOrder(&'static str);

impl Order {
    /// By name, from the beginning.
    pub const BY_NAME: Self = Self {
        by: By::Name,
        descending: false,
    };

    /// `None` if the request leaves it open.
    pub fn read(text: &str) -> Result<Option<Self>, InvalidOrder> {
        Self::read_named("name", text)
    }

    /// Where what rows are named by is called something else.
    pub fn read_named(name: &'static str, text: &str) -> Result<Option<Self>, InvalidOrder> {
        let mut words = text.split_ascii_whitespace();
        let by = match words.next() {
            None => return Ok(None),
            Some(word) if word == name => By::Name,
            Some("create_time") => By::CreateTime,
            Some("update_time") => By::UpdateTime,
            Some(_) => return Err(InvalidOrder(name)),
        };
        let descending = match words.next() {
            None | Some("asc") => false,
            Some("desc") => true,
            Some(_) => return Err(InvalidOrder(name)),
        };
        match words.next() {
            None => Ok(Some(Self { by, descending })),
            Some(_) => Err(InvalidOrder(name)),
        }
    }

    /// The column.
    #[must_use]
    pub fn column(self) -> &'static str {
        match self.by {
            By::Name => "name",
            By::CreateTime => "created_at",
            By::UpdateTime => "updated_at",
        }
    }

    /// How PostgreSQL is told of the direction.
    #[must_use]
    pub fn direction(self) -> &'static str {
        if self.descending { "DESC" } else { "ASC" }
    }

    /// The condition that a row of a table, by its alias, is behind a key and id, each a parameter of type text; true
    /// where they are null.
    #[must_use]
    pub fn behind(self, table: &str, key: &str, id: &str) -> String {
        let column = self.column();
        let key = match self.by {
            By::Name => format!("{key}::text"),
            By::CreateTime | By::UpdateTime => {
                format!("{EPOCH} + {key}::text::bigint * {MICROSECOND}")
            }
        };
        let compare = if self.descending { '<' } else { '>' };
        format!(
            "({id}::text IS NULL OR ({table}.{column}, {table}.id) {compare} ({key}, {id}::text))"
        )
    }

    /// Whether a text is a key of this order.
    #[must_use]
    pub fn has_key(self, text: &str) -> bool {
        match self.by {
            By::Name => true,
            By::CreateTime | By::UpdateTime => time(text).is_some(),
        }
    }

    /// The key of a row, for a page token.
    #[must_use]
    pub fn key(self, name: &str, created: OffsetDateTime, updated: OffsetDateTime) -> String {
        match self.by {
            By::Name => name.to_owned(),
            By::CreateTime => moment(created),
            By::UpdateTime => moment(updated),
        }
    }
}

/// In which direction a list goes that has only one order, by what `name` says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Direction {
    /// From the end.
    pub descending: bool,
}

/// The text is no direction of the only order that there is.
#[derive(Debug, thiserror::Error)]
#[error("must be {0}, with or without ` desc`, or empty")]
pub struct InvalidDirection(&'static str);

impl Direction {
    /// `None` if the request leaves it open.
    pub fn read(name: &'static str, text: &str) -> Result<Option<Self>, InvalidDirection> {
        let words: Vec<_> = text.split_ascii_whitespace().collect();
        let descending = match words.as_slice() {
            [] => return Ok(None),
            [word] | [word, "asc"] if *word == name => false,
            [word, "desc"] if *word == name => true,
            _ => return Err(InvalidDirection(name)),
        };
        Ok(Some(Self { descending }))
    }

    /// How PostgreSQL is told of it.
    #[must_use]
    pub fn word(self) -> &'static str {
        if self.descending { "DESC" } else { "ASC" }
    }

    /// How what comes behind compares.
    #[must_use]
    pub fn behind(self) -> char {
        if self.descending { '<' } else { '>' }
    }
}

/// A time in a page token.
#[must_use]
pub fn moment(time: OffsetDateTime) -> String {
    (time.unix_timestamp_nanos() / NANOSECONDS).to_string()
}

/// The first time from this one on that PostgreSQL keeps, which would cut it to one before.
#[must_use]
pub fn next_moment(time: OffsetDateTime) -> OffsetDateTime {
    let beyond = time.unix_timestamp_nanos().rem_euclid(NANOSECONDS);
    let missing = (NANOSECONDS - beyond) % NANOSECONDS;
    // After the last microsecond that there is, nothing is recorded.
    OffsetDateTime::from_unix_timestamp_nanos(time.unix_timestamp_nanos() + missing).unwrap_or(time)
}

/// The time in a page token, if it is one that requests may have: PostgreSQL knows none before 4713 BC.
#[must_use]
pub fn time(text: &str) -> Option<OffsetDateTime> {
    let nanoseconds = text.parse::<i128>().ok()?.checked_mul(NANOSECONDS)?;
    let time = OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()?;
    (1..=9999).contains(&time.year()).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders() {
        let order = |by, descending| Some(Order { by, descending });
        for (text, expected) in [
            ("", None),
            ("name", order(By::Name, false)),
            ("create_time desc", order(By::CreateTime, true)),
            (" update_time  asc ", order(By::UpdateTime, false)),
        ] {
            assert_eq!(Order::read(text).ok(), Some(expected), "{text}");
        }
        for text in [
            "id",
            "name,",
            "name desc desc",
            "name DESC",
            "desc",
            "name, id",
        ] {
            assert!(Order::read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn directions() {
        let direction = |descending| Some(Direction { descending });
        for (text, expected) in [
            ("", None),
            ("time", direction(false)),
            (" time  asc", direction(false)),
            ("time desc", direction(true)),
        ] {
            assert_eq!(Direction::read("time", text).ok(), Some(expected), "{text}");
        }
        for text in ["name", "desc", "time desc desc", "time, name", "time DESC"] {
            assert!(Direction::read("time", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_time_between_two_microseconds_is_the_later_one() {
        for (nanos, expected) in [
            (-2_000, -2_000),
            (-1_999, -1_000),
            (-1, 0),
            (0, 0),
            (1, 1_000),
            (121_191_000, 121_191_000),
            (121_191_001, 121_192_000),
            (121_191_999, 121_192_000),
        ] {
            let time = OffsetDateTime::from_unix_timestamp_nanos(nanos).expect("a time");
            assert_eq!(next_moment(time).unix_timestamp_nanos(), expected);
        }
        // The end of the year 9999.
        let last = OffsetDateTime::from_unix_timestamp_nanos(253_402_300_799_999_999_999);
        let last = last.expect("a time");
        assert_eq!(next_moment(last), last);
    }

    #[test]
    fn a_time_comes_back() {
        for micros in [-1_500_000, 0, 1_763_900_000_123_456_i64] {
            let found = time(&micros.to_string()).expect("a time");
            assert_eq!(moment(found), micros.to_string());
        }
        // The years 0 and -7537.
        for before in ["-62135596800000001", "-300000000000000000", "x"] {
            assert_eq!(time(before), None, "{before}");
        }
        assert!(time("-62135596800000000").is_some());
        assert_eq!(time(&i128::MAX.to_string()), None);
    }
}
