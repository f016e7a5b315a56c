//! Pages of a list: a size, and a token that says where the next one begins.

use std::hash::{DefaultHasher, Hash, Hasher};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge::violations::Violations;
use tonic::Status;

/// Rows of a page, if the request does not say.
const DEFAULT_SIZE: i32 = 50;
/// Rows of a page at most.
const MAX_SIZE: i32 = 100;
/// Between the parts of a token; in no name and no id.
const SEPARATOR: char = '\n';
const WRONG_TOKEN: &str = "must be a next_page_token of the same query";

/// Where a page begins, and how long it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Rows.
    pub size: usize,
    /// The sort key of the last row of the page before; none for the first page.
    pub after: Option<Vec<String>>,
    query: u64,
}

impl Page {
    /// Reads a request's page. `query` is everything else that the request asks: a token is good for the same only.
    pub fn read(size: i32, token: &str, query: &impl Hash, keys: usize) -> Result<Self, Status> {
        let query = digest(query);
        let mut violations = Violations::default();
        let size = match size {
            0 => DEFAULT_SIZE,
            1.. => size.min(MAX_SIZE),
            _ => {
                violations.add("page_size", "must not be negative");
                DEFAULT_SIZE
            }
        };
        let after = if token.is_empty() {
            None
        } else {
            violations.check("page_token", parse(token, query, keys).ok_or(WRONG_TOKEN))
        };
        let size = usize::try_from(size).unwrap_or_default();
        Ok(violations.finish(|| Some(Self { size, after, query }))?)
    }

    /// For a token whose keys are none of the query's.
    #[must_use]
    pub fn wrong_token() -> Violations {
        Violations::of("page_token", WRONG_TOKEN)
    }

    /// One row more than the page has: whether it is there tells whether there is a next page.
    #[must_use]
    pub fn limit(&self) -> i64 {
        i64::try_from(self.size + 1).unwrap_or(i64::MAX)
    }

    /// Cuts the rows to the page, and makes the token for the next one.
    pub fn cut<T>(&self, rows: &mut Vec<T>, key: impl Fn(&T) -> Vec<String>) -> String {
        if rows.len() <= self.size {
            return String::new();
        }
        rows.truncate(self.size);
        let key = rows.last().map(key).unwrap_or_default();
        let parts: Vec<String> = [self.query.to_string()].into_iter().chain(key).collect();
        URL_SAFE_NO_PAD.encode(parts.join(&SEPARATOR.to_string()))
    }
}

fn parse(token: &str, query: u64, keys: usize) -> Option<Vec<String>> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let mut parts = text.split(SEPARATOR).map(str::to_owned);
    let of: u64 = parts.next()?.parse().ok()?;
    let key: Vec<String> = parts.collect();
    (of == query && key.len() == keys && !text.contains('\0')).then_some(key)
}

/// The same in every process of one build, which is as long as a token has to live.
fn digest(query: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    query.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pages_follow_each_other() {
        let first = Page::read(2, "", &"children of acme", 1).expect("a page");
        let mut rows = vec!["a", "b", "c"];
        let token = first.cut(&mut rows, |row| vec![(*row).to_owned()]);
        assert_eq!(rows, ["a", "b"]);
        let second = Page::read(2, &token, &"children of acme", 1).expect("a page");
        assert_eq!(second.after, Some(vec!["b".to_owned()]));
        assert_eq!(
            second.cut(&mut vec!["c"], |row| vec![(*row).to_owned()]),
            ""
        );
        assert!(Page::read(2, &token, &"children of other", 1).is_err());
        assert!(Page::read(-1, "", &"children of acme", 1).is_err());
        assert_eq!(
            Page::read(1_000, "", &"children of acme", 1)
                .expect("a page")
                .size,
            100
        );
    }

    proptest! {
        #[test]
        fn no_token_makes_the_parser_panic(token in ".{0,40}|[A-Za-z0-9_-]{0,40}") {
            let _ = Page::read(0, &token, &"q", 1);
        }
    }
}
