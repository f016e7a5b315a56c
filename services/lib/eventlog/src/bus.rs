//! The connection to NATS, and how an event looks on it: CloudEvents, binary mode
//! (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/nats-protocol-binding.md>).

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self};
use async_nats::{Client, HeaderMap, HeaderName, ServerAddr};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::event::{Metadata, RecordedEvent};

/// 2.9 ignores `filter_subjects` silently, and 2.10 before this one loses expected-sequence checks in clusters.
const OLDEST_SERVER: (u32, u32, u32) = (2, 10, 23);

/// Publishes without an acknowledgement beyond which the next one fails: more than the relay ever has.
const MOST_IN_FLIGHT: usize = 8_192;

/// Where the bus is.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `nats://host:4222`, several separated by commas.
    pub url: String,
    /// A `.creds` file, where the servers ask for one.
    pub credentials: Option<PathBuf>,
    /// The first word of every subject, and the start of every stream's name: `tharsis`.
    pub prefix: String,
    /// Copies of each stream in the cluster.
    pub replicas: usize,
}

/// A connection to the bus. Cheap to clone.
#[derive(Clone)]
pub struct Bus {
    pub(crate) client: Client,
    settings: Settings,
}

/// Why the bus can't be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The credentials can't be read.
    #[error("the NATS credentials file can't be read")]
    Credentials(#[source] io::Error),
    /// The url names no servers.
    #[error("the NATS url can't be used")]
    Address(#[source] io::Error),
    /// Connecting can't even begin.
    #[error("NATS can't be connected to")]
    Connect(#[source] async_nats::ConnectError),
    /// There is no connection at the moment.
    #[error("NATS is not connected")]
    Disconnected,
    /// The server is too old.
    #[error("nats-server {0} is too old: 2.10.23 or newer is needed")]
    TooOld(String),
    /// The server refused, or did not answer.
    #[error("JetStream failed")]
    JetStream(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl BusError {
    pub(crate) fn jetstream(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::JetStream(error.into())
    }
}

impl Bus {
    /// Begins to connect, and goes on trying for ever: NATS may come later than we, and go and come back.
    pub async fn connect(settings: Settings) -> Result<Self, BusError> {
        let mut options = async_nats::ConnectOptions::new()
            .name("tharsis")
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis((50 << attempts.min(5)).min(1_000))
            });
        if let Some(path) = &settings.credentials {
            options = options
                .credentials_file(path)
                .await
                .map_err(BusError::Credentials)?;
        }
        let servers = servers(&settings.url).map_err(BusError::Address)?;
        let client = options.connect(servers).await.map_err(BusError::Connect)?;
        Ok(Self { client, settings })
    }

    /// Ready for use: connected, and the server not too old.
    pub(crate) fn jetstream(&self) -> Result<jetstream::Context, BusError> {
        if self.client.connection_state() != async_nats::connection::State::Connected {
            return Err(BusError::Disconnected);
        }
        let version = self.client.server_info().version;
        if parse_version(&version).is_none_or(|version| version < OLDEST_SERVER) {
            return Err(BusError::TooOld(version));
        }
        Ok(jetstream::context::ContextBuilder::new()
            .timeout(Duration::from_secs(2))
            .ack_timeout(Duration::from_secs(2))
            .max_ack_inflight(MOST_IN_FLIGHT)
            // Room comes only as acknowledgements are looked at, by who would wait for it here without an end.
            .backpressure_on_inflight(false)
            .build(self.client.clone()))
    }

    /// The stream of a log.
    pub(crate) fn stream_name(&self, log: &str) -> String {
        format!("{}_{log}", self.settings.prefix).to_ascii_uppercase()
    }

    pub(crate) fn stream_config(&self, log: &str) -> Config {
        Config {
            name: self.stream_name(log),
            description: Some(format!("The event log of {log}: sequence == position")),
            subjects: vec![format!("{}.{log}.>", self.settings.prefix)],
            storage: StorageType::File,
            num_replicas: self.settings.replicas,
            deny_delete: true,
            deny_purge: true,
            allow_direct: true,
            max_messages: -1,
            max_messages_per_subject: -1,
            max_message_size: -1,
            max_bytes: -1,
            ..Config::default()
        }
    }

    /// What a stream is to be that was made otherwise: what touches which events it takes, how safely, and for how long.
    /// The rest, such as where it lies or its compression, is for whoever operates it to say.
    pub(crate) fn put_right(&self, log: &str, found: &Config) -> Config {
        let ours = self.stream_config(log);
        Config {
            subjects: ours.subjects,
            subject_transform: ours.subject_transform,
            mirror: ours.mirror,
            sources: ours.sources,
            storage: ours.storage,
            num_replicas: ours.num_replicas,
            retention: ours.retention,
            discard: ours.discard,
            discard_new_per_subject: ours.discard_new_per_subject,
            max_messages: ours.max_messages,
            max_messages_per_subject: ours.max_messages_per_subject,
            max_message_size: ours.max_message_size,
            max_bytes: ours.max_bytes,
            max_age: ours.max_age,
            no_ack: ours.no_ack,
            sealed: ours.sealed,
            allow_rollup: ours.allow_rollup,
            deny_delete: ours.deny_delete,
            deny_purge: ours.deny_purge,
            allow_direct: ours.allow_direct,
            ..found.clone()
        }
    }

    /// `tharsis.<service>.<aggregate>.<id>.<EventName>`.
    pub(crate) fn subject(&self, log: &str, event: &RecordedEvent) -> String {
        let name = event
            .event_type
            .rsplit('.')
            .next()
            .unwrap_or(&event.event_type);
        format!(
            "{}.{log}.{}.{name}",
            self.settings.prefix,
            event.stream_id.replacen('/', ".", 1)
        )
    }
}

/// The servers of a url, as [`Settings`] has it. Each says for itself whether it is reached with TLS.
pub fn servers(url: &str) -> io::Result<Vec<ServerAddr>> {
    let server = |text: &str| {
        let server: ServerAddr = text.parse()?;
        let scheme = text.starts_with("nats://") || text.starts_with("tls://");
        if scheme && !server.host().is_empty() {
            Ok(server)
        } else {
            Err(io::Error::other("not the address of a NATS server"))
        }
    };
    url.split(',').map(str::trim).map(server).collect()
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split(['.', '-', '+']).map(str::parse);
    Some((
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
        numbers.next()?.ok()?,
    ))
}

/// What the CloudEvents bindings have percent-encoded: all but printable ASCII, and space, `"` and `%` too.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// The headers of an event.
pub(crate) fn headers(log: &str, epoch: Uuid, event: &RecordedEvent) -> HeaderMap {
    let RecordedEvent { metadata, .. } = event;
    let time = event.recorded_at.format(&Rfc3339);
    let always = [
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", event.id.to_string()),
        ("ce-source", format!("urn:tharsis:{log}")),
        ("ce-type", event.event_type.clone()),
        ("ce-subject", event.stream_id.clone()),
        ("ce-time", time.unwrap_or_default()),
        ("ce-position", event.position.to_string()),
        ("ce-epoch", epoch.to_string()),
        ("ce-streamversion", event.version.to_string()),
        ("ce-actor", metadata.actor.clone()),
        ("content-type", "application/protobuf".to_owned()),
        ("Nats-Msg-Id", event.id.to_string()),
    ];
    let traceparent = metadata.traceparent.clone();
    let traceparent = traceparent.map(|value| ("ce-traceparent", value));
    let mut headers = HeaderMap::new();
    for (name, value) in always.into_iter().chain(traceparent) {
        headers.insert(HeaderName::from_static(name), encoded(value));
    }
    headers
}

fn encoded(value: String) -> String {
    match Cow::from(utf8_percent_encode(&value, ENCODED)) {
        Cow::Borrowed(_) => value,
        Cow::Owned(encoded) => encoded,
    }
}

/// Reads an event off the bus. `None` if the message is not one of a relay: the owner's log then says what stands there.
pub(crate) fn read(headers: &HeaderMap, payload: bytes::Bytes) -> Option<(Uuid, RecordedEvent)> {
    let get = |name: &str| {
        let value = headers.get(name)?.as_str();
        percent_decode_str(value)
            .decode_utf8()
            .ok()
            .map(Cow::into_owned)
    };
    let event = RecordedEvent {
        position: get("ce-position")?.parse().ok()?,
        stream_id: get("ce-subject")?,
        version: get("ce-streamversion")?.parse().ok()?,
        id: get("ce-id")?.parse().ok()?,
        event_type: get("ce-type")?,
        payload,
        metadata: Metadata {
            actor: get("ce-actor")?,
            traceparent: get("ce-traceparent"),
        },
        recorded_at: OffsetDateTime::parse(&get("ce-time")?, &Rfc3339).ok()?,
    };
    Some((get("ce-epoch")?.parse().ok()?, event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(parse_version("2.9.10") < Some(OLDEST_SERVER));
        assert!(parse_version("2.10.23") == Some(OLDEST_SERVER));
        assert!(parse_version("2.15.1-preview.2") > Some(OLDEST_SERVER));
        assert_eq!(parse_version("unknown"), None);
    }

    #[test]
    fn a_url_names_one_server_or_several() {
        let hosts = |url| {
            let servers = servers(url).ok()?;
            let host = |server: &ServerAddr| format!("{}:{}", server.host(), server.port());
            Some(servers.iter().map(host).collect::<Vec<_>>())
        };
        let some = |hosts: &[&str]| Some(hosts.iter().copied().map(str::to_owned).collect());
        assert_eq!(hosts("nats://a"), some(&["a:4222"]));
        assert_eq!(hosts("nats://u:p@a:1,tls://b:2"), some(&["a:1", "b:2"]));
        assert_eq!(
            hosts("nats://[::1]:1, nats://b"),
            some(&["::1:1", "b:4222"])
        );
        for wrong in [
            "",
            "a:1",
            "http://a:1",
            "nats://",
            "nats://:1",
            "nats://a:x",
            "nats://a:1,",
            "nats://a:1,nats://b:x",
            "tls://a,b",
        ] {
            assert_eq!(hosts(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_event_reads_back_from_its_headers(
            position in 1u64.., version in 1u64.., id: u128, epoch: u128, actor in "\\PC{0,40}",
            seconds in 0i64..4_000_000_000, payload: Vec<u8>,
        ) {
            let event = RecordedEvent {
                position,
                stream_id: "group/grp_1".to_owned(),
                version,
                id: Uuid::from_u128(id),
                event_type: "tharsis.namespace.v1.GroupCreated".to_owned(),
                payload: payload.into(),
                metadata: Metadata { actor, traceparent: None },
                recorded_at: OffsetDateTime::from_unix_timestamp(seconds).expect("in range"),
            };
            let epoch = Uuid::from_u128(epoch);
            let headers = headers("namespace", epoch, &event);
            prop_assert_eq!(read(&headers, event.payload.clone()), Some((epoch, event)));
        }
    }
}
