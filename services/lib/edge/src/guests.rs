//! Rpcs of those who show no token. A process holds only so many: requests that never end and answers that are never taken
//! would fill its memory.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{Extensions, HeaderMap, Request, Response};
use http_body::Frame;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

use crate::frames::COPIED;
use crate::{rate, status};

/// The places. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Guests {
    most: usize,
    present: Arc<Mutex<Present>>,
}

#[derive(Default)]
struct Present {
    came: u64,
    count: usize,
    /// Of each peer, in the order in which they came. None is empty.
    by_peer: HashMap<Option<IpAddr>, BTreeMap<u64, Arc<Guest>>>,
}

/// An rpc that has a place, or had one.
#[derive(Default)]
struct Guest {
    left: CancellationToken,
    answer: Mutex<Option<Answer>>,
}

/// What its caller has not taken yet.
struct Answer {
    body: Body,
    /// Of a frame, what is not passed on.
    rest: Bytes,
}

impl Guests {
    /// So many at once.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            most,
            present: Arc::default(),
        }
    }

    /// Takes a place for an rpc. When there is none, somebody goes: of whoever has most, the one that came first. A good one
    /// takes a moment, and who makes others go has most.
    pub(crate) fn welcome(&self, request: &Extensions) -> Stay {
        let peer = rate::peer_of(request).map(rate::counted);
        let guest = Arc::new(Guest::default());
        let mut present = self.present();
        if present.count >= self.most {
            present.send_one_off();
        }
        let number = present.came;
        present.came += 1;
        present.count += 1;
        let of_peer = present.by_peer.entry(peer).or_default();
        of_peer.insert(number, Arc::clone(&guest));
        Stay {
            guests: self.clone(),
            peer,
            number,
            guest,
        }
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Guests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let present = self.present().count;
        write!(f, "Guests({present} of {})", self.most)
    }
}

impl Present {
    fn send_one_off(&mut self) {
        let most = self.by_peer.iter().max_by_key(|(_, of)| of.len());
        let first = most.and_then(|(peer, of)| Some((*peer, *of.keys().next()?)));
        if let Some(guest) = first.and_then(|(peer, number)| self.remove(peer, number)) {
            // Here, for nobody looks at an answer while its caller takes nothing.
            drop(guest.answer().take());
            guest.left.cancel();
        }
    }

    fn remove(&mut self, peer: Option<IpAddr>, number: u64) -> Option<Arc<Guest>> {
        let of_peer = self.by_peer.get_mut(&peer)?;
        let guest = of_peer.remove(&number)?;
        self.count -= 1;
        if of_peer.is_empty() {
            self.by_peer.remove(&peer);
        }
        Some(guest)
    }
}

impl Guest {
    fn answer(&self) -> MutexGuard<'_, Option<Answer>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An rpc's place, until it is dropped or another one needs it more.
pub(crate) struct Stay {
    guests: Guests,
    peer: Option<IpAddr>,
    number: u64,
    guest: Arc<Guest>,
}

impl Stay {
    /// What comes of this, if there is a place for so long.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        tokio::select! {
            done = work => Ok(done),
            () = self.guest.left.cancelled() => Err(sent_off()),
        }
    }

    /// The answer keeps the place until all of it is taken.
    fn until_taken(self, body: Body) -> Body {
        let rest = Bytes::new();
        *self.guest.answer() = Some(Answer { body, rest });
        let left = Box::pin(self.guest.left.clone().cancelled_owned());
        let stay = Some(self);
        Body::new(Held { stay, left })
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        let _ = self.guests.present().remove(self.peer, self.number);
    }
}

fn sent_off() -> Status {
    let message = "newer rpcs of callers without a token have taken this one's place; try again";
    status::unavailable("TOO_MANY_RPCS", message)
}

/// An answer, for as long as it has a place.
struct Held {
    /// Until the end was told.
    stay: Option<Stay>,
    left: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let left = self.left.as_mut().poll(context).is_ready();
        let Some(stay) = &self.stay else {
            return Poll::Ready(None);
        };
        if left {
            let mut trailers = HeaderMap::new();
            let told = sent_off().add_header(&mut trailers);
            self.stay = None;
            return Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))));
        }
        let mut answer = stay.guest.answer();
        let Some(Answer { body, rest }) = answer.as_mut() else {
            // It is leaving.
            return Poll::Pending;
        };
        if rest.is_empty() {
            let frame = ready!(Pin::new(body).poll_frame(context));
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        // As a copy: what h2 is given stays there until it is taken, and a part of the frame would keep the whole.
        let length = rest.len().min(COPIED);
        let part = Bytes::copy_from_slice(&rest.split_to(length));
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        let Some(stay) = &self.stay else { return true };
        let answer = stay.guest.answer();
        answer
            .as_ref()
            .is_some_and(|answer| answer.rest.is_empty() && answer.body.is_end_stream())
    }
}

/// A service whose rpcs take places.
#[derive(Clone, Debug)]
pub(crate) struct Open<S> {
    guests: Guests,
    inner: S,
}

impl<S> Open<S> {
    pub(crate) const fn new(guests: Guests, inner: S) -> Self {
        Self { guests, inner }
    }
}

impl<S: NamedService> NamedService for Open<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Open<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let stay = self.guests.welcome(request.extensions());
        let answer = self.inner.call(request);
        Box::pin(async move {
            match stay.during(answer).await {
                Ok(Ok(answer)) => Ok(answer.map(|body| stay.until_taken(body))),
                Err(sent_off) => Ok(sent_off.into_http()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use futures::FutureExt as _;
    use http_body::Body as _;
    use http_body_util::{BodyExt as _, StreamBody};
    use tokio::net::{TcpListener, TcpStream};
    use tonic::Code;
    use tonic::transport::server::{Connected as _, TcpConnectInfo};

    use super::*;

    /// What an answer keeps in memory.
    #[derive(Clone)]
    struct Large(Arc<()>);

    impl AsRef<[u8]> for Large {
        fn as_ref(&self) -> &[u8] {
            &[7; 4 * COPIED]
        }
    }

    impl Large {
        /// An answer that goes on after this.
        fn answer(self) -> Body {
            use futures::{StreamExt as _, stream};
            let frame = Frame::data(Bytes::from_owner(self));
            let frames = stream::iter([Ok::<_, Infallible>(frame)]).chain(stream::pending());
            Body::new(StreamBody::new(frames))
        }

        fn is_kept(&self) -> bool {
            Arc::strong_count(&self.0) > 1
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_taken_makes_room() {
        for taken in [false, true] {
            let guests = Guests::new(1);
            let large = Large(Arc::default());
            let first = guests.welcome(&Extensions::new());
            let mut first = first.until_taken(large.clone().answer());
            let part = taken.then(|| first.frame().now_or_never().expect("a frame"));
            assert!(large.is_kept());
            let _second = guests.welcome(&Extensions::new());
            assert!(!large.is_kept(), "nor by {part:?}");
            let end = first.frame().now_or_never().expect("an end");
            let end = end.expect("trailers").expect("trailers").into_trailers();
            let status = Status::from_header_map(&end.expect("trailers"));
            assert_eq!(status.map(|status| status.code()), Some(Code::Unavailable));
            assert!(first.frame().await.is_none() && first.is_end_stream());
            drop(first);
            assert_eq!(format!("{guests:?}"), "Guests(1 of 1)");
        }
    }

    #[tokio::test]
    async fn an_answer_is_passed_on_whole() {
        let guests = Guests::new(1);
        let frames = [
            Frame::data(Bytes::from(vec![1; 2 * COPIED + 1])),
            Frame::data(Bytes::from(vec![2; COPIED])),
            Frame::trailers(HeaderMap::new()),
        ];
        let frames = frames.map(Ok::<_, Infallible>);
        let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
        let stay = guests.welcome(&Extensions::new());
        let whole = stay.until_taken(body).collect().await.expect("all of it");
        assert!(whole.trailers().is_some());
        let expected = [vec![1; 2 * COPIED + 1], vec![2; COPIED]].concat();
        assert_eq!(whole.to_bytes(), expected);
        assert_eq!(format!("{guests:?}"), "Guests(0 of 1)");
    }

    #[tokio::test]
    async fn whoever_has_most_makes_room() {
        let (mut peers, mut connections) = (vec![], vec![]);
        for from in ["127.0.0.1:0", "127.0.0.2:0"] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            let from: SocketAddr = from.parse().expect("an address");
            socket.bind(from).expect("bound");
            let address = listener.local_addr().expect("an address");
            let (theirs, ours) = tokio::join!(socket.connect(address), listener.accept());
            let ours: TcpStream = ours.expect("a connection").0;
            let mut extensions = Extensions::new();
            extensions.insert::<TcpConnectInfo>(ours.connect_info());
            peers.push(extensions);
            connections.push(theirs.expect("connected"));
        }
        let guests = Guests::new(3);
        let quiet = guests.welcome(&peers[0]);
        let loud: Vec<_> = (0..4).map(|_| guests.welcome(&peers[1])).collect();
        let stays = |stay: &Stay| !stay.guest.left.is_cancelled();
        assert!(stays(&quiet));
        let staying: Vec<_> = loud.iter().map(stays).collect();
        assert_eq!(staying, [false, false, true, true]);
    }
}
