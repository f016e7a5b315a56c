//! Globs as they are defined, to compare the matcher of trust policies with.

/// Whether a value is like a glob, where `*` stands for any characters and `?` for one.
pub(crate) fn matches(glob: &str, value: &str) -> bool {
    // Whether what was read of the glob is like each beginning of the value.
    let value: Vec<char> = value.chars().collect();
    let mut like = vec![false; value.len() + 1];
    like[0] = true;
    for wanted in glob.chars() {
        let before = like.clone();
        let mut any = false;
        for end in 0..like.len() {
            any |= before[end];
            like[end] = match wanted {
                '*' => any,
                _ if end == 0 => false,
                '?' => before[end - 1],
                _ => before[end - 1] && value[end - 1] == wanted,
            };
        }
    }
    like[value.len()]
}
