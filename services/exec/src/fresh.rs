//! Keeping the tokens in the folder fresh, each for itself, while the command runs.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::{join_all, pending};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::{Identity, Issuer};
use crate::messages::say;
use crate::provider;
use crate::token::Token;

/// Between two tries that failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Asks for a token of each; `None` is one that is not had. For the last ones the issuer may have been waited for until the
/// first are due, or over: those are asked for once more, as a process that runs has what is in its environment for good.
pub(crate) async fn begin(
    identities: Vec<Identity>,
    ask: impl AsyncFn(&Identity) -> Result<Option<Token>, Failure>,
) -> Result<Vec<(Identity, Option<Token>)>, Failure> {
    let mut asked = Vec::new();
    for identity in identities {
        let token = ask(&identity).await?;
        asked.push((identity, token));
    }
    for (identity, token) in &mut asked {
        let is_due = |token: &Token| due(identity, token, None) <= Instant::now();
        if token.as_ref().is_some_and(is_due) {
            *token = ask(identity).await?;
        }
    }
    Ok(asked)
}

/// Renews each token when it is due, and goes on as long as it is asked to.
pub(crate) async fn keep(
    issuer: &Issuer<'_>,
    folder: &Folder,
    tokens: Vec<(Identity, Token)>,
    renew_after: Option<Duration>,
) -> Infallible {
    let each = tokens
        .into_iter()
        .map(|(identity, token)| keep_one(issuer, folder, identity, token, renew_after));
    join_all(each).await;
    pending().await
}

async fn keep_one(
    issuer: &Issuer<'_>,
    folder: &Folder,
    identity: Identity,
    mut token: Token,
    renew_after: Option<Duration>,
) {
    let mut wait = due(&identity, &token, renew_after);
    loop {
        sleep_until(wait).await;
        let Some(next) = next(issuer, &identity, token.over()).await else {
            return;
        };
        wait = due(&identity, &next, renew_after);
        // Where both end with the job, or tokens are shorter now, the one there is as good.
        if next.outlives(&token) {
            let latest = due(&identity, &next, None);
            let writes = writes(folder, &identity, &next);
            if timeout_at(latest, writes).await.is_ok() {
                token = next;
            }
        }
    }
}

/// When to renew a token: who wants it later would have one that has ended.
fn due(identity: &Identity, token: &Token, renew_after: Option<Duration>) -> Instant {
    let due = token.due(provider::thirds(identity));
    renew_after.map_or(due, |wanted| token.aged(wanted).min(due))
}

/// Writes a token as soon as it can be: a disk may be full for a moment.
async fn writes(folder: &Folder, identity: &Identity, token: &Token) {
    let mut pause = FIRST_PAUSE;
    while let Err(failure) = provider::write(identity, token, folder) {
        if pause == FIRST_PAUSE {
            say(&format!(
                "the token of {} is not renewed yet: {failure}",
                identity.path
            ));
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The next token, whenever the issuer gives it; `None` if it never will. The one there is holds until it ends.
async fn next(issuer: &Issuer<'_>, identity: &Identity, ends: Instant) -> Option<Token> {
    let mut pause = FIRST_PAUSE;
    let mut told = String::new();
    loop {
        let failure = match issuer.token(&identity.id, &identity.path).await {
            Ok(token) => return Some(token),
            Err(failure) => failure,
        };
        let text = failure.to_string();
        if text != told {
            say(&format!(
                "the token of {} is not renewed, and the one there is holds until its end: {text}",
                identity.path
            ));
            told = text;
        }
        match failure {
            Failure::JobOver(_) => return None,
            // A file may hold another one the next time; and who refuses the only one may not know its key yet.
            Failure::JobTokenRefused(_)
                if issuer.knows_one_job_token() && Instant::now() >= ends =>
            {
                return None;
            }
            _ => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proto::identity::v1::AzureConfiguration;
    use proto::identity::v1::configuration::Type;
    use proto::issuer::v1 as pb;
    use proto::issuer::v1::credential_service_server::{
        CredentialService, CredentialServiceServer,
    };
    use tokio::join;
    use tokio::net::TcpListener;
    use tonic::transport::Server;
    use tonic::transport::server::TcpIncoming;
    use tonic::{Request, Response, Status};

    use super::*;
    use crate::settings::Settings;

    /// {"iat":1,"exp":901}
    const TOKEN: &str = "e30.eyJpYXQiOjEsImV4cCI6OTAxfQ.c2ln";

    fn identity() -> Identity {
        Identity {
            id: "mi_1".to_owned(),
            path: "acme/deployer".to_owned(),
            configuration: None,
        }
    }

    /// An issuer that takes the job token from the second question on.
    #[derive(Default)]
    struct Mistaken(AtomicUsize);

    #[tonic::async_trait]
    impl CredentialService for Mistaken {
        async fn issue_credential(
            &self,
            _: Request<pb::IssueCredentialRequest>,
        ) -> Result<Response<pb::IssueCredentialResponse>, Status> {
            if self.0.fetch_add(1, Ordering::SeqCst) == 0 {
                return Err(Status::unauthenticated("the key is not known yet"));
            }
            Ok(Response::new(pb::IssueCredentialResponse {
                token: TOKEN.to_owned(),
                ..Default::default()
            }))
        }

        async fn issue_credentials(
            &self,
            _: Request<pb::IssueCredentialsRequest>,
        ) -> Result<Response<pb::IssueCredentialsResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn explain_credential(
            &self,
            _: Request<pb::ExplainCredentialRequest>,
        ) -> Result<Response<pb::ExplainCredentialResponse>, Status> {
            Err(Status::unimplemented(""))
        }

        async fn list_job_managed_identities(
            &self,
            _: Request<pb::ListJobManagedIdentitiesRequest>,
        ) -> Result<Response<pb::ListJobManagedIdentitiesResponse>, Status> {
            Err(Status::unimplemented(""))
        }
    }

    #[tokio::test]
    async fn a_refused_job_token_is_tried_again_for_as_long_as_a_token_holds() {
        let minute = Duration::from_mins(1);
        for (ends, renewed) in [(Instant::now(), false), (Instant::now() + minute, true)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let url = format!("http://{}", listener.local_addr().expect("an address"));
            let server = Server::builder()
                .add_service(CredentialServiceServer::new(Mistaken::default()))
                .serve_with_incoming(TcpIncoming::from(listener));
            let lookup = |name: &str| match name {
                "THARSIS_ISSUER_GRPC_URL" => Some(url.clone()),
                "THARSIS_JOB_TOKEN" => Some("job-token".to_owned()),
                _ => None,
            };
            let settings = Settings::read(&lookup).expect("right");
            let issuer = Issuer::at(&settings, minute).expect("an issuer");
            let identity = identity();
            let next = tokio::select! {
                next = next(&issuer, &identity, ends) => next,
                ended = server => panic!("the issuer ended: {ended:?}"),
            };
            assert_eq!(next.is_some(), renewed);
        }
    }

    #[test]
    fn no_token_is_left_until_it_has_ended() {
        let (seconds, now) = (Duration::from_secs, Instant::now());
        let azure = Identity {
            configuration: Some(Type::Azure(AzureConfiguration::default())),
            ..identity()
        };
        let token = Token::read(TOKEN.to_owned(), now).expect("a token");
        for (wanted, after) in [(None, 600), (Some(1), 1), (Some(86_400), 600)] {
            let wanted = wanted.map(seconds);
            let due = due(&identity(), &token, wanted);
            assert_eq!(due, now + seconds(after), "{wanted:?}");
        }
        // What is read then and kept for ten minutes holds as long.
        assert_eq!(due(&azure, &token, None), now + seconds(300));
    }

    #[tokio::test]
    async fn what_is_due_once_the_last_is_there_is_asked_for_again() {
        let now = Instant::now();
        let began = now - Duration::from_mins(10);
        // The issuer was away before the second came.
        let received = Mutex::new(VecDeque::from([began, now, now]));
        let ask = async |_: &Identity| {
            let received = received.lock().expect("free").pop_front();
            let received = received.expect("no more are asked for");
            Ok(Token::read(TOKEN.to_owned(), received).ok())
        };
        let asked = begin(vec![identity(), identity()], ask).await;
        for (_, token) in asked.expect("all are there") {
            let token = token.expect("it was given");
            assert!(token.left() > Duration::from_mins(14), "{token:?}");
        }
        assert!(received.lock().expect("free").is_empty());
    }

    #[tokio::test]
    async fn a_token_is_written_as_soon_as_it_can_be() {
        let folder = Folder::temporary().expect("a folder");
        let aside = folder.path().with_extension("aside");
        std::fs::rename(folder.path(), &aside).expect("moved");
        let identity = identity();
        let token = Token::read(TOKEN.to_owned(), Instant::now()).expect("a token");
        // The first try comes before that.
        let back = async { std::fs::rename(&aside, folder.path()).expect("moved back") };
        join!(writes(&folder, &identity, &token), back);
        let written = std::fs::read_to_string(folder.file("mi_1.token"));
        assert_eq!(written.expect("the token"), token.text());
    }
}
