//! `tharsis-dev clouds`: the stand-ins of the clouds' exchange endpoints, for a person's own clients. Whoever reaches
//! them tells them whom to trust, so they serve on loopback addresses only.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::clouds::{Addresses, Served};
use edge::shutdown;
use tokio::net::TcpListener;

/// Where the stand-ins are.
#[derive(clap::Args)]
pub(crate) struct Clouds {
    /// Their loopback address.
    #[arg(
        long,
        env = "THARSIS_DEV_CLOUDS_LISTEN",
        default_value = "127.0.0.1:7112"
    )]
    clouds_listen: SocketAddr,
    /// The one with TLS, which Azure's clients ask for.
    #[arg(
        long,
        env = "THARSIS_DEV_CLOUDS_TLS_LISTEN",
        default_value = "127.0.0.1:7113"
    )]
    clouds_tls_listen: SocketAddr,
    /// The file with the certificate that clients must trust.
    #[arg(long, env = "THARSIS_DEV_CLOUDS_CERTIFICATE")]
    clouds_certificate: PathBuf,
}

impl Clouds {
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses::new(
            self.clouds_listen,
            self.clouds_tls_listen,
            self.clouds_certificate.clone(),
        )
    }
}

pub(crate) async fn run(at: Clouds) -> Result<()> {
    let listen = async |address: SocketAddr| {
        ensure!(
            address.ip().is_loopback(),
            "{address} is not a loopback address: anybody could tell the stand-ins whom to trust"
        );
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("{address} can't be listened on"))
    };
    let stop = shutdown::on_signal()?;
    let (http, https) = (
        listen(at.clouds_listen).await?,
        listen(at.clouds_tls_listen).await?,
    );
    let served = Served::on(http, https, &at.clouds_certificate)?;
    eprintln!("the stand-ins of the clouds serve {}", at.clouds_listen);
    stop.cancelled().await;
    drop(served);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn they_serve_nobody_else() {
        let error = run(Clouds {
            clouds_listen: "0.0.0.0:0".parse().expect("an address"),
            clouds_tls_listen: "127.0.0.1:0".parse().expect("an address"),
            clouds_certificate: "/nowhere".into(),
        })
        .await
        .expect_err("refused")
        .to_string();
        assert!(error.contains("not a loopback address"), "{error}");
    }
}
