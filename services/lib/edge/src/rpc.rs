//! What surrounds every rpc, whatever it does: its deadline, and the one line that the log has about it.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http_body_util::BodyExt as _;
use tokio::time::timeout;
use tonic::Code;
use tonic::body::Body;
use tower::{Layer, Service};
use tracing::Instrument as _;

use crate::frames::SmallFrames;
use crate::metrics::RpcDurations;
use crate::request::traceparent_of;
use crate::server::connections::Busy;
use crate::status;

/// How long an rpc may take whose caller gave no deadline, or a longer one.
pub const MAX_DURATION: Duration = Duration::from_mins(1);

/// Bytes of a method's name: none of ours has more, and what others make up shall not fill the log.
const METHOD: usize = 100;

/// Gives rpcs their deadline, logs them, and counts them.
#[derive(Clone, Debug, Default)]
pub struct RpcLayer(pub RpcDurations);

/// A service whose rpcs have a deadline, are logged and counted.
#[derive(Clone, Debug)]
pub struct Rpc<S> {
    inner: S,
    durations: RpcDurations,
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;

    fn layer(&self, inner: S) -> Rpc<S> {
        let durations = self.0.clone();
        Rpc { inner, durations }
    }
}

impl<S> Service<http::Request<Body>> for Rpc<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let method = path.get(..path.floor_char_boundary(METHOD));
        let method = method.unwrap_or_default().to_owned();
        let trace = traceparent_of(request.headers())
            .and_then(|text| text.get(3..35))
            .unwrap_or_default();
        let span = tracing::info_span!("rpc", method, trace);
        let patience = deadline(request.headers())
            .unwrap_or(MAX_DURATION)
            .min(MAX_DURATION);
        let mut line = Line {
            method,
            started: Instant::now(),
            code: None,
            durations: self.durations.clone(),
            _busy: Busy::with(request.extensions_mut()),
        };
        let response = span.in_scope(|| self.inner.call(request));
        // tonic's own timeout, a little later, would answer CANCELLED.
        let response = async move {
            let response = match timeout(patience, response).await {
                Ok(Ok(response)) => response,
                Err(_) => late().into_http(),
            };
            line.see(response.headers());
            Ok(response.map(|body| {
                Body::new(SmallFrames::new(body.map_frame(move |frame| {
                    if let Some(trailers) = frame.trailers_ref() {
                        line.see(trailers);
                    }
                    frame
                })))
            }))
        };
        Box::pin(response.instrument(span))
    }
}

fn late() -> tonic::Status {
    let message = "the rpc took longer than its deadline; what it changes may have been changed: look, or repeat it with \
                   the same request_id";
    status::deadline_exceeded("DEADLINE_EXCEEDED", message)
}

/// How long the caller waits, by its `grpc-timeout`
/// (<https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md>: at most 8 digits and a unit).
#[must_use]
pub fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let plain = (1..=8).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    let count: u64 = digits.parse().ok().filter(|_| plain)?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3_600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The line about an rpc, written when the rpc is over, however it ends.
struct Line {
    method: String,
    started: Instant,
    code: Option<Code>,
    durations: RpcDurations,
    /// Its connection is kept for as long.
    _busy: Option<Busy>,
}

impl Line {
    fn see(&mut self, headers: &HeaderMap) {
        if let Some(code) = headers.get("grpc-status") {
            self.code = Some(Code::from_bytes(code.as_bytes()));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // Dropped before there was a status: the caller went away.
        let code = self.code.unwrap_or(Code::Cancelled);
        let duration = self.started.elapsed();
        // What others make up shall not fill the memory: a path that is no rpc is not counted.
        if code != Code::Unimplemented {
            self.durations.observe(&self.method, code, duration);
        }
        let (method, milliseconds) = (&self.method, duration.as_secs_f64() * 1e3);
        match code {
            Code::Internal | Code::Unknown | Code::DataLoss => {
                tracing::error!(method, ?code, milliseconds, "rpc");
            }
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => {
                tracing::warn!(method, ?code, milliseconds, "rpc");
            }
            // Neither is what is not there worth a line: it costs nobody a token to ask for it.
            Code::Ok | Code::Cancelled | Code::Unimplemented => {
                tracing::debug!(method, ?code, milliseconds, "rpc");
            }
            _ => tracing::info!(method, ?code, milliseconds, "rpc"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::Arc;

    use super::*;
    use prost_reflect::DescriptorPool;
    use tower::{ServiceExt as _, service_fn};
    use tracing::subscriber::set_default;

    /// What the log has of an rpc that is answered with this code.
    async fn logged(path: &str, code: Code) -> String {
        let (mut log, writer) = std::io::pipe().expect("a pipe");
        let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(writer));
        let logging = set_default(subscriber.finish());
        let answers = service_fn(move |_: http::Request<Body>| {
            let answer = tonic::Status::new(code, "").into_http();
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        let request = http::Request::builder().uri(path).body(Body::empty());
        let request = request.expect("a request");
        let Ok(response) = RpcLayer::default().layer(answers).oneshot(request).await;
        drop((response, logging));
        let mut text = String::new();
        log.read_to_string(&mut text).expect("text");
        text
    }

    #[tokio::test]
    async fn what_others_make_up_does_not_fill_the_log() {
        // In the middle of a character, too.
        for filler in ["a", "é"] {
            let path = format!("/tharsis.{}/Y", filler.repeat(10_000));
            let line = logged(&path, Code::Unauthenticated).await;
            assert!(line.contains("Unauthenticated"), "{line}");
            assert!(line.len() < 600, "{line}");
            assert_eq!(logged(&path, Code::Unimplemented).await, "");
        }
    }

    #[test]
    fn the_names_of_our_methods_are_logged_whole() {
        let pool = DescriptorPool::decode(proto::DESCRIPTORS).expect("the descriptors");
        for method in pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>())
        {
            let (service, name) = (method.parent_service().full_name(), method.name());
            assert!(
                format!("/{service}/{name}").len() <= METHOD,
                "{service}/{name}"
            );
        }
    }

    #[tokio::test]
    async fn an_rpc_past_its_deadline_is_answered() {
        let never = service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, Infallible>>()
        });
        let request = http::Request::builder()
            .uri("/tharsis.x/Y")
            .header("grpc-timeout", "1m")
            .body(Body::empty());
        let Ok(response) = RpcLayer::default()
            .layer(never)
            .oneshot(request.expect("a request"))
            .await;
        let status = tonic::Status::from_header_map(response.headers()).expect("a status");
        assert_eq!(status.code(), Code::DeadlineExceeded);
    }

    #[test]
    fn deadlines() {
        let with = |value: &[u8]| {
            let value = http::HeaderValue::from_bytes(value).expect("a header");
            deadline(
                &[(http::HeaderName::from_static("grpc-timeout"), value)]
                    .into_iter()
                    .collect(),
            )
        };
        assert_eq!(with(b"1S"), Some(Duration::from_secs(1)));
        assert_eq!(with(b"99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!(with(b"20m"), Some(Duration::from_millis(20)));
        for odd in [
            &b""[..],
            b"S",
            b"1",
            b"1x",
            b"-1S",
            b"+1S",
            b"123456789S",
            "1é".as_bytes(),
        ] {
            assert_eq!(with(odd), None, "{odd:?}");
        }
    }
}
