//! The answer to a commit is lost on its way: the log finds out what became of it, or says that it does not know.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bed::Database;
use eventlog::{Append, AppendError, EventLog, Expected};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::scene::{LOG, command, database, events, open, stream, to, whole};

/// What happens to the next COMMIT that comes by, if anything.
#[derive(Clone, Copy, PartialEq)]
enum Accident {
    /// It does not reach the server.
    Before,
    /// The server carries it out, and its answer does not come back.
    After,
}

#[derive(Default)]
struct State {
    next: Option<Accident>,
    /// From the accident on, nothing gets through.
    then_closed: bool,
    closed: bool,
}

/// A way to the database on which accidents happen.
struct Way {
    state: Arc<Mutex<State>>,
    port: u16,
}

impl Way {
    async fn to(database: &Database) -> Self {
        let target: PgConnectOptions = database
            .url()
            .parse()
            .expect("the url was made from options");
        let address = (target.get_host().to_owned(), target.get_port());
        let listener = TcpListener::bind(("127.0.0.1", 0))
            .await
            .expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::<Mutex<State>>::default();
        let way = Self {
            state: Arc::clone(&state),
            port,
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(address.clone())
                    .await
                    .expect("the server is there");
                tokio::spawn(carry(client, server, Arc::clone(&state)));
            }
        });
        way
    }

    async fn log(&self, database: &Database) -> EventLog {
        let options: PgConnectOptions = database
            .url()
            .parse()
            .expect("the url was made from options");
        let pool = PgPoolOptions::new()
            .acquire_timeout(Duration::from_secs(2))
            .connect_lazy_with(options.host("127.0.0.1").port(self.port));
        EventLog::open(LOG, pool)
            .await
            .expect("the log can be opened")
    }

    fn prepare(&self, accident: Accident, then_closed: bool) {
        *self.state.lock().expect("no holder panics") = State {
            next: Some(accident),
            then_closed,
            closed: false,
        };
    }

    fn open_again(&self) {
        *self.state.lock().expect("no holder panics") = State::default();
    }
}

async fn carry(mut client: TcpStream, mut server: TcpStream, state: Arc<Mutex<State>>) {
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    let closed = || state.lock().expect("no holder panics").closed;
    let accident = |sent: &[u8]| {
        let mut state = state.lock().expect("no holder panics");
        let accident = if sent.windows(7).any(|bytes| bytes == b"COMMIT\0") {
            state.next.take()
        } else {
            None
        };
        state.closed |= accident.is_some() && state.then_closed;
        accident
    };
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(count) if count > 0 && !closed() => match accident(&up[..count]) {
                    None => server.write_all(&up[..count]).await.expect("the server reads"),
                    Some(Accident::Before) => return,
                    Some(Accident::After) => {
                        server.write_all(&up[..count]).await.expect("the server reads");
                        // The commit is done once its answer comes.
                        let _ = server.read(&mut down).await;
                        return;
                    }
                },
                _ => return,
            },
            read = server.read(&mut down) => match read {
                Ok(count) if count > 0 => if client.write_all(&down[..count]).await.is_err() { return },
                _ => return,
            }
        }
    }
}

fn create(id: &str) -> Append {
    Append {
        command: Some(command("create")),
        ..to(stream(id), Expected::Version(0), events(2))
    }
}

#[tokio::test]
async fn a_commit_that_was_carried_out_is_acknowledged() {
    let database = database().await;
    let way = Way::to(&database).await;
    let log = way.log(&database).await;
    way.prepare(Accident::After, false);
    let appended = log.append(create("a")).await.unwrap();
    assert_eq!(
        (appended.first, appended.last, appended.replayed),
        (1, 2, None)
    );
    assert_eq!(*log.watch().borrow(), 2);
    assert_eq!(whole(&log).await.len(), 2);
}

#[tokio::test]
async fn a_commit_that_never_came_is_an_error_and_appends_nothing() {
    let database = database().await;
    let way = Way::to(&database).await;
    let log = way.log(&database).await;
    way.prepare(Accident::Before, false);
    assert!(matches!(
        log.append(create("a")).await,
        Err(AppendError::Database(_))
    ));
    assert_eq!(whole(&log).await, []);
    assert_eq!(log.append(create("a")).await.unwrap().first, 1);
}

#[tokio::test]
async fn what_nobody_can_tell_is_called_unknown_and_a_retry_tells() {
    let database = database().await;
    for (id, accident) in [("before", Accident::Before), ("after", Accident::After)] {
        let way = Way::to(&database).await;
        let log = way.log(&database).await;
        let append = create(id);
        way.prepare(accident, true);
        let answer = log.append(append.clone()).await;
        assert!(
            matches!(answer, Err(AppendError::OutcomeUnknown(_))),
            "{answer:?}"
        );
        way.open_again();
        let retried = log.append(append).await.unwrap();
        assert_eq!(retried.replayed.is_some(), accident == Accident::After);
        assert_eq!(
            open(&database)
                .await
                .stream(&stream(id))
                .await
                .unwrap()
                .len(),
            2
        );
    }
}
