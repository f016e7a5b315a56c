//! Who may depend on whom: checked, because a wrong dependency compiles as well as a right one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// A crate of the workspace, and those of its dependencies that reach its users.
struct Crate {
    name: String,
    dependencies: Vec<String>,
    dev_dependencies: Vec<String>,
}

const SERVICES: [&str; 4] = ["namespace", "identity", "issuer", "projector"];
/// Of tests; they may use anything.
const TESTS: [&str; 3] = ["e2e", "bed", "fuzz"];

/// The crates of the workspace that a crate may use; none, if nobody has said yet.
fn allowed(name: &str) -> Option<&'static [&'static str]> {
    match name {
        "proto" | "model" => Some(&[]),
        "eventlog" => Some(&["proto", "model"]),
        "edge" => Some(&["proto", "model", "eventlog"]),
        // A client: nothing of a server is in it.
        "exec" => Some(&["proto"]),
        service if SERVICES.contains(&service) => Some(&["proto", "model", "eventlog", "edge"]),
        _ => None,
    }
}

/// What a crate must do without, though others have it.
fn forbidden(name: &str) -> Vec<&'static str> {
    let mut crates = Vec::new();
    if name == "model" {
        crates.extend(["tokio", "tonic", "sqlx", "prost", "proto"]);
    }
    if name != "eventlog" {
        crates.push("async-nats");
    }
    crates
}

/// What is wrong with the dependencies.
fn wrong_dependencies(crates: &[Crate]) -> Vec<String> {
    let ours: BTreeSet<&str> = crates.iter().map(|member| member.name.as_str()).collect();
    let mut wrong = Vec::new();
    for Crate {
        name,
        dependencies,
        dev_dependencies,
    } in crates
    {
        if TESTS.contains(&name.as_str()) {
            continue;
        }
        let Some(allowed) = allowed(name) else {
            wrong.push(format!("{name} has no place in the layout yet"));
            continue;
        };
        let of_ours = |dependency: &&String| ours.contains(dependency.as_str());
        for dependency in dependencies.iter().filter(of_ours) {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!("{name} must not depend on {dependency}"));
            }
        }
        for dependency in dev_dependencies.iter().filter(of_ours) {
            // The programs that run beside the set are tested against it.
            let of_tests = dependency == "bed" || name == "exec" && dependency == "e2e";
            if !allowed.contains(&dependency.as_str()) && !of_tests {
                wrong.push(format!(
                    "the tests of {name} must not depend on {dependency}"
                ));
            }
        }
        for dependency in dependencies {
            if forbidden(name).contains(&dependency.as_str()) {
                wrong.push(format!("{name} must do without {dependency}"));
            }
        }
    }
    wrong
}

/// Where domain code may look: at itself, at the words of the product, and at what has no effects.
const DOMAIN_MAY_NAME: [&str; 7] = ["std", "core", "model", "time", "thiserror", "super", "self"];
const PRIMITIVES: [&str; 15] = [
    "str", "char", "bool", "i8", "i16", "i32", "i64", "isize", "u8", "u16", "u32", "u64", "u128",
    "usize", "f64",
];

/// What domain code names that it must not. Its tests, at the end of a file, may name more.
fn wrong_names(source: &str) -> Vec<String> {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    let code = without_comments_and_texts(code);
    let words = words(&code);
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut wrong = Vec::new();
    for pass in 0..2 {
        for (at, word) in words.iter().enumerate() {
            let word = word.as_str();
            let before = at
                .checked_sub(1)
                .map_or("", |before| words[before].as_str());
            let next = |steps: usize| words.get(at + steps).map_or("", String::as_str);
            if word == "use" && pass == 0 {
                // Whatever an allowed path brings in may be named by its last part.
                let statement = words[at..].iter().take_while(|word| *word != ";");
                known.extend(statement.map(String::as_str));
            }
            if before == "mod" {
                known.insert(word);
            }
            let begins_path =
                next(1) == "::" && before != "::" || before == "use" && next(1) == ";";
            if pass == 0 || !begins_path || !word.starts_with(|c: char| c.is_alphabetic()) {
                continue;
            }
            let is_type = word.starts_with(char::is_uppercase);
            let allowed = match word {
                "crate" => next(2) == "domain",
                _ if before == "use" => DOMAIN_MAY_NAME.contains(&word),
                _ => {
                    is_type
                        || DOMAIN_MAY_NAME.contains(&word)
                        || PRIMITIVES.contains(&word)
                        || known.contains(word)
                }
            };
            if !allowed {
                wrong.push(format!("{word}::{}", next(2)));
            }
        }
    }
    wrong
}

fn words(code: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut inside = false;
    let mut rest = code.chars().peekable();
    while let Some(c) = rest.next() {
        let part = c.is_alphanumeric() || c == '_';
        if part && inside {
            words.last_mut().expect("the word").push(c);
        } else if part {
            words.push(c.to_string());
        } else if c == ':' && rest.peek() == Some(&':') {
            rest.next();
            words.push("::".to_owned());
        } else if !c.is_whitespace() {
            words.push(c.to_string());
        }
        inside = part;
    }
    words
}

fn without_comments_and_texts(code: &str) -> String {
    let mut kept = String::new();
    for line in code.lines() {
        let mut in_text = false;
        let mut before = ' ';
        let mut rest = line.chars().peekable();
        while let Some(c) = rest.next() {
            if !in_text && c == '/' && rest.peek() == Some(&'/') {
                break;
            }
            if c == '"' && before != '\\' && before != '\'' {
                in_text = !in_text;
            } else if !in_text {
                kept.push(c);
            }
            before = c;
        }
        kept.push('\n');
    }
    kept
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn workspace() -> Vec<Crate> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--no-deps",
            "--format-version",
            "1",
            "--offline",
        ])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let crates = metadata["packages"]
        .as_array()
        .expect("packages")
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().expect("dependencies");
            let (dev, normal): (Vec<_>, Vec<_>) = dependencies
                .iter()
                .partition(|dependency| dependency["kind"] == "dev");
            let names = |dependencies: Vec<&Value>| {
                dependencies
                    .into_iter()
                    .map(|dependency| text(&dependency["name"]))
                    .collect()
            };
            Crate {
                name: text(&package["name"]),
                dependencies: names(normal),
                dev_dependencies: names(dev),
            }
        });
    crates.collect()
}

#[test]
fn dependencies_point_one_way() {
    let workspace = workspace();
    assert!(workspace.len() >= 8, "{}", workspace.len());
    assert_eq!(wrong_dependencies(&workspace), Vec::<String>::new());
}

#[test]
fn the_domain_knows_nothing_of_the_world() {
    let mut files = 0;
    for service in SERVICES {
        let folder = root().join("services").join(service).join("src/domain");
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.expect("a file").path();
            assert!(path.is_file(), "{} is not looked into", path.display());
            let source = std::fs::read_to_string(&path).expect("it can be read");
            assert_eq!(
                wrong_names(&source),
                Vec::<String>::new(),
                "{}",
                path.display()
            );
            files += 1;
        }
    }
    assert!(files >= 9, "only {files} files were found");
}

#[test]
fn a_wrong_dependency_is_seen() {
    let member = |name: &str, dependencies: &[&str], dev_dependencies: &[&str]| Crate {
        name: name.to_owned(),
        dependencies: dependencies.iter().map(ToString::to_string).collect(),
        dev_dependencies: dev_dependencies.iter().map(ToString::to_string).collect(),
    };
    let good = || {
        vec![
            member("proto", &["tonic"], &[]),
            member("model", &["uuid"], &["proptest"]),
            member("eventlog", &["proto", "async-nats"], &["bed"]),
            member("edge", &["eventlog", "model"], &[]),
            member("namespace", &["edge", "eventlog"], &["bed"]),
            member("issuer", &["edge"], &[]),
            member("exec", &["proto"], &["bed", "e2e"]),
            member("bed", &["sqlx"], &[]),
            member("e2e", &["issuer", "async-nats"], &[]),
        ]
    };
    assert_eq!(wrong_dependencies(&good()), Vec::<String>::new());
    for (name, dependency) in [
        ("model", "tokio"),
        ("model", "proto"),
        ("model", "edge"),
        ("eventlog", "edge"),
        ("eventlog", "issuer"),
        ("edge", "namespace"),
        ("namespace", "issuer"),
        ("namespace", "async-nats"),
        ("proto", "model"),
        ("issuer", "bed"),
        ("exec", "edge"),
        ("exec", "e2e"),
    ] {
        let mut crates = good();
        for member in crates.iter_mut().filter(|member| member.name == name) {
            member.dependencies.push(dependency.to_owned());
        }
        assert!(
            !wrong_dependencies(&crates).is_empty(),
            "{name} on {dependency}"
        );
    }
    let mut crates = good();
    crates[4].dev_dependencies.push("issuer".to_owned());
    crates.push(member("common", &[], &[]));
    assert_eq!(
        wrong_dependencies(&crates),
        [
            "the tests of namespace must not depend on issuer",
            "common has no place in the layout yet"
        ]
    );
}

#[test]
fn a_wrong_name_is_seen() {
    let good = r#"
        //! Not `proto::v1`.
        use std::fmt;
        use model::{Name, trn::Last};
        use super::{MAX, aws::RoleArn};
        use crate::domain::job::{self, Job};
        pub mod aws;
        /// See edge::clock.
        #[derive(thiserror::Error)]
        #[error("proto::x")]
        fn f(f: &mut fmt::Formatter<'_>) -> Option<job::State> { i64::MAX; Name::new(); std::mem::take(x); aws::x() } // sqlx::x
        #[cfg(test)]
        mod tests { use uuid::Uuid; }
    "#;
    assert_eq!(wrong_names(good), Vec::<String>::new());
    for (bad, wrong) in [
        ("use proto::namespace::v1 as pb;", "proto::namespace"),
        ("use sqlx;", "sqlx::"),
        ("use crate::wire::read;", "crate::wire"),
        ("use edge::{clock, status};", "edge::{"),
        ("fn f() { tonic::Status::ok(\"\") }", "tonic::Status"),
        ("fn f(log: &eventlog::EventLog) {}", "eventlog::EventLog"),
        ("fn f() { crate::grpc::x() }", "crate::grpc"),
        ("fn f() { let x = \"a\"; tokio::spawn(y) }", "tokio::spawn"),
    ] {
        let found = wrong_names(bad);
        assert!(
            found.iter().any(|found| found.starts_with(wrong)),
            "{bad}: {found:?}"
        );
    }
}
