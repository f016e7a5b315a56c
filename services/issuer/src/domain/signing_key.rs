//! The signing keys: which one signs, which ones relying parties are told of, and what is due when.
//!
//! There is always a next key in the key set beside the one that signs. So a rotation, planned or not, as a rule finds a
//! key that every relying party knows already. The keys of one algorithm know nothing of those of another one: what is
//! decided is decided for the ring of one.

use std::collections::BTreeMap;

use model::{JobDuration, SigningAlgorithm, SigningKeyId};
use time::{Duration, OffsetDateTime};

/// Keys in the key set at most, of all algorithms together. While there are so many, none takes the place of another one
/// that is not revoked: the next one that would then be made could not be published.
pub const MAX_PUBLISHED: usize = 6;

/// The longest life of a job, and so of its token.
const LONGEST_JOB: Duration = Duration::seconds(JobDuration::LONGEST.seconds());

/// How the keys are to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long relying parties may keep the key set.
    pub max_age: Duration,
    /// By how much clocks may differ, and how long a process may take to see what another one did.
    pub clock_skew: Duration,
    /// How long a key signs.
    pub rotation: Duration,
}

/// A key, of which only the public half is known here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fresh {
    /// Its id.
    pub id: SigningKeyId,
    /// Its name in tokens.
    pub kid: String,
    /// What it signs with.
    pub algorithm: SigningAlgorithm,
    /// As relying parties are told it.
    pub public_jwk: String,
}

/// A key and what has become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// What it is.
    pub made: Fresh,
    /// When it was made.
    pub created: OffsetDateTime,
    /// When it came into the key set, and from when on it may sign.
    pub published: Option<(OffsetDateTime, OffsetDateTime)>,
    /// Since when it has been signing.
    pub activated: Option<OffsetDateTime>,
    /// Since when another key is asked to take its place as soon as one may.
    pub rotation_requested: Option<OffsetDateTime>,
    /// Since when it has not been signing any more.
    pub retired: Option<OffsetDateTime>,
    /// Since when it has not been in the key set any more.
    pub removed: Option<OffsetDateTime>,
    /// Since when it is not to be trusted, and why.
    pub revoked: Option<(OffsetDateTime, String)>,
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Made, and known to nobody.
    Prepared,
    /// In the key set, and not signing yet.
    Published,
    /// The one that signs.
    Active,
    /// In the key set for the tokens that it signed.
    Retiring,
    /// Out of the key set.
    Gone,
    /// Out of the key set before its time.
    Revoked,
}

/// Every key that may still have to verify something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyRing {
    keys: BTreeMap<SigningKeyId, Key>,
}

/// What the keys of other algorithms have in the key set, in which there is room for so many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Their places.
    pub places: usize,
    /// From when on one of them is to be replaced, the first of all algorithms. What has waited for longest comes first:
    /// otherwise an algorithm that rotates fast would take each place that becomes free.
    pub due: Option<OffsetDateTime>,
}

/// What may be asked of the keys.
#[derive(Clone, Debug)]
pub enum Command {
    /// Do what is due.
    Advance {
        /// The time.
        now: OffsetDateTime,
        /// How the keys are to live.
        policy: Policy,
        /// Whether nobody has ever read a key set: then the first key need not wait until it is known.
        unread: bool,
        /// What the keys of other algorithms have.
        others: Others,
        /// A key that nobody has used, if one is wanted.
        fresh: Option<Fresh>,
        /// When the last token of a retired key expires or has expired. A key that is not in here stays.
        last_expiry: BTreeMap<SigningKeyId, OffsetDateTime>,
    },
    /// Have another key sign.
    Rotate {
        /// The time.
        now: OffsetDateTime,
        /// What the keys of other algorithms have.
        others: Others,
        /// How the keys are to live.
        policy: Policy,
    },
    /// Trust a key no more.
    Revoke {
        /// Which.
        id: SigningKeyId,
        /// Why.
        reason: String,
        /// The time.
        now: OffsetDateTime,
        /// A key that nobody has used, if one is wanted.
        fresh: Option<Fresh>,
    },
    /// Trust none of them any more.
    RevokeAll {
        /// Why.
        reason: String,
        /// The time.
        now: OffsetDateTime,
        /// How the keys are to live.
        policy: Policy,
        /// A key that nobody has used, if one signs.
        fresh: Option<Fresh>,
    },
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was made.
    Created(Fresh, OffsetDateTime),
    /// It came into the key set.
    Published {
        /// Which.
        id: SigningKeyId,
        /// When.
        at: OffsetDateTime,
        /// From when on it may sign.
        ready: OffsetDateTime,
    },
    /// Another key is to take its place.
    RotationRequested(SigningKeyId, OffsetDateTime),
    /// It signs.
    Activated(SigningKeyId, OffsetDateTime),
    /// It signs no more.
    Retired(SigningKeyId, OffsetDateTime),
    /// It left the key set.
    Removed(SigningKeyId, OffsetDateTime),
    /// It is not to be trusted.
    Revoked {
        /// Which.
        id: SigningKeyId,
        /// When.
        at: OffsetDateTime,
        /// Why.
        reason: String,
    },
}

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// There is no such key.
    #[error("the signing key does not exist")]
    Missing,
    /// None could take its place.
    #[error("no other signing key is there yet; try again")]
    NoSuccessor,
}

impl Event {
    /// Of which key.
    #[must_use]
    pub fn id(&self) -> SigningKeyId {
        match self {
            Self::Created(made, _) => made.id,
            Self::Published { id, .. }
            | Self::RotationRequested(id, _)
            | Self::Activated(id, _)
            | Self::Retired(id, _)
            | Self::Removed(id, _)
            | Self::Revoked { id, .. } => *id,
        }
    }
}

impl Policy {
    /// How long a key is in the key set before it signs: until every relying party has read of it.
    fn wait(&self) -> Duration {
        self.max_age + self.clock_skew
    }

    /// From when on a key that was published may sign. Who published it may have had relying parties keep the key set for
    /// less. One that did not wait at all is the first.
    fn ready(&self, (at, ready): (OffsetDateTime, OffsetDateTime)) -> OffsetDateTime {
        if at == ready {
            ready
        } else {
            ready.max(at + self.wait())
        }
    }
}

impl Key {
    /// Where it is in its life.
    #[must_use]
    pub fn stage(&self) -> Stage {
        if self.revoked.is_some() {
            Stage::Revoked
        } else if self.removed.is_some() {
            Stage::Gone
        } else if self.retired.is_some() {
            Stage::Retiring
        } else if self.activated.is_some() {
            Stage::Active
        } else if self.published.is_some() {
            Stage::Published
        } else {
            Stage::Prepared
        }
    }

    /// Whether relying parties are told of it.
    #[must_use]
    pub fn is_published(&self) -> bool {
        matches!(
            self.stage(),
            Stage::Published | Stage::Active | Stage::Retiring
        )
    }

    /// Whether a job may have a token of it: one that was given to a job just before it retired lives as long as the
    /// job, long after the last credential.
    #[must_use]
    pub fn verifies_jobs(&self, now: OffsetDateTime, policy: &Policy) -> bool {
        let over = |since: OffsetDateTime| since + LONGEST_JOB + policy.clock_skew <= now;
        self.revoked.is_none() && self.published.is_some() && !self.retired.is_some_and(over)
    }

    /// Whether nothing will ever be asked of it again.
    #[must_use]
    pub fn is_over(&self, now: OffsetDateTime, policy: &Policy) -> bool {
        match (&self.revoked, self.removed) {
            (Some((since, _)), _) => *since + LONGEST_JOB + policy.clock_skew <= now,
            (None, Some(_)) => !self.verifies_jobs(now, policy),
            (None, None) => false,
        }
    }
}

impl KeyRing {
    /// The keys of an algorithm alone.
    #[must_use]
    pub fn only(&self, algorithm: SigningAlgorithm) -> Self {
        let keys = self.keys.iter();
        let keys = keys.filter(|(_, key)| key.made.algorithm == algorithm);
        Self {
            keys: keys.map(|(id, key)| (*id, key.clone())).collect(),
        }
    }

    /// Whether no key was ever in the key set.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        self.keys().all(|key| key.published.is_none())
    }

    /// All keys, the oldest first.
    #[must_use]
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = &Key> {
        self.keys.values()
    }

    /// The key of an id.
    #[must_use]
    pub fn get(&self, id: SigningKeyId) -> Option<&Key> {
        self.keys.get(&id)
    }

    /// The key that signs.
    #[must_use]
    pub fn active(&self) -> Option<&Key> {
        self.keys().find(|key| key.stage() == Stage::Active)
    }

    /// The key that signs next: of several, one that is in the key set, and the longest.
    #[must_use]
    pub fn next(&self) -> Option<&Key> {
        self.next_but(None)
    }

    fn next_but(&self, not: Option<SigningKeyId>) -> Option<&Key> {
        let others = || self.keys().filter(|key| Some(key.made.id) != not);
        others()
            .find(|key| key.stage() == Stage::Published)
            .or_else(|| others().find(|key| key.stage() == Stage::Prepared))
    }

    /// Whether a fresh key would be taken.
    #[must_use]
    pub fn wants_key(&self) -> bool {
        self.next().is_none()
    }

    /// Whether a fresh key is needed to revoke one.
    #[must_use]
    pub fn wants_key_to_revoke(&self, id: SigningKeyId) -> bool {
        self.active().is_some_and(|active| active.made.id == id)
            && self.next_but(Some(id)).is_none()
    }

    /// How many are in the key set.
    #[must_use]
    pub fn published(&self) -> usize {
        self.keys().filter(|key| key.is_published()).count()
    }

    /// What the keys of all algorithms but one have.
    #[must_use]
    pub fn others(&self, algorithm: SigningAlgorithm, policy: &Policy) -> Others {
        let others = SigningAlgorithm::ALL.into_iter();
        let others = others.filter(|other| *other != algorithm);
        let rings: Vec<Self> = others.map(|other| self.only(other)).collect();
        Others {
            places: rings.iter().map(Self::places).sum(),
            due: rings.iter().filter_map(|ring| ring.due(policy)).min(),
        }
    }

    /// From when on the key that signs is to be replaced.
    fn due(&self, policy: &Policy) -> Option<OffsetDateTime> {
        let active = self.active()?;
        let signs = active.activated;
        let aged = signs.and_then(|since| since.checked_add(policy.rotation));
        let requested = active.rotation_requested;
        requested.into_iter().chain(aged).min()
    }

    /// How many places in the key set are theirs: also those of one that signs and of a next one that are not there yet.
    fn places(&self) -> usize {
        let next = self.next().filter(|key| key.is_published());
        let missing = [self.active(), next];
        self.published() + missing.iter().filter(|key| key.is_none()).count()
    }
}

/// Decides a command.
pub fn decide(ring: &KeyRing, command: Command) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Advance {
            now,
            policy,
            unread,
            others,
            fresh,
            last_expiry,
        } => {
            let mut draft = Draft::of(ring);
            draft.remove_spent(now, &policy, &last_expiry);
            draft.bring_next((now, unread), &policy, others.places, fresh);
            draft.replace_if_due(now, &policy, others);
            Ok(draft.events)
        }
        Command::Rotate {
            now,
            others,
            policy,
        } => rotate(ring, (now, &policy), others),
        Command::Revoke {
            id,
            reason,
            now,
            fresh,
        } => revoke(ring, id, reason, now, fresh),
        Command::RevokeAll {
            reason,
            now,
            policy,
            fresh,
        } => revoke_all(ring, &reason, (now, &policy), fresh),
    }
}

/// Events, and the keys as they leave them.
struct Draft {
    ring: KeyRing,
    events: Vec<Event>,
}

impl Draft {
    fn of(ring: &KeyRing) -> Self {
        Self {
            ring: ring.clone(),
            events: vec![],
        }
    }

    fn add(&mut self, event: Event) {
        evolve(&mut self.ring, &event);
        self.events.push(event);
    }

    /// Takes those out of the key set whose last token has expired.
    fn remove_spent(
        &mut self,
        now: OffsetDateTime,
        policy: &Policy,
        last_expiry: &BTreeMap<SigningKeyId, OffsetDateTime>,
    ) {
        let expired = |last: &OffsetDateTime| *last + policy.clock_skew <= now;
        let keys = self.ring.keys();
        let retiring = keys.filter(|key| key.stage() == Stage::Retiring);
        let ids = retiring.map(|key| key.made.id);
        let spent: Vec<_> = ids
            .filter(|id| last_expiry.get(id).is_some_and(expired))
            .collect();
        for id in spent {
            self.add(Event::Removed(id, now));
        }
    }

    /// Has a next key, in the key set if there is room.
    fn bring_next(
        &mut self,
        (now, unread): (OffsetDateTime, bool),
        policy: &Policy,
        others: usize,
        fresh: Option<Fresh>,
    ) {
        if let Some(fresh) = fresh.filter(|_| self.ring.wants_key()) {
            self.add(Event::Created(fresh, now));
        }
        let prepared = self.ring.next().filter(|key| key.published.is_none());
        if let Some(id) = prepared.map(|key| key.made.id)
            && self.ring.published() + others < MAX_PUBLISHED
        {
            let first = unread && self.ring.active().is_none();
            let ready = if first { now } else { now + policy.wait() };
            self.add(Event::Published { id, at: now, ready });
        }
    }

    /// Has the next key sign, if the active one has signed for long enough.
    fn replace_if_due(&mut self, now: OffsetDateTime, policy: &Policy, others: Others) {
        let due = self.ring.due(policy);
        if self.ring.active().is_none() || due.is_some_and(|due| due <= now) {
            self.replace((now, policy), others);
        }
    }

    /// The next key takes the place of the active one, if it may by now. Answers whether it did.
    fn replace(&mut self, (now, policy): (OffsetDateTime, &Policy), others: Others) -> bool {
        let ready = |key: &&Key| {
            let published = key.published;
            published.is_some_and(|published| policy.ready(published) <= now)
        };
        let Some(next) = self.ring.next().filter(ready).map(|key| key.made.id) else {
            return false;
        };
        if let Some(active) = self.ring.active().map(|key| key.made.id) {
            let due = self.ring.due(policy).map_or(now, |due| due.min(now));
            let theirs_first = others.due.is_some_and(|theirs| theirs < due);
            let taken = others.places + usize::from(theirs_first);
            // Without a place for another next one, a revocation would find none that relying parties know.
            if self.ring.published() + taken >= MAX_PUBLISHED {
                return false;
            }
            self.add(Event::Retired(active, now));
        }
        self.add(Event::Activated(next, now));
        true
    }
}

fn rotate(
    ring: &KeyRing,
    (now, policy): (OffsetDateTime, &Policy),
    others: Others,
) -> Result<Vec<Event>, Rejection> {
    let active = ring.active().ok_or(Rejection::Missing)?;
    let mut draft = Draft::of(ring);
    if !draft.replace((now, policy), others) && active.rotation_requested.is_none() {
        draft.add(Event::RotationRequested(active.made.id, now));
    }
    Ok(draft.events)
}

fn revoke(
    ring: &KeyRing,
    id: SigningKeyId,
    reason: String,
    now: OffsetDateTime,
    fresh: Option<Fresh>,
) -> Result<Vec<Event>, Rejection> {
    let key = ring.get(id).ok_or(Rejection::Missing)?;
    let mut draft = Draft::of(ring);
    if key.revoked.is_some() {
        return Ok(vec![]);
    }
    let signs = key.stage() == Stage::Active;
    draft.add(Event::Revoked {
        id,
        at: now,
        reason,
    });
    if signs {
        if let Some(fresh) = fresh.filter(|_| draft.ring.wants_key()) {
            draft.add(Event::Created(fresh, now));
        }
        // At once, whoever has read it: the alternative is a key that others may have.
        let next = draft.ring.next().ok_or(Rejection::NoSuccessor)?;
        let (next, published) = (next.made.id, next.published.is_some());
        if !published {
            let (id, at, ready) = (next, now, now);
            draft.add(Event::Published { id, at, ready });
        }
        draft.add(Event::Activated(next, now));
    }
    Ok(draft.events)
}

fn revoke_all(
    ring: &KeyRing,
    reason: &str,
    (now, policy): (OffsetDateTime, &Policy),
    fresh: Option<Fresh>,
) -> Result<Vec<Event>, Rejection> {
    let mut draft = Draft::of(ring);
    let trusted = |key: &&Key| key.revoked.is_none() && !key.is_over(now, policy);
    for key in ring.keys().filter(trusted) {
        let (id, at, reason) = (key.made.id, now, reason.to_owned());
        draft.add(Event::Revoked { id, at, reason });
    }
    if ring.active().is_some() {
        let fresh = fresh.ok_or(Rejection::NoSuccessor)?;
        let (id, at, ready) = (fresh.id, now, now);
        draft.add(Event::Created(fresh, now));
        draft.add(Event::Published { id, at, ready });
        draft.add(Event::Activated(id, now));
    }
    Ok(draft.events)
}

/// Applies what happened.
pub fn evolve(ring: &mut KeyRing, event: &Event) {
    if let Event::Created(made, at) = event {
        let key = Key {
            made: made.clone(),
            created: *at,
            published: None,
            activated: None,
            rotation_requested: None,
            retired: None,
            removed: None,
            revoked: None,
        };
        ring.keys.insert(made.id, key);
    }
    let Some(key) = ring.keys.get_mut(&event.id()) else {
        return;
    };
    match event {
        Event::Created(..) => {}
        Event::Published { at, ready, .. } => key.published = Some((*at, *ready)),
        Event::RotationRequested(_, at) => key.rotation_requested = Some(*at),
        Event::Activated(_, at) => key.activated = Some(*at),
        Event::Retired(_, at) => (key.retired, key.rotation_requested) = (Some(*at), None),
        Event::Removed(_, at) => key.removed = Some(*at),
        Event::Revoked { at, reason, .. } => key.revoked = Some((*at, reason.clone())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const POLICY: Policy = Policy {
        max_age: Duration::minutes(5),
        clock_skew: Duration::minutes(1),
        rotation: Duration::days(30),
    };
    const NOON: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
    /// One that signs and a next one.
    const TWO: Others = Others {
        places: 2,
        due: None,
    };

    fn id(number: u128) -> SigningKeyId {
        SigningKeyId::from_uuid(Uuid::from_u128(number))
    }

    fn fresh(number: u128) -> Fresh {
        Fresh {
            id: id(number),
            kid: format!("kid-{number}"),
            algorithm: SigningAlgorithm::Rs256,
            public_jwk: "{}".to_owned(),
        }
    }

    /// Keys that live by their events.
    #[derive(Default)]
    struct Life {
        ring: KeyRing,
        made: u128,
        others: Others,
        last_expiry: BTreeMap<SigningKeyId, OffsetDateTime>,
    }

    impl Life {
        fn takes(&mut self, command: Command) -> Result<Vec<Event>, Rejection> {
            let events = decide(&self.ring, command)?;
            events
                .iter()
                .for_each(|event| evolve(&mut self.ring, event));
            Ok(events)
        }

        fn comes_to(&mut self, now: OffsetDateTime) -> Vec<Event> {
            let fresh = self.ring.wants_key().then(|| {
                self.made += 1;
                fresh(self.made)
            });
            let command = Command::Advance {
                now,
                policy: POLICY,
                unread: self.ring.is_unread(),
                others: self.others,
                fresh,
                last_expiry: self.last_expiry.clone(),
            };
            self.takes(command).expect("what is due is done")
        }

        fn rotates(&mut self, now: OffsetDateTime) -> Vec<Event> {
            let others = self.others;
            let rotate = Command::Rotate {
                now,
                others,
                policy: POLICY,
            };
            self.takes(rotate).expect("it rotates")
        }

        fn revokes(
            &mut self,
            number: u128,
            now: OffsetDateTime,
            fresh: Option<Fresh>,
        ) -> Result<Vec<Event>, Rejection> {
            self.takes(Command::Revoke {
                id: id(number),
                reason: "leaked".to_owned(),
                now,
                fresh,
            })
        }

        /// As the keys of another algorithm see these.
        fn as_others(&self) -> Others {
            Others {
                places: self.ring.places(),
                due: self.ring.due(&POLICY),
            }
        }

        /// Tokens live for so long.
        fn issues(&mut self, lifetime: Duration) {
            let retired = self.ring.keys();
            let retired = retired.filter_map(|key| Some((key.made.id, key.retired? + lifetime)));
            self.last_expiry.extend(retired);
        }

        fn stages(&self) -> Vec<Stage> {
            self.ring.keys().map(Key::stage).collect()
        }
    }

    fn begun() -> Life {
        let mut life = Life::default();
        life.comes_to(NOON);
        life.comes_to(NOON);
        life
    }

    #[test]
    fn the_first_key_signs_at_once_and_the_next_one_is_published_beside_it() {
        let life = begun();
        assert_eq!(life.stages(), [Stage::Active, Stage::Published]);
        let ready = life.ring.next().and_then(|key| key.published);
        assert_eq!(ready, Some((NOON, NOON + Duration::minutes(6))));
        assert!(!life.ring.wants_key());
    }

    #[test]
    fn the_first_key_of_another_algorithm_waits_until_it_is_known() {
        let mut life = Life::default();
        let advance = |now, fresh: Option<Fresh>| Command::Advance {
            now,
            policy: POLICY,
            unread: false,
            others: TWO,
            fresh,
            last_expiry: BTreeMap::new(),
        };
        life.takes(advance(NOON, Some(fresh(1)))).expect("made");
        assert_eq!(life.stages(), [Stage::Published]);
        let ready = NOON + POLICY.max_age + POLICY.clock_skew;
        let early = ready - Duration::SECOND;
        assert_eq!(life.takes(advance(early, None)), Ok(vec![]));
        assert_eq!(
            life.takes(advance(ready, None)),
            Ok(vec![Event::Activated(id(1), ready)])
        );
        let other = life.ring.only(SigningAlgorithm::Es256);
        assert_eq!((other.active(), other.is_unread()), (None, true));
        assert_eq!(life.ring.only(SigningAlgorithm::Rs256), life.ring);
    }

    #[test]
    fn a_key_signs_for_its_time_and_is_gone_when_its_last_token_has_expired() {
        let mut life = begun();
        let month = NOON + POLICY.rotation;
        assert_eq!(life.comes_to(month - Duration::SECOND), []);
        assert_eq!(
            life.comes_to(month),
            [Event::Retired(id(1), month), Event::Activated(id(2), month)]
        );
        // Another one is made at once.
        life.comes_to(month);
        assert_eq!(
            life.stages(),
            [Stage::Retiring, Stage::Active, Stage::Published]
        );
        // As long as nobody knows when its last token expires, it stays.
        assert_eq!(life.comes_to(month + Duration::days(1)), []);
        let last = month + Duration::days(1);
        life.last_expiry.insert(id(1), last);
        assert_eq!(life.comes_to(last + Duration::seconds(59)), []);
        let gone = last + POLICY.clock_skew;
        assert_eq!(life.comes_to(gone), [Event::Removed(id(1), gone)]);
    }

    #[test]
    fn a_rotation_waits_until_the_next_key_is_known_and_is_asked_for_once() {
        let mut life = begun();
        let early = NOON + Duration::minutes(1);
        assert_eq!(
            life.rotates(early),
            [Event::RotationRequested(id(1), early)]
        );
        assert_eq!(life.rotates(early), []);
        let ready = NOON + Duration::minutes(6);
        assert_eq!(life.comes_to(ready - Duration::SECOND), []);
        assert_eq!(
            life.comes_to(ready),
            [Event::Retired(id(1), ready), Event::Activated(id(2), ready)]
        );
        life.comes_to(ready);
        let later = ready + Duration::hours(1);
        assert_eq!(
            life.rotates(later),
            [Event::Retired(id(2), later), Event::Activated(id(3), later)]
        );
    }

    #[test]
    fn a_key_waits_as_long_as_the_longer_policy_of_two_issuers_says() {
        let longer = Policy {
            max_age: Duration::minutes(20),
            ..POLICY
        };
        let rotate = |now, policy| Command::Rotate {
            now,
            others: TWO,
            policy,
        };
        for (published_by, activated_by) in [(POLICY, longer), (longer, POLICY)] {
            let mut life = Life::default();
            for number in [1, 2] {
                life.takes(Command::Advance {
                    now: NOON,
                    policy: published_by,
                    unread: number == 1,
                    others: TWO,
                    fresh: Some(fresh(number)),
                    last_expiry: BTreeMap::new(),
                })
                .expect("made");
            }
            let ready = NOON + longer.wait();
            life.takes(rotate(ready - Duration::SECOND, activated_by))
                .expect("asked for");
            assert_eq!(life.stages(), [Stage::Active, Stage::Published]);
            life.takes(rotate(ready, activated_by)).expect("done");
            assert_eq!(life.stages(), [Stage::Retiring, Stage::Active]);
        }
    }

    #[test]
    fn the_key_set_never_holds_more_than_a_handful() {
        let mut life = begun();
        life.others = TWO;
        let mut now = NOON;
        for _ in 0..50 {
            now += Duration::minutes(10);
            life.rotates(now);
            life.comes_to(now);
            life.comes_to(now);
            assert!(life.ring.published() + life.others.places <= MAX_PUBLISHED);
        }
        // Full: who is asked to go stays until another one has left, for the next one that would be made could not be
        // published.
        assert_eq!(
            life.stages(),
            [
                Stage::Retiring,
                Stage::Retiring,
                Stage::Active,
                Stage::Published
            ]
        );
        assert_eq!(
            life.ring
                .active()
                .map(|key| key.rotation_requested.is_some()),
            Some(true)
        );
        // A revocation finds one that is known.
        let mut revoked = Life {
            ring: life.ring.clone(),
            ..Life::default()
        };
        let signs = Event::Activated(id(4), now);
        let events = revoked.revokes(3, now, None);
        assert_eq!(events.expect("revoked").last(), Some(&signs));
        life.last_expiry.insert(id(1), now);
        now += Duration::hours(1);
        let removed = Event::Removed(id(1), now);
        let retired = Event::Retired(id(3), now);
        let activated = Event::Activated(id(4), now);
        assert_eq!(life.comes_to(now), [removed, retired, activated]);
        life.comes_to(now);
        assert_eq!(life.ring.next().map(Key::stage), Some(Stage::Published));
    }

    #[test]
    fn however_the_keys_live_there_is_a_place_for_a_next_one() {
        // Two algorithms, each asked to rotate or to revoke now and then; those of the one are the others of the other.
        let mut lives = [Life::default(), Life::default()];
        let mut now = NOON;
        for step in 0..500_u32 {
            now += Duration::minutes(1);
            for turn in [0, 1] {
                let others = lives[1 - turn].as_others();
                let life = &mut lives[turn];
                life.others = others;
                life.comes_to(now);
                if step % 7 == 0 && life.ring.active().is_some() {
                    life.rotates(now);
                }
                if step % (31 + 10 * u32::try_from(turn).expect("one of two")) == 30 {
                    let active = life.ring.active().expect("one signs").made.id;
                    life.takes(Command::Revoke {
                        id: active,
                        reason: "leaked".to_owned(),
                        now,
                        fresh: None,
                    })
                    .expect("a next one is there");
                }
                life.issues(Duration::hours(1));
                assert!(life.ring.places() + life.others.places <= MAX_PUBLISHED);
            }
        }
        assert!(
            lives.iter().all(|life| life.made > 10),
            "they rotate all the time"
        );
    }

    #[test]
    fn a_rotation_that_was_asked_for_waits_for_none_that_was_due_later() {
        let mut lives = [begun(), begun()];
        let asked = NOON + POLICY.rotation / 2;
        let mut now = asked;
        // The first ones rotate all the time, and faster than their tokens expire.
        for step in 0..200 {
            now += Duration::minutes(10);
            for turn in [0, 1] {
                let others = lives[1 - turn].as_others();
                let life = &mut lives[turn];
                life.others = others;
                life.comes_to(now);
                if turn == 0 || step == 50 {
                    life.rotates(now);
                }
                life.issues(Duration::hours(1));
                assert!(life.ring.places() + life.others.places <= MAX_PUBLISHED);
            }
            let [_, other] = &lives;
            let waits = other.ring.active().and_then(|key| key.rotation_requested);
            assert!(
                waits.is_none_or(|since| now - since <= Duration::hours(1)),
                "the next place was not its own"
            );
        }
        let [often, once] = &lives;
        assert!(often.made > 40, "{} were made", often.made);
        assert_eq!(once.ring.active().map(|key| key.made.id), Some(id(2)));
    }

    #[test]
    fn a_revoked_key_is_out_and_another_one_signs_at_once() {
        let mut life = begun();
        let revoked = Event::Revoked {
            id: id(1),
            at: NOON,
            reason: "leaked".to_owned(),
        };
        assert_eq!(
            life.revokes(1, NOON, None),
            Ok(vec![revoked, Event::Activated(id(2), NOON)])
        );
        assert_eq!(life.revokes(1, NOON, None), Ok(vec![]));
        assert_eq!(life.revokes(7, NOON, None), Err(Rejection::Missing));
        // Without a next one, a fresh one has to be brought along.
        assert!(life.ring.wants_key_to_revoke(id(2)));
        assert_eq!(life.revokes(2, NOON, None), Err(Rejection::NoSuccessor));
        life.revokes(2, NOON, Some(fresh(9))).expect("revoked");
        assert_eq!(
            life.stages(),
            [Stage::Revoked, Stage::Revoked, Stage::Active]
        );
        // One that does not sign is taken out alone.
        life.made = 20;
        life.comes_to(NOON);
        assert_eq!(
            life.revokes(21, NOON, None).map(|events| events.len()),
            Ok(1)
        );
        assert_eq!(life.ring.active().map(|key| key.made.id), Some(id(9)));
    }

    #[test]
    fn all_keys_are_revoked_that_anybody_may_still_trust_and_one_signs_that_nobody_had() {
        let mut life = begun();
        let over = NOON + POLICY.rotation;
        life.comes_to(over);
        life.last_expiry.insert(id(1), over);
        life.comes_to(over + Duration::hours(1));
        let now = over + LONGEST_JOB + POLICY.clock_skew;
        life.rotates(now);
        life.comes_to(now);
        assert_eq!(
            life.stages(),
            [
                Stage::Gone,
                Stage::Retiring,
                Stage::Active,
                Stage::Published
            ]
        );
        let revoke_all = |fresh| Command::RevokeAll {
            reason: "restored".to_owned(),
            now,
            policy: POLICY,
            fresh,
        };
        assert_eq!(
            life.takes(revoke_all(None)),
            Err(Rejection::NoSuccessor),
            "none signs"
        );
        life.takes(revoke_all(Some(fresh(9)))).expect("revoked");
        // Of the first one nothing is asked any more.
        assert_eq!(
            life.stages(),
            [
                Stage::Gone,
                Stage::Revoked,
                Stage::Revoked,
                Stage::Revoked,
                Stage::Active
            ]
        );
        // One that waits until it is known has none in its place.
        let mut life = Life::default();
        life.takes(Command::Advance {
            now,
            policy: POLICY,
            unread: false,
            others: TWO,
            fresh: Some(fresh(1)),
            last_expiry: BTreeMap::new(),
        })
        .expect("made");
        life.takes(revoke_all(None)).expect("revoked");
        assert_eq!(life.stages(), [Stage::Revoked]);
    }

    #[test]
    fn job_tokens_are_verified_for_as_long_as_jobs_live() {
        let mut life = begun();
        let month = NOON + POLICY.rotation;
        life.comes_to(month);
        life.last_expiry.insert(id(1), month);
        life.comes_to(month + Duration::hours(1));
        let key = life.ring.get(id(1)).expect("the key").clone();
        assert_eq!(key.stage(), Stage::Gone);
        let last = month + LONGEST_JOB + POLICY.clock_skew;
        assert!(key.verifies_jobs(last - Duration::SECOND, &POLICY));
        assert!(!key.is_over(last - Duration::SECOND, &POLICY));
        assert!(!key.verifies_jobs(last, &POLICY) && key.is_over(last, &POLICY));
        life.revokes(1, month, None).expect("revoked");
        let key = life.ring.get(id(1)).expect("the key");
        assert!(!key.verifies_jobs(month, &POLICY));
    }
}
