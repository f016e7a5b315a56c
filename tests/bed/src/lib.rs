//! What every test stands on: a database of its own, a NATS server that it may kill, names that no other test uses,
//! and waiting without sleeping. Knows nothing of events or services.
//!
//! `deploy/dev test` starts the servers and sets the environment. Whatever is missing here panics: a test can't go on.

#![expect(
    clippy::missing_panics_doc,
    reason = "all of it panics when a test can't go on"
)]

mod database;
mod nats;
mod patience;

use uuid::Uuid;

pub use database::Database;
pub use nats::{NatsServer, Store, shared_nats_url};
pub use patience::eventually;

/// A random id.
#[must_use]
pub fn unique_id() -> Uuid {
    #[expect(
        clippy::disallowed_methods,
        reason = "tests run beside each other and again and again on the same servers"
    )]
    Uuid::new_v4()
}

/// A name that no other test uses: `t` and 16 hexadecimal digits. Usable in stream names, subjects and databases.
#[must_use]
pub fn unique_name() -> String {
    format!("t{}", &unique_id().simple().to_string()[..16])
}

/// A port that nothing listens on, for what must come back on the same one. Below those that the kernel gives to
/// outgoing connections, one of which could take it meanwhile.
#[must_use]
pub fn free_port() -> u16 {
    loop {
        let [high, low, ..] = unique_id().into_bytes();
        let port = 12_000 + u16::from_be_bytes([high, low]) % 20_000;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn setting(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run the tests with `deploy/dev test`"))
}
