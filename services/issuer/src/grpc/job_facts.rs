//! What is kept of each job as facts, so that whether it is alive is decided, and guarded, without reading its events.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use edge::hierarchy::node_key;
use edge::status;
use eventlog::{Change, Guard};
use model::JobId;
use prost::Message as _;
use proto::issuer::v1 as pb;
use time::{Duration, OffsetDateTime};
use tonic::Status;

use super::IssuerRpc;
use crate::domain::job::{End, Job, Life, Module, State};
use crate::jobs_on_record;
use crate::wire::module;

/// The key of a job's stage and end: `<stage>/<unix time of its end>`.
pub(super) fn job_key(id: impl fmt::Display) -> String {
    format!("job/{id}")
}

/// The key of a job's life: `<how it ended, or unix time when its silence ends it>/<seconds of silence>/<principal>`.
fn life_key(id: impl fmt::Display) -> String {
    format!("job-life/{id}")
}

/// The key of what a job runs, where it is known: the message, encoded, in base64.
fn module_key(id: impl fmt::Display) -> String {
    format!("job-module/{id}")
}

/// The key of who opened a job on somebody else's behalf, where that one has to be eligible too.
fn opener_key(id: impl fmt::Display) -> String {
    format!("job-opener/{id}")
}

/// The key of which signing key's token a job was opened with, where that was a token of ours.
fn opener_token_key(id: impl fmt::Display) -> String {
    format!("job-opener-token/{id}")
}

/// A job by its facts.
pub(super) struct Known {
    pub(super) state: State,
    pub(super) job: Job,
    pub(super) life: Life,
    /// As they were read.
    facts: Vec<Change>,
}

impl Known {
    /// That nothing has changed since. What a job runs, and who opened it, never does.
    pub(super) fn guards(&self) -> impl Iterator<Item = Guard> {
        let facts = self.facts.iter().cloned();
        facts.map(|(key, value)| Guard::Expect { key, value })
    }
}

/// The facts of a job.
pub(super) fn sets(state: &State) -> Vec<Guard> {
    let Some((job, life)) = state.life() else {
        return vec![];
    };
    let stage_and_end = format!("{}/{}", job.stage, job.expires.unix_timestamp());
    let ends = match (life.end, life.silent_after) {
        (Some(End::Finished), _) => "finished".to_owned(),
        (Some(End::Cancelled), _) => "cancelled".to_owned(),
        (None, Some(silent)) => silent.unix_timestamp().to_string(),
        (None, None) => String::new(),
    };
    let silence = job.heartbeat_timeout.whole_seconds();
    let module = job.module.as_ref().map(module::write);
    let module = module.map(|module| {
        let encoded = STANDARD_NO_PAD.encode(module.encode_to_vec());
        (module_key(job.id), encoded)
    });
    let facts = [
        (node_key(job.id), format!("{}/", job.workspace)),
        (job_key(job.id), stage_and_end),
        (
            life_key(job.id),
            format!("{ends}/{silence}/{}", job.principal),
        ),
    ];
    let opener = job.opener.as_ref();
    let opener = opener.map(|opener| (opener_key(job.id), opener.to_string()));
    let facts = facts.into_iter().chain(module).chain(opener);
    let sets = facts.map(|(key, value)| Guard::Set {
        key,
        value: Some(value),
    });
    sets.collect()
}

/// The fact that a job was opened with a token of this signing key.
pub(super) fn opened_with(id: JobId, kid: &str) -> Guard {
    Guard::Set {
        key: opener_token_key(id),
        value: Some(kid.to_owned()),
    }
}

impl IssuerRpc {
    /// That a job's token is asked for again with a token of this signing key, and that the job's record has not had the key
    /// before. `None` if it has.
    pub(super) async fn repeats_with(
        &self,
        id: JobId,
        kid: &str,
    ) -> Result<Option<[Guard; 2]>, Status> {
        let opener = opener_token_key(id);
        let repeated = format!("{}{id}", jobs_on_record::repeated_with(kid));
        let keys = [opener, repeated];
        let facts = self.shared.commands.log().facts(&keys).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        let [opener, key] = keys;
        if facts.get(&opener) == Some(kid) || facts.get(&key).is_some() {
            return Ok(None);
        }
        let first = Guard::Expect {
            key: key.clone(),
            value: None,
        };
        let repeated = Guard::Set {
            key,
            value: Some(String::new()),
        };
        Ok(Some([first, repeated]))
    }

    /// The job, if it was ever opened.
    pub(super) async fn known_job(&self, id: JobId) -> Result<Option<Known>, Status> {
        let keys = [
            node_key(id),
            job_key(id),
            life_key(id),
            module_key(id),
            opener_key(id),
        ];
        let facts = self.shared.commands.log().facts(&keys).await;
        let facts = facts.map_err(|error| status::log(&error))?;
        let values = keys
            .each_ref()
            .map(|key| facts.get(key).unwrap_or_default());
        let Some(state) = read(id, values) else {
            return Ok(None);
        };
        let [node, job, life, ..] = keys;
        let facts = [node, job, life].map(|key| {
            let value = facts.get(&key).map(str::to_owned);
            (key, value)
        });
        Ok(state.life().map(|(job, life)| Known {
            job: job.clone(),
            life,
            state: state.clone(),
            facts: facts.to_vec(),
        }))
    }
}

fn read(id: JobId, [node, job, life, module, opener]: [&str; 5]) -> Option<State> {
    let time = |text: &str| OffsetDateTime::from_unix_timestamp(text.parse().ok()?).ok();
    let (stage, expires) = job.split_once('/')?;
    let (ends, rest) = life.split_once('/')?;
    let (silence, principal) = rest.split_once('/')?;
    let module = match module {
        "" => None,
        fact => Some(read_module(fact)?),
    };
    let opener = match opener {
        "" => None,
        fact => Some(Box::new(fact.parse().ok()?)),
    };
    let job = Job {
        id,
        workspace: node.split_once('/')?.0.parse().ok()?,
        stage: stage.parse().ok()?,
        principal: principal.parse().ok()?,
        opener,
        expires: time(expires)?,
        heartbeat_timeout: Duration::seconds(silence.parse().ok()?),
        module,
    };
    Some(match ends {
        "finished" => State::Ended(job, End::Finished),
        "cancelled" => State::Ended(job, End::Cancelled),
        "" => State::Opened {
            job,
            silent_after: None,
        },
        silent => State::Opened {
            job,
            silent_after: Some(time(silent)?),
        },
    })
}

/// What such a fact says that a job runs. `None` if it does not read as one.
fn read_module(fact: &str) -> Option<Module> {
    let encoded = STANDARD_NO_PAD.decode(fact).ok()?;
    let message = pb::Module::decode(encoded.as_slice()).ok()?;
    module::read(message).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use model::Stage;
    use model::{Principal, WorkspaceId};

    #[test]
    fn a_job_reads_back() {
        let at = |seconds| OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds);
        let job = Job {
            id: JobId::from_uuid(uuid::Uuid::from_u128(1)),
            workspace: WorkspaceId::from_uuid(uuid::Uuid::from_u128(2)),
            stage: Stage::Apply,
            principal: Principal::user("dev/a/b").expect("a user"),
            opener: Principal::user("dev/c").ok().map(Box::new),
            expires: at(3_600),
            heartbeat_timeout: Duration::seconds(60),
            module: Some(Module {
                source: "network".to_owned(),
                digest: "0a".repeat(32).parse().ok(),
                attestations: vec![b"{}".to_vec()],
            }),
        };
        let opened = |silent_after| State::Opened {
            job: job.clone(),
            silent_after,
        };
        let ended = |end| State::Ended(job.clone(), end);
        for state in [
            opened(None),
            opened(Some(at(90))),
            ended(End::Finished),
            ended(End::Cancelled),
        ] {
            let values: Vec<String> = sets(&state)
                .into_iter()
                .filter_map(|guard| match guard {
                    Guard::Set { value, .. } => value,
                    Guard::Expect { .. } | Guard::Count { .. } => None,
                })
                .collect();
            let [node, known, life, module, opener] = values.as_slice() else {
                panic!("five facts: {values:?}");
            };
            let values = [node, known, life, module, opener].map(String::as_str);
            assert_eq!(read(job.id, values), Some(state));
        }
    }
}
