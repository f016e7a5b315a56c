//! A database for one test.

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _, PgPool};

use crate::{setting, unique_name};

/// A PostgreSQL database that is dropped with this value.
pub struct Database {
    name: String,
    url: String,
    pool: PgPool,
}

impl Database {
    /// Makes an empty database on the server at `THARSIS_TEST_POSTGRES_URL`.
    pub async fn create() -> Self {
        let server = server();
        let name = unique_name();
        execute(&server, format!("CREATE DATABASE {name}"))
            .await
            .expect("a database can be made on the test server");
        let options = server.database(&name);
        let url = options.to_url_lossy().to_string();
        let pool = pool(options, 10);
        Self { name, url, pool }
    }

    /// For another process.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Connections that the whole test shares.
    #[must_use]
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Connections of their own, as another process would have them.
    #[must_use]
    pub fn another_pool(&self, connections: u32) -> PgPool {
        pool(server().database(&self.name), connections)
    }
}

fn server() -> PgConnectOptions {
    setting("THARSIS_TEST_POSTGRES_URL")
        .parse()
        .expect("THARSIS_TEST_POSTGRES_URL is a PostgreSQL url")
}

fn pool(options: PgConnectOptions, connections: u32) -> PgPool {
    PgPoolOptions::new()
        .max_connections(connections)
        .connect_lazy_with(options)
}

async fn execute(server: &PgConnectOptions, statement: String) -> sqlx::Result<()> {
    let mut connection = server.connect().await?;
    sqlx::raw_sql(AssertSqlSafe(statement))
        .execute(&mut connection)
        .await?;
    Ok(())
}

impl Drop for Database {
    fn drop(&mut self) {
        // A runtime can't be blocked on from within itself, and ours may be about to end.
        let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        let (done, dropped) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let outcome = runtime
                .block_on(execute(&server(), statement))
                .map_err(std::io::Error::other);
            // Nobody listens any more if it took long.
            let _ = done.send(());
            outcome
        });
        // PostgreSQL waits for whoever is in the middle of logging in, perhaps a task of the runtime that we hold up
        // here: then it goes on behind us, or the database stays on the test server.
        let _ = dropped.recv_timeout(std::time::Duration::from_millis(500));
    }
}
