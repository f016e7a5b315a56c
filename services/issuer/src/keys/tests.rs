//! The keys of issuers that share a database, of which each may be on its own way to it.

use std::sync::Arc;

use bed::{Database, eventually};
use edge::authentication::revoked_key;
use edge::health::Health;
use eventlog::{Append, Guard, Metadata, StreamAppend};
use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use time::Duration as Span;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::upkeep::{CLOCK, CONDITION, OPEN};
use super::*;
use crate::domain::signing_key::{Command, Event, decide};

/// Keys that live fast.
const FAST: Policy = Policy {
    max_age: Span::SECOND,
    clock_skew: Span::SECOND,
    rotation: Span::SECOND,
};

/// Keys of which the first ones sign all the time.
const SLOW: Policy = Policy {
    rotation: Span::DAY,
    ..FAST
};

fn sealer(keys: &str) -> Sealer {
    Sealer::from_text(keys).expect("key-encryption keys")
}

/// 32 bytes in base64, and others.
const FIRST: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

const SECOND: &str = "//79/Pv6+fj39vX08/Lx8O/u7ezr6uno5+bl5OPi4eA=";

/// A database with the tables of the issuer.
async fn database() -> Database {
    let database = Database::create().await;
    eventlog::migrate(database.pool(), Some(&crate::MIGRATIONS))
        .await
        .expect("tables");
    database
}

async fn log(pool: &PgPool) -> EventLog {
    let log = EventLog::open("issuer", pool.clone()).await;
    log.expect("a log")
}

async fn opens(pool: &PgPool, policy: Policy) -> Keys {
    let keys = Keys::open(&log(pool).await, sealer(FIRST), policy).await;
    keys.expect("keys")
}

/// The name of the key that signs.
fn signs(keys: &Keys) -> String {
    keys.active().expect("it is open").kid().to_owned()
}

/// A way to the database on which nothing gets through any more, once told so, over the connections of then.
struct Way {
    freeze: Arc<Notify>,
    pool: PgPool,
}

impl Way {
    async fn to(database: &Database) -> Self {
        let target: PgConnectOptions = database.url().parse().expect("the url is one");
        let address = (target.get_host().to_owned(), target.get_port());
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let port = listener.local_addr().expect("it is bound").port();
        let freeze = Arc::<Notify>::default();
        let frozen = Arc::clone(&freeze);
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let server = TcpStream::connect(address.clone()).await;
                let mut server = server.expect("the server is there");
                let frozen = Arc::clone(&frozen);
                tokio::spawn(async move {
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        () = frozen.notified() => std::future::pending().await,
                    }
                });
            }
        });
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect_lazy_with(target.host("127.0.0.1").port(port));
        Self { freeze, pool }
    }
}

#[tokio::test]
async fn what_another_process_still_seals_with_the_old_key_is_sealed_anew() {
    let database = database().await;
    let both = sealer(&format!("{SECOND},{FIRST}"));
    let keys = Keys::open(&log(database.pool()).await, both, FAST).await;
    let (keys, stop) = (keys.expect("keys"), CancellationToken::new());
    let stopped = stop.clone();
    let running = tokio::spawn(async move { keys.run(Health::new(), stopped).await });
    let old = Vault::new(database.pool().clone(), sealer(FIRST));
    old.make(SigningAlgorithm::Es256).await.expect("made");
    let new = Vault::new(database.pool().clone(), sealer(SECOND));
    eventually(async || new.reseal().await).await;
    stop.cancel();
    running.await.expect("it ends");
}

#[tokio::test]
async fn what_could_not_be_destroyed_when_it_was_over_is_destroyed_later() {
    let database = database().await;
    let keys = opens(database.pool(), FAST).await;
    let retired = eventually(async || {
        let advanced = keys.advance(&mut Retired::default()).await;
        advanced.map_err(|error| error.to_string())?;
        let recorded = keys.known.borrow().recorded.clone();
        let mut keys = recorded.ring.keys();
        let retired = keys.find(|key| key.stage() == Stage::Retiring);
        retired
            .map(|key| key.made.kid.clone())
            .ok_or("none".to_owned())
    })
    .await;
    let kept = async || {
        let kept = sqlx::query_scalar("SELECT count(*) FROM signing_keys WHERE kid = $1");
        let kept: i64 = kept
            .bind(&retired)
            .fetch_one(database.pool())
            .await
            .expect("counted");
        kept
    };
    assert_eq!(kept().await, 0);
    sqlx::query("INSERT INTO signing_keys (kid, sealed) VALUES ($1, $2)")
        .bind(&retired)
        .bind(b"sealed".as_slice())
        .execute(database.pool())
        .await
        .expect("it is there again");
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    let running = tokio::spawn(async move { keys.run(Health::new(), stopped).await });
    eventually(async || match kept().await {
        0 => Ok(()),
        _ => Err("it is kept"),
    })
    .await;
    stop.cancel();
    running.await.expect("it ends");
}

#[tokio::test]
async fn those_that_every_relying_party_can_verify_with_come_first() {
    let database = database().await;
    let keys = opens(database.pool(), SLOW).await;
    let set: serde_json::Value = serde_json::from_slice(&keys.key_set().body).expect("JSON");
    let set = set["keys"].as_array().expect("keys").iter();
    let types: Vec<_> = set.map(|key| key["kty"].clone()).collect();
    assert_eq!(types, ["RSA", "RSA", "EC", "EC"]);
}

/// Like one of which nothing will ever be asked again.
async fn is_forgotten(log: &EventLog, key: &Fresh) {
    let forgotten = sqlx::query("DELETE FROM facts WHERE key = $1")
        .bind(format!("signing-key/id/{}", key.id))
        .execute(log.pool())
        .await
        .expect("forgotten");
    assert_eq!(forgotten.rows_affected(), 1);
}

#[tokio::test]
async fn a_key_that_was_forgotten_is_revoked_and_forgotten_again() {
    let database = database().await;
    let log = log(database.pool()).await;
    opens(database.pool(), SLOW).await;
    let recorded = ring::load(&log).await.expect("read");
    let next = recorded.ring.only(SigningAlgorithm::Es256);
    let next = next.next().expect("a next one").made.clone();
    is_forgotten(&log, &next).await;
    let over = Recorded {
        ring: ring::load_one(&log, next.id).await.expect("read"),
        ..recorded
    };
    let revoked = Event::Revoked {
        id: next.id,
        at: clock::now(),
        reason: "leaked".to_owned(),
    };
    appends(&log, over.changes(&[revoked])).await;
    let recorded = ring::load(&log).await.expect("read");
    let key = recorded.ring.get(next.id).expect("it is known again");
    assert_eq!(key.stage(), Stage::Revoked);
    let later = clock::now() + Span::days(365);
    let forgets = recorded.forgets(later, &SLOW);
    let facts: Vec<_> = forgets.iter().map(Guard::key).collect();
    let id = format!("signing-key/id/{}", next.id);
    assert_eq!(facts, [id, revoked_key(&next.kid)]);
}

/// As the README says of a database that was restored from a backup.
async fn gives_new_epoch(database: &Database) {
    sqlx::query("UPDATE log_head SET epoch = gen_random_uuid()")
        .execute(database.pool())
        .await
        .expect("a new epoch");
}

/// How many keys are in a state, as the log has them.
async fn count(log: &EventLog, stage: Stage) -> usize {
    let recorded = ring::load(log).await.expect("read");
    let keys = recorded.ring.keys();
    keys.filter(|key| key.stage() == stage).count()
}

#[tokio::test]
async fn in_a_restored_database_no_key_of_before_is_trusted() {
    let database = database().await;
    let log = log(database.pool()).await;
    let keys = opens(database.pool(), SLOW).await;
    let before = keys.key_set().body;
    let kid = signs(&keys);
    keys.advance(&mut Retired::default()).await.expect("looked");
    assert_eq!(signs(&keys), kid);
    // Of issuers that start side by side, one finds it done.
    gives_new_epoch(&database).await;
    let (one, other) = tokio::join!(opens(database.pool(), SLOW), opens(database.pool(), SLOW));
    assert_eq!(signs(&one), signs(&other));
    assert_ne!(signs(&one), kid);
    let algorithms = SigningAlgorithm::ALL.len();
    assert_eq!(count(&log, Stage::Active).await, algorithms);
    assert_eq!(count(&log, Stage::Revoked).await, 2 * algorithms);
    for (known, now) in [(&keys, false), (&one, true), (&other, true)] {
        let looked = known.key_set().body != before;
        assert_eq!(looked, now);
    }
    // One that ran all the time finds it too.
    keys.look().await.expect("looked");
    let kid = signs(&keys);
    assert_eq!(kid, signs(&one));
    gives_new_epoch(&database).await;
    keys.advance(&mut Retired::default()).await.expect("looked");
    assert_ne!(signs(&keys), kid);
    assert!(keys.of_jobs().borrow().find(&kid).is_none());
    let facts = log.facts(&[revoked_key(&kid)]).await.expect("read");
    assert!(facts.get(&revoked_key(&kid)).is_some());
    assert_eq!(count(&log, Stage::Active).await, algorithms);
}

#[tokio::test]
async fn a_database_from_before_the_epoch_was_kept_keeps_its_keys() {
    let database = database().await;
    let keys = opens(database.pool(), SLOW).await;
    sqlx::query("DELETE FROM facts WHERE key = 'signing-key/epoch'")
        .execute(database.pool())
        .await
        .expect("as it was");
    let again = opens(database.pool(), SLOW).await;
    assert_eq!(signs(&again), signs(&keys));
    gives_new_epoch(&database).await;
    let restored = opens(database.pool(), SLOW).await;
    assert_ne!(signs(&restored), signs(&keys));
}

/// How the clock of the database goes wrong.
async fn sets_clock(database: &Database, wrong_by: &str) {
    sqlx::query("UPDATE clock SET wrong_by = $1::text::interval")
        .bind(wrong_by)
        .execute(database.pool())
        .await
        .expect("the clock is set");
}

/// Has new connections to a database find a clock that can be set.
async fn gives_clock(database: &Database) {
    sqlx::raw_sql(
        "CREATE TABLE clock AS SELECT interval '0' AS wrong_by;
         CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
             AS 'SELECT pg_catalog.clock_timestamp() + wrong_by FROM public.clock';
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
         END $$",
    )
    .execute(database.pool())
    .await
    .expect("a clock");
}

#[tokio::test]
async fn while_clocks_disagree_nothing_becomes_due_and_that_is_told() {
    let database = database().await;
    gives_clock(&database).await;
    let pool = database.another_pool(4);
    let keys = opens(&pool, FAST).await;
    let first = signs(&keys);
    // Ours is fast, or the database's slow.
    sets_clock(&database, "-1 hour").await;
    let (health, stop) = (Health::new(), CancellationToken::new());
    let running = tokio::spawn({
        let (keys, health, stop) = (keys.clone(), health.clone(), stop.clone());
        async move { keys.run(health, stop).await }
    });
    let told = async || health.wrong().await.contains_key(CLOCK);
    eventually(async || told().await.then_some(()).ok_or("it says that all is well")).await;
    // By our clock the next key would sign.
    let due = clock::now() + FAST.max_age + FAST.clock_skew + FAST.rotation;
    eventually(async || (clock::now() > due).then_some(()).ok_or("not yet")).await;
    let refused = keys.advance(&mut Retired::default()).await;
    assert!(
        matches!(refused, Err(KeyError::Clock { .. })),
        "{refused:?}"
    );
    assert_eq!(signs(&keys), first);
    let signing = keys.clock_agrees();
    assert!(
        matches!(signing, Err(KeyError::Clock { .. })),
        "{signing:?}"
    );
    let begun = Keys::open(&log(&pool).await, sealer(FIRST), FAST).await;
    assert!(matches!(begun.err(), Some(KeyError::Clock { .. })));
    sets_clock(&database, "0").await;
    eventually(async || {
        let rotated = signs(&keys) != first;
        (rotated && !told().await)
            .then_some(())
            .ok_or("it stands still")
    })
    .await;
    stop.cancel();
    running.await.expect("it ends");
}

#[tokio::test]
async fn a_query_that_never_answers_blinds_for_a_moment_and_that_is_told() {
    let database = database().await;
    let way = Way::to(&database).await;
    let (keys, other) = (
        opens(&way.pool, FAST).await,
        opens(database.pool(), FAST).await,
    );
    let (health, stop) = (Health::new(), CancellationToken::new());
    let running = tokio::spawn({
        let (keys, health, stop) = (keys.clone(), health.clone(), stop.clone());
        async move { keys.run(health, stop).await }
    });
    way.freeze.notify_waiters();
    eventually(async || {
        let wrong = health.wrong().await;
        let told = wrong.contains_key(CONDITION);
        told.then_some(()).ok_or("it says that all is well")
    })
    .await;
    // Over new connections all gets through, and what the other one has done meanwhile is seen.
    let (health_of_other, stop_other) = (Health::new(), stop.clone());
    let others = tokio::spawn({
        let other = other.clone();
        async move { other.run(health_of_other, stop_other).await }
    });
    let first = signs(&other);
    eventually(async || {
        let rotated = signs(&keys) != first;
        let told = health.wrong().await.contains_key(CONDITION);
        (rotated && !told)
            .then_some(())
            .ok_or("it does not see what happens")
    })
    .await;
    stop.cancel();
    running.await.expect("it ends");
    others.await.expect("it ends");
}

/// Has the key that signs with the default algorithm revoked, as by an issuer beside those of the test. Answers its name.
async fn revokes_active(log: &EventLog) -> String {
    let recorded = ring::load(log).await.expect("read");
    let ring = recorded.ring.only(SigningAlgorithm::default());
    let active = ring.active().expect("one signs").made.clone();
    let revoke = Command::Revoke {
        id: active.id,
        reason: "leaked".to_owned(),
        now: clock::now(),
        fresh: None,
    };
    let revoked = decide(&ring, revoke).expect("another one signs");
    appends(log, recorded.changes(&revoked)).await;
    active.kid
}

async fn appends(log: &EventLog, (streams, guards): (Vec<StreamAppend>, Vec<Guard>)) {
    let append = Append {
        command: None,
        streams,
        shared: vec![],
        guards,
        metadata: Metadata::default(),
    };
    log.append(append).await.expect("appended");
}

/// The names of the keys whose private halves are kept.
async fn kept(database: &Database) -> Vec<String> {
    let kept = sqlx::query_scalar("SELECT kid FROM signing_keys ORDER BY kid");
    kept.fetch_all(database.pool()).await.expect("read")
}

const UNNAMED: &str = "unnamed";

/// Like one of an issuer that was killed before any event named it.
async fn leaves_unnamed(database: &Database) {
    sqlx::query("INSERT INTO signing_keys (kid, sealed) VALUES ($1, $2)")
        .bind(UNNAMED)
        .bind(sealer(SECOND).seal(UNNAMED, b"private").expect("sealed"))
        .execute(database.pool())
        .await
        .expect("it is there");
}

#[tokio::test]
async fn what_is_revoked_is_seen_even_if_what_signs_then_cannot_be_opened() {
    let database = database().await;
    let log = log(database.pool()).await;
    let keys = opens(database.pool(), SLOW).await;
    let both = sealer(&format!("{SECOND},{FIRST}"));
    let other = Keys::open(&log, both, SLOW).await.expect("keys");
    let first = revokes_active(&log).await;
    let advanced = other.advance(&mut Retired::default()).await;
    advanced.expect("there is a next one");
    keys.look().await.expect("looked");
    assert!(keys.published().borrow().find(&first).is_none());
    let (health, stop) = (Health::new(), CancellationToken::new());
    let looking = tokio::spawn({
        let (keys, health, stop) = (keys.clone(), health.clone(), stop.clone());
        async move { keys.keep_open(health, &stop).await }
    });
    let wrong = async || health.wrong().await.remove(OPEN);
    // The next one is sealed with a key that is not known here; what signs is open.
    let told = eventually(async || wrong().await.ok_or("it says that all is well")).await;
    assert!(told.contains("key-encryption key"), "{told}");
    let second = revokes_active(&log).await;
    assert_eq!(signs(&keys), second);
    keys.look().await.expect("looked");
    assert!(keys.published().borrow().find(&second).is_none());
    assert!(keys.of_jobs().borrow().find(&second).is_none());
    let set = String::from_utf8(keys.key_set().body.to_vec()).expect("JSON");
    assert!(!set.contains(&second), "{set}");
    let refused = tonic::Status::from(keys.active().expect_err("it can't be opened"));
    assert_eq!(edge::status::reason(&refused), "SIGNING_KEY_CLOSED");
    assert!(refused.message().contains("key-encryption key"));
    // As soon as it can be opened, it is.
    let back = sealer(&format!("{FIRST},{SECOND}"));
    let back = Vault::new(database.pool().clone(), back);
    back.reseal().await.expect("sealed");
    eventually(async || wrong().await.map_or(Ok(()), Err)).await;
    other.look().await.expect("looked");
    assert_eq!(signs(&keys), signs(&other));
    stop.cancel();
    looking.await.expect("it ends");
}

#[tokio::test]
async fn an_issuer_that_can_open_no_key_does_not_start_and_makes_none() {
    let database = database().await;
    let log = log(database.pool()).await;
    opens(database.pool(), FAST).await;
    let (before, head) = (kept(&database).await, log.head().await.expect("read"));
    let refused = Keys::open(&log, sealer(SECOND), FAST).await.err();
    let refused = refused.map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("key-encryption key"), "{refused}");
    assert_eq!(kept(&database).await, before);
    assert_eq!(log.head().await.expect("read").position, head.position);
}

#[tokio::test]
async fn keys_that_are_only_to_be_revoked_need_not_be_opened() {
    let database = database().await;
    opens(database.pool(), SLOW).await;
    let before = kept(&database).await;
    gives_new_epoch(&database).await;
    let log = log(database.pool()).await;
    Keys::open(&log, sealer(SECOND), SLOW).await.expect("keys");
    let now = kept(&database).await;
    assert!(before.iter().all(|kid| !now.contains(kid)), "{now:?}");
}

#[tokio::test]
async fn private_halves_that_no_event_names_are_destroyed_in_the_end() {
    let database = database().await;
    opens(database.pool(), SLOW).await;
    let named = kept(&database).await;
    leaves_unnamed(&database).await;
    let keys = opens(database.pool(), SLOW).await;
    // An issuer may be about to name it.
    keys.destroy_unneeded().await.expect("looked");
    assert!(kept(&database).await.contains(&UNNAMED.to_owned()));
    sqlx::query("UPDATE signing_keys SET made = made - interval '1 hour'")
        .execute(database.pool())
        .await
        .expect("made long ago");
    keys.destroy_unneeded().await.expect("destroyed");
    assert_eq!(kept(&database).await, named);
}
