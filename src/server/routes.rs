//! Which path is which. `openapi.json` says the same for programs; a test compares the two.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::service::Service;
use super::{append, clock, evidence, govern, keys, metrics, read, tree};

/// Every route, as `openapi.json` must list them.
pub const ROUTES: [(&str, &str); 29] = [
    ("POST", "/v1/entries"),
    ("GET", "/v1/entries"),
    ("POST", "/v1/entries:batch"),
    ("GET", "/v1/entries/{reference}"),
    ("GET", "/v1/entries/{reference}/proof"),
    ("GET", "/v1/checkpoint"),
    ("GET", "/v1/consistency"),
    ("GET", "/v1/tile/{path}"),
    ("GET", "/v1/rules"),
    ("PUT", "/v1/rules"),
    ("POST", "/v1/proposals"),
    ("GET", "/v1/proposals"),
    ("GET", "/v1/proposals/{id}"),
    ("GET", "/v1/proposals/{id}/statement"),
    ("POST", "/v1/proposals/{id}/approvals"),
    ("POST", "/v1/proposals/{id}/seal"),
    ("POST", "/v1/proposals/{id}/withdraw"),
    ("GET", "/v1/export"),
    ("POST", "/v1/verify"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys:rotate"),
    ("POST", "/v1/keys/{id}/revoke"),
    ("GET", "/v1/stats"),
    ("POST", "/v1/bench"),
    ("POST", "/v1/clock:confirm"),
    ("GET", "/metrics"),
    ("GET", "/livez"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
];

/// The API.
pub fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v1/entries", post(append::append).get(read::list))
        .route("/v1/entries:batch", post(append::append_batch))
        .route("/v1/entries/{reference}", get(read::entry))
        .route("/v1/entries/{reference}/proof", get(tree::proof))
        .route("/v1/checkpoint", get(tree::checkpoint))
        .route("/v1/consistency", get(tree::consistency))
        .route("/v1/tile/{*path}", get(tree::tile))
        .route("/v1/rules", get(govern::rules).put(govern::set_rules))
        .route("/v1/proposals", post(govern::open).get(govern::list))
        .route("/v1/proposals/{id}", get(govern::show))
        .route("/v1/proposals/{id}/statement", get(govern::statement))
        .route("/v1/proposals/{id}/approvals", post(govern::decide))
        .route("/v1/proposals/{id}/seal", post(govern::seal))
        .route("/v1/proposals/{id}/withdraw", post(govern::withdraw))
        .route("/v1/export", get(evidence::export))
        .route("/v1/verify", post(evidence::verify))
        .route("/v1/keys", get(keys::list))
        .route("/v1/keys:rotate", post(keys::rotate))
        .route("/v1/keys/{id}/revoke", post(keys::revoke))
        .route("/v1/stats", get(read::stats))
        .route("/v1/bench", post(read::bench))
        .route("/v1/clock:confirm", post(clock::confirm))
        .route("/metrics", get(metrics::metrics))
        .route("/livez", get(read::livez))
        .route("/readyz", get(read::readyz))
        .route("/openapi.json", get(read::openapi))
        .fallback(read::not_found)
        .method_not_allowed_fallback(read::method_not_allowed)
        .with_state(service)
}
