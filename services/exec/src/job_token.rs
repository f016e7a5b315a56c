//! The bearer token of the job, or where it is.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::sync::{Mutex, oneshot};
use tokio::time::timeout;

use crate::failure::Failure;

/// More than any token has: a device may never end.
const LONGEST: u64 = 1 << 16;

/// A file is read each time, for it may hold another one then.
pub(crate) enum JobToken {
    Given(String),
    InFile(TokenFile),
}

pub(crate) struct TokenFile {
    path: PathBuf,
    /// Held by the thread that reads it: of those that hang there is one.
    reading: Arc<Mutex<()>>,
}

impl fmt::Debug for JobToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given"),
            Self::InFile(file) => f.debug_tuple("InFile").field(&file.path).finish(),
        }
    }
}

impl JobToken {
    pub(crate) fn in_file(path: PathBuf) -> Self {
        Self::InFile(TokenFile {
            path,
            reading: Arc::default(),
        })
    }

    /// As it is from here on: what is no file, as a pipe, gives it only once, and who writes it may take his time.
    pub(crate) async fn kept(self, patience: Duration) -> Result<Self, Failure> {
        let Self::InFile(file) = &self else {
            return Ok(self);
        };
        let once = |path: &Path| {
            let is_pipe = path.metadata().is_ok_and(|found| !found.is_file());
            is_pipe.then(|| in_file(path))
        };
        match file.aside(patience, once).await {
            Some(Some(token)) => token.map(Self::Given),
            Some(None) => Ok(self),
            None => Err(wrong(&file.path, "nobody writes the token there")),
        }
    }

    /// What can't be read in time may be there the next time.
    pub(crate) async fn read(&self, limit: Duration) -> Result<String, Failure> {
        match self {
            Self::Given(token) => Ok(token.clone()),
            Self::InFile(file) => match file.aside(limit, in_file).await {
                Some(token) => token,
                None => Err(Failure::Unavailable(of_file(
                    &file.path,
                    "it can't be read in time",
                ))),
            },
        }
    }
}

impl TokenFile {
    /// Looks at it on a thread of its own, which hangs where the file does, as a pipe or a mount may; for one of the runtime's
    /// that would wait to the end. `None` if that takes longer.
    async fn aside<T: Send + 'static>(
        &self,
        limit: Duration,
        look: impl FnOnce(&Path) -> T + Send + 'static,
    ) -> Option<T> {
        let looked = async {
            let held = Arc::clone(&self.reading).lock_owned().await;
            let (answers, answer) = oneshot::channel();
            let path = self.path.clone();
            let look = move || {
                let _held = held;
                answers.send(look(&path))
            };
            thread::Builder::new().spawn(look).ok()?;
            answer.await.ok()
        };
        timeout(limit, looked).await.ok()?
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
    Failure::Usage(vec![of_file(path, what)])
}

fn of_file(path: &Path, what: &str) -> String {
    format!("THARSIS_JOB_TOKEN_FILE={}: {what}", path.display())
}

#[cfg(test)]
mod tests {
    use bed::eventually;

    use super::*;

    #[tokio::test]
    async fn a_file_that_hung_is_read_once_it_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("token");
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo runs").success());
        let token = JobToken::in_file(path.clone());
        let short = Duration::from_millis(20);
        for _ in 0..3 {
            let failure = token.read(short).await.expect_err("nobody writes it");
            assert!(matches!(failure, Failure::Unavailable(_)), "{failure}");
        }
        let JobToken::InFile(file) = &token else {
            panic!("it is in a file");
        };
        assert_eq!(Arc::strong_count(&file.reading), 2, "one thread hangs");
        // It is let go: a writer has come, and gone.
        std::fs::write(&path, "").expect("written");
        std::fs::remove_file(&path).expect("removed");
        std::fs::write(&path, "job-token\n").expect("written");
        let read = eventually(async || token.read(short).await).await;
        assert_eq!(read, "job-token");
    }
}
