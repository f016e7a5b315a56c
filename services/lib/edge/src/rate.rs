//! How many requests a caller may make: one who loops shall not crowd the others out.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota};
use http::Extensions;
use model::Principal;
use tonic::transport::server::TcpConnectInfo;

/// After so many requests, callers who have been quiet are forgotten.
const SWEEP: u32 = 10_000;

/// Counts the requests of each caller in this process.
pub struct Rates<C: Hash + Eq + Clone = Principal> {
    limiter: DefaultKeyedRateLimiter<C>,
    clock: DefaultClock,
    asked: AtomicU32,
}

impl<C: Hash + Eq + Clone> Rates<C> {
    /// So many requests a second for each caller; twice as many at once after a quiet second.
    #[must_use]
    pub fn new(per_second: NonZeroU32) -> Self {
        let burst = per_second.saturating_mul(NonZeroU32::MIN.saturating_add(1));
        Self {
            limiter: DefaultKeyedRateLimiter::keyed(
                Quota::per_second(per_second).allow_burst(burst),
            ),
            clock: DefaultClock::default(),
            asked: AtomicU32::new(0),
        }
    }

    /// Counts one request. The error is after how long the caller may make the next one.
    pub fn count(&self, caller: &C) -> Result<(), Duration> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % SWEEP == SWEEP - 1 {
            self.limiter.retain_recent();
        }
        self.limiter
            .check_key(caller)
            .map_err(|until| until.wait_time_from(self.clock.now()))
    }
}

/// Counts the requests of those who have no token of ours, by where they come from. Cheap to clone.
#[derive(Clone)]
pub struct PeerRates(Option<Arc<Rates<IpAddr>>>);

impl PeerRates {
    /// So many requests a second for each of them; none for as many as they like.
    #[must_use]
    pub fn new(per_second: Option<NonZeroU32>) -> Self {
        Self(per_second.map(|per_second| Arc::new(Rates::new(per_second))))
    }

    /// Counts one request. The error is after how long the peer may make the next one.
    pub fn count(&self, peer: IpAddr) -> Result<(), Duration> {
        self.0
            .as_ref()
            .map_or(Ok(()), |rates| rates.count(&counted(peer)))
    }
}

/// Where a request comes from.
pub(crate) fn peer_of(request: &Extensions) -> Option<IpAddr> {
    let peer = request.get::<TcpConnectInfo>()?;
    peer.remote_addr().map(|address| address.ip())
}

/// Whoever has one IPv6 address has all of its /64 (RFC 4291, 2.5.4).
pub(crate) fn counted(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_counted_with_its_neighbours_in_a_64() {
        for (peer, as_one) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff::", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
        ] {
            let address = |text: &str| text.parse::<IpAddr>().expect("an address");
            assert_eq!(counted(address(peer)), address(as_one), "{peer}");
        }
        let rates = PeerRates::new(Some(NonZeroU32::MIN));
        let counts = |peer: &str| rates.count(peer.parse().expect("an address"));
        assert!(counts("2001:db8::1").is_ok() && counts("2001:db8::2").is_ok());
        assert!(counts("2001:db8::3").is_err());
        assert!(counts("2001:db8:0:1::3").is_ok());
        let unlimited = PeerRates::new(None);
        assert!((0..9).all(|_| unlimited.count(IpAddr::from([192, 0, 2, 1])).is_ok()));
    }

    #[test]
    fn one_who_loops_waits_and_others_do_not() {
        let rates = Rates::new(NonZeroU32::MIN);
        let (alice, bob) = ["dev/alice", "dev/bob"]
            .map(|user| Principal::user(user).expect("a user"))
            .into();
        assert_eq!(rates.count(&alice), Ok(()));
        assert_eq!(rates.count(&alice), Ok(()));
        let wait = rates.count(&alice).expect_err("too many");
        assert!(wait <= Duration::from_secs(1), "{wait:?}");
        assert_eq!(rates.count(&bob), Ok(()));
    }
}
