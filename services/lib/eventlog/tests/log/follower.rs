//! The follower between a real log, a real bus and a real owner: each event once, in order, or it stands still and
//! says why.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::stream::Config;
use bed::{Database, NatsServer, free_port, unique_name};
use eventlog::{
    EventLog, EventLogRpc, Expected, Fold, FoldError, Follower, Halt, Owner, Progress,
    RecordedEvent,
};
use proto::eventlog::v1::event_log_service_server::EventLogServiceServer;
use sqlx::PgConnection;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Endpoint, Server};

use crate::relay::{Running, Subscriber};
use crate::scene::{LOG, bus, database, event, grow, open, restored, stream, to, whole};

/// Notes each event in a table, and what it was asked to apply in memory.
#[derive(Default)]
struct Notes {
    fail_once_behind_the_rows: AtomicBool,
    asked: Mutex<Vec<u64>>,
}

impl Fold for Notes {
    async fn apply(
        &self,
        connection: &mut PgConnection,
        log: &'static str,
        events: &[RecordedEvent],
    ) -> Result<(), FoldError> {
        assert_eq!(log, LOG);
        self.asked
            .lock()
            .expect("no holder panics")
            .extend(events.iter().map(|event| event.position));
        let positions: Vec<i64> = events
            .iter()
            .map(|event| event.position.cast_signed())
            .collect();
        let payloads: Vec<&[u8]> = events.iter().map(|event| &event.payload[..]).collect();
        sqlx::query("INSERT INTO notes SELECT * FROM UNNEST($1::bigint[], $2::bytea[])")
            .bind(positions)
            .bind(payloads)
            .execute(connection)
            .await?;
        if self.fail_once_behind_the_rows.swap(false, Ordering::SeqCst) {
            return Err(FoldError::Database(sqlx::Error::WorkerCrashed));
        }
        match events
            .iter()
            .find(|event| &event.payload[..] == b"undecodable")
        {
            Some(event) => Err(FoldError::Inapplicable {
                position: event.position,
                reason: "no such thing".into(),
            }),
            None => Ok(()),
        }
    }
}

/// The database that a log is followed into.
struct Replica(Database);

impl Replica {
    async fn create() -> Self {
        let database = database().await;
        // Twice the same event can't be noted, and what is forbidden not at all.
        let table = "CREATE TABLE notes (position bigint PRIMARY KEY, payload bytea CHECK (payload <> 'forbidden'))";
        sqlx::raw_sql(table)
            .execute(database.pool())
            .await
            .expect("the database is empty");
        Self(database)
    }

    /// Checkpoint, number of notes, last position noted, all of one moment.
    async fn state(&self) -> (i64, i64, i64) {
        sqlx::query_as(
            "SELECT coalesce((SELECT position FROM checkpoints WHERE log = $1), 0), count(*), coalesce(max(position), 0)
             FROM notes",
        )
        .bind(LOG)
        .fetch_one(self.0.pool())
        .await
        .expect("the replica's tables are there")
    }

    async fn has_noted(&self, log: &EventLog) {
        let notes: Vec<(i64, Vec<u8>)> = sqlx::query_as("SELECT * FROM notes ORDER BY position")
            .fetch_all(self.0.pool())
            .await
            .expect("the replica's tables are there");
        let events: Vec<_> = whole(log)
            .await
            .into_iter()
            .map(|event| (event.position.cast_signed(), event.payload.to_vec()))
            .collect();
        assert!(
            notes == events,
            "{} events were noted of {}, or others",
            notes.len(),
            events.len()
        );
    }
}

/// The owner of the log, at one port, here or away.
struct OwnerServer {
    port: u16,
    serving: Option<(CancellationToken, JoinHandle<()>)>,
}

impl OwnerServer {
    async fn of(log: &EventLog) -> Self {
        let mut server = Self {
            port: free_port(),
            serving: None,
        };
        server.comes_back(log).await;
        server
    }

    async fn comes_back(&mut self, log: &EventLog) {
        let listener = TcpListener::bind(("127.0.0.1", self.port))
            .await
            .expect("the port is ours");
        let stop = CancellationToken::new();
        let serving = Server::builder()
            .add_service(EventLogServiceServer::new(EventLogRpc::new(log.clone())))
            .serve_with_incoming_shutdown(
                TcpIncoming::from(listener),
                stop.clone().cancelled_owned(),
            );
        self.serving = Some((
            stop,
            tokio::spawn(async { serving.await.expect("it can serve") }),
        ));
    }

    async fn goes_away(&mut self) {
        let (stop, serving) = self.serving.take().expect("it was there");
        stop.cancel();
        serving.await.expect("it ends in good order");
    }

    fn channel(&self) -> Owner {
        let url = format!("http://127.0.0.1:{}", self.port);
        Owner::new(
            Endpoint::from_shared(url)
                .expect("an address")
                .connect_lazy(),
        )
    }
}

struct Following {
    progress: watch::Receiver<Progress>,
    stop: CancellationToken,
    /// Ends with this value.
    task: AbortOnDropHandle<()>,
}

impl Following {
    async fn waits(&self, what: impl Debug, condition: impl FnMut(&Progress) -> bool) -> Progress {
        let mut progress = self.progress.clone();
        let seen = timeout(Duration::from_secs(30), progress.wait_for(condition)).await;
        let seen =
            seen.unwrap_or_else(|_| panic!("waited for {what:?}: {:?}", *self.progress.borrow()));
        seen.expect("the follower runs").clone()
    }

    async fn reaches(&self, position: u64) {
        let progress = self
            .waits(position, |progress| {
                progress.position >= position || progress.halted.is_some()
            })
            .await;
        assert_eq!(progress.halted, None);
    }

    async fn halts(&self) -> Halt {
        self.waits("a halt", |progress| progress.halted.is_some())
            .await
            .halted
            .expect("just seen")
    }

    async fn is_current(&self) {
        let now = Instant::now();
        self.waits("being current", |progress| progress.current_at > Some(now))
            .await;
    }

    async fn stops(self) {
        self.stop.cancel();
        self.task.await.expect("the follower does not panic");
    }
}

/// A log with a relay, an owner and a bus of their own.
struct World {
    _source: Database,
    log: EventLog,
    nats: NatsServer,
    prefix: String,
    relay: Option<Running>,
    owner: OwnerServer,
    replica: Replica,
    fold: Arc<Notes>,
}

impl World {
    async fn new() -> Self {
        let (source, nats, replica) =
            futures::join!(database(), NatsServer::start(), Replica::create());
        let (log, prefix) = (open(&source).await, unique_name());
        let owner = OwnerServer::of(&log).await;
        let mut world = Self {
            _source: source,
            log,
            nats,
            prefix,
            relay: None,
            owner,
            replica,
            fold: Arc::default(),
        };
        world.relay_starts().await;
        world
    }

    async fn relay_starts(&mut self) {
        self.relay = Some(Running::start(&self.log, &self.nats.url(), &self.prefix).await);
    }

    async fn published(&self, position: u64) {
        self.relay
            .as_ref()
            .expect("it runs")
            .published(position)
            .await;
    }

    async fn follow(&self) -> Following {
        let bus = bus(&self.nats.url(), &self.prefix).await;
        // As another process: its own connections.
        let pool = self.replica.0.another_pool(2);
        let follower = Follower::new(LOG, pool, bus, self.owner.channel(), Arc::clone(&self.fold));
        let (progress, stop) = (follower.progress(), CancellationToken::new());
        let task = AbortOnDropHandle::new(tokio::spawn(follower.run(stop.clone())));
        Following {
            progress,
            stop,
            task,
        }
    }

    async fn appends(&self, count: usize) -> u64 {
        grow(&self.log, "a", count).await
    }

    async fn appends_one(&self, payload: &str) -> u64 {
        let append = to(stream("a"), Expected::Any, vec![event(payload)]);
        self.log
            .append(append)
            .await
            .expect("nothing is in the way")
            .last
    }

    /// From here on only the bus brings anything.
    async fn owner_goes_away(&mut self) {
        self.owner.goes_away().await;
    }
}

#[tokio::test]
async fn a_log_is_followed_off_the_bus() {
    let mut world = World::new().await;
    world.appends(10).await;
    let follower = world.follow().await;
    follower.reaches(10).await;
    follower.is_current().await;
    assert_eq!(follower.progress.borrow().epoch, Some(world.log.epoch()));
    world.owner_goes_away().await;
    let end = world.appends(700).await;
    follower.reaches(end).await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_checkpoint_moves_with_the_rows() {
    let world = World::new().await;
    let follower = world.follow().await;
    let appending = async {
        for _ in 0..40 {
            world.appends(25).await;
        }
    };
    let looking = async {
        let mut looks = 0;
        loop {
            let (checkpoint, notes, last) = world.replica.state().await;
            assert_eq!((checkpoint, checkpoint), (notes, last));
            looks += 1;
            if notes == 1_000 {
                return looks;
            }
        }
    };
    let (looks, ()) = futures::join!(looking, appending);
    println!("{looks} looks");
    follower.reaches(1_000).await;
}

#[tokio::test]
async fn what_failed_behind_its_rows_is_applied_once() {
    let world = World::new().await;
    world
        .fold
        .fail_once_behind_the_rows
        .store(true, Ordering::SeqCst);
    let follower = world.follow().await;
    let end = world.appends(50).await;
    follower.reaches(end).await;
    assert!(!world.fold.fail_once_behind_the_rows.load(Ordering::SeqCst));
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn what_the_bus_brings_again_is_dropped() {
    let mut world = World::new().await;
    let follower = world.follow().await;
    world.appends(1_000).await;
    follower.reaches(1_000).await;
    // A consumer behind the stream's end is moved to it: what comes then is old.
    world.relay = None;
    world.nats.kill();
    world.nats.wipe();
    world.nats.restart().await;
    let subscriber = Subscriber::at(&world.nats.url(), &world.prefix).await;
    subscriber.create_stream().await;
    subscriber.is_subscribed_to().await;
    world.owner_goes_away().await;
    world.relay_starts().await;
    let end = world.appends(10).await;
    follower.reaches(end).await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_gap_is_healed_from_the_owner() {
    let mut world = World::new().await;
    world.appends(1_200).await;
    world.published(1_200).await;
    // What the bus has lost of its beginning no relay brings back.
    let subscriber = Subscriber::at(&world.nats.url(), &world.prefix).await;
    let stream = subscriber
        .context
        .get_stream(subscriber.stream())
        .await
        .unwrap();
    let short = Config {
        max_messages: 200,
        ..stream.cached_info().config.clone()
    };
    subscriber.context.update_stream(short).await.unwrap();
    let follower = world.follow().await;
    follower.reaches(1_200).await;
    world.replica.has_noted(&world.log).await;
    follower.is_current().await;
    world.owner_goes_away().await;
    let end = world.appends(10).await;
    follower.reaches(end).await;
}

#[tokio::test]
async fn something_else_in_the_stream_is_a_gap_too() {
    let world = World::new().await;
    world.appends(5).await;
    world.published(5).await;
    let follower = world.follow().await;
    follower.reaches(5).await;
    let subscriber = Subscriber::at(&world.nats.url(), &world.prefix).await;
    let subject = format!("{}.{LOG}.thing.a.Happened", world.prefix);
    subscriber
        .context
        .publish(subject, "stray".into())
        .await
        .unwrap()
        .await
        .unwrap();
    let end = world.appends(5).await;
    follower.reaches(end).await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn following_goes_on_while_nats_is_away() {
    let mut world = World::new().await;
    let follower = world.follow().await;
    world.appends(100).await;
    follower.reaches(100).await;
    world.nats.kill();
    let end = world.appends(600).await;
    follower.reaches(end).await;
    follower.is_current().await;
    world.nats.restart().await;
    let end = world.appends(100).await;
    world.published(end).await;
    follower.reaches(end).await;
    // Back on the bus, which is all that is left.
    Subscriber::at(&world.nats.url(), &world.prefix)
        .await
        .is_subscribed_to()
        .await;
    world.owner_goes_away().await;
    let end = world.appends(100).await;
    follower.reaches(end).await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_silent_bus_is_noticed() {
    let mut world = World::new().await;
    let follower = world.follow().await;
    world.appends(10).await;
    follower.reaches(10).await;
    world.published(10).await;
    // The stream is there, and nothing comes.
    world.relay = None;
    let end = world.appends(1_100).await;
    follower.reaches(end).await;
    follower.is_current().await;
    world.relay_starts().await;
    world.published(end).await;
    let end = world.appends(10).await;
    follower.reaches(end).await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_bus_that_falls_behind_is_not_waited_for() {
    const END: u64 = 150;
    let mut world = World::new().await;
    world.appends(1).await;
    let follower = world.follow().await;
    follower.reaches(1).await;
    world.published(1).await;
    let slow = Subscriber::at(&world.nats.url(), &world.prefix).await;
    slow.is_subscribed_to().await;
    // From here on its stream gets what another has, and a third as fast as the log grows: without help it would lag more
    // and more, and never be silent.
    world.relay = None;
    let elsewhere = unique_name();
    let _relay = Running::start(&world.log, &world.nats.url(), &elsewhere).await;
    let quick = Subscriber::at(&world.nats.url(), &elsewhere).await;
    let last = AtomicU64::new(1);
    let growing = async {
        while world.appends(1).await < END {
            sleep(Duration::from_millis(10)).await;
        }
        follower.reaches(END).await;
    };
    let dribbling = async {
        for sequence in 2..=END {
            quick.hands_on(sequence, &slow).await;
            last.store(sequence, Ordering::SeqCst);
            sleep(Duration::from_millis(30)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = growing => {}
        () = dribbling => {}
    }
    let last = last.into_inner();
    assert!(last < END, "the follower waited for the bus");
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_swapped_database_halts_the_follower() {
    let mut world = World::new().await;
    world.appends(10).await;
    let follower = world.follow().await;
    follower.reaches(10).await;

    let swapped = database().await;
    let other = open(&swapped).await;
    grow(&other, "b", 20).await;
    world.owner.goes_away().await;
    world.owner.comes_back(&other).await;
    let expected = Halt::Epoch {
        known: world.log.epoch(),
        found: other.epoch(),
    };
    assert_eq!(follower.halts().await, expected);
    world.replica.has_noted(&world.log).await;
    // Nor does starting again get it past that.
    follower.stops().await;
    assert_eq!(world.follow().await.halts().await, expected);
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn another_epoch_on_the_bus_halts_the_follower_if_the_owner_has_it_too() {
    let mut world = World::new().await;
    world.appends(10).await;
    let follower = world.follow().await;
    follower.reaches(10).await;
    let swapped = database().await;
    let other = open(&swapped).await;
    grow(&other, "b", 20).await;
    world.owner.goes_away().await;
    // The follower may have had everything from the owner before the stream was there.
    let relay = world.relay.take().expect("it runs");
    relay.published(10).await;
    drop(relay);
    Subscriber::at(&world.nats.url(), &world.prefix)
        .await
        .delete_stream()
        .await;
    let relay = Running::start(&other, &world.nats.url(), &world.prefix).await;
    relay.published(20).await;
    world.owner.comes_back(&other).await;
    let expected = Halt::Epoch {
        known: world.log.epoch(),
        found: other.epoch(),
    };
    assert_eq!(follower.halts().await, expected);
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_bus_that_brings_another_log_is_not_believed() {
    let mut world = World::new().await;
    world.relay = None;
    let swapped = database().await;
    let other = open(&swapped).await;
    grow(&other, "b", 20).await;
    let subscriber = Subscriber::at(&world.nats.url(), &world.prefix).await;
    let relay = Running::start(&other, &world.nats.url(), &world.prefix).await;
    subscriber.finds(&other).await;
    // One that knows no log yet, too.
    let follower = world.follow().await;
    let end = world.appends(10).await;
    follower.reaches(end).await;
    grow(&other, "b", 20).await;
    relay.published(40).await;
    let end = world.appends(10).await;
    follower.reaches(end).await;
    follower.is_current().await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_log_that_went_back_halts_the_follower() {
    let mut world = World::new().await;
    world.appends(10).await;
    let follower = world.follow().await;
    follower.reaches(10).await;
    let (_backup, restored) = restored(&world.log, 4).await;
    world.owner.goes_away().await;
    world.owner.comes_back(&restored).await;
    assert_eq!(
        follower.halts().await,
        Halt::WentBack {
            head: 4,
            checkpoint: 10
        }
    );
}

#[tokio::test]
async fn a_log_that_went_back_and_grew_again_halts_the_follower() {
    let mut world = World::new().await;
    world.appends(10).await;
    let follower = world.follow().await;
    follower.reaches(10).await;
    let (_backup, restored) = restored(&world.log, 8).await;
    grow(&restored, "b", 4).await;
    world.owner.goes_away().await;
    world.owner.comes_back(&restored).await;
    assert_eq!(follower.halts().await, Halt::Diverged { position: 10 });
    assert_eq!(world.replica.state().await, (10, 10, 10));
    follower.stops().await;
    let again = world.follow().await;
    assert_eq!(again.halts().await, Halt::Diverged { position: 10 });
}

#[tokio::test]
async fn a_replica_that_went_back_is_followed_into_from_where_it_is() {
    let world = World::new().await;
    world.appends(10).await;
    let follower = world.follow().await;
    follower.reaches(10).await;
    let fifth = whole(&world.log).await[4].id;
    sqlx::raw_sql("DELETE FROM notes WHERE position > 5")
        .execute(world.replica.0.pool())
        .await
        .expect("notes can be lost");
    sqlx::query("UPDATE checkpoints SET position = 5, event_id = $1")
        .bind(fifth)
        .execute(world.replica.0.pool())
        .await
        .expect("the checkpoint is there");
    bed::eventually(async || match world.replica.state().await {
        (10, 10, 10) => Ok(()),
        state => Err(format!("{state:?}")),
    })
    .await;
    follower.is_current().await;
    world.replica.has_noted(&world.log).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_knows_that_it_is_current_under_steady_appends() {
    let world = World::new().await;
    let follower = world.follow().await;
    let appending = async {
        loop {
            world.appends(20).await;
        }
    };
    let looking = async {
        for _ in 0..3 {
            follower.is_current().await;
        }
    };
    tokio::select! {
        () = looking => {}
        () = appending => {}
    }
}

#[tokio::test]
async fn what_cannot_be_decoded_halts_the_follower_right_before_it() {
    let world = World::new().await;
    world.appends(10).await;
    let bad = world.appends_one("undecodable").await;
    world.appends(10).await;
    let follower = world.follow().await;
    let Halt::Inapplicable(reason) = follower.halts().await else {
        panic!("halted for another reason")
    };
    assert_eq!(
        &*reason,
        "the event at position 11 can't be applied: no such thing"
    );
    // What lies before it is applied, and nothing behind it, now or after another start.
    let before = bad.cast_signed() - 1;
    assert_eq!(world.replica.state().await, (before, before, before));
    assert_eq!(follower.progress.borrow().position, bad - 1);
    follower.stops().await;
    world.follow().await.halts().await;
    assert_eq!(world.replica.state().await, (before, before, before));
}

#[tokio::test]
async fn what_the_replica_refuses_halts_the_follower_right_before_it() {
    let world = World::new().await;
    let follower = world.follow().await;
    world.appends(10).await;
    world.appends_one("forbidden").await;
    world.appends(10).await;
    let Halt::Inapplicable(reason) = follower.halts().await else {
        panic!("halted for another reason")
    };
    assert!(reason.contains("violates check constraint"), "{reason}");
    assert_eq!(world.replica.state().await, (10, 10, 10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_followers_of_one_database_apply_each_event_once() {
    let world = World::new().await;
    let followers = [world.follow().await, world.follow().await];
    let mut end = 0;
    for _ in 0..40 {
        end = world.appends(25).await;
    }
    for follower in &followers {
        follower.reaches(end).await;
    }
    world.replica.has_noted(&world.log).await;
}

#[tokio::test]
async fn a_restarted_follower_goes_on_from_its_checkpoint() {
    let world = World::new().await;
    let follower = world.follow().await;
    world.appends(300).await;
    follower.reaches(300).await;
    follower.stops().await;
    world.fold.asked.lock().unwrap().clear();
    let end = world.appends(300).await;
    let follower = world.follow().await;
    follower.reaches(end).await;
    assert_eq!(
        *world.fold.asked.lock().unwrap(),
        (301..=600).collect::<Vec<_>>()
    );
    world.replica.has_noted(&world.log).await;
}
