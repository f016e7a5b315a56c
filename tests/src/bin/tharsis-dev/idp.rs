//! `tharsis-dev idp`: an OIDC issuer as far as a relying party sees it. It has no login: who has its key file is
//! everybody, so it serves on loopback addresses only.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use e2e::issuer::router;
use e2e::key::SigningKey;
use edge::shutdown;
use tokio::net::TcpListener;

/// Where the issuer is.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The loopback address to serve on.
    #[arg(long, env = "THARSIS_DEV_IDP_LISTEN", default_value = "127.0.0.1:7100")]
    listen: SocketAddr,
    /// The file with the key; made if there is none.
    #[arg(long, env = "THARSIS_DEV_IDP_KEY_FILE")]
    key_file: PathBuf,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { listen, key_file } = arguments;
    ensure!(
        listen.ip().is_loopback(),
        "{listen} is not a loopback address: anybody could make tokens"
    );
    let stop = shutdown::on_signal()?;
    let key = SigningKey::read_or_make(&key_file)?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("{listen} can't be listened on"))?;
    let url = format!("http://{}", listener.local_addr()?);
    eprintln!("the development OIDC issuer serves {url}");
    let served =
        axum::serve(listener, router(&url, &key)).with_graceful_shutdown(stop.cancelled_owned());
    Ok(served.await?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    use edge::authentication::{Authenticator, Issuer};
    use edge::clock;

    use super::*;
    use crate::token;

    #[tokio::test]
    async fn its_tokens_are_taken_by_the_services() {
        let folder = std::env::temp_dir().join(format!("tharsis-dev-{}", clock::new_uuid()));
        let key_file = folder.join("secrets").join("idp-key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let wanted = token::Arguments {
            subject: "admin".into(),
            ttl: Duration::from_mins(1),
            issuer: url.clone(),
            audience: "tharsis".into(),
            key_file: key_file.clone(),
        };
        let error = token::token(&wanted)
            .expect_err("there is no key")
            .to_string();
        assert!(error.contains("`tharsis-dev idp` makes one"), "{error}");

        let key = SigningKey::read_or_make(&key_file).expect("a key");
        let mode = std::fs::metadata(&key_file)
            .expect("the file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = SigningKey::read_or_make(&key_file).expect("the key");
        assert_eq!(key.jwk(), again.jwk());
        assert_eq!(
            std::fs::read_dir(folder.join("secrets"))
                .expect("the folder")
                .count(),
            1
        );
        let served = axum::serve(listener, router(&url, &key));
        tokio::spawn(async move { served.await });

        let issuer = Issuer {
            name: "dev".into(),
            url,
            audience: "tharsis".into(),
        };
        let admin = [model::Principal::user("dev/admin").expect("a principal")].into();
        let authenticator =
            Authenticator::new(vec![issuer], admin, [].into()).expect("an authenticator");
        let token = token::token(&wanted).expect("a token");
        let value = format!("Bearer {token}").try_into().expect("a header");
        let headers = [(http::header::AUTHORIZATION, value)].into_iter().collect();
        assert!(
            authenticator
                .authenticate(&headers)
                .await
                .expect("known")
                .administrator
        );
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[tokio::test]
    async fn it_serves_nobody_else() {
        let listen = "0.0.0.0:0".parse().expect("an address");
        let error = run(Arguments {
            listen,
            key_file: "/nowhere".into(),
        })
        .await
        .expect_err("refused")
        .to_string();
        assert!(error.contains("not a loopback address"), "{error}");
    }
}
