//! The HTTP port: health, and the hub's documents as JSON for people with curl.

use crate::{
    core::Core,
    service::{requests, results, workers},
};
use axum::{
    Json, Router,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use futures::TryStreamExt as _;
use modelmeter_common::{Code, Problem};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `stop`.
pub async fn run(core: Arc<Core>, listener: TcpListener, stop: CancellationToken) {
    let routes = Router::new()
        .route("/healthz", get(health))
        .route("/v1/requests", get(list_requests))
        .route("/v1/workers", get(list_workers))
        .route("/v1/profiles", get(list_profiles))
        .with_state(core);
    if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop.cancelled_owned()).await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

/// An error as JSON, in the form that the command line prints.
struct Failure(Problem);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.0.code {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        (status, Json(json!({ "error": self.0 }))).into_response()
    }
}

impl<E: Into<Problem>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

#[derive(Deserialize)]
struct Which {
    model: Option<String>,
    limit: Option<u32>,
}

type Documents<T> = Result<Json<Vec<T>>, Failure>;

/// Healthy means that the hub answers; a follower is as healthy as the leader.
async fn health(State(core): State<Arc<Core>>) -> Result<Json<serde_json::Value>, Failure> {
    let leadership = *core.leadership.borrow();
    Ok(Json(json!({ "status": "ok", "hub_time": core.hub.now().await?, "leadership": leadership })))
}

async fn list_requests(State(core): State<Arc<Core>>, Query(which): Query<Which>) -> Documents<impl serde::Serialize> {
    Ok(Json(requests::list(&core, which.limit).await?))
}

async fn list_workers(State(core): State<Arc<Core>>) -> Documents<impl serde::Serialize> {
    Ok(Json(workers::live(&core).await?))
}

async fn list_profiles(State(core): State<Arc<Core>>, Query(which): Query<Which>) -> Documents<impl serde::Serialize> {
    let profiles = results::profiles(&core, None, which.model.as_deref().unwrap_or_default(), which.limit).await?;
    Ok(Json(profiles.try_collect::<Vec<_>>().await?))
}
