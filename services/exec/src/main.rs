//! `tharsis-exec`: a command with the credentials of its job's managed identities. `tharsis-exec --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    exec::run(std::env::args_os())
}
