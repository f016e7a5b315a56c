//! What a credential takes at least: its signature; and a service that signs and inserts a row for each request, which
//! knows nobody, decides nothing and tells no one.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::ensure;
use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proto::issuer::v1 as pb;
use proto::issuer::v1::credential_service_server::{CredentialService, CredentialServiceServer};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::process::Command;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use crate::cpu::cpu;

/// As long as the header and claims of a credential are.
const MESSAGE: [u8; 800] = [b'x'; 800];
/// Of the service to its database: as many as a pool of sqlx has when nothing is said.
const CONNECTIONS: u32 = 10;

/// Where rows are inserted.
pub(crate) async fn create_table(pool: &PgPool) -> sqlx::Result<()> {
    let table = sqlx::query("CREATE TABLE plain (number int)");
    table.execute(pool).await.map(drop)
}

/// A row; durable once this returns.
pub(crate) async fn insert(pool: &PgPool) -> sqlx::Result<()> {
    let row = sqlx::query("INSERT INTO plain VALUES (1)");
    row.execute(pool).await.map(drop)
}

fn key() -> anyhow::Result<KeyPair> {
    let der: Pkcs8V1Der = KeyPair::generate(KeySize::Rsa2048)?.as_der()?;
    Ok(KeyPair::from_pkcs8(der.as_ref())?)
}

fn signature(key: &KeyPair) -> Result<Vec<u8>, Unspecified> {
    let mut signature = vec![0; key.public_modulus_len()];
    let random = SystemRandom::new();
    key.sign(&RSA_PKCS1_SHA256, &random, &MESSAGE, &mut signature)?;
    Ok(signature)
}

/// Signatures in a second of CPU, of so many processes that do nothing else at the same time. With all cores busy, as
/// they are while credentials are issued: a second of a core is worth less where its twin is busy too.
pub(crate) async fn sign(seconds: f64, processes: u32) -> anyhow::Result<f64> {
    let signing: JoinSet<_> = (0..processes)
        .map(|_| async move {
            let done = Command::new(std::env::current_exe()?)
                .args(["sign", "--seconds", &seconds.to_string()])
                .stderr(Stdio::inherit())
                .output()
                .await?;
            ensure!(done.status.success(), "signing ended with {}", done.status);
            anyhow::Ok(String::from_utf8(done.stdout)?.trim().parse::<f64>()?)
        })
        .collect();
    let signed = signing.join_all().await;
    let signed: Vec<f64> = signed.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(signed.iter().sum::<f64>() / f64::from(processes))
}

#[derive(clap::Args)]
pub(crate) struct SignArguments {
    #[arg(long)]
    seconds: f64,
}

/// What the process of [`sign`] does.
#[expect(clippy::print_stdout, reason = "it is the answer")]
pub(crate) fn sign_alone(arguments: &SignArguments) -> anyhow::Result<()> {
    let key = key()?;
    let (start, before) = (Instant::now(), cpu(std::process::id())?);
    let mut signatures = 0_u32;
    while start.elapsed() < Duration::from_secs_f64(arguments.seconds) {
        signature(&key)?;
        signatures += 1;
    }
    println!(
        "{}",
        f64::from(signatures) / (cpu(std::process::id())? - before)
    );
    Ok(())
}

#[derive(clap::Args)]
pub(crate) struct ServeArguments {
    #[arg(long, env = "THARSIS_DATABASE_URL", hide_env_values = true)]
    database: String,
    /// On loopback.
    #[arg(long)]
    port: u16,
}

/// The service.
pub(crate) async fn serve(arguments: &ServeArguments) -> anyhow::Result<()> {
    let pool = PgPoolOptions::new().max_connections(CONNECTIONS);
    let service = Least {
        key: key()?,
        pool: pool.connect(&arguments.database).await?,
    };
    Ok(tonic::transport::Server::builder()
        .add_service(CredentialServiceServer::new(service))
        .serve(([127, 0, 0, 1], arguments.port).into())
        .await?)
}

struct Least {
    key: KeyPair,
    pool: PgPool,
}

#[tonic::async_trait]
impl CredentialService for Least {
    async fn issue_credential(
        &self,
        _: Request<pb::IssueCredentialRequest>,
    ) -> Result<Response<pb::IssueCredentialResponse>, Status> {
        let (inserted, signed) = tokio::join!(insert(&self.pool), async { signature(&self.key) });
        inserted.map_err(|error| Status::internal(error.to_string()))?;
        let signed = signed.map_err(|error| Status::internal(error.to_string()))?;
        let mut token = String::from_utf8_lossy(&MESSAGE).into_owned();
        URL_SAFE_NO_PAD.encode_string(signed, &mut token);
        Ok(Response::new(pb::IssueCredentialResponse {
            token,
            ..Default::default()
        }))
    }

    async fn issue_credentials(
        &self,
        _: Request<pb::IssueCredentialsRequest>,
    ) -> Result<Response<pb::IssueCredentialsResponse>, Status> {
        Err(Status::unimplemented("one at a time"))
    }

    async fn explain_credential(
        &self,
        _: Request<pb::ExplainCredentialRequest>,
    ) -> Result<Response<pb::ExplainCredentialResponse>, Status> {
        Err(Status::unimplemented("nothing is decided"))
    }

    async fn list_job_managed_identities(
        &self,
        _: Request<pb::ListJobManagedIdentitiesRequest>,
    ) -> Result<Response<pb::ListJobManagedIdentitiesResponse>, Status> {
        Err(Status::unimplemented("there are none"))
    }
}
