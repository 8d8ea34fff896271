//! KServe v2 over gRPC. Source: the Open Inference Protocol specification, "gRPC".

use crate::{
    MAX_MESSAGE_BYTES,
    engine::Engine,
    request::{self, MODEL_VERSION},
    tensor::Tensor,
};
use modelmeter_common::{
    Code, Problem,
    model::{Dim, TensorSpec},
};
use modelmeter_proto::kserve::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// A request of several megabytes must not wait for window updates.
const STREAM_WINDOW_BYTES: u32 = 16 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
const FRAME_BYTES: u32 = 1 << 20;
/// Above what a client may have in flight, so that the client's own limit is the one that counts.
const MAX_STREAMS: u32 = 8192;

/// The platform that metadata name: what the model's file is.
const PLATFORM: &str = "onnx_onnxv1";

/// Answers until `stop`.
pub async fn serve(engine: Arc<Engine>, listener: TcpListener, stop: CancellationToken) -> Result<(), Problem> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<GrpcInferenceServiceServer<Service>>().await;
    let inference = GrpcInferenceServiceServer::new(Service(engine))
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES);
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(inference)
        .add_service(health_service)
        .serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop.cancelled_owned())
        .await
        .map_err(|error| Problem::new(Code::Internal, format!("the gRPC listener failed: {error}")))
}

/// The service of one model.
struct Service(Arc<Engine>);

impl Service {
    fn check_model(&self, name: &str, version: &str) -> Result<(), Status> {
        request::check_model(&self.0.model_name, name, version).map_err(|problem| status(&problem))
    }

    async fn infer(&self, request: ModelInferRequest) -> Result<ModelInferResponse, Problem> {
        let engine = &self.0;
        request::check_model(&engine.model_name, &request.model_name, &request.model_version)?;
        let asked = request.outputs.iter().map(|output| output.name.as_str());
        let asked = request::outputs(&engine.outputs, asked)?;
        let inputs = request::tensors(&engine.inputs, &request.inputs, request.raw_input_contents)?;
        let outputs = engine.infer(inputs).await?;
        Ok(respond(engine, request.id, asked, outputs))
    }
}

/// The response: outputs as raw bytes.
fn respond(engine: &Engine, id: String, asked: Option<Vec<usize>>, outputs: Vec<Tensor>) -> ModelInferResponse {
    let places = asked.unwrap_or_else(|| (0..outputs.len()).collect());
    let describe = |&place: &usize| InferOutputTensor {
        name: engine.outputs[place].name.clone(),
        datatype: outputs[place].dtype.as_str().to_owned(),
        shape: outputs[place].shape.iter().map(|&dim| i64::try_from(dim).expect("its bytes are in memory")).collect(),
        ..Default::default()
    };
    ModelInferResponse {
        model_name: engine.model_name.clone(),
        model_version: MODEL_VERSION.to_owned(),
        id,
        outputs: places.iter().map(describe).collect(),
        raw_output_contents: places.iter().map(|&place| outputs[place].data.clone()).collect(),
        ..Default::default()
    }
}

/// A problem as a status, its hint with it.
fn status(problem: &Problem) -> Status {
    let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
    Status::new(problem.code.grpc().into(), format!("{problem}{hint}"))
}

/// A signature as metadata carry it: -1 for an open axis.
pub fn metadata(specs: &[TensorSpec]) -> Vec<TensorMetadata> {
    let length = |dim: &Dim| match dim {
        Dim::Fixed(length) => i64::try_from(*length).unwrap_or(i64::MAX),
        Dim::Dynamic(_) => -1,
    };
    let one = |spec: &TensorSpec| TensorMetadata {
        name: spec.name.clone(),
        datatype: spec.dtype.as_str().to_owned(),
        shape: spec.shape.iter().filter(|_| spec.is_shaped()).map(length).collect(),
    };
    specs.iter().map(one).collect()
}

/// The metadata of the one model.
pub fn model_metadata(engine: &Engine) -> ModelMetadataResponse {
    ModelMetadataResponse {
        name: engine.model_name.clone(),
        versions: vec![MODEL_VERSION.to_owned()],
        platform: PLATFORM.to_owned(),
        inputs: metadata(&engine.inputs),
        outputs: metadata(&engine.outputs),
    }
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let request = request.into_inner();
        self.check_model(&request.name, &request.version)?;
        Ok(Response::new(ModelReadyResponse { ready: true }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let (name, version) = (self.0.name.clone(), self.0.version.clone());
        Ok(Response::new(ServerMetadataResponse { name, version, extensions: vec![] }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let request = request.into_inner();
        self.check_model(&request.name, &request.version)?;
        Ok(Response::new(model_metadata(&self.0)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        self.infer(request.into_inner()).await.map(Response::new).map_err(|problem| status(&problem))
    }
}
