//! `POST /token`: OAuth 2.0 Token Exchange (RFC 8693), for clients that don't speak gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, FromRequest as _, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA, RETRY_AFTER};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use edge::request;
use serde_json::json;
use tokio::time::timeout;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::IssuerRpc;
use crate::grpc::exchange::{Asked, Exchanged};

/// Bytes of a request. Room for a token that is too long to be looked at, so that it is refused for that.
pub(super) const MAX_REQUEST: usize = 256 << 10;
/// RFC 8693, 2.1.
pub(super) const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
/// RFC 8693, 3.
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
/// For reading a request, and as much for answering it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers hold tokens (RFC 6749, 5.1).
const NOT_KEPT: [(axum::http::HeaderName, &str); 2] =
    [(CACHE_CONTROL, "no-store"), (PRAGMA, "no-cache")];

/// A request that is understood.
#[derive(Debug, PartialEq, Eq)]
struct Form {
    account: String,
    token: String,
    /// Whether the token is said to be an ID token.
    id_token: bool,
    issued_type: &'static str,
}

/// RFC 6749, 5.2. RFC 8693, 2.2.2 has `invalid_request` for a subject token that is invalid or not acceptable, and
/// `invalid_target` for a target for which no token is issued.
#[derive(Debug, PartialEq, Eq)]
struct Refused {
    status: StatusCode,
    error: &'static str,
    description: String,
    /// As the `ErrorInfo` of `TokenService` has it.
    reason: String,
    retry: Option<Duration>,
}

/// Before anything of a request's body is read, whoever sends it is counted.
pub(super) async fn admit(
    State(rpc): State<IssuerRpc>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    match rpc.count_peer(peer.ip()) {
        Ok(()) => next.run(request).await,
        Err(refusal) => Refused::from(refusal).into_response(),
    }
}

/// In the form that clients of a token endpoint read.
pub(super) async fn not_found(uri: Uri) -> Response {
    Refused {
        status: StatusCode::NOT_FOUND,
        ..Refused::request(&format!("there is nothing at {}", uri.path()))
    }
    .into_response()
}

/// The same for a method that is none of the place's.
pub(super) async fn not_allowed(method: Method, uri: Uri) -> Response {
    Refused {
        status: StatusCode::METHOD_NOT_ALLOWED,
        ..Refused::request(&format!("{} does not take {method}", uri.path()))
    }
    .into_response()
}

pub(super) async fn exchange(
    State(rpc): State<IssuerRpc>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    request: Request,
) -> Response {
    let exchanged = async {
        let form = form(&headers, read(PATIENCE, request).await)?;
        let exchanged = rpc.exchange(Asked {
            account: &form.account,
            token: &form.token,
            id_token: form.id_token,
            peer: Some(peer.ip()),
            traceparent: request::traceparent_of(&headers).map(str::to_owned),
        });
        let exchanged = in_time(PATIENCE, exchanged).await?;
        Ok::<_, Refused>((exchanged, form.issued_type))
    };
    match exchanged.await {
        Ok((exchanged, issued_type)) => answer(&exchanged, issued_type),
        Err(refused) => refused.into_response(),
    }
}

/// The body, which whoever sends it may not send for ever.
async fn read(patience: Duration, request: Request) -> Result<Bytes, Refused> {
    let read = timeout(patience, Bytes::from_request(request, &()));
    let body = read.await.map_err(|_| Refused {
        status: StatusCode::REQUEST_TIMEOUT,
        ..Refused::request("the request took too long to arrive")
    })?;
    body.map_err(|_| {
        Refused::request(&format!(
            "the request exceeds {MAX_REQUEST} bytes or broke off"
        ))
    })
}

/// Of a request that was read in full it is not the sender's fault that it takes long.
async fn in_time<T>(
    patience: Duration,
    exchanged: impl Future<Output = Result<T, Status>>,
) -> Result<T, Refused> {
    let answered = timeout(patience, exchanged).await;
    let late = |_| Refused {
        status: StatusCode::SERVICE_UNAVAILABLE,
        ..Refused::of(
            "temporarily_unavailable",
            "the token could not be exchanged in time; try again".to_owned(),
        )
    };
    Ok(answered.map_err(late)??)
}

/// RFC 8693, 2.2.1.
fn answer(exchanged: &Exchanged, issued_type: &str) -> Response {
    let body = json!({
        "access_token": exchanged.reply.token,
        "issued_token_type": issued_type,
        "token_type": "Bearer",
        "expires_in": exchanged.lifetime.whole_seconds(),
    });
    (NOT_KEPT, Json(body)).into_response()
}

fn form(headers: &HeaderMap, body: Result<Bytes, Refused>) -> Result<Form, Refused> {
    let content_type = headers
        .get(CONTENT_TYPE)
        .and_then(|text| text.to_str().ok());
    let media_type = content_type.and_then(|text| text.split(';').next());
    let form = "application/x-www-form-urlencoded";
    if !media_type.is_some_and(|given| given.trim().eq_ignore_ascii_case(form)) {
        return Err(Refused::request(&format!("the request must be {form}")));
    }
    Parameters::read(&body?).form()
}

/// Those that have a value: one without counts as left out (RFC 6749, 3.2).
struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(body: &[u8]) -> Self {
        let pairs = form_urlencoded::parse(body).into_owned();
        Self(pairs.filter(|(_, value)| !value.is_empty()).collect())
    }

    fn all(&self, names: &[&str]) -> Vec<&str> {
        let named = self
            .0
            .iter()
            .filter(|(name, _)| names.contains(&name.as_str()));
        let mut values: Vec<_> = named.map(|(_, value)| value.as_str()).collect();
        values.dedup();
        values
    }

    /// None may be given twice (RFC 6749, 3.2).
    fn one(&self, name: &str) -> Result<Option<&str>, Refused> {
        let given = self.0.iter().filter(|(given, _)| given == name);
        match given
            .map(|(_, value)| value.as_str())
            .collect::<Vec<_>>()
            .as_slice()
        {
            [] => Ok(None),
            [value] => Ok(Some(value)),
            _ => Err(Refused::request(&format!("{name} is given more than once"))),
        }
    }

    fn required(&self, name: &str) -> Result<&str, Refused> {
        let missing = || Refused::request(&format!("{name} must be given"));
        self.one(name)?.ok_or_else(missing)
    }

    fn form(&self) -> Result<Form, Refused> {
        if self.required("grant_type")? != GRANT_TYPE {
            let description = format!("the grant_type must be {GRANT_TYPE}");
            return Err(Refused::of("unsupported_grant_type", description));
        }
        let token = self.required("subject_token")?;
        let token_type = self.required("subject_token_type")?;
        if ![JWT, ID_TOKEN, ACCESS_TOKEN].contains(&token_type) {
            let description =
                format!("the subject_token_type must be {JWT}, {ID_TOKEN} or {ACCESS_TOKEN}");
            return Err(Refused::request(&description));
        }
        let issued_type = match self.one("requested_token_type")? {
            None | Some(ACCESS_TOKEN) => ACCESS_TOKEN,
            Some(JWT) => JWT,
            Some(_) => {
                let description =
                    format!("the requested_token_type must be {ACCESS_TOKEN} or {JWT}");
                return Err(Refused::request(&description));
            }
        };
        if self.one("actor_token")?.is_some() || self.one("actor_token_type")?.is_some() {
            return Err(Refused::request(
                "nobody acts for another here; leave actor_token out",
            ));
        }
        if self.one("scope")?.is_some() {
            let description =
                "there are no scopes; what a service account may is in its memberships";
            return Err(Refused::of("invalid_scope", description.to_owned()));
        }
        let [account] = self.all(&["audience", "resource"])[..] else {
            let description = "audience (or resource) must name one service account, by id or TRN";
            return Err(Refused::of("invalid_target", description.to_owned()));
        };
        Ok(Form {
            account: account.to_owned(),
            token: token.to_owned(),
            id_token: token_type == ID_TOKEN,
            issued_type,
        })
    }
}

impl Refused {
    fn of(error: &'static str, description: String) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            error,
            description,
            reason: String::new(),
            retry: None,
        }
    }

    fn request(description: &str) -> Self {
        Self::of("invalid_request", description.to_owned())
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        let (code, error) = match status.code() {
            // What names no service account, or none that trusts the issuer.
            Code::NotFound | Code::InvalidArgument => (StatusCode::BAD_REQUEST, "invalid_target"),
            Code::Unauthenticated => (StatusCode::BAD_REQUEST, "invalid_request"),
            Code::ResourceExhausted => (StatusCode::TOO_MANY_REQUESTS, "temporarily_unavailable"),
            Code::Unavailable | Code::Aborted => {
                (StatusCode::SERVICE_UNAVAILABLE, "temporarily_unavailable")
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, "server_error"),
        };
        let info = status.get_details_error_info();
        let retry = status.get_details_retry_info();
        let description = if status.code() == Code::InvalidArgument {
            "audience (or resource) must name a service account, by its id (sa_...) or TRN \
             (trn:service_account:acme/ci)"
        } else {
            status.message()
        };
        Self {
            status: code,
            error,
            description: description.to_owned(),
            reason: info.map(|info| info.reason).unwrap_or_default(),
            retry: retry.and_then(|retry| retry.retry_delay),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        // What else there is must not be in it (RFC 6749, 5.2).
        let allowed = |c: char| match c {
            '"' => '\'',
            ' ' | '!' | '#'..='[' | ']'..='~' => c,
            _ => '?',
        };
        let description: String = self.description.chars().map(allowed).collect();
        let mut body = json!({ "error": self.error, "error_description": description });
        if !self.reason.is_empty() {
            body["reason"] = self.reason.into();
        }
        let retry = self.retry.map(|wait| wait.as_secs().max(1).to_string());
        let retry = retry.map(|seconds| [(RETRY_AFTER, seconds)]);
        (
            self.status,
            NOT_KEPT,
            retry.into_iter().next().map(axum::response::AppendHeaders),
            Json(body),
        )
            .into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.extend_pairs(pairs);
        form.finish().into_bytes()
    }

    const GOOD: [(&str, &str); 4] = [
        ("grant_type", GRANT_TYPE),
        ("subject_token", "a.b.c"),
        ("subject_token_type", JWT),
        ("audience", "trn:service_account:acme/ci"),
    ];

    /// The good request with one parameter changed; left out, if there is no value.
    fn with(name: &str, value: &str) -> Result<Form, &'static str> {
        let kept = GOOD.into_iter().filter(|(given, _)| *given != name);
        let pairs: Vec<_> = kept.chain([(name, value)]).collect();
        let form = Parameters::read(&encoded(&pairs)).form();
        form.map_err(|refused| refused.error)
    }

    #[test]
    fn a_request_is_what_the_rfc_says() {
        let form = Parameters::read(&encoded(&GOOD)).form();
        let expected = |issued_type| Form {
            account: "trn:service_account:acme/ci".to_owned(),
            token: "a.b.c".to_owned(),
            id_token: false,
            issued_type,
        };
        assert_eq!(form, Ok(expected(ACCESS_TOKEN)));
        for subject_type in [ID_TOKEN, ACCESS_TOKEN] {
            let shown = Form {
                id_token: subject_type == ID_TOKEN,
                ..expected(ACCESS_TOKEN)
            };
            assert_eq!(with("subject_token_type", subject_type), Ok(shown));
        }
        assert_eq!(with("requested_token_type", JWT), Ok(expected(JWT)));
        // The same target twice is one; and what nobody knows is left alone.
        assert_eq!(
            with("resource", "trn:service_account:acme/ci"),
            Ok(expected(ACCESS_TOKEN))
        );
        assert_eq!(with("client_id", "x"), Ok(expected(ACCESS_TOKEN)));
        assert_eq!(with("scope", ""), Ok(expected(ACCESS_TOKEN)));
    }

    #[tokio::test]
    async fn who_took_too_long_is_said() {
        let never = futures::stream::pending::<Result<Bytes, std::convert::Infallible>>();
        let request = Request::new(axum::body::Body::from_stream(never));
        let read = read(Duration::ZERO, request).await;
        let answered: Result<(), _> = in_time(Duration::ZERO, std::future::pending()).await;
        let said = |refused: Refused| (refused.status.as_u16(), refused.error);
        assert_eq!(read.map_err(said), Err((408, "invalid_request")));
        assert_eq!(
            answered.map_err(said),
            Err((503, "temporarily_unavailable"))
        );
    }

    #[test]
    fn what_is_wrong_has_the_rfcs_word() {
        for (name, value, error) in [
            ("grant_type", "", "invalid_request"),
            ("grant_type", "client_credentials", "unsupported_grant_type"),
            ("subject_token", "", "invalid_request"),
            ("subject_token_type", "", "invalid_request"),
            (
                "subject_token_type",
                "urn:ietf:params:oauth:token-type:saml2",
                "invalid_request",
            ),
            ("requested_token_type", ID_TOKEN, "invalid_request"),
            ("actor_token", "x", "invalid_request"),
            ("scope", "openid", "invalid_scope"),
            ("audience", "", "invalid_target"),
            (
                "resource",
                "trn:service_account:acme/other",
                "invalid_target",
            ),
        ] {
            assert_eq!(with(name, value), Err(error), "{name}={value}");
        }
        let twice: Vec<_> = GOOD
            .into_iter()
            .chain([("subject_token", "d.e.f")])
            .collect();
        let refused = Parameters::read(&encoded(&twice))
            .form()
            .expect_err("refused");
        assert_eq!(refused.description, "subject_token is given more than once");
    }
}
