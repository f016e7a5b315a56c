//! Tharsis itself: a service account, and the token that it is logged in with. A process that runs has the token of
//! `THARSIS_SERVICE_ACCOUNT_TOKEN` no longer than it holds; the file is renewed.

use proto::identity::v1::TharsisConfiguration;

use super::Place;
use crate::environment::Environment;

/// Clients take a token as it is before a login, and refuse a login by two names of the account.
pub(super) const CREDENTIALS: [&str; 5] = [
    "THARSIS_STATIC_TOKEN",
    "THARSIS_SERVICE_ACCOUNT_PATH",
    "THARSIS_SERVICE_ACCOUNT_ID",
    "THARSIS_SERVICE_ACCOUNT_TOKEN",
    "THARSIS_SERVICE_ACCOUNT_TOKEN_FILE",
];

pub(super) fn provide(
    place: &Place<'_>,
    tharsis: &TharsisConfiguration,
    environment: &mut Environment,
) {
    environment.set("THARSIS_SERVICE_ACCOUNT_ID", &tharsis.service_account_id);
    environment.set("THARSIS_SERVICE_ACCOUNT_TOKEN", place.token.text());
    environment.set("THARSIS_SERVICE_ACCOUNT_TOKEN_FILE", &place.token_file);
}
