//! NATS: the server that all tests share, and servers that a test may kill.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::{eventually, free_port, setting, unique_name};

/// The server at `THARSIS_TEST_NATS_URL`. Use names of your own there.
#[must_use]
pub fn shared_nats_url() -> String {
    setting("THARSIS_TEST_NATS_URL")
}

/// A nats-server with JetStream in a folder of its own. Killed, and its folder removed, with this value.
pub struct NatsServer {
    name: String,
    port: u16,
    folder: PathBuf,
    process: Option<Child>,
}

/// A copy of what a server had stored.
pub struct Store(PathBuf);

impl NatsServer {
    /// Starts a server on a free port.
    pub async fn start() -> Self {
        let folder = std::env::temp_dir().join(unique_name());
        std::fs::create_dir(&folder).expect("a folder can be made in the temporary one");
        let mut server = Self {
            name: unique_name(),
            port: 0,
            folder,
            process: None,
        };
        // Another process may take the port between our look and the server's.
        for _ in 0..5 {
            server.port = free_port();
            if server.try_restart().await.is_ok() {
                return server;
            }
        }
        panic!("no nats-server could be started: {}", server.log());
    }

    /// Where it listens, now or after a restart.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Ends it at once (SIGKILL). What it stored stays.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("our own process can be killed");
            process.wait().expect("our own process can be waited for");
        }
    }

    /// Starts it again on its port with what it had stored; kills it first if it runs.
    pub async fn restart(&mut self) {
        if let Err(error) = self.try_restart().await {
            panic!("nats-server did not start again: {error}\n{}", self.log());
        }
    }

    /// Removes everything that it stored. Kill it first.
    pub fn wipe(&mut self) {
        assert!(
            self.process.is_none(),
            "a running server does not notice that its folder is gone"
        );
        remove(&self.store());
    }

    /// A copy of everything that it stored. Kill it first.
    #[must_use]
    pub fn save(&self) -> Store {
        assert!(self.process.is_none(), "a running server still writes");
        let copy = self.folder.join(unique_name());
        copy_folder(&self.store(), &copy).expect("the store can be copied");
        Store(copy)
    }

    /// Puts back what it had stored before. Kill it first.
    pub fn restore(&mut self, earlier: &Store) {
        self.wipe();
        copy_folder(&earlier.0, &self.store()).expect("the store can be copied back");
    }

    async fn try_restart(&mut self) -> io::Result<()> {
        self.kill();
        let log = std::fs::File::create(self.folder.join("log"))?;
        let process = Command::new(setting("THARSIS_TEST_NATS_SERVER"))
            .args([
                "--addr",
                "127.0.0.1",
                "--port",
                &self.port.to_string(),
                "--name",
                &self.name,
                "--jetstream",
            ])
            .arg("--store_dir")
            .arg(self.store())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let process = self.process.insert(process);
        let (port, name) = (self.port, &self.name);
        eventually(async || match (process.try_wait()?, greeting(port).await) {
            (Some(status), _) => Ok(Err(io::Error::other(format!("it ended: {status}")))),
            (None, Ok(greeting)) if greeting.contains(name) => Ok(Ok(())),
            (None, Ok(_)) => Ok(Err(io::Error::other("another server has the port"))),
            (None, Err(error)) => Err(error),
        })
        .await
    }

    fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        self.kill();
        remove(&self.folder);
    }
}

/// What the server says first, with its name.
async fn greeting(port: u16) -> io::Result<String> {
    let mut line = String::new();
    let read = async {
        let connection = TcpStream::connect(("127.0.0.1", port)).await?;
        BufReader::new(connection).read_line(&mut line).await
    };
    timeout(Duration::from_secs(1), read).await??;
    Ok(line)
}

fn remove(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            eprintln!("{} stays behind: {error}", folder.display());
        }
        _ => {}
    }
}

fn copy_folder(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
