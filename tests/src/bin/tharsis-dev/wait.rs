//! `tharsis-dev wait`: until services answer, by `grpc.health.v1` or over HTTP.

use std::time::Duration;

use anyhow::{Result, bail};
use edge::status::chain;
use reqwest::StatusCode;
use reqwest::redirect::Policy;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::duration;

/// For one question.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two.
const INTERVAL: Duration = Duration::from_millis(100);

/// Whom to wait for.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// `grpc://host:port`, until its health is SERVING, or `http://…`, until it answers 200.
    #[arg(value_name = "URL", required = true, value_parser = parse)]
    targets: Vec<Target>,
    /// How long to wait for all of them together.
    #[arg(long, default_value = "60s", value_parser = duration::parse)]
    timeout: Duration,
}

#[derive(Clone, Debug)]
enum Target {
    Grpc(String),
    Http(String),
}

fn parse(text: &str) -> Result<Target, &'static str> {
    match text.split_once("://") {
        Some(("grpc", address)) => Ok(Target::Grpc(address.to_owned())),
        Some(("http" | "https", _)) => Ok(Target::Http(text.to_owned())),
        Some(_) | None => Err("must start with grpc:// or http://"),
    }
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let deadline = Instant::now() + arguments.timeout;
    let mut waiting: JoinSet<Result<(), String>> = arguments
        .targets
        .into_iter()
        .map(|target| target.wait(deadline))
        .collect();
    let mut missing = Vec::new();
    while let Some(waited) = waiting.join_next().await {
        missing.extend(waited?.err());
    }
    if missing.is_empty() {
        return Ok(());
    }
    missing.sort();
    bail!(
        "not ready after {:?}:\n  {}",
        arguments.timeout,
        missing.join("\n  ")
    )
}

impl Target {
    /// Asks until the answer is good; else says what the last one was.
    async fn wait(self, deadline: Instant) -> Result<(), String> {
        let mut last = "no answer".to_owned();
        let asking = async {
            loop {
                match timeout(PATIENCE, self.ask()).await {
                    Ok(Ok(())) => return,
                    Ok(Err(why)) => last = why,
                    Err(_) => last = format!("no answer within {PATIENCE:?}"),
                }
                sleep(INTERVAL).await;
            }
        };
        match timeout_at(deadline, asking).await {
            Ok(()) => Ok(()),
            Err(_) => Err(match self {
                Self::Grpc(address) => format!("grpc://{address}: {last}"),
                Self::Http(url) => format!("{url}: {last}"),
            }),
        }
    }

    async fn ask(&self) -> Result<(), String> {
        match self {
            Self::Grpc(address) => ask_grpc(address).await,
            Self::Http(url) => ask_http(url).await,
        }
    }
}

async fn ask_grpc(address: &str) -> Result<(), String> {
    let endpoint =
        Endpoint::from_shared(format!("http://{address}")).map_err(|error| chain(&error))?;
    let channel = endpoint.connect().await.map_err(|error| chain(&error))?;
    let request = HealthCheckRequest {
        service: String::new(),
    };
    match HealthClient::new(channel).check(request).await {
        Ok(answer) if answer.get_ref().status() == ServingStatus::Serving => Ok(()),
        Ok(answer) => Err(format!(
            "its health is {}",
            answer.get_ref().status().as_str_name()
        )),
        Err(status) => Err(format!("{:?}: {}", status.code(), status.message())),
    }
}

async fn ask_http(url: &str) -> Result<(), String> {
    let client = reqwest::Client::builder()
        .redirect(Policy::none())
        .build()
        .map_err(|error| chain(&error))?;
    let answer = client
        .get(url)
        .send()
        .await
        .map_err(|error| chain(&error))?;
    match answer.status() {
        StatusCode::OK => Ok(()),
        status => Err(format!("it answers {status}")),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn who_is_missing_is_told_with_the_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let here = listener.local_addr().expect("an address");
        let router = axum::Router::new().route("/good", axum::routing::get(async || "good"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let targets = |urls: &[String]| {
            urls.iter()
                .map(|url| parse(url).expect("a target"))
                .collect()
        };
        let good = [format!("http://{here}/good")];
        let timeout = Duration::from_mins(1);
        run(Arguments {
            targets: targets(&good),
            timeout,
        })
        .await
        .expect("ready");
        let gone = TcpListener::bind("127.0.0.1:0")
            .await
            .and_then(|gone| gone.local_addr())
            .expect("an address");
        let bad = [
            format!("http://{here}/bad"),
            format!("grpc://{gone}"),
            format!("http://{here}/good"),
        ];
        let timeout = Duration::from_millis(300);
        let error = run(Arguments {
            targets: targets(&bad),
            timeout,
        })
        .await
        .expect_err("not ready")
        .to_string();
        assert!(error.contains("/bad: it answers 404"), "{error}");
        assert!(
            error.contains(&format!("grpc://{gone}: transport error")),
            "{error}"
        );
        assert!(!error.contains("/good"), "{error}");
    }
}
