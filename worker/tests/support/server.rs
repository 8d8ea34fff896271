//! A KServe v2 server with one model, which answers with zeros, as fast or as slowly as a test wants.

use modelmeter_proto::kserve::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

pub const MODEL: &str = "zeros";

#[derive(Default)]
pub struct Counts {
    pub calls: AtomicU64,
    pub delay_ms: AtomicU64,
    /// It says that its model is not ready.
    pub loading: AtomicBool,
}

pub struct FakeServer {
    pub address: String,
    pub counts: Arc<Counts>,
}

impl FakeServer {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let counts = Arc::<Counts>::default();
        let service = GrpcInferenceServiceServer::new(Service(counts.clone()));
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Self { address, counts }
    }

    pub fn calls(&self) -> u64 {
        self.counts.calls.load(SeqCst)
    }
}

struct Service(Arc<Counts>);

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(&self, r: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        let ready = r.into_inner().name == MODEL && !self.0.loading.load(SeqCst);
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let (name, version) = ("fake".to_owned(), "1.2.3".to_owned());
        Ok(Response::new(ServerMetadataResponse { name, version, extensions: Vec::new() }))
    }

    async fn model_metadata(
        &self,
        _: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let tensor = |name: &str| TensorMetadata { name: name.into(), datatype: "FP32".into(), shape: vec![-1, 4] };
        let (inputs, outputs) = (vec![tensor("x")], vec![tensor("y")]);
        Ok(Response::new(ModelMetadataResponse { name: MODEL.into(), inputs, outputs, ..Default::default() }))
    }

    async fn model_infer(&self, r: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        self.0.calls.fetch_add(1, SeqCst);
        let delay = self.0.delay_ms.load(SeqCst);
        if delay > 0 {
            tokio::time::sleep(Duration::from_millis(delay)).await;
        }
        let shape = r.into_inner().inputs[0].shape.clone();
        let zeros = vec![0u8; 4 * shape.iter().product::<i64>() as usize];
        let output = InferOutputTensor { name: "y".into(), datatype: "FP32".into(), shape, ..Default::default() };
        Ok(Response::new(ModelInferResponse {
            model_name: MODEL.into(),
            outputs: vec![output],
            raw_output_contents: vec![zeros.into()],
            ..Default::default()
        }))
    }
}
