//! The bearer token of the job, or where it is.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::failure::Failure;

/// More than any token has: a device may never end.
const LONGEST: u64 = 1 << 16;

/// A file is read each time, for it may hold another one then.
pub(crate) enum JobToken {
    Given(String),
    InFile(PathBuf),
}

impl fmt::Debug for JobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given"),
            Self::InFile(path) => f.debug_tuple("InFile").field(path).finish(),
        }
    }
}

impl JobToken {
    /// As it is from here on: what is no file, as a pipe, gives it only once, and who writes it may take his time.
    pub(crate) async fn kept(self, patience: Duration) -> Result<Self, Failure> {
        let Self::InFile(path) = self else {
            return Ok(self);
        };
        if !path.metadata().is_ok_and(|found| !found.is_file()) {
            return Ok(Self::InFile(path));
        }
        let (answers, answer) = oneshot::channel();
        let from = path.clone();
        // The runtime would wait for a thread of its own to the end.
        std::thread::spawn(move || answers.send(in_file(&from)));
        match timeout(patience, answer).await {
            Ok(Ok(token)) => token.map(Self::Given),
            _ => Err(wrong(&path, "nobody writes the token there")),
        }
    }

    pub(crate) fn read(&self) -> Result<String, Failure> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::InFile(path) => in_file(path),
        }
    }
}

fn in_file(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(LONGEST).read_to_string(&mut text));
    match (read, text.trim()) {
        (Ok(_), "") => Err(wrong(path, "it holds no token")),
        (Ok(_), token) => Ok(token.to_owned()),
        (Err(error), _) => Err(wrong(path, &error.to_string())),
    }
}

fn wrong(path: &Path, what: &str) -> Failure {
    let path = path.display();
    Failure::Usage(vec![format!("THARSIS_JOB_TOKEN_FILE={path}: {what}")])
}
