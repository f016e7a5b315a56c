//! Asking the issuer, with the job token.

use std::error::Error;
use std::iter::successors;
use std::time::Duration;

use proto::identity::v1::configuration::Type;
use proto::issuer::v1 as pb;
use proto::issuer::v1::credential_service_client::CredentialServiceClient;
use tokio::time::{Instant, sleep};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use crate::failure::Failure;
use crate::job_token::JobToken;
use crate::settings::Settings;
use crate::token::Token;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// An issuer whose host is silently gone is noticed within this and [`KEEPALIVE_TIMEOUT`], and connected to anew.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// For one answer, at most and at least.
const TIMEOUT: Duration = Duration::from_secs(10);
const LEAST_TIMEOUT: Duration = Duration::from_secs(1);
/// Between two questions, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// An identity that the job's workspace has.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) id: String,
    pub(crate) path: String,
    /// `None` for a type that this build does not know.
    pub(crate) configuration: Option<Type>,
}

/// What the workspace of the job has, and which job it is.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) identities: Vec<Identity>,
    pub(crate) job: String,
}

/// The issuer, asked as this job.
pub(crate) struct Issuer<'a> {
    client: CredentialServiceClient<Channel>,
    settings: &'a Settings,
    patience: Duration,
}

impl Identity {
    /// The name of the file with its token.
    pub(crate) fn token_file(&self) -> String {
        format!("{}.token", self.id)
    }
}

/// As the issuer takes it: a path, `acme/prod/deployer`, becomes a TRN.
pub(crate) fn reference(identity: &str) -> String {
    if identity.contains('/') && !identity.starts_with("trn:") {
        format!("trn:managed_identity:{identity}")
    } else {
        identity.to_owned()
    }
}

impl<'a> Issuer<'a> {
    /// Who may not answer for so long.
    pub(crate) fn at(settings: &'a Settings, patience: Duration) -> Result<Self, Failure> {
        let mut endpoint = Endpoint::from(settings.issuer.clone())
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true);
        if settings.issuer.scheme_str() == Some("https") {
            let tls = ClientTlsConfig::new().with_enabled_roots();
            endpoint = endpoint.tls_config(tls).map_err(|error| {
                Failure::Usage(vec![format!(
                    "no TLS with {}: {}; where this machine has no root certificates, install them \
                     (ca-certificates), or name a file that has them: SSL_CERT_FILE",
                    settings.issuer,
                    chain(&error)
                )])
            })?;
        }
        Ok(Self {
            client: CredentialServiceClient::new(endpoint.connect_lazy()),
            settings,
            patience,
        })
    }

    /// What the job's workspace has, by path.
    pub(crate) async fn find(&self) -> Result<Found, Failure> {
        let request = pb::ListJobManagedIdentitiesRequest::default();
        let listed = self
            .patiently(async |left| {
                let request = self.request(request.clone(), left).await?;
                let mut client = self.client.clone();
                let answer = client.list_job_managed_identities(request);
                answer
                    .await
                    .map_err(|status| self.failure("the job", &status))
            })
            .await?
            .into_inner();
        let identity = |found: pb::JobManagedIdentity| Identity {
            id: found.id,
            path: found.path,
            configuration: found.configuration.and_then(|given| given.r#type),
        };
        Ok(Found {
            identities: listed
                .managed_identities
                .into_iter()
                .map(identity)
                .collect(),
            job: listed.job_id,
        })
    }

    /// A token for the identity of an id or TRN, which people call `name`.
    pub(crate) async fn token(&self, reference: &str, name: &str) -> Result<Token, Failure> {
        let issued = self
            .patiently(async |left| {
                let message = pb::IssueCredentialRequest {
                    managed_identity_id: reference.to_owned(),
                    ..Default::default()
                };
                let request = self.request(message, left).await?;
                let mut client = self.client.clone();
                let answer = client.issue_credential(request);
                answer.await.map_err(|status| self.failure(name, &status))
            })
            .await?;
        let token = Token::read(issued.into_inner().token, Instant::now());
        token.map_err(|error| self.unavailable(&error.to_string()))
    }

    /// Asks until there is an answer that stays the same, or patience is at its end.
    async fn patiently<T>(
        &self,
        ask: impl AsyncFn(Duration) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let deadline = Instant::now() + self.patience;
        let mut pause = FIRST_PAUSE;
        loop {
            let answer = ask(deadline.saturating_duration_since(Instant::now())).await;
            let left = deadline.saturating_duration_since(Instant::now());
            match answer {
                Err(Failure::Unavailable(_)) if !left.is_zero() => {
                    sleep(pause.min(left)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// To be answered within what is left of the patience, but for a second at least; and so is the job token to be read.
    async fn request<T>(&self, message: T, left: Duration) -> Result<Request<T>, Failure> {
        let limit = left.clamp(LEAST_TIMEOUT, TIMEOUT);
        let bearer = self.bearer(limit).await?;
        let mut request = Request::new(message);
        request.set_timeout(limit);
        request.metadata_mut().insert("authorization", bearer);
        Ok(request)
    }

    /// Whether the job token stays what it is.
    pub(crate) fn knows_one_job_token(&self) -> bool {
        matches!(self.settings.job_token, JobToken::Given(_))
    }

    async fn bearer(&self, limit: Duration) -> Result<MetadataValue<Ascii>, Failure> {
        let token = self.settings.job_token.read(limit).await?;
        let mut bearer: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| Failure::Usage(vec!["the job token is no token".to_owned()]))?;
        bearer.set_sensitive(true);
        Ok(bearer)
    }

    fn failure(&self, identity: &str, status: &Status) -> Failure {
        let message = status.message().to_owned();
        let info = status.get_details_error_info();
        let reason = info.map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
        match status.code() {
            Code::Unavailable
            | Code::DeadlineExceeded
            | Code::Cancelled
            | Code::Aborted
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unknown => self.unavailable(&message),
            Code::Unimplemented => self
                .unavailable("what answers there is not the issuer's gRPC; is the address right?"),
            Code::Unauthenticated => Failure::JobTokenRefused(message),
            Code::InvalidArgument => Failure::Usage(vec![format!(
                "{identity:?} names no managed identity; say its path, acme/deployer, its id, mi_…, or its TRN: {message}"
            )]),
            _ if reason.starts_with("JOB_") => Failure::JobOver(message),
            _ => Failure::Refused {
                identity: identity.to_owned(),
                reason,
                message,
            },
        }
    }

    fn unavailable(&self, message: &str) -> Failure {
        let issuer = &self.settings.issuer;
        Failure::Unavailable(format!("the issuer at {issuer} does not answer: {message}"))
    }
}

/// An error with what has caused it.
fn chain(error: &(dyn Error + 'static)) -> String {
    let causes = successors(Some(error), |error| (**error).source());
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_name_an_identity_by_its_path() {
        for (given, wanted) in [
            ("acme/deployer", "trn:managed_identity:acme/deployer"),
            ("trn:managed_identity:acme/x", "trn:managed_identity:acme/x"),
            ("mi_01h", "mi_01h"),
        ] {
            assert_eq!(reference(given), wanted);
        }
    }

    fn settings(job_token: (&str, &str)) -> Settings {
        let lookup = |name: &str| match name {
            "THARSIS_ISSUER_GRPC_URL" => Some("http://127.0.0.1:7101".to_owned()),
            name => (name == job_token.0).then(|| job_token.1.to_owned()),
        };
        Settings::read(&lookup).expect("right")
    }

    #[tokio::test]
    async fn who_does_not_know_the_question_has_refused_nobody() {
        let settings = settings(("THARSIS_JOB_TOKEN", "job-token"));
        let issuer = Issuer::at(&settings, TIMEOUT).expect("an issuer");
        for (status, code) in [
            (Status::unimplemented(""), 69),
            (Status::permission_denied(""), 77),
            (Status::invalid_argument(""), 64),
        ] {
            assert_eq!(issuer.failure("the job", &status).code(), code, "{status}");
        }
    }

    #[tokio::test]
    async fn patience_is_waited_for_to_its_end() {
        let settings = settings(("THARSIS_JOB_TOKEN", "job-token"));
        let patience = FIRST_PAUSE * 5 / 2;
        let issuer = Issuer::at(&settings, patience).expect("an issuer");
        let begun = Instant::now();
        let answer = issuer
            .patiently(async |_| Err::<(), _>(issuer.unavailable("it is away")))
            .await;
        answer.expect_err("it stays away");
        assert!(begun.elapsed() >= patience, "{:?}", begun.elapsed());
    }

    #[tokio::test]
    async fn a_job_token_is_waited_for_no_longer_than_the_issuer() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo runs").success());
        let pipe = pipe.to_str().expect("text");
        let settings = settings(("THARSIS_JOB_TOKEN_FILE", pipe));
        let issuer = Issuer::at(&settings, FIRST_PAUSE).expect("an issuer");
        let answer = issuer.token("mi_1", "acme/deployer").await;
        let failure = answer.expect_err("nobody writes the token");
        assert_eq!(failure.code(), 69, "it is asked for again: {failure}");
        assert!(failure.to_string().contains(pipe), "{failure}");
    }
}
