//! What of a text the index of substrings knows.

use std::collections::BTreeSet;

/// Bytes of a gram at most: so many fit into a positive number of the index.
const LENGTH: usize = 3;

/// Each one, two and three bytes of a name, as numbers.
pub(crate) fn of_name(name: &str) -> Vec<i32> {
    let grams: BTreeSet<i32> = (1..=LENGTH)
        .flat_map(|length| name.as_bytes().windows(length).map(gram))
        .collect();
    grams.into_iter().collect()
}

/// Those that a name has if it holds the text: the longest, because they are the rarest. None for an empty text.
pub(crate) fn of_text(text: &str) -> Vec<i32> {
    let length = text.len().clamp(1, LENGTH);
    let grams: BTreeSet<i32> = text.as_bytes().windows(length).map(gram).collect();
    grams.into_iter().collect()
}

/// Of different length or content, another number: no byte of a name is 0.
fn gram(bytes: &[u8]) -> i32 {
    bytes
        .iter()
        .fold(0, |gram, byte| gram << 8 | i32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_has_the_grams_of_whatever_it_holds(before in "[a-z_]{0,5}", text in "[a-z_-]{0,9}", after in "[a-z]{0,5}") {
            let name = of_name(&format!("{before}{text}{after}"));
            prop_assert!(of_text(&text).iter().all(|gram| name.contains(gram)));
        }
    }

    #[test]
    fn other_texts_have_other_grams() {
        assert_eq!(of_name("ab").len(), 3);
        assert!(!of_name("abc").contains(&of_text("cb")[0]));
        assert_eq!(of_text(""), [0_i32; 0]);
    }
}
