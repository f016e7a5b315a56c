//! The command line of a service: it says what the service is, and no more. What a service is told is in its environment.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::Path;
use std::process;

use crate::settings::{self, Environment, InvalidSettings};

/// `EX_USAGE`.
const USAGE: i32 = 64;

/// Reads the configuration with `build` from the process's environment, where there are no arguments; answers those, and
/// ends the process, where there are some.
pub fn none_but<T>(
    build: impl Fn(&mut Environment<'_>) -> Option<T>,
) -> Result<T, InvalidSettings> {
    let mut arguments = std::env::args_os();
    let program = arguments.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or(&program);
    let arguments: Vec<_> = arguments.collect();
    if arguments.is_empty() {
        return settings::from_process(build);
    }
    // What can't be said on a closed output is not said.
    process::exit(match answer(&name.to_string_lossy(), &arguments, build) {
        Ok(told) => {
            let _ = io::stdout().write_all(told.as_bytes());
            0
        }
        Err(told) => {
            let _ = io::stderr().write_all(told.as_bytes());
            USAGE
        }
    })
}

fn answer<T>(
    name: &str,
    arguments: &[OsString],
    build: impl Fn(&mut Environment<'_>) -> Option<T>,
) -> Result<String, String> {
    let version = env!("CARGO_PKG_VERSION");
    match arguments {
        [help] if help == "--help" || help == "-h" => {
            let names: Vec<_> = settings::variables(build).into_iter().collect();
            Ok(format!(
                "{name} {version}: a service of Tharsis managed identities.\n\nIt takes no arguments but --help and \
                 --version. Its configuration is in the environment (the README says what each is):\n  {}\n",
                names.join("\n  ")
            ))
        }
        [asked] if asked == "--version" || asked == "-V" => Ok(format!("{name} {version}\n")),
        _ => Err(format!(
            "{name} takes no arguments: its configuration is in the environment; see {name} --help\n"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Peer;
    use crate::settings::Settings;

    fn told(arguments: &[&str]) -> Result<String, String> {
        let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
        answer("tharsis-issuer", &arguments, |environment| {
            Settings::read(environment, Peer::Issuer)
        })
    }

    #[test]
    fn help_names_every_variable() {
        for help in ["--help", "-h"] {
            let help = told(&[help]).expect("help");
            for variable in [
                "THARSIS_GRPC_LISTEN",
                "THARSIS_METRICS_LISTEN",
                "THARSIS_LOG",
            ] {
                assert!(help.contains(variable), "{help}");
            }
        }
        let version = told(&["--version"]).expect("the version");
        assert!(version.starts_with("tharsis-issuer "), "{version}");
    }

    #[test]
    fn any_other_argument_is_refused() {
        for wrong in [&["serve"][..], &["--help", "serve"], &["--config=x"]] {
            told(wrong).expect_err("it is wrong");
        }
    }
}
