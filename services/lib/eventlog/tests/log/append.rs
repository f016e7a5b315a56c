//! Appends, one at a time and side by side.

use std::time::Duration;

use bed::Database;
use eventlog::{
    Append, AppendError, Command, EventLog, Expected, Facts, Guard, Metadata, StreamAppend,
};
use futures::future::join_all;
use sqlx::{AssertSqlSafe, Postgres, Transaction};
use tokio::task::JoinHandle;

use crate::scene::{command, database, event, events, grow, open, stream, to, whole};

#[tokio::test]
async fn what_is_appended_is_read_back() {
    let database = database().await;
    let log = open(&database).await;
    let mut append = to(
        stream("a"),
        Expected::Version(0),
        vec![event("one"), event([0, 255, 10])],
    );
    append.streams.push(StreamAppend {
        stream_id: stream("b"),
        expected: Expected::Any,
        events: vec![event("three")],
    });
    append.metadata.traceparent =
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned());
    let appended = log.append(append.clone()).await.unwrap();

    assert_eq!(
        (appended.first, appended.last, appended.replayed),
        (1, 3, None)
    );
    assert_eq!(appended.epoch, log.epoch());
    let read = whole(&log).await;
    assert_eq!(
        read.iter().map(|event| event.position).collect::<Vec<_>>(),
        [1, 2, 3]
    );
    assert_eq!(
        read.iter().map(|event| event.version).collect::<Vec<_>>(),
        [1, 2, 1]
    );
    let written: Vec<_> = append
        .streams
        .iter()
        .flat_map(|stream| &stream.events)
        .collect();
    for (read, written) in read.iter().zip(written) {
        assert_eq!(
            (read.id, &read.payload[..]),
            (written.id, &written.payload[..])
        );
        assert_eq!(read.event_type, written.event_type);
        assert_eq!(read.metadata, append.metadata);
        assert_eq!(read.recorded_at, appended.recorded_at);
    }
    assert_eq!(log.stream(&stream("a")).await.unwrap(), read[..2]);
    assert_eq!(log.stream(&stream("c")).await.unwrap(), []);
    assert_eq!(log.head().await.unwrap().position, 3);
    assert_eq!(log.read(1, 1).await.unwrap(), read[1..2]);
    assert_eq!(log.read(u64::MAX, u64::MAX).await.unwrap(), []);
}

#[tokio::test]
async fn an_append_wakes_who_watches() {
    let database = database().await;
    let log = open(&database).await;
    let mut head = log.watch();
    grow(&log, "a", 3).await;
    head.changed().await.unwrap();
    assert_eq!(*head.borrow(), 3);
}

#[tokio::test]
async fn an_append_without_events_is_refused() {
    let database = database().await;
    let log = open(&database).await;
    assert!(matches!(
        log.append(Append::default()).await,
        Err(AppendError::Empty)
    ));
    let append = to(stream("a"), Expected::Any, Vec::new());
    assert!(matches!(log.append(append).await, Err(AppendError::Empty)));
}

#[tokio::test]
async fn events_are_never_changed() {
    let database = database().await;
    let log = open(&database).await;
    grow(&log, "a", 3).await;
    let before = whole(&log).await;
    for statement in [
        "UPDATE events SET payload = ''",
        "UPDATE events SET payload = '' WHERE false",
        "DELETE FROM events WHERE position = 3",
        "TRUNCATE events",
        "TRUNCATE events CASCADE",
        "INSERT INTO events SELECT * FROM events WHERE position = 1 ON CONFLICT (position) DO UPDATE SET version = 9",
        "MERGE INTO events USING (VALUES (1)) one (n) ON position = n WHEN MATCHED THEN DELETE",
    ] {
        let refused = sqlx::raw_sql(AssertSqlSafe(statement))
            .execute(database.pool())
            .await;
        let refused = refused.expect_err(statement).to_string();
        assert!(
            refused.contains("events are never changed"),
            "{statement}: {refused}"
        );
    }
    assert_eq!(whole(&log).await, before);
}

#[tokio::test]
async fn a_retry_is_answered_alike_and_appends_nothing() {
    let database = database().await;
    let log = open(&database).await;
    let first = Append {
        command: Some(command("create")),
        ..to(stream("a"), Expected::Version(0), events(2))
    };
    let appended = log.append(first.clone()).await.unwrap();
    grow(&log, "a", 1).await;

    // What a retry would append no longer fits, and does not matter.
    let again = log.append(first.clone()).await.unwrap();
    assert_eq!(again.replayed.as_deref(), Some(&b"done: create"[..]));
    assert_eq!((again.first, again.last), (appended.first, appended.last));
    assert_eq!(
        (again.epoch, again.recorded_at),
        (appended.epoch, appended.recorded_at)
    );
    let elsewhere = open(&database).await;
    assert_eq!(elsewhere.append(first.clone()).await.unwrap(), again);
    let id = first.command.as_ref().unwrap().id;
    let carried = elsewhere.carried_out(id).await.unwrap().unwrap();
    assert_eq!(
        (carried.appended, &carried.fingerprint[..]),
        (again, &b"create"[..])
    );
    assert_eq!(elsewhere.carried_out(bed::unique_id()).await.unwrap(), None);

    let mut other = first;
    other.command.as_mut().unwrap().fingerprint = b"delete".into();
    assert!(matches!(
        log.append(other).await,
        Err(AppendError::CommandReused)
    ));
    assert_eq!(log.head().await.unwrap().position, 3);
}

#[tokio::test]
async fn the_same_command_at_the_same_time_appends_once() {
    let database = database().await;
    let logs = [open(&database).await, open(&database).await];
    let first = Append {
        command: Some(command("create")),
        ..to(stream("a"), Expected::Version(0), events(2))
    };
    let answers = join_all((0..20).map(|n| logs[n % 2].append(first.clone()))).await;
    let answers: Vec<_> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(
        answers
            .iter()
            .filter(|answer| answer.replayed.is_none())
            .count(),
        1
    );
    for answer in &answers {
        assert_eq!(
            (answer.first, answer.last, answer.recorded_at),
            (1, 2, answers[0].recorded_at)
        );
        assert!(
            answer
                .replayed
                .as_deref()
                .is_none_or(|reply| reply == b"done: create")
        );
    }
    assert_eq!(whole(&logs[0]).await.len(), 2);
}

#[tokio::test]
async fn of_commands_that_expect_the_same_version_one_wins_and_the_others_are_told() {
    let database = database().await;
    let logs = [open(&database).await, open(&database).await];
    let attempts =
        (0..20).map(|n| logs[n % 2].append(to(stream("a"), Expected::Version(0), events(2))));
    let answers = join_all(attempts).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    for error in answers.into_iter().filter_map(Result::err) {
        let AppendError::VersionConflict { stream_id, actual } = error else {
            panic!("{error:?}")
        };
        assert_eq!((stream_id, actual), (stream("a"), 2));
    }
}

#[tokio::test]
async fn a_count_holds_among_commands_at_the_same_time() {
    let database = database().await;
    let logs = [open(&database).await, open(&database).await];
    let attempts = (0..20).map(|n| {
        let append = Append {
            guards: vec![Guard::Count {
                key: "places".to_owned(),
                by: 1,
                min: 0,
                max: 7,
            }],
            ..to(stream(&format!("s{n}")), Expected::Version(0), events(1))
        };
        logs[n % 2].append(append)
    });
    let answers = join_all(attempts).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 7);
    for error in answers.into_iter().filter_map(Result::err) {
        let AppendError::GuardRefused { key, found } = error else {
            panic!("{error:?}")
        };
        assert_eq!((key.as_str(), found.as_deref()), ("places", Some("7")));
    }
    let facts = logs[0]
        .facts(&["places".to_owned(), "nothing".to_owned()])
        .await
        .unwrap();
    assert_eq!(
        (facts.get("places"), facts.get("nothing")),
        (Some("7"), None)
    );
}

#[tokio::test]
async fn events_change_facts_with_and_without_a_command() {
    let database = database().await;
    let log = open(&database).await;
    // Each is a batch of its own: what it has besides its event, and nothing else, is written with it.
    let values = [
        Some("one"),
        Some("two"),
        None,
        None,
        Some("three"),
        Some("three"),
    ];
    for with_command in [false, true] {
        for value in values {
            let append = Append {
                command: with_command.then(|| command("set")),
                guards: vec![Guard::Set {
                    key: "name".to_owned(),
                    value: value.map(str::to_owned),
                }],
                ..to(stream("a"), Expected::Any, events(1))
            };
            log.append(append).await.unwrap();
            let facts = log.facts(&["name".to_owned()]).await.unwrap();
            assert_eq!(facts.get("name"), value, "{with_command}");
        }
    }
    assert_eq!(whole(&log).await.len(), 2 * values.len());
}

#[tokio::test]
async fn what_others_write_is_seen_at_once() {
    let database = database().await;
    let [ours, other] = [open(&database).await, open(&database).await];
    let sets = |stream_id: &str, found: Option<&str>, value: Option<&str>| {
        let key = || "name".to_owned();
        let guards = vec![
            Guard::Expect {
                key: key(),
                value: found.map(str::to_owned),
            },
            Guard::Set {
                key: key(),
                value: value.map(str::to_owned),
            },
        ];
        Append {
            guards,
            ..to(stream(stream_id), Expected::Any, events(1))
        }
    };
    // Twice, so that what is known the second time was not read for it.
    for _ in 0..2 {
        ours.append(sets("a", None, None)).await.unwrap();
    }
    other.append(sets("a", None, Some("theirs"))).await.unwrap();
    let refused = ours.append(sets("a", None, Some("ours"))).await;
    let Err(AppendError::GuardRefused { found, .. }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(found.as_deref(), Some("theirs"));

    let mut connection = database.pool().acquire().await.unwrap();
    for value in ["of a replica", "of a later replica"] {
        let change = ("name".to_owned(), Some(value.to_owned()));
        eventlog::replicate_facts(&mut connection, "other", &[change])
            .await
            .unwrap();
        // Refused on what was known, it would be refused wrongly.
        let append = sets("a", Some(value), Some(value));
        ours.append(append).await.unwrap();
    }
    let versions: Vec<_> = whole(&ours).await.iter().map(|one| one.version).collect();
    assert_eq!(versions, [1, 2, 3, 4, 5]);
}

/// Holds the head row, with one append of the log waiting for it: what comes now gets into the next batch.
async fn behind_held_head(
    database: &Database,
    log: &EventLog,
) -> (Transaction<'static, Postgres>, JoinHandle<u64>) {
    let mut held = database
        .pool()
        .begin()
        .await
        .expect("the database is there");
    sqlx::raw_sql("SELECT 1 FROM log_head FOR UPDATE")
        .execute(&mut *held)
        .await
        .expect("nobody holds it");
    let log = log.clone();
    let first = tokio::spawn(async move { grow(&log, "first", 1).await });
    bed::eventually(async || {
        let waiting: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%UPDATE log_head%'",
        )
        .fetch_one(database.pool())
        .await
        .expect("the database is there");
        if waiting > 0 { Ok(()) } else { Err("nobody waits for the head row") }
    })
    .await;
    (held, first)
}

#[tokio::test]
async fn what_the_database_refuses_fails_alone() {
    let database = database().await;
    let log = open(&database).await;
    // Behind a held head row, all of them get into one batch.
    let (held, first) = behind_held_head(&database, &log).await;
    let attempts = (0..30).map(|n| {
        let mut append = to(stream(&format!("s{n}")), Expected::Version(0), events(2));
        append.command = Some(command("create"));
        match n {
            // JSON text can hold no NUL for PostgreSQL, and text none either.
            3 => {
                append.metadata = Metadata {
                    actor: "user:dev/\0".to_owned(),
                    traceparent: None,
                }
            }
            17 => {
                append.guards = vec![Guard::Set {
                    key: "nul".to_owned(),
                    value: Some("\0".to_owned()),
                }];
            }
            23 => {
                append.guards = vec![Guard::Expect {
                    key: "\0".to_owned(),
                    value: None,
                }];
            }
            _ => {}
        }
        let log = log.clone();
        async move { log.append(append).await }
    });
    let (answers, ()) =
        futures::join!(join_all(attempts), async { held.rollback().await.unwrap() });
    for (n, answer) in answers.iter().enumerate() {
        match answer {
            Err(AppendError::Database(_)) => assert!([3, 17, 23].contains(&n), "{n}: {answer:?}"),
            answer => assert!(
                answer.is_ok() && ![3, 17, 23].contains(&n),
                "{n}: {answer:?}"
            ),
        }
    }
    assert_eq!(first.await.unwrap(), 1);
    assert_eq!(whole(&log).await.len(), 1 + 27 * 2);
}

#[tokio::test]
async fn who_stops_waiting_in_time_appends_nothing() {
    let database = database().await;
    let log = open(&database).await;
    let (held, first) = behind_held_head(&database, &log).await;
    let given_up = tokio::time::timeout(
        Duration::ZERO,
        log.append(to(stream("late"), Expected::Any, events(1))),
    )
    .await;
    assert!(given_up.is_err());
    held.rollback().await.unwrap();
    assert_eq!(first.await.unwrap(), 1);
    assert_eq!(grow(&log, "next", 1).await, 2);
}

#[tokio::test]
async fn what_waits_is_carried_out_when_the_log_is_let_go() {
    let database = database().await;
    let log = open(&database).await;
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let log = log.clone();
            tokio::spawn(async move {
                log.append(to(stream(&format!("s{n}")), Expected::Any, events(1)))
                    .await
            })
        })
        .collect();
    drop(log);
    for answer in join_all(waiting).await {
        answer.unwrap().unwrap();
    }
    assert_eq!(whole(&open(&database).await).await.len(), 20);
}

#[tokio::test]
async fn a_command_may_touch_a_stream_twice() {
    let database = database().await;
    let log = open(&database).await;
    let part = |expected| StreamAppend {
        stream_id: stream("a"),
        expected,
        events: events(2),
    };
    let twice = Append {
        streams: vec![part(Expected::Version(0)), part(Expected::Version(2))],
        ..Append::default()
    };
    log.append(twice).await.unwrap();
    let versions: Vec<_> = whole(&log)
        .await
        .iter()
        .map(|event| event.version)
        .collect();
    assert_eq!(versions, [1, 2, 3, 4]);
    let wrong = Append {
        streams: vec![part(Expected::Version(4)), part(Expected::Version(4))],
        ..Append::default()
    };
    assert!(matches!(
        log.append(wrong).await,
        Err(AppendError::VersionConflict { actual: 6, .. })
    ));
}

#[tokio::test]
async fn a_replayed_reply_is_told_by_its_fingerprint_alone() {
    let database = database().await;
    let log = open(&database).await;
    let id = bed::unique_id();
    let command = |reply: &str| {
        Some(Command {
            id,
            fingerprint: b"same".into(),
            reply: reply.into(),
        })
    };
    let first = Append {
        command: command("first"),
        ..to(stream("a"), Expected::Any, events(1))
    };
    let second = Append {
        command: command("second"),
        ..to(stream("b"), Expected::Any, events(3))
    };
    log.append(first).await.unwrap();
    assert_eq!(
        log.append(second).await.unwrap().replayed.as_deref(),
        Some(&b"first"[..])
    );
}

/// Another connection is no answer: there are the database's own facts, or none.
#[tokio::test]
async fn facts_apart_are_gone_with_their_connection() {
    let database = database().await;
    let apart = eventlog::facts_apart(database.pool()).await;
    let apart = apart.expect("room for facts");
    let keys = ["name/acme".to_owned()];
    let fact = (keys[0].clone(), Some("grp_1".to_owned()));
    let mut connection = apart.acquire().await.expect("a connection");
    let written = eventlog::write_facts(&mut connection, "other", &[fact]).await;
    written.expect("written");
    drop(connection);
    let read = Facts::read(&apart, &keys).await.expect("read");
    assert_eq!(read.get(&keys[0]), Some("grp_1"));
    let end = sqlx::query("SELECT pg_terminate_backend(pg_backend_pid())");
    end.execute(&apart).await.expect_err("it ends itself");
    let lost = Facts::read(&apart, &keys).await.expect_err("they are gone");
    assert!(matches!(lost, sqlx::Error::PoolTimedOut), "{lost:?}");
}
