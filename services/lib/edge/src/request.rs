//! Reading what requests of every service have in common: request ids, update masks, etags, times, trace contexts.

use std::collections::BTreeSet;

use prost_types::{FieldMask, Timestamp};
use time::OffsetDateTime;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::violations::Violations;

/// The caller's id of the request; `None` if it has none.
pub fn request_id(text: &str) -> Result<Option<Uuid>, Violations> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Uuid>() {
        Ok(id) if !id.is_nil() => Ok(Some(id)),
        Ok(_) | Err(_) => Err(Violations::of("request_id", "must be a UUID, or empty")),
    }
}

/// The fields that an update is to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpdateMask(BTreeSet<&'static str>);

impl UpdateMask {
    /// Whether this field is to be changed.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.0.contains(field)
    }
}

/// Reads an update mask; without paths, and with `*`, it means all that can be changed
/// (<https://google.aip.dev/134>).
pub fn update_mask(
    mask: Option<&FieldMask>,
    changeable: &[&'static str],
) -> Result<UpdateMask, Violations> {
    let all = || UpdateMask(changeable.iter().copied().collect());
    let Some(mask) = mask.filter(|mask| !mask.paths.is_empty()) else {
        return Ok(all());
    };
    if mask.paths == ["*"] {
        return Ok(all());
    }
    let mut violations = Violations::default();
    let mut fields = BTreeSet::new();
    for path in &mask.paths {
        if let Some(field) = changeable.iter().find(|field| *field == path) {
            fields.insert(*field);
        } else {
            violations.add(
                "update_mask",
                format!(
                    "must hold only {}; {path} can't be changed",
                    changeable.join(", ")
                ),
            );
        }
    }
    violations.finish(|| Some(UpdateMask(fields)))
}

/// The etag of a resource at this version of its stream.
#[must_use]
pub fn etag(version: u64) -> String {
    format!("v{version}")
}

/// The version that an etag sent back expects; `None` if there is none, and so nothing to check.
pub fn expected_version(field: &str, etag_text: &str) -> Result<Option<u64>, Violations> {
    if etag_text.is_empty() {
        return Ok(None);
    }
    let version = etag_text
        .strip_prefix('v')
        .and_then(|version| version.parse().ok());
    match version {
        Some(version) if etag(version) == etag_text => Ok(Some(version)),
        Some(_) | None => Err(Violations::of(
            field,
            "must be an etag as it was answered, or empty",
        )),
    }
}

/// A time as messages have it.
#[must_use]
pub fn timestamp(time: OffsetDateTime) -> Timestamp {
    // The nanoseconds of a second fit into an i32.
    let nanos = i32::try_from(time.nanosecond()).unwrap_or_default();
    Timestamp {
        seconds: time.unix_timestamp(),
        nanos,
    }
}

/// Reads a time.
pub fn time(field: &str, timestamp: &Timestamp) -> Result<OffsetDateTime, Violations> {
    let nanos = u32::try_from(timestamp.nanos).ok();
    let Some(nanos) = nanos.filter(|nanos| *nanos < 1_000_000_000) else {
        let wrong = "must have nanos between 0 and 999,999,999";
        return Err(Violations::of(field, wrong));
    };
    let time = OffsetDateTime::from_unix_timestamp(timestamp.seconds).ok();
    let time = time.and_then(|time| time.replace_nanosecond(nanos).ok());
    time.filter(|time| (1..=9999).contains(&time.year()))
        .ok_or_else(|| Violations::of(field, "must be a time between the years 1 and 9999"))
}

/// The W3C trace context of a request, if it has exactly one and that is valid
/// (<https://www.w3.org/TR/trace-context/#traceparent-header>).
#[must_use]
pub fn traceparent(metadata: &MetadataMap) -> Option<String> {
    traceparent_of(metadata.as_ref()).map(str::to_owned)
}

/// The same of the headers of any request.
#[must_use]
pub fn traceparent_of(headers: &http::HeaderMap) -> Option<&str> {
    let mut values = headers.get_all("traceparent").iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    value.to_str().ok().filter(|text| is_traceparent(text))
}

fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zero = |part: &str| part.bytes().all(|byte| byte == b'0');
    let parts: Vec<&str> = text.splitn(5, '-').collect();
    let [version, trace, parent, flags] = parts.as_slice() else {
        return false;
    };
    hex(version, 2)
        && *version != "ff"
        && hex(trace, 32)
        && !zero(trace)
        && hex(parent, 16)
        && !zero(parent)
        && hex(flags, 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_ids() {
        assert_eq!(request_id(""), Ok(None));
        assert!(matches!(
            request_id("0190163d-8694-739b-aea5-966c26f8ad90"),
            Ok(Some(_))
        ));
        for bad in [
            "x",
            "00000000-0000-0000-0000-000000000000",
            "0190163d-8694-739b-aea5-966c26f8ad9",
        ] {
            assert!(request_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn update_masks() {
        let mask = |paths: &[&str]| FieldMask {
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        let fields = ["description", "configuration"];
        for all in [None, Some(mask(&[])), Some(mask(&["*"]))] {
            let all = update_mask(all.as_ref(), &fields).expect("all");
            assert!(all.has("description") && all.has("configuration"));
        }
        let one = update_mask(Some(&mask(&["description"])), &fields).expect("one");
        assert!(one.has("description") && !one.has("configuration"));
        for bad in [&["name"][..], &["description", "*"], &[""]] {
            assert!(update_mask(Some(&mask(bad)), &fields).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn etags() {
        assert_eq!(expected_version("etag", &etag(7)), Ok(Some(7)));
        assert_eq!(expected_version("etag", ""), Ok(None));
        for bad in ["7", "v", "v+7", "v07", "v-1", "v18446744073709551616"] {
            assert!(expected_version("etag", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        let moment =
            time::OffsetDateTime::from_unix_timestamp_nanos(-1_234_567_891).expect("a time");
        assert_eq!(super::time("t", &timestamp(moment)), Ok(moment));
        let of_seconds = "must be a time between the years 1 and 9999";
        let of_nanos = "must have nanos between 0 and 999,999,999";
        for (seconds, nanos, wrong) in [
            (0, -1, of_nanos),
            (0, 1_000_000_000, of_nanos),
            (i64::MAX, 0, of_seconds),
            (253_402_300_800, 0, of_seconds),
            (-62_135_596_801, 0, of_seconds),
        ] {
            assert_eq!(
                super::time("t", &Timestamp { seconds, nanos }),
                Err(Violations::of("t", wrong)),
                "{seconds} {nanos}"
            );
        }
    }

    #[test]
    fn trace_contexts() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
        let mut metadata = MetadataMap::new();
        metadata.insert("traceparent", good.parse().expect("metadata"));
        assert_eq!(traceparent(&metadata).as_deref(), Some(good));
        metadata.append("traceparent", good.parse().expect("metadata"));
        assert_eq!(traceparent(&metadata), None);
    }
}
