//! Each target on its corpus and on inputs like it; the same ones each time.

use std::path::{Path, PathBuf};

use fuzz::TARGETS;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Inputs of each target beside its corpus.
const CASES: u32 = 2_000;
/// Bytes that mean something to one parser or other.
const TELLING: &[u8] = b"\0\n\r \"%*+,-./:=?@\\_{}~09AZaz\x7f\x80\xc3\xff";

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("a folder");
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let files = files(&here().join("corpus").join(target));
    let inputs = files
        .iter()
        .map(|file| std::fs::read(file).expect("a file"));
    let inputs: Vec<_> = inputs.collect();
    assert!(!inputs.is_empty(), "{target} has no corpus");
    inputs
}

#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, u8),
    Remove(Index, Index),
    Repeat(Index, Index),
    /// Goes on as another input does.
    Splice(Index, Vec<u8>, Index),
}

fn edit(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Edit> {
    let byte = || prop_oneof![select(TELLING), any::<u8>()];
    let place = any::<Index>;
    prop_oneof![
        (place(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (place(), byte()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
        (place(), place()).prop_map(|(from, to)| Edit::Remove(from, to)),
        (place(), place()).prop_map(|(from, to)| Edit::Repeat(from, to)),
        (place(), select(corpus), place())
            .prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ]
}

fn apply(input: &mut Vec<u8>, edit: Edit) {
    // One place more than there are bytes: the end.
    let place = |index: Index| index.index(input.len() + 1);
    let range = |from, to| {
        let (from, to) = (place(from), place(to));
        from.min(to)..from.max(to)
    };
    match edit {
        Edit::Set(at, byte) => {
            let at = place(at);
            if let Some(old) = input.get_mut(at) {
                *old = byte;
            }
        }
        Edit::Insert(at, byte) => {
            let at = place(at);
            input.insert(at, byte);
        }
        Edit::Remove(from, to) => {
            let range = range(from, to);
            input.drain(range);
        }
        Edit::Repeat(from, to) => {
            let range = range(from, to);
            input.extend_from_within(range);
        }
        Edit::Splice(at, other, from) => {
            let at = place(at);
            input.truncate(at);
            input.extend_from_slice(&other[from.index(other.len() + 1)..]);
        }
    }
}

#[test]
fn no_target_fails_on_its_corpus_and_inputs_like_it() {
    for target in TARGETS {
        let corpus = corpus(target.name);
        corpus.iter().for_each(|input| (target.run)(input));
        let config = Config {
            cases: CASES,
            failure_persistence: None,
            ..Config::default()
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let inputs = (
            select(corpus.clone()),
            prop::collection::vec(edit(corpus), 1..6),
        );
        let inputs = inputs.prop_map(|(mut input, edits)| {
            edits.into_iter().for_each(|edit| apply(&mut input, edit));
            input
        });
        let found = TestRunner::new_with_rng(config, rng).run(&inputs, |input| {
            (target.run)(&input);
            Ok(())
        });
        found.unwrap_or_else(|failure| panic!("{}: {failure}", target.name));
    }
}

#[test]
fn cargo_fuzz_has_each_target() {
    let manifest = here().join("libfuzzer/Cargo.toml");
    let manifest = std::fs::read_to_string(manifest).expect("the manifest");
    let wrappers = files(&here().join("libfuzzer/targets"));
    let wrappers: Vec<_> = wrappers
        .iter()
        .filter_map(|file| file.file_stem()?.to_str())
        .collect();
    let mut targets = TARGETS.map(|target| target.name);
    targets.sort_unstable();
    assert_eq!(wrappers, targets);
    for target in targets {
        let wrapper = here().join(format!("libfuzzer/targets/{target}.rs"));
        let wrapper = std::fs::read_to_string(wrapper).expect("a wrapper");
        assert!(wrapper.contains(&format!("fuzz::run(\"{target}\"")));
        assert!(manifest.contains(&format!("path = \"targets/{target}.rs\"")));
    }
}
