//! What a process does for the keys as long as it runs: it looks what has become of them, opens those that sign, changes them
//! when that is due, and seals them anew.

use std::time::Duration;

use edge::health::Health;
use edge::status::chain;
use tokio_util::sync::CancellationToken;

use super::due::Retired;
use super::{KeyError, Keys, LOOK, PATIENCE, in_time};

/// How long doing what is due may take. To find out when the last token of a key expires, many events may have to be read.
const UPKEEP_PATIENCE: Duration = Duration::from_secs(30);
/// Between looks whether the first key-encryption key seals all keys.
const RESEAL: Duration = Duration::from_secs(5);
/// The conditions of health.
pub(super) const CONDITION: &str = "signing-keys";
pub(super) const OPEN: &str = "signing-keys-open";
pub(super) const CLOCK: &str = "clock";

impl Keys {
    /// Looks at the log and does what is due, until told to stop.
    pub async fn run(&self, health: Health, stop: CancellationToken) {
        // Making a key takes its time, and nobody who looks waits for it.
        tokio::join!(
            self.keep_looking(health.clone(), &stop),
            self.keep_open(health, &stop),
            self.keep_up(&stop),
            self.keep_sealed(&stop)
        );
    }

    /// Opens what signs, and what signs next. Apart from looking: what was revoked is seen even if nothing can be opened.
    pub(super) async fn keep_open(&self, health: Health, stop: &CancellationToken) {
        let mut closed = None;
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            self.open_once().await;
            let wrong = self.private.borrow().wrong();
            let wrong = wrong.map(|error| chain(&*error));
            if wrong != closed {
                health.set(OPEN, wrong.clone().map_or(Ok(()), Err)).await;
                closed = wrong;
            }
        }
    }

    /// Until the last process has ended that has another key-encryption key first, it may make signing keys. And what could
    /// not be destroyed when it should have been is destroyed later.
    async fn keep_sealed(&self, stop: &CancellationToken) {
        let (mut all, mut told) = (false, [None, None]);
        let [not_destroyed, not_resealed] = &mut told;
        while stop
            .run_until_cancelled(tokio::time::sleep(RESEAL))
            .await
            .is_some()
        {
            let before = all;
            let destroyed = in_time(UPKEEP_PATIENCE, self.destroy_unneeded()).await;
            if let Some(error) = news(not_destroyed, &destroyed) {
                tracing::warn!(error, "signing keys that sign no more can't be destroyed");
            }
            let resealed = in_time(UPKEEP_PATIENCE, self.vault.reseal()).await;
            all = resealed.as_ref().is_ok_and(|nothing| *nothing);
            if let Some(error) = news(not_resealed, &resealed) {
                tracing::warn!(error, "signing keys can't be sealed anew");
            } else if all && !before {
                tracing::info!("every signing key is sealed with the first key-encryption key");
            }
        }
    }

    /// A process that can't look for longer than clocks may differ is not healthy, nor is one whose clock differs by more.
    async fn keep_looking(&self, health: Health, stop: &CancellationToken) {
        let (mut healthy, mut on_time, mut told) = (true, true, None);
        let patience = self.policy.clock_skew.unsigned_abs();
        while stop
            .run_until_cancelled(tokio::time::sleep(LOOK))
            .await
            .is_some()
        {
            let looked = in_time(PATIENCE, self.look_once()).await;
            if let Some(error) = news(&mut told, &looked) {
                tracing::warn!(error, "signing keys can't be read");
            }
            let well = self.age() <= patience;
            if well != healthy {
                let late = || format!("looking at the log takes longer than {patience:?}");
                let holds = if well {
                    Ok(())
                } else {
                    Err(told.clone().unwrap_or_else(late))
                };
                health.set(CONDITION, holds).await;
                healthy = well;
            }
            // If the database does not tell, that is another trouble.
            match self.time().await {
                Ok(_) => drop(self.off.send_replace(None)),
                Err(KeyError::Clock { off, .. }) => drop(self.off.send_replace(Some(off))),
                Err(_) => {}
            }
            let agreed = self.clock_agrees();
            if agreed.is_ok() != on_time {
                on_time = agreed.is_ok();
                health
                    .set(CLOCK, agreed.map_err(|error| error.to_string()))
                    .await;
            }
        }
    }

    async fn keep_up(&self, stop: &CancellationToken) {
        let (mut retired, mut told) = (Retired::default(), None);
        while stop.run_until_cancelled(self.pause()).await.is_some() {
            let advanced = in_time(UPKEEP_PATIENCE, self.advance(&mut retired)).await;
            // Of the clock, health tells.
            let advanced = match advanced {
                Err(KeyError::Clock { .. }) => Ok(()),
                advanced => advanced,
            };
            if let Some(error) = news(&mut told, &advanced) {
                tracing::warn!(error, "signing keys can't be looked after");
            }
        }
    }

    async fn pause(&self) {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            () = self.wake.notified() => {}
        }
    }
}

/// What went wrong, if it is not what was told of last.
fn news<T>(told: &mut Option<String>, outcome: &Result<T, KeyError>) -> Option<String> {
    let now = outcome.as_ref().err().map(|error| chain(error));
    let before = std::mem::replace(told, now.clone());
    now.filter(|_| before != *told)
}
