//! The answer to a write or a commit is lost on its way: the log finds out what became of it, or says that it does not
//! know.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bed::Database;
use eventlog::{Append, AppendError, EventLog, Expected};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::scene::{HAPPENED, LOG, command, database, events, open, stream, to, whole};

/// What makes an append's events durable.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// The one statement that writes them, where nobody came between.
    Write,
    /// The end of the transaction in which they are written behind the locked head row. Someone comes between first.
    Commit,
}

/// What happens to the next such step that comes by, if anything.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Accident {
    /// It does not reach the server.
    Before,
    /// The server carries it out, and its answer does not come back.
    After,
    /// The connection breaks on the client's side, and the server gets it only when it is let through.
    Late,
}

#[derive(Default)]
struct State {
    next: Option<(Step, Accident)>,
    /// Someone comes between reading and writing.
    overtaken: bool,
    /// From the accident on, nothing gets through.
    then_closed: bool,
    closed: bool,
    late: Option<JoinHandle<()>>,
}

/// A way to the database on which accidents happen.
struct Way {
    state: Arc<Mutex<State>>,
    /// Told to let through what is late.
    through: Arc<Notify>,
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
        let (pool, through) = (database.pool().clone(), Arc::<Notify>::default());
        let way = Self {
            state: Arc::clone(&state),
            through: Arc::clone(&through),
            port,
        };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(address.clone())
                    .await
                    .expect("the server is there");
                tokio::spawn(carry(
                    client,
                    server,
                    Arc::clone(&state),
                    Arc::clone(&through),
                    pool.clone(),
                ));
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

    fn prepare(&self, step: Step, accident: Accident, then_closed: bool) {
        *self.state.lock().expect("no holder panics") = State {
            next: Some((step, accident)),
            overtaken: step == Step::Commit,
            then_closed,
            ..State::default()
        };
    }

    fn is_over(&self) -> bool {
        let state = self.state.lock().expect("no holder panics");
        state.next.is_none() && !state.overtaken
    }

    /// And waits until the server has dealt with it.
    async fn lets_late_ones_through(&self) {
        let late = self.state.lock().expect("no holder panics").late.take();
        self.through.notify_one();
        late.expect("one is late")
            .await
            .expect("the server answers");
    }

    fn open_again(&self) {
        *self.state.lock().expect("no holder panics") = State::default();
    }
}

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    state: Arc<Mutex<State>>,
    through: Arc<Notify>,
    pool: PgPool,
) {
    let (mut up, mut down) = (vec![0; 65_536], vec![0; 65_536]);
    let closed = || state.lock().expect("no holder panics").closed;
    let holds = |sent: &[u8], text: &[u8]| sent.windows(text.len()).any(|bytes| bytes == text);
    let overtaken = |sent: &[u8]| {
        let mut state = state.lock().expect("no holder panics");
        holds(sent, HAPPENED.as_bytes()) && std::mem::take(&mut state.overtaken)
    };
    let accident = |sent: &[u8]| {
        let mut state = state.lock().expect("no holder panics");
        let accident = state.next.take_if(|(step, _)| match step {
            Step::Write => holds(sent, HAPPENED.as_bytes()),
            Step::Commit => holds(sent, b"COMMIT\0"),
        });
        state.closed |= accident.is_some() && state.then_closed;
        accident.map(|(_, accident)| accident)
    };
    loop {
        tokio::select! {
            read = client.read(&mut up) => match read {
                Ok(count) if count > 0 && !closed() => match accident(&up[..count]) {
                    None if overtaken(&up[..count]) => {
                        sqlx::raw_sql("UPDATE log_head SET revision = revision + 1")
                            .execute(&pool)
                            .await
                            .expect("the head row is there");
                        server.write_all(&up[..count]).await.expect("the server reads");
                    }
                    None => server.write_all(&up[..count]).await.expect("the server reads"),
                    Some(Accident::Before) => return,
                    Some(Accident::Late) => {
                        let late = tokio::spawn(async move {
                            through.notified().await;
                            server.write_all(&up[..count]).await.expect("the server reads");
                            let _ = server.read(&mut down).await;
                        });
                        state.lock().expect("no holder panics").late = Some(late);
                        return;
                    }
                    Some(Accident::After) => {
                        server.write_all(&up[..count]).await.expect("the server reads");
                        // It is done once its answer comes.
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
async fn what_was_carried_out_is_acknowledged() {
    for step in [Step::Write, Step::Commit] {
        let database = database().await;
        let way = Way::to(&database).await;
        let log = way.log(&database).await;
        way.prepare(step, Accident::After, false);
        let appended = log.append(create("a")).await.unwrap();
        assert_eq!(
            (appended.first, appended.last, appended.replayed),
            (1, 2, None)
        );
        assert!(way.is_over(), "nothing happened at the {step:?}");
        assert_eq!(*log.watch().borrow(), 2);
        assert_eq!(whole(&log).await.len(), 2);
    }
}

#[tokio::test]
async fn what_never_came_is_an_error_and_appends_nothing() {
    for step in [Step::Write, Step::Commit] {
        let database = database().await;
        let way = Way::to(&database).await;
        let log = way.log(&database).await;
        way.prepare(step, Accident::Before, false);
        assert!(matches!(
            log.append(create("a")).await,
            Err(AppendError::Database(_))
        ));
        assert!(way.is_over(), "nothing happened at the {step:?}");
        assert_eq!(whole(&log).await, []);
        assert_eq!(log.append(create("a")).await.unwrap().first, 1);
    }
}

#[tokio::test]
async fn what_comes_after_its_append_was_given_up_appends_nothing() {
    let database = database().await;
    let way = Way::to(&database).await;
    let log = way.log(&database).await;
    way.prepare(Step::Write, Accident::Late, false);
    assert!(matches!(
        log.append(create("a")).await,
        Err(AppendError::Database(_))
    ));
    way.lets_late_ones_through().await;
    assert_eq!(whole(&log).await, []);
    assert_eq!(log.append(create("a")).await.unwrap().first, 1);
}

/// The second append leans on nothing that is not known from the first.
#[tokio::test]
async fn it_is_the_same_where_the_log_need_not_be_read() {
    for accident in [Accident::Before, Accident::After, Accident::Late] {
        let database = database().await;
        let way = Way::to(&database).await;
        let log = way.log(&database).await;
        let append = || to(stream("a"), Expected::Any, events(1));
        assert_eq!(log.append(append()).await.unwrap().first, 1);
        way.prepare(Step::Write, accident, false);
        let answer = log.append(append()).await;
        assert!(way.is_over(), "nothing happened");
        if accident == Accident::Late {
            way.lets_late_ones_through().await;
        }
        let appended = match accident {
            Accident::After => {
                let last = whole(&log).await.pop().expect("it is there");
                assert_eq!(answer.unwrap().recorded_at, last.recorded_at);
                2
            }
            Accident::Before | Accident::Late => {
                assert!(matches!(answer, Err(AppendError::Database(_))));
                1
            }
        };
        assert_eq!(log.append(append()).await.unwrap().first, appended + 1);
        let versions: Vec<_> = whole(&log).await.iter().map(|one| one.version).collect();
        assert_eq!(versions, (1..=appended + 1).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn what_nobody_can_tell_is_called_unknown_and_a_retry_tells() {
    let database = database().await;
    for step in [Step::Write, Step::Commit] {
        for accident in [Accident::Before, Accident::After] {
            let id = format!("{step:?}{accident:?}").to_lowercase();
            let way = Way::to(&database).await;
            let log = way.log(&database).await;
            let append = create(&id);
            way.prepare(step, accident, true);
            let answer = log.append(append.clone()).await;
            assert!(
                matches!(answer, Err(AppendError::OutcomeUnknown(_))),
                "{id}: {answer:?}"
            );
            way.open_again();
            let retried = log.append(append).await.unwrap();
            assert_eq!(retried.replayed.is_some(), accident == Accident::After);
            let there = open(&database).await.stream(&stream(&id)).await.unwrap();
            assert_eq!(there.len(), 2, "{id}");
        }
    }
}
