//! Answers whose frames are written together.
//!
//! h2 gathers frames, up to 16 KiB, for one write. Data of [`CHAINED`] bytes and more it does not copy: such a frame is
//! written with those before it, and what follows by itself (its `FramedWrite`). So an answer of the usual size would be
//! two packets, data and trailers, for which its caller is woken twice; and of many that are ready at the same time, each
//! would be a write.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// Bytes of data from which on h2 does not copy a frame; a quarter of it on connections that take several buffers at once.
const CHAINED: usize = 1 << 10;
/// Bytes of the largest frame that h2 copies.
pub(crate) const COPIED: usize = CHAINED - 1;
/// Bytes of data that are worth a write of their own.
const LARGE: usize = 8 << 10;

/// A body whose data are in frames that h2 copies, unless they are [`LARGE`].
#[derive(Debug)]
pub(crate) struct SmallFrames<B> {
    inner: B,
    rest: Bytes,
}

impl<B> SmallFrames<B> {
    pub(crate) const fn new(inner: B) -> Self {
        Self {
            inner,
            rest: Bytes::new(),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for SmallFrames<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let data = frame
                .as_ref()
                .and_then(|frame| frame.as_ref().ok()?.data_ref());
            match data {
                Some(data) if (CHAINED..LARGE).contains(&data.len()) => self.rest = data.clone(),
                _ => return Poll::Ready(frame),
            }
        }
        let length = self.rest.len().min(COPIED);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, inner) = (self.rest.len() as u64, self.inner.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// A connection that takes one buffer at a time.
#[derive(Debug)]
pub(crate) struct OneBuffer<IO>(pub(crate) IO);

impl<IO: Connected> Connected for OneBuffer<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> IO::ConnectInfo {
        self.0.connect_info()
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for OneBuffer<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for OneBuffer<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::{FutureExt as _, stream};
    use http::{HeaderMap, HeaderValue};
    use http_body_util::{BodyExt as _, Full, StreamBody};
    use hyper_util::rt::TokioIo;
    use proptest::prelude::*;
    use tokio::io::DuplexStream;
    use tonic::transport::{Endpoint, Server};
    use tower::{Layer as _, ServiceExt as _, service_fn};

    use super::*;
    use crate::rpc::RpcLayer;

    fn trailers() -> HeaderMap {
        HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-status"),
            HeaderValue::from_static("0"),
        )])
    }

    async fn frames_of(
        body: impl Body<Data = Bytes, Error = Infallible> + Unpin,
    ) -> Vec<Frame<Bytes>> {
        let mut body = SmallFrames::new(body);
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame;
            frames.push(frame);
        }
        frames
    }

    proptest! {
        #[test]
        fn the_same_is_sent_in_small_frames(sizes in prop::collection::vec(0..2 * LARGE, 0..6), ends in any::<bool>()) {
            let sent: VecDeque<Bytes> = sizes.iter().zip(0_u8..).map(|(size, byte)| vec![byte; *size].into()).collect();
            let frames = sent.iter().cloned().map(Frame::data).chain(ends.then(|| Frame::trailers(trailers())));
            let body = StreamBody::new(stream::iter(frames.map(Ok).collect::<Vec<_>>()));
            let mut got = frames_of(body).now_or_never().expect("all is there");
            prop_assert_eq!(ends, got.pop_if(|last| last.is_trailers()).is_some());
            let data: Vec<Bytes> = got.into_iter().filter_map(|frame| frame.into_data().ok()).collect();
            for data in &data {
                prop_assert!(data.len() < CHAINED || data.len() >= LARGE, "{} bytes", data.len());
            }
            prop_assert_eq!(Vec::from(sent).concat(), data.concat());
        }
    }

    #[tokio::test]
    async fn how_much_there_is_and_its_end_are_known() {
        let mut body = SmallFrames::new(Full::new(Bytes::from(vec![1; CHAINED + 1])));
        for left in [CHAINED + 1, 2] {
            assert_eq!(body.size_hint().exact(), Some(left as u64));
            assert!(!body.is_end_stream());
            assert!(body.frame().await.is_some());
        }
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.is_end_stream());
    }

    /// Counts the writes.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl Connected for Counted {
        type ConnectInfo = ();

        fn connect_info(&self) {}
    }

    impl AsyncRead for Counted {
        fn poll_read(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            buffer: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    impl AsyncWrite for Counted {
        fn poll_write(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(context, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(context)
        }

        fn poll_shutdown(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(context)
        }
    }

    #[tokio::test]
    async fn an_answer_is_one_write() {
        let answers = service_fn(async |_: http::Request<tonic::body::Body>| {
            let body = Full::new(Bytes::from(vec![7; 1_240]));
            let body = body.with_trailers(async { Some(Ok(trailers())) });
            Ok::<_, Infallible>(http::Response::new(tonic::body::Body::new(body)))
        });
        let (theirs, ours) = tokio::io::duplex(64 << 10);
        let writes = Arc::new(AtomicUsize::new(0));
        let connection = OneBuffer(Counted(ours, Arc::clone(&writes)));
        let incoming = stream::iter([Ok::<_, io::Error>(connection)]);
        let serving =
            Server::builder().serve_with_incoming(RpcLayer::default().layer(answers), incoming);
        let mut theirs = Some(theirs);
        let connect = service_fn(move |_: http::Uri| {
            std::future::ready(
                theirs
                    .take()
                    .map(TokioIo::new)
                    .ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)),
            )
        });
        let asking = async {
            let endpoint = Endpoint::from_static("http://there");
            let channel = endpoint.connect_with_connector(connect).await;
            let channel = channel.expect("a connection");
            let mut written = 0;
            // The first settles the connection, too.
            for _ in 0..2 {
                written = writes.load(Ordering::Relaxed);
                let request = http::Request::post("http://there/tharsis.x/Y");
                let request = request.body(tonic::body::Body::empty()).expect("a request");
                let answer = channel.clone().oneshot(request).await.expect("an answer");
                let body = answer.into_body().collect().await.expect("a body");
                assert_eq!(body.trailers(), Some(&trailers()));
                assert_eq!(body.to_bytes().len(), 1_240);
            }
            assert_eq!(writes.load(Ordering::Relaxed) - written, 1);
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.expect("the connection is taken");
    }
}
