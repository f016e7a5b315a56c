//! A relying party: it knows the issuer's URL and its own audience, and nothing else.

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use serde_json::Value;

/// A token that verified.
#[derive(Debug)]
pub struct Verified {
    /// Its header.
    pub header: Header,
    /// Its claims.
    pub claims: Value,
    /// Where the key was.
    pub keys_url: String,
}

/// Verifies a token from discovery alone. The key's id must be the key's RFC 7638 thumbprint.
pub async fn verify(issuer_url: &str, audience: &str, token: &str) -> Result<Verified> {
    let client = reqwest::Client::new();
    let get = async |url: &str| -> Result<Value> {
        let answer = client.get(url).send().await?.error_for_status()?;
        Ok(answer.json().await?)
    };
    let discovery = get(&format!("{issuer_url}/.well-known/openid-configuration")).await?;
    ensure!(
        discovery["issuer"] == issuer_url,
        "discovery names another issuer: {}",
        discovery["issuer"]
    );
    let keys_url = discovery["jwks_uri"]
        .as_str()
        .context("discovery names no keys")?
        .to_owned();
    let keys = get(&keys_url).await?;
    let header = jsonwebtoken::decode_header(token)?;
    let kid = header.kid.as_deref().context("the token names no key")?;
    let mut keys = keys["keys"].as_array().into_iter().flatten();
    let key = keys
        .find(|key| key["kid"] == kid)
        .context("the token's key is not published")?;
    ensure!(
        thumbprint(key)? == kid,
        "the key's id is not its thumbprint: {key}"
    );
    let mut validation = Validation::new(Algorithm::RS256);
    validation.set_issuer(&[issuer_url]);
    validation.set_audience(&[audience]);
    validation.set_required_spec_claims(&["iss", "sub", "aud", "exp", "nbf"]);
    validation.validate_nbf = true;
    validation.leeway = 1;
    let key = DecodingKey::from_jwk(&serde_json::from_value(key.clone())?)?;
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation)?.claims;
    Ok(Verified {
        header,
        claims,
        keys_url,
    })
}

/// RFC 7638, 3: the required members, in lexicographic order, without white space.
fn thumbprint(key: &Value) -> Result<String> {
    let member = |name: &str| {
        key[name]
            .as_str()
            .with_context(|| format!("the key has no {name}"))
    };
    let (e, kty, n) = (member("e")?, member("kty")?, member("n")?);
    let canonical = format!(r#"{{"e":"{e}","kty":"{kty}","n":"{n}"}}"#);
    Ok(URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes())))
}
