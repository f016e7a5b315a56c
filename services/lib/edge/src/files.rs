//! The files that the process may open: each connection is one, and so is what it needs to serve them.

use std::sync::LazyLock;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// gRPC, HTTP, and metrics.
const LISTENERS: usize = 3;
/// Files for all else: the database, NATS, other services, OIDC issuers.
const OTHERS: usize = 256;

/// How many connections a listener takes of those that it would, so that with all its connections the process can still open
/// what else it needs.
pub(crate) fn connections(wanted: usize) -> usize {
    static FILES: LazyLock<usize> = LazyLock::new(openable);
    connections_of(*FILES).min(wanted)
}

/// As many as the process may at all: the lower limit that it begins with is for programs that call `select`.
fn openable() -> usize {
    let hard = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: hard,
        maximum: hard,
    };
    // Where that is refused, the lower one counts.
    let _ = setrlimit(Resource::Nofile, raised);
    let files = getrlimit(Resource::Nofile).current;
    files.map_or(usize::MAX, |files| files.try_into().unwrap_or(usize::MAX))
}

fn connections_of(files: usize) -> usize {
    let left = files.saturating_sub(OTHERS).max(files / 2);
    (left / LISTENERS).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_leaves_files_to_the_others() {
        for (files, connections) in [(0, 1), (64, 10), (256, 42), (1_024, 256), (4_096, 1_280)] {
            assert_eq!(connections_of(files), connections, "{files}");
        }
    }

    #[test]
    fn what_may_be_raised_is_raised() {
        openable();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
