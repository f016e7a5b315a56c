//! The oracle: many writers against one log, and a reader that tails it. What the reader saw must be exactly what was
//! acknowledged, in order, dense, each event once, whatever happened to the writers meanwhile.
//!
//! Larger: `THARSIS_ORACLE_WRITERS=64 THARSIS_ORACLE_COMMANDS=1000`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bed::{Database, unique_id};
use eventlog::{
    Append, AppendError, Appended, Command, EventLog, Expected, Guard, RecordedEvent, StreamId,
};
use futures::future::join_all;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use crate::scene::{LOG, database, events, open, stream, to};

/// Each as a process has it: an appender and connections of its own.
const INSTANCES: usize = 4;
/// What commands may count up to: more than some runs try, fewer than others.
const PLACES: i64 = 40;

/// How a run is disturbed, beside the conflicts that the writers cause each other.
struct Run {
    writers: usize,
    commands: usize,
    /// Connections of appenders are killed at random moments.
    kill: bool,
}

impl Run {
    fn from_environment() -> Self {
        let number = |name: &str, default| match std::env::var(name) {
            Ok(text) => text
                .parse()
                .unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")),
            Err(_) => default,
        };
        let (writers, commands) = (
            number("THARSIS_ORACLE_WRITERS", 16),
            number("THARSIS_ORACLE_COMMANDS", 80),
        );
        Self {
            writers,
            commands,
            kill: true,
        }
    }
}

/// What became of a command, as far as its writer knows.
#[derive(Debug)]
enum Outcome {
    Acknowledged(Appended),
    Refused,
    /// Cancelled, or the connection died: wholly there or wholly absent.
    Unknown,
}

#[derive(Debug)]
struct Attempt {
    stream_id: StreamId,
    ids: Vec<Uuid>,
    counted: bool,
    outcome: Outcome,
}

#[derive(Debug, PartialEq)]
enum Violation {
    /// Acknowledged, but the reader went past it.
    NeverSeen(Uuid),
    /// Acknowledged at these positions, seen at others.
    Misplaced {
        said: (u64, u64),
        seen: Vec<u64>,
    },
    /// Refused or never asked for, but there.
    Uninvited(Uuid),
    /// A command of which some is there and some not.
    Torn {
        ids: usize,
        seen: Vec<u64>,
    },
    SeenTwice(Uuid),
    NotDense {
        expected: u64,
        found: u64,
    },
    VersionNotDense {
        stream_id: String,
        expected: u64,
        found: u64,
    },
    BackInTime(u64),
    /// The facts say another number than the acknowledged commands make.
    Miscounted {
        fact: i64,
        at_least: i64,
        at_most: i64,
    },
}

/// Random enough to disturb, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % sides
    }
}

struct Writer {
    number: usize,
    log: EventLog,
    dice: Dice,
    /// Where this writer believes the shared streams to stand: often wrong.
    known: HashMap<StreamId, u64>,
    /// Commands of all writers that came to an end.
    answered: Arc<AtomicU64>,
}

impl Writer {
    async fn write(mut self, commands: usize) -> Vec<Attempt> {
        let mut attempts = Vec::new();
        for _ in 0..commands {
            let (append, counted) = self.next();
            attempts.push(self.attempt(append, counted).await);
            self.answered.fetch_add(1, Ordering::Relaxed);
        }
        attempts
    }

    fn next(&mut self) -> (Append, bool) {
        let events = events(1 + usize::try_from(self.dice.roll(3)).unwrap_or_default());
        let command = Command {
            id: unique_id(),
            fingerprint: b"fingerprint".to_vec(),
            reply: b"reply".to_vec(),
        };
        let own = stream(&format!("writer_{}", self.number));
        let mut append = match self.dice.roll(10) {
            0..4 => to(own, Expected::Any, events),
            4..8 => {
                let shared = stream(&format!("shared_{}", self.dice.roll(3)));
                let expected = Expected::Version(self.known.get(&shared).copied().unwrap_or(0));
                to(shared, expected, events)
            }
            8 => {
                let guards = vec![Guard::Count {
                    key: "places".to_owned(),
                    by: 1,
                    min: 0,
                    max: PLACES,
                }];
                return (
                    Append {
                        guards,
                        command: Some(command),
                        ..to(own, Expected::Any, events)
                    },
                    true,
                );
            }
            // Who has the name may have it again, everybody else is refused.
            _ => {
                let key = format!("name_{}", self.dice.roll(3));
                let value = (self.dice.roll(2) == 0).then(|| self.number.to_string());
                let guards = vec![
                    Guard::Expect {
                        key: key.clone(),
                        value: value.clone(),
                    },
                    Guard::Set { key, value },
                ];
                Append {
                    guards,
                    ..to(own, Expected::Any, events)
                }
            }
        };
        if self.dice.roll(2) == 0 {
            append.command = Some(command);
        }
        (append, false)
    }

    async fn attempt(&mut self, append: Append, counted: bool) -> Attempt {
        let stream_id = append.streams[0].stream_id.clone();
        let ids: Vec<_> = append.streams[0]
            .events
            .iter()
            .map(|event| event.id)
            .collect();
        let patience = match self.dice.roll(8) {
            0 => Duration::from_micros(self.dice.roll(8_000)),
            _ => Duration::from_mins(1),
        };
        let mut answer = timeout(patience, self.log.append(append.clone())).await;
        // As a caller would: who has a command id may ask again, and is told what became of it.
        while let Ok(Err(AppendError::Database(_) | AppendError::OutcomeUnknown(_))) = answer
            && append.command.is_some()
        {
            answer = timeout(patience, self.log.append(append.clone())).await;
        }
        let outcome = match answer {
            Ok(Ok(appended)) => Outcome::Acknowledged(appended),
            Ok(Err(AppendError::VersionConflict { stream_id, actual })) => {
                self.known.insert(stream_id, actual);
                Outcome::Refused
            }
            // The database failed, and nothing was appended: the log promises that.
            Ok(Err(AppendError::GuardRefused { .. } | AppendError::Database(_))) => {
                Outcome::Refused
            }
            Ok(Err(AppendError::OutcomeUnknown(_))) | Err(_) => Outcome::Unknown,
            Ok(Err(error)) => panic!("unexpected: {error:?}"),
        };
        if let Outcome::Acknowledged(_) = outcome {
            *self.known.entry(stream_id.clone()).or_default() += ids.len() as u64;
        }
        Attempt {
            stream_id,
            ids,
            counted,
            outcome,
        }
    }
}

/// Tails the log as any reader would: always behind the last position that it saw.
async fn tail(log: EventLog, mut done: tokio::sync::watch::Receiver<bool>) -> Vec<RecordedEvent> {
    let mut seen: Vec<RecordedEvent> = Vec::new();
    loop {
        // Known before reading: then nothing comes after an empty page.
        let last_look = *done.borrow();
        let after = seen.last().map_or(0, |event| event.position);
        let page = log
            .read(after, 100)
            .await
            .expect("the reader's connection is left alone");
        if page.is_empty() {
            if last_look {
                return seen;
            }
            let _ = timeout(Duration::from_millis(1), done.changed()).await;
        }
        seen.extend(page);
    }
}

/// Kills connections of appenders in the middle of something, for ever: after every few commands, so that a busy
/// machine gets on between two kills.
async fn kill_now_and_then(database: &Database, answered: &AtomicU64, killed: &AtomicU64) {
    let mut dice = Dice(7);
    let mut next = 0;
    loop {
        sleep(Duration::from_micros(500 + dice.roll(5_000))).await;
        let answered = answered.load(Ordering::Relaxed);
        if answered < next {
            continue;
        }
        let dead: Option<bool> = sqlx::query_scalar(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'writer'
             ORDER BY state <> 'idle' DESC, random() LIMIT 1",
        )
        .fetch_optional(database.pool())
        .await
        .expect("the killer's connection is left alone");
        if dead == Some(true) {
            next = answered + 1 + dice.roll(30);
            killed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn writers_log(database: &Database) -> EventLog {
    let options: PgConnectOptions = database
        .url()
        .parse()
        .expect("the url was made from options");
    let pool = PgPoolOptions::new()
        .max_connections(3)
        .connect_lazy_with(options.application_name("writer"));
    EventLog::open(LOG, pool)
        .await
        .expect("the log can be opened")
}

struct Observed {
    attempts: Vec<Attempt>,
    seen: Vec<RecordedEvent>,
    count: i64,
    /// Connections of appenders.
    killed: u64,
}

async fn observe(database: &Database, run: &Run) -> Observed {
    let logs = join_all((0..INSTANCES).map(|_| writers_log(database))).await;
    let reader = open(database).await;
    let (done, watch) = tokio::sync::watch::channel(false);
    let tailing = tokio::spawn(tail(reader.clone(), watch));
    let (answered, killed) = (Arc::<AtomicU64>::default(), AtomicU64::new(0));
    let writers = (0..run.writers).map(|number| {
        let log = logs[number % INSTANCES].clone();
        let writer = Writer {
            number,
            log,
            dice: Dice(number as u64),
            known: HashMap::new(),
            answered: Arc::clone(&answered),
        };
        tokio::spawn(writer.write(run.commands))
    });
    let attempts = tokio::select! {
        attempts = join_all(writers) => attempts,
        () = kill_now_and_then(database, &answered, &killed), if run.kill => unreachable!("it never ends"),
    };
    let killed = killed.into_inner();
    assert!(!run.kill || killed > 10, "the run was too short");
    // What was cancelled in its transaction ends with it: behind the head row, as each of them took it.
    drop(logs);
    let mut last = database
        .pool()
        .begin()
        .await
        .expect("the database is there");
    sqlx::raw_sql("SELECT epoch FROM log_head FOR UPDATE")
        .execute(&mut *last)
        .await
        .expect("the head row is there");
    last.rollback().await.expect("the database is there");
    bed::eventually(async || {
        let busy: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'writer'",
        )
        .fetch_one(database.pool())
        .await
        .expect("the database is there");
        if busy == 0 { Ok(()) } else { Err(format!("{busy} connections of appenders")) }
    })
    .await;
    done.send_replace(true);
    let seen = tailing.await.expect("the reader does not panic");
    let places = reader
        .facts(&["places".to_owned()])
        .await
        .expect("facts can be read");
    let count = places
        .get("places")
        .map_or(0, |count| count.parse().expect("a count"));
    let attempts = attempts
        .into_iter()
        .flat_map(|attempts| attempts.expect("a writer does not panic"))
        .collect();
    Observed {
        attempts,
        seen,
        count,
        killed,
    }
}

fn judge(
    Observed {
        attempts,
        seen,
        count,
        killed: _,
    }: &Observed,
) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut positions: HashMap<Uuid, u64> = HashMap::new();
    let mut versions: BTreeMap<&str, u64> = BTreeMap::new();
    for (expected, event) in (1..).zip(seen) {
        if event.position != expected {
            violations.push(Violation::NotDense {
                expected,
                found: event.position,
            });
            break;
        }
    }
    for event in seen {
        if positions.insert(event.id, event.position).is_some() {
            violations.push(Violation::SeenTwice(event.id));
        }
        let version = versions.entry(&event.stream_id).or_default();
        *version += 1;
        if event.version != *version {
            let (stream_id, expected, found) = (event.stream_id.clone(), *version, event.version);
            violations.push(Violation::VersionNotDense {
                stream_id,
                expected,
                found,
            });
            *version = event.version;
        }
    }
    let back = seen
        .windows(2)
        .find(|pair| pair[1].recorded_at < pair[0].recorded_at);
    violations.extend(back.map(|pair| Violation::BackInTime(pair[1].position)));
    let mut invited = HashSet::new();
    for attempt in attempts {
        let found: Vec<u64> = attempt
            .ids
            .iter()
            .filter_map(|id| positions.get(id).copied())
            .collect();
        match &attempt.outcome {
            Outcome::Acknowledged(appended) => {
                let missing = attempt.ids.iter().filter(|id| !positions.contains_key(*id));
                violations.extend(missing.map(|id| Violation::NeverSeen(*id)));
                if !found.iter().copied().eq(appended.first..=appended.last) {
                    let said = (appended.first, appended.last);
                    violations.push(Violation::Misplaced { said, seen: found });
                }
            }
            Outcome::Refused => continue,
            Outcome::Unknown => {
                let whole = found.len() == attempt.ids.len()
                    && found.windows(2).all(|pair| pair[1] == pair[0] + 1);
                if !found.is_empty() && !whole {
                    violations.push(Violation::Torn {
                        ids: attempt.ids.len(),
                        seen: found,
                    });
                }
            }
        }
        invited.extend(
            attempt
                .ids
                .iter()
                .map(|id| (*id, attempt.stream_id.as_str())),
        );
    }
    let uninvited = seen
        .iter()
        .filter(|event| !invited.contains(&(event.id, event.stream_id.as_str())));
    violations.extend(uninvited.map(|event| Violation::Uninvited(event.id)));
    let counted = |outcome: fn(&Outcome) -> bool| {
        let commands = attempts
            .iter()
            .filter(|attempt| attempt.counted && outcome(&attempt.outcome))
            .count();
        i64::try_from(commands).expect("few commands")
    };
    let at_least = counted(|outcome| matches!(outcome, Outcome::Acknowledged(_)));
    let at_most = PLACES.min(counted(|outcome| !matches!(outcome, Outcome::Refused)));
    if !(at_least..=at_most).contains(count) {
        violations.push(Violation::Miscounted {
            fact: *count,
            at_least,
            at_most,
        });
    }
    violations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_reader_saw_is_what_was_acknowledged() {
    let database = database().await;
    let observed = observe(&database, &Run::from_environment()).await;
    assert_eq!(judge(&observed), []);
    let outcomes = |kind: fn(&Outcome) -> bool| {
        observed
            .attempts
            .iter()
            .filter(|one| kind(&one.outcome))
            .count()
    };
    let acknowledged = outcomes(|outcome| matches!(outcome, Outcome::Acknowledged(_)));
    let refused = outcomes(|outcome| matches!(outcome, Outcome::Refused));
    let unknown = outcomes(|outcome| matches!(outcome, Outcome::Unknown));
    println!(
        "{} events: {acknowledged} acknowledged, {refused} refused, {unknown} unknown, {} connections killed",
        observed.seen.len(),
        observed.killed
    );
    // Otherwise the run has shown nothing.
    assert!(
        acknowledged > 100 && refused > 20 && unknown > 5,
        "{acknowledged}, {refused}, {unknown}"
    );
}

/// The same appender over a database whose head row locks nothing and whose positions come from a sequence, as a
/// `bigserial` would give them. Some appends take long between position and commit, so that others overtake them.
const SABOTAGE: &str = "
    ALTER TABLE log_head RENAME TO former_head;
    CREATE SEQUENCE given;
    CREATE FUNCTION former_epoch() RETURNS uuid LANGUAGE sql AS 'SELECT epoch FROM former_head';
    CREATE FUNCTION last_given() RETURNS bigint LANGUAGE sql AS
        'SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM given';
    CREATE VIEW log_head AS SELECT former_epoch() AS epoch, last_given() AS position, 0::bigint AS revision;
    CREATE FUNCTION leave() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
    CREATE TRIGGER leave INSTEAD OF UPDATE ON log_head FOR EACH ROW EXECUTE FUNCTION leave();
    CREATE FUNCTION give() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN
            NEW.position := nextval(''given'');
            PERFORM pg_sleep(CASE WHEN NEW.position % 7 = 0 THEN 0.05 ELSE 0.001 END);
            RETURN NEW;
        END';
    CREATE TRIGGER give BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION give();
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_head_row_the_oracle_reports_what_the_reader_missed() {
    let database = database().await;
    sqlx::raw_sql(SABOTAGE)
        .execute(database.pool())
        .await
        .unwrap();
    let violations = judge(
        &observe(
            &database,
            &Run {
                writers: 16,
                commands: 20,
                kill: false,
            },
        )
        .await,
    );
    let missed = violations
        .iter()
        .filter(|violation| matches!(violation, Violation::NeverSeen(_)))
        .count();
    println!("{missed} acknowledged events were never seen");
    assert!(missed > 0, "the oracle sees nothing wrong: {violations:?}");
}
