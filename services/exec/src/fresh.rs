//! Keeping the tokens in the folder fresh, each for itself, while the command runs.

use std::convert::Infallible;
use std::time::Duration;

use futures::future::{join_all, pending};
use tokio::time::{Instant, sleep, timeout};

use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::{Identity, Issuer};
use crate::messages::say;
use crate::provider;
use crate::token::Token;

/// Between two tries that failed, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

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
    let mut due = token.due();
    loop {
        sleep(sooner(due, renew_after)).await;
        let Some(next) = next(issuer, &identity).await else {
            return;
        };
        due = next.due();
        // Where both end with the job, or tokens are shorter now, the one there is as good.
        if next.outlives(&token) {
            let begun = Instant::now();
            if timeout(due, writes(folder, &identity, &next)).await.is_ok() {
                token = next;
            }
            due = due.saturating_sub(begun.elapsed());
        }
    }
}

/// When to renew a token that is due then: who wants it later would have one that has ended.
fn sooner(due: Duration, wanted: Option<Duration>) -> Duration {
    wanted.map_or(due, |wanted| wanted.min(due))
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

/// The next token, whenever the issuer gives it; `None` if it never will.
async fn next(issuer: &Issuer<'_>, identity: &Identity) -> Option<Token> {
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
            // A file may hold another one the next time.
            Failure::JobTokenRefused(_) if issuer.knows_one_job_token() => return None,
            _ => {}
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use tokio::join;

    use super::*;

    #[test]
    fn no_token_is_left_until_it_has_ended() {
        let seconds = Duration::from_secs;
        for (wanted, after) in [(None, 600), (Some(1), 1), (Some(86_400), 600)] {
            let wanted = wanted.map(seconds);
            assert_eq!(sooner(seconds(600), wanted), seconds(after), "{wanted:?}");
        }
    }

    #[tokio::test]
    async fn a_token_is_written_as_soon_as_it_can_be() {
        let folder = Folder::temporary().expect("a folder");
        let aside = folder.path().with_extension("aside");
        std::fs::rename(folder.path(), &aside).expect("moved");
        let identity = Identity {
            id: "mi_1".to_owned(),
            path: "acme/deployer".to_owned(),
            configuration: None,
        };
        // {"iat":1,"exp":901}
        let token = Token::read("e30.eyJpYXQiOjEsImV4cCI6OTAxfQ.c2ln".to_owned());
        let token = token.expect("a token");
        // The first try comes before that.
        let back = async { std::fs::rename(&aside, folder.path()).expect("moved back") };
        join!(writes(&folder, &identity, &token), back);
        let written = std::fs::read_to_string(folder.file("mi_1.token"));
        assert_eq!(written.expect("the token"), token.text());
    }
}
