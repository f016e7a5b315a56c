//! Documents of issuers over HTTP: no redirects, a limit on time and size, and, for issuers that the configuration does
//! not name, public addresses only.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, StatusCode, Url};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::networks::Networks;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Issuers at once that are asked for their documents; more wait.
const MAX_ASKED: usize = 32;
/// And on behalf of one: issuers that answer slowly, or never, take no turns from those that others trust. Of each of what
/// is below it, half as many, and so on: nor do they take all turns from those beside it.
const MAX_ASKED_FOR_ONE: usize = 8;
/// So far below it and further, one.
const LOWEST: usize = MAX_ASKED_FOR_ONE.ilog2() as usize;
/// Of those who are asked or wait, for each that may be asked at once.
const PLACES: usize = 8;
/// Bytes of a document.
const MAX_DOCUMENT: usize = 256 << 10;

/// The HTTP client can't be made.
#[derive(Debug, thiserror::Error)]
#[error("the HTTP client for OIDC issuers can't be made")]
pub struct ClientError(#[source] reqwest::Error);

/// A document can't be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum GetError {
    #[error("the issuer can't be reached")]
    Http(#[from] reqwest::Error),
    #[error("{url} is not at a public address")]
    Address { url: String },
    #[error("{url} answered {status}")]
    Status { url: String, status: StatusCode },
    #[error("{0} answered more than {MAX_DOCUMENT} bytes")]
    TooLarge(String),
}

#[derive(Debug, thiserror::Error)]
#[error("the name has no public address")]
struct NotPublic;

/// Gets documents. Cheap to clone.
#[derive(Clone)]
pub(super) struct Outbound {
    client: Client,
    /// Where it may go; anywhere, if there is none.
    networks: Option<Arc<Networks>>,
    turns: Arc<Turns>,
}

struct Turns {
    all: Queue,
    /// Of each on whose behalf somebody is asked, or waits to be.
    of: Mutex<HashMap<String, Queue>>,
}

#[derive(Clone)]
struct Queue {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// Among those that wait for their turn, until it is dropped.
pub(super) struct Place {
    places: Vec<OwnedSemaphorePermit>,
    turns: Vec<Arc<Semaphore>>,
}

/// Until it is dropped, one more issuer may be asked.
pub(super) struct Turn(#[expect(dead_code, reason = "held")] Vec<OwnedSemaphorePermit>);

impl Queue {
    fn new(turns: usize) -> Self {
        Self {
            places: Arc::new(Semaphore::new(turns * PLACES)),
            turns: Arc::new(Semaphore::new(turns)),
        }
    }

    /// Where nobody has a place, nobody has a turn.
    fn is_empty(&self) -> bool {
        Arc::strong_count(&self.places) == 1
    }
}

impl Turns {
    fn new() -> Self {
        Self {
            all: Queue::new(MAX_ASKED),
            of: Mutex::default(),
        }
    }

    fn place(&self, of: &[&str]) -> Option<Place> {
        let mut queues = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        queues.retain(|_, queue| !queue.is_empty());
        let highest = of.len().saturating_sub(1);
        let own = of.iter().enumerate().map(|(index, whom)| {
            let depth = (highest - index).min(LOWEST);
            let turns = MAX_ASKED_FOR_ONE >> depth;
            let queue = queues.entry((*whom).to_owned());
            queue.or_insert_with(|| Queue::new(turns)).clone()
        });
        let queues: Vec<Queue> = own.chain([self.all.clone()]).collect();
        let places = queues.iter().map(|queue| {
            let places = Arc::clone(&queue.places);
            places.try_acquire_owned().ok()
        });
        Some(Place {
            places: places.collect::<Option<_>>()?,
            turns: queues.into_iter().map(|queue| queue.turns).collect(),
        })
    }
}

impl Place {
    /// Waits. From the lowest on: who waits for a turn of all has taken no more of them than its own one gives it.
    pub(super) async fn turn(self) -> Option<Turn> {
        let mut held = self.places;
        for turns in self.turns {
            held.push(turns.acquire_owned().await.ok()?);
        }
        Some(Turn(held))
    }
}

impl Outbound {
    /// To issuers that the operator has configured: wherever they are.
    pub(super) fn anywhere() -> Result<Self, ClientError> {
        let client = Client::builder()
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .user_agent("tharsis")
            .build();
        Ok(Self {
            client: client.map_err(ClientError)?,
            networks: None,
            turns: Arc::new(Turns::new()),
        })
    }

    /// To issuers that others have named: public addresses, and these networks. An address is looked at where it is
    /// connected to, so that a name can't lead elsewhere the second time; so there is no proxy, which would connect
    /// instead of us. No connection is kept for another time: there are as many issuers as others like to name.
    pub(super) fn guarded(networks: Networks) -> Result<Self, ClientError> {
        let networks = Arc::new(networks);
        let client = Client::builder()
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .user_agent("tharsis")
            .no_proxy()
            .pool_max_idle_per_host(0)
            .dns_resolver(Arc::new(Guarded(Arc::clone(&networks))))
            .build();
        Ok(Self {
            client: client.map_err(ClientError)?,
            networks: Some(networks),
            turns: Arc::new(Turns::new()),
        })
    }

    /// Has one more issuer asked, as soon as it is its turn: on behalf of the first of these, and so of all others, each
    /// of which is above the one before. `None` if as many wait as may.
    pub(super) fn place(&self, of: &[&str]) -> Option<Place> {
        self.turns.place(of)
    }

    pub(super) async fn get(&self, url: &str) -> Result<Response, GetError> {
        let refused = || GetError::Address {
            url: url.to_owned(),
        };
        if !self.may_reach(url) {
            return Err(refused());
        }
        let response = self.client.get(url).send().await.map_err(|error| {
            if has_cause::<NotPublic>(&error) {
                refused()
            } else {
                error.into()
            }
        })?;
        match response.status() {
            StatusCode::OK => Ok(response),
            status => Err(GetError::Status {
                url: url.to_owned(),
                status,
            }),
        }
    }

    /// A host that is an address is not resolved, and so looked at here.
    fn may_reach(&self, url: &str) -> bool {
        let Some(networks) = &self.networks else {
            return true;
        };
        let address = Url::parse(url).ok().and_then(|url| {
            let host = url.host_str()?.trim_matches(['[', ']']);
            host.parse::<IpAddr>().ok()
        });
        address.is_none_or(|address| networks.have(address))
    }
}

pub(super) async fn body(mut response: Response, url: &str) -> Result<Vec<u8>, GetError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > MAX_DOCUMENT {
            return Err(GetError::TooLarge(url.to_owned()));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

impl GetError {
    /// For whoever sent a token of the issuer.
    pub(super) fn told(&self) -> String {
        match self {
            Self::Http(error) if error.is_timeout() => {
                format!("it does not answer within {} s", TIMEOUT.as_secs())
            }
            Self::Http(error) if error.is_connect() => {
                "no connection to it can be made, by its name or with its TLS".to_owned()
            }
            Self::Http(_) => "its answer breaks off, or is no HTTP".to_owned(),
            Self::Address { .. } => "it is not at a public address".to_owned(),
            Self::Status { status, .. } if status.is_redirection() => {
                "it redirects, which is not followed".to_owned()
            }
            Self::Status { status, .. } => format!("it answers {}", status.as_u16()),
            Self::TooLarge(_) => format!("its document is larger than {MAX_DOCUMENT} bytes"),
        }
    }
}

fn has_cause<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(<dyn std::error::Error>::is::<E>)
}

/// Resolves names to what may be connected to.
struct Guarded(Arc<Networks>);

impl Resolve for Guarded {
    fn resolve(&self, name: Name) -> Resolving {
        let networks = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let allowed: Vec<SocketAddr> = found
                .filter(|address| networks.have(address.ip()))
                .collect();
            if allowed.is_empty() {
                return Err(NotPublic.into());
            }
            let allowed: Addrs = Box::new(allowed.into_iter());
            Ok(allowed)
        })
    }
}
