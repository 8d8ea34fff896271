//! Servers that already run, as they are: ones that tell little of their model, or answer otherwise than they say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use modelmeter_proto::kserve::{
    ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
    ModelReadyResponse, ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
    grpc_inference_service_server::{GrpcInferenceService, GrpcInferenceServiceServer},
    model_infer_response::InferOutputTensor,
    model_metadata_response::TensorMetadata,
};
use std::{
    path::Path,
    process::Output,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use support::{command, json};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// What a server says and does: each call is answered with FP32 ones in output `y`.
#[derive(Clone, Default)]
struct Manner {
    /// None: it has no such method.
    inputs: Option<Vec<TensorMetadata>>,
    outputs: Vec<TensorMetadata>,
    /// The shape of an answer to a batch of so many.
    answer: Option<fn(i64) -> Vec<i64>>,
    /// It never answers an inference.
    silent: bool,
    calls: Arc<AtomicU64>,
    without_inputs: Arc<AtomicU64>,
}

fn tensor(name: &str, shape: &[i64]) -> TensorMetadata {
    TensorMetadata { name: name.into(), datatype: "FP32".into(), shape: shape.to_vec() }
}

#[tonic::async_trait]
impl GrpcInferenceService for Manner {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Result<Response<ServerReadyResponse>, Status> {
        Ok(Response::new(ServerReadyResponse { ready: true }))
    }

    async fn model_ready(&self, _: Request<ModelReadyRequest>) -> Result<Response<ModelReadyResponse>, Status> {
        Ok(Response::new(ModelReadyResponse { ready: true }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse::default()))
    }

    async fn model_metadata(
        &self,
        _: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let inputs = self.inputs.clone().ok_or_else(|| Status::unimplemented("no such method"))?;
        let outputs = self.outputs.clone();
        Ok(Response::new(ModelMetadataResponse { name: "m".into(), inputs, outputs, ..Default::default() }))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Result<Response<ModelInferResponse>, Status> {
        self.calls.fetch_add(1, SeqCst);
        if self.silent {
            return std::future::pending().await;
        }
        let request = request.into_inner();
        let Some(first) = request.inputs.first() else {
            self.without_inputs.fetch_add(1, SeqCst);
            return Err(Status::internal("no inputs"));
        };
        let shape = self.answer.map_or_else(|| first.shape.clone(), |of| of(first.shape[0]));
        let ones = 1f32.to_le_bytes().repeat(shape.iter().product::<i64>() as usize);
        let output = InferOutputTensor { name: "y".into(), datatype: "FP32".into(), shape, ..Default::default() };
        let (outputs, raw_output_contents) = (vec![output], vec![ones.into()]);
        Ok(Response::new(ModelInferResponse { outputs, raw_output_contents, ..Default::default() }))
    }
}

/// Serves on a runtime of its own, as long as that lives; gives its address.
fn serve(manner: Manner) -> (tokio::runtime::Runtime, String) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder().add_service(GrpcInferenceServiceServer::new(manner));
    runtime.spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (runtime, address)
}

fn profile(home: &Path, address: &str, args: &[&str]) -> Output {
    let fixed = ["profile", "--endpoint", address, "--model", "m", "--batches", "20", "--concurrency", "1", "--json"];
    command(home, &[&fixed[..], args].concat()).output().unwrap()
}

#[test]
fn a_server_that_tells_no_inputs_is_told_them_and_never_called_without() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    for inputs in [Some(Vec::new()), None] {
        let manner = Manner { inputs, ..Manner::default() };
        let (_runtime, address) = serve(manner.clone());
        let asks = profile(home, &address, &["--batch-sizes", "2"]);
        let stderr = String::from_utf8_lossy(&asks.stderr);
        assert_eq!(asks.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains("--input x:fp32"), "{stderr}");
        let told = profile(home, &address, &["--batch-sizes", "2", "--input", "a:fp32:5", "--input", "b:int64:"]);
        assert_eq!(told.status.code(), Some(0), "{}", String::from_utf8_lossy(&told.stderr));
        assert_eq!(json(&told)[0]["inputs"][0]["shape"], serde_json::json!([2, 5]));
        assert!(manner.calls.load(SeqCst) >= 20);
        assert_eq!(manner.without_inputs.load(SeqCst), 0);
    }
}

#[test]
fn what_is_stated_fills_what_is_told_and_must_not_contradict_it() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let inputs = Some(vec![tensor("x", &[-1, -1]), tensor("z", &[])]);
    let (_runtime, address) = serve(Manner { inputs, ..Manner::default() });
    let sizes = ["--batch-sizes", "2"];
    let filled = profile(home, &address, &[&sizes[..], &["--input", "x:fp32:7", "--input", "z:fp32:3"]].concat());
    assert_eq!(filled.status.code(), Some(0), "{}", String::from_utf8_lossy(&filled.stderr));
    let shapes: Vec<_> =
        json(&filled)[0]["inputs"].as_array().unwrap().iter().map(|i| i["shape"].to_string()).collect();
    assert_eq!(shapes, ["[2,7]", "[2,3]"]);
    for other in ["x:int64:7", "x:fp32:7,1", "w:fp32:7"] {
        let refused = profile(home, &address, &[&sizes[..], &["--input", other]].concat());
        let stderr = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(2) && stderr.contains("the model takes"), "{other}: {stderr}");
    }
}

#[test]
fn an_answer_of_another_rank_that_fits_the_batch_is_a_warning_and_of_another_batch_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let of = |answer: fn(i64) -> Vec<i64>| {
        let (inputs, outputs) = (Some(vec![tensor("x", &[-1, 4])]), vec![tensor("y", &[-1])]);
        let (runtime, address) = serve(Manner { inputs, outputs, answer: Some(answer), ..Manner::default() });
        let output = profile(home, &address, &["--batch-sizes", "4"]);
        drop(runtime);
        output
    };
    for fitting in [(|n| vec![n, 1]) as fn(i64) -> Vec<i64>, |n| vec![1, n], |n| vec![n, 2, 2]] {
        let output = of(fitting);
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let profiles = json(&output);
        let warnings = profiles[0]["points"][0]["warnings"].as_array().unwrap();
        let warning = warnings.iter().find(|warning| warning["code"] == "output_differs");
        let warning = warning.unwrap_or_else(|| panic!("no word of it: {profiles}"));
        assert!(warning["message"].as_str().unwrap().contains("[?] was declared"), "{warning}");
    }
    for other in [(|_| vec![1]) as fn(i64) -> Vec<i64>, |n| vec![n / 2], |_| vec![3, 1]] {
        let output = of(other);
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
        assert_eq!(json(&output)[0]["error"]["code"], "bad_response");
    }
}

#[test]
fn a_time_out_holds_for_the_first_call_which_is_not_made_again() {
    let home = tempfile::tempdir().unwrap();
    let (inputs, outputs) = (Some(vec![tensor("x", &[-1, 4])]), vec![tensor("y", &[-1, 4])]);
    let manner = Manner { inputs, outputs, silent: true, ..Manner::default() };
    let (_runtime, address) = serve(manner.clone());
    let words = ["profile", "--endpoint", &address, "--model", "m", "--batch-sizes", "1", "--max-duration", "20s"];
    let load = ["--concurrency", "1", "--batches", "5", "--timeout", "1s"];
    let begun = Instant::now();
    let output = command(home.path(), &[&words[..], &load].concat()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let said = String::from_utf8_lossy(&output.stdout).matches("did not answer within 1 s").count();
    assert_eq!((said, manner.calls.load(SeqCst)), (1, 1), "one call, once: {stderr}");
}
