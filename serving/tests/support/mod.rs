//! Starts the real server on free ports and talks to it as clients do.
#![allow(dead_code)]

use modelmeter_common::Problem;
use modelmeter_proto::kserve::{
    ModelInferRequest, ModelInferResponse, ServerReadyRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
};
use modelmeter_serving::{Options, onnxruntime, reference, serve};
use serde_json::Value;
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Nothing here takes nearly as long, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Server {
    pub client: GrpcInferenceServiceClient<Channel>,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<(), Problem>>,
}

/// The file of a built-in model, kept between runs of the tests.
pub fn model(name: &str) -> PathBuf {
    reference::ensure(name, env!("CARGO_TARGET_TMPDIR").as_ref()).unwrap()
}

pub fn options(engine: &str, name: &str) -> Options {
    Options {
        engine: engine.into(),
        model: model(name),
        model_name: name.into(),
        settings: BTreeMap::new(),
        onnxruntime: None,
    }
}

/// The engines that can run here. ONNX Runtime may be missing, unless the environment says that it must not.
pub fn engines() -> Vec<&'static str> {
    match onnxruntime::locate(None) {
        Ok(_) => vec!["rten", "onnx"],
        Err(problem) if std::env::var("MODELMETER_TEST_ORT").is_ok_and(|v| v == "required") => {
            panic!("MODELMETER_TEST_ORT=required, but {problem}: {}", problem.hint.as_deref().unwrap_or_default())
        }
        Err(problem) => {
            eprintln!("skipped for engine onnx: {problem}");
            vec!["rten"]
        }
    }
}

/// A connection, once the server answers.
pub async fn channel(address: SocketAddr) -> Channel {
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
    tokio::time::timeout(PATIENCE, endpoint.connect()).await.expect("the server answers in time").unwrap()
}

impl Server {
    pub async fn start(engine: &str, name: &str) -> Self {
        Self::with(options(engine, name)).await
    }

    pub async fn with(options: Options) -> Self {
        let grpc_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let http_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (grpc, http) = (grpc_listener.local_addr().unwrap(), http_listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let mut task = tokio::spawn(serve(options, grpc_listener, http_listener, stop.clone()));
        // The connection waits in the backlog until the model is loaded, and is reset if it cannot be.
        let ready = async {
            let mut client = GrpcInferenceServiceClient::new(channel(grpc).await);
            let answer = tokio::time::timeout(PATIENCE, client.server_ready(ServerReadyRequest {})).await;
            assert!(answer.expect("the server is ready in time").unwrap().into_inner().ready);
            client
        };
        let client = tokio::select! {
            biased;
            ended = &mut task => panic!("serve ended with {:?}", ended.unwrap()),
            client = ready => client,
        };
        let client = client.max_decoding_message_size(1 << 30).max_encoding_message_size(1 << 30);
        Self { client, grpc, http, stop, task }
    }

    /// Stops it and gives what `serve` gave.
    pub async fn stop(self) -> Result<(), Problem> {
        self.stop.cancel();
        drop(self.client);
        tokio::time::timeout(PATIENCE, self.task).await.expect("the server stops in time").unwrap()
    }

    pub async fn infer(&mut self, request: ModelInferRequest) -> Result<ModelInferResponse, tonic::Status> {
        let answer = tokio::time::timeout(PATIENCE, self.client.model_infer(request)).await;
        answer.expect("an answer in time").map(tonic::Response::into_inner)
    }

    /// One HTTP/1.1 call: status and body.
    pub async fn http(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.expect("an answer in time").unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }
}

pub fn input(name: &str, datatype: &str, shape: &[i64]) -> InferInputTensor {
    InferInputTensor { name: name.into(), datatype: datatype.into(), shape: shape.to_vec(), ..Default::default() }
}

/// A request with raw contents.
pub fn request(model: &str, inputs: Vec<(InferInputTensor, Vec<u8>)>) -> ModelInferRequest {
    let (inputs, raw): (Vec<_>, Vec<_>) = inputs.into_iter().map(|(input, raw)| (input, raw.into())).unzip();
    ModelInferRequest { model_name: model.into(), inputs, raw_input_contents: raw, ..Default::default() }
}

/// Seeded numbers, evenly from 0 to 1. Source: G. Marsaglia, "Xorshift RNGs" (2003).
pub fn uniform(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    })
}

/// `batch` random inputs for a built-in model.
pub fn sample(model: &str, batch: usize, seed: u64) -> ModelInferRequest {
    let floats = |shape: &[i64]| {
        let count = shape.iter().product::<i64>() as usize;
        (input("x", "FP32", shape), uniform(seed).take(count).flat_map(f32::to_le_bytes).collect())
    };
    let n = batch as i64;
    request(
        model,
        match model {
            "mlp" => vec![floats(&[n, 784])],
            "bert_small" => {
                let ids = uniform(seed).take(batch * 128).flat_map(|v| ((v * 8192.0) as i64).to_le_bytes()).collect();
                let mask = (0..batch * 128).flat_map(|at| i64::from(at % 128 < 100).to_le_bytes()).collect();
                let shape = [n, 128];
                vec![(input("input_ids", "INT64", &shape), ids), (input("attention_mask", "INT64", &shape), mask)]
            }
            _ => vec![floats(&[n, 3, 224, 224])],
        },
    )
}

/// The floats of a raw output.
pub fn floats(response: &ModelInferResponse, place: usize) -> Vec<f32> {
    let raw = &response.raw_output_contents[place];
    raw.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap())).collect()
}
