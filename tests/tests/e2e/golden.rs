//! Files that say what is meant, and change only on purpose: `UPDATE_GOLDEN=1 cargo test …` writes them anew.

use std::path::{Path, PathBuf};

/// Where a golden file is.
pub(crate) fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("golden")
        .join(name)
}

/// Whether they are to be written anew.
pub(crate) fn is_updated() -> bool {
    std::env::var_os("UPDATE_GOLDEN").is_some()
}

/// What a golden file says; nothing, if there is none.
pub(crate) fn read(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_default()
}

/// The text must be what the file says.
#[track_caller]
pub(crate) fn compare(name: &str, actual: &str) {
    compare_file(&path(name), actual);
}

/// The same of a file that is elsewhere.
#[track_caller]
pub(crate) fn compare_file(file: &Path, actual: &str) {
    if is_updated() {
        std::fs::write(file, actual).expect("the golden file can be written");
    }
    let meant = std::fs::read_to_string(file).unwrap_or_default();
    let name = file.display();
    let differs = |(meant, actual): &(&str, &str)| meant != actual;
    let lines = meant.lines().zip(actual.lines()).find(differs);
    assert!(
        meant == actual,
        "{name} says otherwise (if this is meant: UPDATE_GOLDEN=1); first difference, file and fact: {lines:#?}"
    );
}
