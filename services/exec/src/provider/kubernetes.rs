//! Kubernetes: a bearer token. Terraform's provider reads `KUBE_TOKEN` once, and so has it no longer than the token
//! holds. The user of a kubeconfig has it of a credential plugin, which all clients run again when it has expired: of
//! `tokenFile` Python's read the first one alone, and JavaScript's none. Which cluster, the command says.

use prost_types::Timestamp;
use serde_json::json;

use super::Place;
use crate::environment::Environment;
use crate::failure::Failure;
use crate::folder::Folder;
use crate::issuer::Identity;
use crate::token::Token;

/// A client has one of them, or refuses them all.
pub(super) const CREDENTIALS: [&str; 8] = [
    "KUBE_USER",
    "KUBE_USERNAME",
    "KUBE_PASSWORD",
    "KUBE_CLIENT_CERT_DATA",
    "KUBE_CLIENT_KEY_DATA",
    "KUBE_TOKEN",
    "KUBE_TOKEN_FILE",
    "THARSIS_KUBECONFIG",
];

/// What credential plugins speak (<https://kubernetes.io/docs/reference/config-api/client-authentication.v1/>).
const PLUGIN: &str = "client.authentication.k8s.io/v1";

/// The file of which the plugin, `cat`, reads what it says.
fn said_by_plugin(identity: &Identity) -> String {
    format!("{}.kubernetes.json", identity.id)
}

/// Writes it. It is asked again with a tenth of the token's life left, when the next one has long been there.
pub(super) fn write(identity: &Identity, token: &Token, folder: &Folder) -> Result<(), Failure> {
    let expires = token.ends().saturating_sub(token.life().as_secs() / 10);
    let expires = Timestamp {
        seconds: i64::try_from(expires).unwrap_or(i64::MAX),
        nanos: 0,
    };
    let credential = json!({
        "apiVersion": PLUGIN,
        "kind": "ExecCredential",
        "status": { "token": token.text(), "expirationTimestamp": expires.to_string() },
    });
    folder.write(&said_by_plugin(identity), &credential.to_string())
}

pub(super) fn provide(place: &Place<'_>, environment: &mut Environment) -> Result<(), Failure> {
    const KUBECONFIG: &str = "kubeconfig";
    // JSON is YAML too. `KUBECONFIG=clusters.yaml:$THARSIS_KUBECONFIG` gives the contexts of the one the user of this;
    // Terraform's provider reads `KUBE_CONFIG_PATHS` instead.
    let plugin = json!({
        "apiVersion": PLUGIN,
        "command": "cat",
        "args": [place.folder.file(&said_by_plugin(place.identity))],
        "interactiveMode": "Never",
    });
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "users": [{ "name": place.identity.path, "user": { "exec": plugin } }],
    });
    place.folder.write(KUBECONFIG, &kubeconfig.to_string())?;
    environment.set("KUBE_TOKEN", place.token.text());
    environment.set("KUBE_TOKEN_FILE", &place.token_file);
    environment.set("THARSIS_KUBECONFIG", place.folder.file(KUBECONFIG));
    Ok(())
}
