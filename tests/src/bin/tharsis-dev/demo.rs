//! The main job, end to end, as a person would do it: each step is printed, and checked as those on the other end would
//! check it, a relying party with nothing but discovery, and a subscriber with nothing but NATS.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use async_nats::jetstream;
use e2e::{User, relying_party, user};
use edge::clock;
use futures::StreamExt as _;
use serde_json::Value;

use crate::set::Set;
use crate::token;

/// Long for a message that was published, short for a person who waits.
const PATIENCE: Duration = Duration::from_secs(10);
const ROLE: &str = "arn:aws:iam::123456789012:role/deployer";

/// The events that the main job writes, in the order of the steps.
const EXPECTED: [&str; 7] = [
    "tharsis.namespace.v1.GroupCreated",
    "tharsis.namespace.v1.MembershipCreated",
    "tharsis.namespace.v1.WorkspaceCreated",
    "tharsis.identity.v1.ManagedIdentityCreated",
    "tharsis.identity.v1.ManagedIdentityAssigned",
    "tharsis.issuer.v1.JobOpened",
    "tharsis.issuer.v1.CredentialIssued",
];

/// Where the set is. `deploy/dev demo` says it by the environment.
#[derive(clap::Args)]
pub(crate) struct Demo {
    #[command(flatten)]
    caller: token::Arguments,
    #[command(flatten)]
    set: Set,
    /// The `iss` of its tokens.
    #[arg(
        long,
        env = "THARSIS_ISSUER_URL",
        default_value = "http://127.0.0.1:7105"
    )]
    issuer_url: String,
    /// NATS.
    #[arg(
        long,
        env = "THARSIS_NATS_URL",
        default_value = "nats://127.0.0.1:7107"
    )]
    nats: String,
}

pub(crate) async fn run(arguments: Demo) -> Result<()> {
    let caller = token::token(&arguments.caller)?;
    let nats = async_nats::connect(&arguments.nats)
        .await
        .context("NATS does not answer")?;
    let mut events = nats
        .subscribe("tharsis.>")
        .await
        .context("can't subscribe to the events")?;
    nats.flush().await.context("NATS does not answer")?;
    let job = main_job(&arguments, &caller).await?;
    let claims = verify(&arguments.issuer_url, &job).await?;
    say(
        "the token's claims",
        &serde_json::to_string_pretty(&claims)?,
    )?;
    let seen = tokio::time::timeout(PATIENCE, watch(&mut events, &job))
        .await
        .context("the events did not all arrive on NATS")??;
    say("the events, as they came on NATS", &seen.join("\n"))?;
    check_streams(nats, &seen).await?;
    say("all of it held", "")
}

/// What the job did, and what it got.
struct Job {
    /// Every id that was made: by them its events are told from others'.
    ids: Vec<String>,
    identity: String,
    workspace: String,
    id: String,
    token: String,
    token_id: String,
}

async fn main_job(at: &Demo, caller: &str) -> Result<Job> {
    let random = clock::new_uuid().simple().to_string();
    let name = format!("demo-{}", &random[20..]);
    let caller = User::new(at.set.connect().await?, String::new(), caller.to_owned());
    let group = caller.asks(user::group(&name)).await?.group;
    let group = group.context("the answer has no group")?;
    say("a group", &format!("{}  {}", group.id, group.trn))?;

    let request = user::workspace(&format!("{name}/web"));
    let workspace = caller.asks(request).await?.workspace;
    let workspace = workspace.context("the answer has no workspace")?;
    say(
        "a workspace below it",
        &format!("{}  {}", workspace.id, workspace.trn),
    )?;

    let mut request = user::aws_identity(&format!("{name}/deployer"));
    let wanted = request.managed_identity.get_or_insert_default();
    wanted.configuration = Some(user::aws(ROLE));
    let made = caller.asks(request).await?.managed_identity;
    let made = made.context("the answer has no managed identity")?;
    say(
        "an AWS managed identity in the group",
        &format!("{}  {}  {ROLE}", made.id, made.trn),
    )?;

    let request = user::assignment(&made.trn, &workspace.trn);
    caller.asks(request).await?;
    say(
        "the identity, inherited by the workspace, is assigned to it",
        "",
    )?;

    let opened = caller.asks(user::job(&workspace.trn)).await?;
    let job = opened.job.context("the answer has no job")?;
    say(
        "a job in the workspace, with a token of its own",
        &format!("{}  {}", job.id, job.principal),
    )?;

    let issued = caller.asks_as(&opened.job_token, &made.trn).await?;
    say(
        "a credential for the job",
        &format!("jti {}", issued.token_id),
    )?;
    Ok(Job {
        ids: vec![
            group.id,
            workspace.id.clone(),
            made.id.clone(),
            job.id.clone(),
        ],
        identity: made.id,
        workspace: workspace.id,
        id: job.id,
        token: issued.token,
        token_id: issued.token_id,
    })
}

/// Verifies as a relying party does that knows the issuer's URL and its own audience, and nothing else.
async fn verify(issuer_url: &str, job: &Job) -> Result<Value> {
    let verified = relying_party::verify(issuer_url, "aws", &job.token).await?;
    let claims = verified.claims;
    for (claim, wanted) in [
        ("sub", &job.identity),
        ("jti", &job.token_id),
        ("tharsis_job_id", &job.id),
        ("tharsis_workspace_id", &job.workspace),
    ] {
        ensure!(
            claims[claim] == **wanted,
            "the claim {claim} is {}, not {wanted}",
            claims[claim]
        );
    }
    let kid = verified.header.kid.unwrap_or_default();
    say(
        "verified as a relying party would",
        &format!("{}  kid {kid}", verified.keys_url),
    )?;
    Ok(claims)
}

/// Collects the job's events off NATS, until all have come. Each as one line.
async fn watch(events: &mut async_nats::Subscriber, job: &Job) -> Result<Vec<String>> {
    let mut missing: BTreeSet<&str> = EXPECTED.into_iter().collect();
    let mut seen = Vec::new();
    while !missing.is_empty() {
        let message = events.next().await.context("the subscription ended")?;
        let headers = message.headers.unwrap_or_default();
        let header = |name: &str| {
            headers
                .get(name)
                .map(|value| value.as_str().to_owned())
                .unwrap_or_default()
        };
        let body = String::from_utf8_lossy(&message.payload);
        if !job.ids.iter().any(|id| body.contains(id.as_str())) {
            continue;
        }
        ensure!(!body.contains(&job.token), "the token is in an event");
        missing.remove(header("ce-type").as_str());
        seen.push(format!("{:>5}  {}", header("ce-position"), message.subject));
    }
    Ok(seen)
}

/// Each event lies in its stream at the sequence that is its position.
async fn check_streams(nats: async_nats::Client, seen: &[String]) -> Result<()> {
    let context = jetstream::new(nats);
    for line in seen {
        let (position, subject) = line
            .trim()
            .split_once("  ")
            .context("a line without a position")?;
        let Some(service) = subject.split('.').nth(1) else {
            bail!("a subject without a service: {subject}")
        };
        let stream = context
            .get_stream(format!("THARSIS_{}", service.to_uppercase()))
            .await?;
        let message = stream.get_raw_message(position.parse()?).await?;
        ensure!(
            message.subject.as_str() == subject,
            "sequence {position} of {service} is {}",
            message.subject
        );
    }
    say(
        "each lies in its stream at the sequence that is its position",
        "",
    )
}

fn say(step: &str, detail: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "✓ {step}")?;
    for line in detail.lines() {
        writeln!(out, "    {line}")?;
    }
    Ok(())
}
