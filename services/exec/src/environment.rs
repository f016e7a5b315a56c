//! How the command's environment differs from ours.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tokio::process::Command;

/// What is set, and what is taken out (`None`).
#[derive(Debug, Default)]
pub(crate) struct Environment(BTreeMap<&'static str, Option<String>>);

impl Environment {
    pub(crate) fn set(&mut self, name: &'static str, value: impl Into<String>) {
        self.0.insert(name, Some(value.into()));
    }

    pub(crate) fn unset(&mut self, name: &'static str) {
        self.0.insert(name, None);
    }

    /// Leaves it as it is.
    pub(crate) fn keep(&mut self, name: &str) {
        self.0.remove(name);
    }

    pub(crate) fn apply(&self, command: &mut Command) {
        for (name, value) in &self.0 {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
    }

    /// As a POSIX shell reads it.
    pub(crate) fn exports(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.0 {
            // Writing to a string does not fail.
            let _ = match value {
                Some(value) => writeln!(text, "export {name}={}", quoted(value)),
                None => writeln!(text, "unset {name}"),
            };
        }
        text
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_deref()
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_what_a_shell_reads() {
        let mut environment = Environment::default();
        environment.set("B", "it's $HOME `x`");
        environment.unset("A");
        environment.set("C", "gone");
        environment.keep("C");
        assert_eq!(
            environment.exports(),
            "unset A\nexport B='it'\\''s $HOME `x`'\n"
        );
    }
}
