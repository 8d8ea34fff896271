//! KServe v2 over REST, with JSON tensors. Source: the Open Inference Protocol specification, "HTTP/REST".

use crate::{
    contents,
    engine::Engine,
    grpc,
    request::{self, Given, MODEL_VERSION},
};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State, rejection::JsonRejection},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use modelmeter_common::{Code, Problem, model::TensorSpec};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// JSON takes several times the bytes of a tensor; what is larger belongs on gRPC.
const MAX_BODY_BYTES: usize = 256 << 20;

/// Answers until `stop`.
pub async fn serve(engine: Arc<Engine>, listener: TcpListener, stop: CancellationToken) -> Result<(), Problem> {
    let router = Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(async || StatusCode::OK))
        .route("/v2/health/ready", get(async || StatusCode::OK))
        .route("/v2/models/{model}", get(model))
        .route("/v2/models/{model}/ready", get(ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(model_version))
        .route("/v2/models/{model}/versions/{version}/ready", get(ready_version))
        .route("/v2/models/{model}/versions/{version}/infer", post(infer_version))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(engine);
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .map_err(|error| Problem::new(Code::Internal, format!("the HTTP listener failed: {error}")))
}

/// A problem as the specification has it: a status and `{"error": …}`.
struct Refused(Problem);

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let Self(problem) = self;
        let status = match problem.code {
            Code::InvalidArgument => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        (status, Json(json!({ "error": format!("{problem}{hint}") }))).into_response()
    }
}

type Served = State<Arc<Engine>>;
type Answer = Result<Json<Value>, Refused>;

async fn server(State(engine): Served) -> Json<Value> {
    Json(json!({ "name": engine.name, "version": engine.version, "extensions": [] }))
}

async fn ready(State(engine): Served, Path(model): Path<String>) -> Result<StatusCode, Refused> {
    request::check_model(&engine.model_name, &model, "")?;
    Ok(StatusCode::OK)
}

async fn ready_version(
    State(engine): Served,
    Path((model, version)): Path<(String, String)>,
) -> Result<StatusCode, Refused> {
    request::check_model(&engine.model_name, &model, &version)?;
    Ok(StatusCode::OK)
}

async fn model(State(engine): Served, Path(model): Path<String>) -> Answer {
    metadata(&engine, &model, "")
}

async fn model_version(State(engine): Served, Path((model, version)): Path<(String, String)>) -> Answer {
    metadata(&engine, &model, &version)
}

fn metadata(engine: &Engine, model: &str, version: &str) -> Answer {
    request::check_model(&engine.model_name, model, version)?;
    let tensors = |specs: &[TensorSpec]| -> Vec<Value> {
        let one = |tensor: modelmeter_proto::kserve::model_metadata_response::TensorMetadata| json!({ "name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape });
        grpc::metadata(specs).into_iter().map(one).collect()
    };
    let metadata = grpc::model_metadata(engine);
    Ok(Json(json!({
        "name": metadata.name,
        "versions": metadata.versions,
        "platform": metadata.platform,
        "inputs": tensors(&engine.inputs),
        "outputs": tensors(&engine.outputs),
    })))
}

/// An inference request; what is not named here is not needed.
#[derive(Deserialize)]
struct Inference {
    #[serde(default)]
    id: String,
    inputs: Vec<Input>,
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Input {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    data: Value,
}

#[derive(Deserialize)]
struct Output {
    name: String,
}

impl<'a> From<&'a Input> for Given<'a> {
    fn from(input: &'a Input) -> Self {
        Self { name: &input.name, datatype: &input.datatype, shape: &input.shape }
    }
}

type Body = Result<Json<Inference>, JsonRejection>;

async fn infer(State(engine): Served, Path(model): Path<String>, body: Body) -> Answer {
    run(&engine, &model, "", body).await
}

async fn infer_version(State(engine): Served, Path((model, version)): Path<(String, String)>, body: Body) -> Answer {
    run(&engine, &model, &version, body).await
}

async fn run(engine: &Engine, model: &str, version: &str, body: Body) -> Answer {
    request::check_model(&engine.model_name, model, version)?;
    let Json(body) = body.map_err(|rejection| Problem::invalid("body", rejection.body_text()))?;
    let asked = request::outputs(&engine.outputs, body.outputs.iter().map(|output| output.name.as_str()))?;
    let inputs = request::collect(&engine.inputs, body.inputs.len(), body.inputs.iter(), |input, dtype| {
        contents::from_json(&input.name, dtype, &input.data)
    })?;
    let outputs = engine.infer(inputs).await?;
    let places = asked.unwrap_or_else(|| (0..outputs.len()).collect());
    let tensors: Result<Vec<Value>, Problem> = places
        .into_iter()
        .map(|place| {
            let (name, tensor) = (&engine.outputs[place].name, &outputs[place]);
            let data = contents::to_json(name, tensor.dtype, &tensor.data)?;
            Ok(json!({ "name": name, "datatype": tensor.dtype.as_str(), "shape": tensor.shape, "data": data }))
        })
        .collect();
    Ok(Json(json!({
        "model_name": engine.model_name,
        "model_version": MODEL_VERSION,
        "id": body.id,
        "outputs": tensors?,
    })))
}
