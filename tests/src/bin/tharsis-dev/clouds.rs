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
        long = "clouds-listen",
        env = "THARSIS_DEV_CLOUDS_LISTEN",
        default_value = "127.0.0.1:7112"
    )]
    listen: SocketAddr,
    /// The one with TLS, which Azure's clients ask for.
    #[arg(
        long = "clouds-tls-listen",
        env = "THARSIS_DEV_CLOUDS_TLS_LISTEN",
        default_value = "127.0.0.1:7113"
    )]
    tls_listen: SocketAddr,
    /// The file with the certificate that clients must trust.
    #[arg(long = "clouds-certificate", env = "THARSIS_DEV_CLOUDS_CERTIFICATE")]
    certificate: PathBuf,
}

impl Clouds {
    pub(crate) fn addresses(&self) -> Addresses {
        Addresses::new(self.listen, self.tls_listen, self.certificate.clone())
    }
}

pub(crate) async fn run(at: Clouds) -> Result<()> {
    let bind = async |address: SocketAddr| {
        ensure!(
            address.ip().is_loopback(),
            "{address} is not a loopback address: anybody could tell the stand-ins whom to trust"
        );
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("{address} can't be listened on"))
    };
    let stop = shutdown::on_signal()?;
    let (http, https) = (bind(at.listen).await?, bind(at.tls_listen).await?);
    let served = Served::on(http, https, &at.certificate)?;
    eprintln!("the stand-ins of the clouds serve {}", at.listen);
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
            listen: "0.0.0.0:0".parse().expect("an address"),
            tls_listen: "127.0.0.1:0".parse().expect("an address"),
            certificate: "/nowhere".into(),
        })
        .await
        .expect_err("refused")
        .to_string();
        assert!(error.contains("not a loopback address"), "{error}");
    }
}
