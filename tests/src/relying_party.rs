//! A relying party: it knows the issuer's URL and its own audience, and nothing else.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey, Header, Validation};
use reqwest::Response;
use reqwest::header::CACHE_CONTROL;
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
    let mut validation = Validation::new(algorithm(key)?);
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

/// A relying party that keeps the key set for as long as it was told, and not a moment longer.
pub struct CachingParty {
    client: reqwest::Client,
    issuer_url: String,
    keys_url: String,
    keys: Value,
    etag: String,
    fresh_until: Instant,
}

impl CachingParty {
    /// Trusts an issuer, and reads its keys at `base_url`: of one of several processes behind the same name.
    pub async fn of(issuer_url: &str, base_url: &str) -> Result<Self> {
        let mut party = Self {
            client: reqwest::Client::new(),
            issuer_url: issuer_url.to_owned(),
            keys_url: format!("{base_url}/oauth/discovery/keys"),
            keys: Value::Null,
            etag: String::new(),
            fresh_until: Instant::now(),
        };
        party.read().await?;
        Ok(party)
    }

    /// How many keys it knows.
    #[must_use]
    pub fn known(&self) -> usize {
        self.keys["keys"].as_array().map_or(0, Vec::len)
    }

    /// Verifies a token with the keys that it has.
    pub async fn verify(&mut self, audience: &str, token: &str) -> Result<Value> {
        if Instant::now() >= self.fresh_until {
            self.read().await?;
        }
        let header = jsonwebtoken::decode_header(token)?;
        let kid = header.kid.context("the token names no key")?;
        let mut keys = self.keys["keys"].as_array().into_iter().flatten();
        let key = keys.find(|key| key["kid"] == kid);
        let key = key.with_context(|| format!("{kid} is not among {}", self.keys))?;
        let mut validation = Validation::new(algorithm(key)?);
        validation.set_issuer(&[&self.issuer_url]);
        validation.set_audience(&[audience]);
        let key = DecodingKey::from_jwk(&serde_json::from_value(key.clone())?)?;
        Ok(jsonwebtoken::decode::<Value>(token, &key, &validation)?.claims)
    }

    async fn read(&mut self) -> Result<()> {
        let asked = Instant::now();
        let request = self.client.get(&self.keys_url);
        let answer = request
            .header("if-none-match", &self.etag)
            .send()
            .await?
            .error_for_status()?;
        let header = |name: &str| {
            let value = answer
                .headers()
                .get(name)
                .and_then(|value| value.to_str().ok());
            value
                .map(str::to_owned)
                .with_context(|| format!("no {name}"))
        };
        let max_age = max_age(&answer).context("no max-age")?;
        self.etag = header("etag")?;
        self.fresh_until = asked + max_age;
        if answer.status() != reqwest::StatusCode::NOT_MODIFIED {
            self.keys = answer.json().await?;
        }
        Ok(())
    }
}

/// For how long an answer may be kept.
pub(crate) fn max_age(answer: &Response) -> Option<Duration> {
    let control = answer.headers().get(CACHE_CONTROL)?.to_str().ok()?;
    let mut directives = control.split(',').map(str::trim);
    let seconds = directives.find_map(|directive| directive.strip_prefix("max-age="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// With what the key's tokens are signed, as the key says and never as the token does.
fn algorithm(key: &Value) -> Result<Algorithm> {
    Ok(serde_json::from_value(key["alg"].clone())?)
}

/// RFC 7638, 3: the required members, in lexicographic order, without white space.
fn thumbprint(key: &Value) -> Result<String> {
    let member = |name: &str| {
        key[name]
            .as_str()
            .with_context(|| format!("the key has no {name}"))
    };
    let canonical = match member("kty")? {
        "EC" => {
            let (crv, x, y) = (member("crv")?, member("x")?, member("y")?);
            format!(r#"{{"crv":"{crv}","kty":"EC","x":"{x}","y":"{y}"}}"#)
        }
        kty => {
            let (e, n) = (member("e")?, member("n")?);
            format!(r#"{{"e":"{e}","kty":"{kty}","n":"{n}"}}"#)
        }
    };
    Ok(URL_SAFE_NO_PAD.encode(digest(&SHA256, canonical.as_bytes())))
}
