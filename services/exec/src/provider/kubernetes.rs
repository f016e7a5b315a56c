//! Kubernetes: a bearer token. Terraform's provider reads `KUBE_TOKEN` once, and so has it no longer than the token
//! holds; of a kubeconfig with `tokenFile` kubectl and other Go clients read it anew. Which cluster, the command says.

use serde_json::json;

use super::Place;
use crate::environment::Environment;
use crate::failure::Failure;

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

pub(super) fn provide(place: &Place<'_>, environment: &mut Environment) -> Result<(), Failure> {
    const KUBECONFIG: &str = "kubeconfig";
    // JSON is YAML too. `KUBECONFIG=clusters.yaml:$THARSIS_KUBECONFIG` gives the contexts of the one the user of this;
    // Terraform's provider reads `KUBE_CONFIG_PATHS` instead.
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "users": [{ "name": place.identity.path, "user": { "tokenFile": place.token_file } }],
    });
    place.folder.write(KUBECONFIG, &kubeconfig.to_string())?;
    environment.set("KUBE_TOKEN", place.token.text());
    environment.set("KUBE_TOKEN_FILE", &place.token_file);
    environment.set("THARSIS_KUBECONFIG", place.folder.file(KUBECONFIG));
    Ok(())
}
