//! Requests and answers that several clouds have in common.

use std::collections::HashMap;

use axum::Json;
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use serde_json::Value;

/// The fields of a form.
pub(super) fn form(body: &str) -> HashMap<String, String> {
    // The query of a URL is written as a form is.
    let url = reqwest::Url::parse(&format!("http://form/?{body}"));
    url.map(|url| url.query_pairs().into_owned().collect())
        .unwrap_or_default()
}

/// RFC 6750, 2.1.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers
        .get(AUTHORIZATION)?
        .to_str()
        .ok()?
        .strip_prefix("Bearer ")
}

pub(super) fn json(status: StatusCode, body: Value) -> Response {
    (status, Json(body)).into_response()
}
