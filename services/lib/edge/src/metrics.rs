//! What operators watch, as `OpenMetrics` text over HTTP (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use eventlog::{Progress, RelayState};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::health::Health;
use crate::http1;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How long rpcs took, by method and gRPC code. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RpcDurations(Family<Rpc, Histogram, fn() -> Histogram>);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Rpc {
    method: String,
    code: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Log {
    log: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Condition {
    condition: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Connections {
    state: &'static str,
}

impl Default for RpcDurations {
    fn default() -> Self {
        // 0.5 ms to 16 s.
        Self(Family::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.000_5, 2.0, 16))
        }))
    }
}

impl RpcDurations {
    pub(crate) fn observe(&self, method: &str, code: Code, duration: Duration) {
        let rpc = Rpc {
            method: method.to_owned(),
            code: format!("{code:?}"),
        };
        self.0.get_or_create(&rpc).observe(duration.as_secs_f64());
    }
}

/// What the metrics are read from, whenever somebody asks.
#[derive(Clone)]
pub(crate) struct Sources {
    pub(crate) rpcs: RpcDurations,
    pub(crate) health: Health,
    pub(crate) pool: PgPool,
    /// The service's own log: its name, its end as it was looked at last, and the relay.
    pub(crate) log: Option<(
        &'static str,
        watch::Receiver<u64>,
        watch::Receiver<RelayState>,
    )>,
    pub(crate) followed: Vec<(&'static str, watch::Receiver<Progress>)>,
    /// If something follows from events in this service.
    pub(crate) reactions_waiting: Option<watch::Receiver<u64>>,
}

impl Sources {
    async fn text(&self) -> Result<String, std::fmt::Error> {
        let mut registry = Registry::with_prefix("tharsis");
        registry.register_with_unit(
            "rpc_duration",
            "How long rpcs took",
            Unit::Seconds,
            self.rpcs.0.clone(),
        );
        self.own_log(&mut registry);
        self.followers(&mut registry);
        self.reactions(&mut registry);
        self.conditions(&mut registry).await;
        let connections = Family::<Connections, Gauge>::default();
        let (all, idle) = (u64::from(self.pool.size()), self.pool.num_idle() as u64);
        for (state, count) in [("idle", idle), ("used", all.saturating_sub(idle))] {
            let gauge = connections.get_or_create_owned(&Connections { state });
            gauge.set(count.cast_signed());
        }
        registry.register(
            "database_connections",
            "Connections to the service's database",
            connections,
        );
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }

    fn own_log(&self, registry: &mut Registry) {
        let Some((log, head, relay)) = &self.log else {
            return;
        };
        let gauge = |value: i64| {
            let family = Family::<Log, Gauge>::default();
            family.get_or_create(&Log { log }).set(value);
            family
        };
        let relay = relay.borrow().clone();
        // What was published since the last look is in the log.
        let end = relay.published.max(*head.borrow());
        registry.register(
            "log_position",
            "Of the last event of the service's own log",
            gauge(end.cast_signed()),
        );
        registry.register(
            "relay_position",
            "Of the last event that this process knows to be in the stream",
            gauge(relay.published.cast_signed()),
        );
        registry.register(
            "relay_stands_still",
            "1 if this process can't publish, or the stream lacks something before its end",
            gauge(i64::from(relay.problem.is_some())),
        );
    }

    fn followers(&self, registry: &mut Registry) {
        let positions = Family::<Log, Gauge>::default();
        let halted = Family::<Log, Gauge>::default();
        let ages = Family::<Log, Gauge<f64, std::sync::atomic::AtomicU64>>::default();
        for (log, progress) in &self.followed {
            let (progress, log) = (progress.borrow().clone(), Log { log });
            positions
                .get_or_create(&log)
                .set(progress.position.cast_signed());
            halted
                .get_or_create(&log)
                .set(i64::from(progress.halted.is_some()));
            let age = progress
                .current_at
                .map_or(f64::INFINITY, |at| at.elapsed().as_secs_f64());
            ages.get_or_create(&log).set(age);
        }
        registry.register(
            "follower_position",
            "Of the last event applied of a followed log",
            positions,
        );
        registry.register(
            "follower_halted",
            "1 if a followed log is not followed any more",
            halted,
        );
        registry.register_with_unit(
            "follower_age",
            "Since all that a followed log held was known to be applied",
            Unit::Seconds,
            ages,
        );
    }

    fn reactions(&self, registry: &mut Registry) {
        let Some(waiting) = &self.reactions_waiting else {
            return;
        };
        let gauge: Gauge = Gauge::default();
        gauge.set(waiting.borrow().cast_signed());
        registry.register(
            "reactions_waiting",
            "Events from which something follows that is not done yet",
            gauge,
        );
    }

    async fn conditions(&self, registry: &mut Registry) {
        let conditions = Family::<Condition, Gauge>::default();
        for (condition, holds) in self.health.conditions().await {
            conditions
                .get_or_create(&Condition { condition })
                .set(i64::from(holds));
        }
        registry.register(
            "condition",
            "1 if a condition of the service's health holds",
            conditions,
        );
    }
}

/// Serves `/metrics` until told to stop.
pub(crate) async fn serve(listener: TcpListener, sources: Sources, stop: CancellationToken) {
    tracing::info!(address = ?listener.local_addr().ok(), "serving metrics");
    let app = Router::new()
        .route("/metrics", get(metrics))
        .with_state(Arc::new(sources));
    http1::serve(listener, app, stop).await;
}

async fn metrics(State(sources): State<Arc<Sources>>) -> Response {
    match sources.text().await {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_wrong_is_to_be_seen() {
        let health = Health::new();
        health.set("follower:namespace", Err("halted".into())).await;
        health.set("follower:identity", Ok(())).await;
        let rpcs = RpcDurations::default();
        rpcs.observe(
            "/tharsis.namespace.v1.GroupService/GetGroup",
            Code::NotFound,
            Duration::from_millis(3),
        );
        let (_, head) = watch::channel(8);
        let (_, relay) = watch::channel(RelayState {
            published: 7,
            problem: Some("nobody answers".to_owned()),
            ..RelayState::default()
        });
        let (_, waiting) = watch::channel(5);
        let (_, progress) = watch::channel(Progress {
            position: 41,
            ..Progress::default()
        });
        let sources = Sources {
            rpcs,
            health,
            pool: PgPool::connect_lazy("postgres://nobody@127.0.0.1:1/none").expect("a pool"),
            log: Some(("identity", head, relay)),
            followed: vec![("namespace", progress)],
            reactions_waiting: Some(waiting),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!(
            "http://{}/metrics",
            listener.local_addr().expect("an address")
        );
        let stop = CancellationToken::new();
        let served = tokio::spawn(serve(listener, sources, stop.clone()));
        let text = reqwest::get(url).await.expect("an answer");
        let text = text.text().await.expect("text");
        for line in [
            r#"tharsis_rpc_duration_seconds_count{method="/tharsis.namespace.v1.GroupService/GetGroup",code="NotFound"} 1"#,
            r#"tharsis_rpc_duration_seconds_bucket{le="0.004",method="/tharsis.namespace.v1.GroupService/GetGroup",code="NotFound"} 1"#,
            r#"tharsis_log_position{log="identity"} 8"#,
            r#"tharsis_relay_position{log="identity"} 7"#,
            r#"tharsis_relay_stands_still{log="identity"} 1"#,
            r#"tharsis_follower_position{log="namespace"} 41"#,
            r#"tharsis_follower_halted{log="namespace"} 0"#,
            r#"tharsis_follower_age_seconds{log="namespace"} inf"#,
            "tharsis_reactions_waiting 5",
            r#"tharsis_condition{condition="follower:identity"} 1"#,
            r#"tharsis_condition{condition="follower:namespace"} 0"#,
            r#"tharsis_database_connections{state="used"} 0"#,
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "no {line} in {text}"
            );
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
        stop.cancel();
        served.await.expect("it ends");
    }
}
