//! KServe v2 over gRPC and REST, as clients see it: round trips, metadata, and what a bad request is told.

#![allow(clippy::unwrap_used)]

mod support;

use modelmeter_common::Code;
use modelmeter_proto::kserve::{
    InferTensorContents, ModelInferRequest, ModelMetadataRequest, ModelReadyRequest, ServerLiveRequest,
    ServerMetadataRequest, ServerReadyRequest, model_infer_request::InferRequestedOutputTensor,
};
use modelmeter_serving::serve;
use serde_json::{Value, json};
use support::{PATIENCE, Server, channel, floats, input, options, request, sample, uniform};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::Code as Grpc;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

#[tokio::test(flavor = "multi_thread")]
async fn null_answers_zeros_of_the_right_shape() {
    for (name, shape) in [("mlp", [5, 10]), ("bert_small", [5, 16])] {
        let mut server = Server::start("null", name).await;
        let mut sample = sample(name, 5, 1);
        sample.id = "request 7".into();
        let response = server.infer(sample).await.unwrap();
        assert_eq!((response.model_name.as_str(), response.id.as_str()), (name, "request 7"));
        assert_eq!((response.outputs[0].name.as_str(), &response.outputs[0].shape[..]), ("logits", &shape[..]));
        assert_eq!(floats(&response, 0), vec![0.0; (shape[0] * shape[1]) as usize]);
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_says_what_it_is_and_that_it_is_ready() {
    let mut server = Server::start("rten", "bert_small").await;
    assert!(server.client.server_live(ServerLiveRequest {}).await.unwrap().into_inner().live);
    assert!(server.client.server_ready(ServerReadyRequest {}).await.unwrap().into_inner().ready);
    let ready = |name: &str, version: &str| ModelReadyRequest { name: name.into(), version: version.into() };
    assert!(server.client.model_ready(ready("bert_small", "1")).await.unwrap().into_inner().ready);
    assert_eq!(server.client.model_ready(ready("bert", "")).await.unwrap_err().code(), Grpc::NotFound);
    let about = server.client.server_metadata(ServerMetadataRequest {}).await.unwrap().into_inner();
    assert_eq!((about.name.as_str(), about.version.split('.').count()), ("rten", 3));
    let asked = ModelMetadataRequest { name: "bert_small".into(), version: String::new() };
    let model = server.client.model_metadata(asked).await.unwrap().into_inner();
    let inputs: Vec<_> = model.inputs.iter().map(|t| (t.name.as_str(), t.datatype.as_str(), &t.shape[..])).collect();
    assert_eq!(inputs, [("input_ids", "INT64", &[-1, 128][..]), ("attention_mask", "INT64", &[-1, 128])]);
    assert_eq!((model.outputs[0].name.as_str(), &model.outputs[0].shape[..]), ("logits", &[-1, 16][..]));
    let mut health = HealthClient::new(channel(server.grpc).await);
    for service in ["", "inference.GRPCInferenceService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner();
        assert_eq!(answer.status, ServingStatus::Serving as i32, "{service}");
    }
    drop(health);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn typed_raw_and_rest_contents_give_the_same_answer() {
    let mut server = Server::start("rten", "mlp").await;
    let expected = floats(&server.infer(sample("mlp", 2, 9)).await.unwrap(), 0);
    let values: Vec<f32> = uniform(9).take(2 * 784).collect();

    let mut tensor = input("x", "FP32", &[2, 784]);
    tensor.contents = Some(InferTensorContents { fp32_contents: values.clone(), ..Default::default() });
    let output = InferRequestedOutputTensor { name: "logits".into(), ..Default::default() };
    let (model_name, model_version) = ("mlp".to_owned(), "1".to_owned());
    let typed = ModelInferRequest {
        model_name,
        model_version,
        inputs: vec![tensor],
        outputs: vec![output],
        ..Default::default()
    };
    assert_eq!(floats(&server.infer(typed).await.unwrap(), 0), expected);

    let rows: Vec<&[f32]> = values.chunks(784).collect();
    let body = json!({ "id": "9", "inputs": [{ "name": "x", "datatype": "FP32", "shape": [2, 784], "data": rows }] });
    for path in ["/v2/models/mlp/infer", "/v2/models/mlp/versions/1/infer"] {
        let (status, answer) = server.http("POST", path, &body.to_string()).await;
        assert_eq!((status, &answer["id"], &answer["outputs"][0]["shape"]), (200, &json!("9"), &json!([2, 10])));
        let data: Vec<f32> = serde_json::from_value(answer["outputs"][0]["data"].clone()).unwrap();
        assert_eq!(data, expected);
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_grpc_requests_are_told_what_is_wrong() {
    let mut server = Server::start("null", "bert_small").await;
    let good = || sample("bert_small", 2, 1);
    let bad = |change: &dyn Fn(&mut ModelInferRequest)| {
        let mut request = good();
        change(&mut request);
        request
    };
    let cases = [
        (
            bad(&|r| r.model_name = "bert".into()),
            Grpc::NotFound,
            "there is no model 'bert' here (this server has 'bert_small'",
        ),
        (bad(&|r| r.model_version = "2".into()), Grpc::NotFound, "version '2'"),
        (
            bad(&|r| r.inputs[0].name = "ids".into()),
            Grpc::InvalidArgument,
            "no input 'ids' (it takes input_ids, attention_mask)",
        ),
        (bad(&|r| r.inputs[1].name = "input_ids".into()), Grpc::InvalidArgument, "given twice"),
        (
            bad(&|r| r.inputs[0].datatype = "INT32".into()),
            Grpc::InvalidArgument,
            "datatype is 'INT32' (the model takes input_ids INT64 [batch, 128])",
        ),
        (bad(&|r| r.inputs[0].shape = vec![2, 64]), Grpc::InvalidArgument, "shape is [2, 64]"),
        (bad(&|r| r.inputs[0].shape = vec![256]), Grpc::InvalidArgument, "shape is [256]"),
        (bad(&|r| r.inputs[0].shape = vec![-2, 128]), Grpc::InvalidArgument, "shape is [-2, 128]"),
        (bad(&|r| r.inputs[0].shape = vec![i64::MAX, 128]), Grpc::InvalidArgument, "more than there can be"),
        (
            bad(&|r| r.inputs[0].shape = vec![3, 128]),
            Grpc::InvalidArgument,
            "2048 bytes of data for INT64 [3, 128] (that tensor has 3072",
        ),
        (bad(&|r| drop(r.raw_input_contents.pop())), Grpc::InvalidArgument, "2 inputs came with 1 raw_input_contents"),
        (bad(&|r| r.raw_input_contents.clear()), Grpc::InvalidArgument, "no data are given"),
        (
            bad(&|r| {
                r.inputs.pop();
                r.raw_input_contents.pop();
            }),
            Grpc::InvalidArgument,
            "attention_mask: the input is missing",
        ),
        (
            bad(&|r| r.outputs.push(InferRequestedOutputTensor { name: "y".into(), ..Default::default() })),
            Grpc::InvalidArgument,
            "no output 'y' (it has logits)",
        ),
        (
            bad(&|r| {
                r.inputs[1].shape = vec![1, 128];
                r.raw_input_contents[1].truncate(1024);
            }),
            Grpc::InvalidArgument,
            "axis 'batch' is 1 here and 2 in 'input_ids'",
        ),
    ];
    for (request, code, message) in cases {
        let status = server.infer(request).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(message), "{:?} lacks {message:?}", status.message());
    }
    server.infer(good()).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rten_refuses_values_that_it_would_have_to_change() {
    let mut server = Server::start("rten", "bert_small").await;
    let mut wide = sample("bert_small", 1, 1);
    wide.raw_input_contents[0] = [1i64 << 40; 128].map(i64::to_le_bytes).concat().into();
    let status = server.infer(wide).await.unwrap_err();
    assert_eq!(status.code(), Grpc::InvalidArgument);
    assert!(status.message().contains("does not fit the 32 bits"), "{status}");
    // A token that is not in the vocabulary is the engine's to refuse; the server lives on.
    let mut outside = sample("bert_small", 1, 1);
    outside.raw_input_contents[0] = [8192i64; 128].map(i64::to_le_bytes).concat().into();
    assert_eq!(server.infer(outside).await.unwrap_err().code(), Grpc::Internal);
    server.infer(sample("bert_small", 1, 1)).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rest_describes_the_model_and_refuses_with_a_reason() {
    let server = Server::start("null", "mlp").await;
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/mlp/ready", "/v2/models/mlp/versions/1/ready"] {
        assert_eq!(server.http("GET", path, "").await.0, 200, "{path}");
    }
    assert_eq!(server.http("GET", "/v2", "").await.1["name"], "null");
    let (_, model) = server.http("GET", "/v2/models/mlp", "").await;
    assert_eq!(model["inputs"], json!([{ "name": "x", "datatype": "FP32", "shape": [-1, 784] }]));
    assert_eq!(model["outputs"], json!([{ "name": "logits", "datatype": "FP32", "shape": [-1, 10] }]));
    let wrong =
        json!({ "inputs": [{ "name": "x", "datatype": "FP32", "shape": [1, 784], "data": [1, 2] }] }).to_string();
    for (method, path, body, status, message) in [
        ("GET", "/v2/models/other", "", 404, "there is no model 'other' here"),
        ("GET", "/v2/models/mlp/versions/3/ready", "", 404, "version '3'"),
        ("POST", "/v2/models/mlp/infer", "{", 400, "body: "),
        ("POST", "/v2/models/mlp/infer", "{}", 400, "missing field `inputs`"),
        ("POST", "/v2/models/mlp/infer", wrong.as_str(), 400, "8 bytes of data for FP32 [1, 784]"),
    ] {
        let (got, answer) = server.http(method, path, body).await;
        let error = answer.get("error").and_then(Value::as_str).unwrap_or_default();
        assert!(got == status && error.contains(message), "{path} {body}: {got} {answer}");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn what_cannot_be_served_is_an_error_before_anything_is_answered() {
    let listener = || async { TcpListener::bind("127.0.0.1:0").await.unwrap() };
    let mut unknown = options("null", "mlp");
    unknown.engine = "vllm".into();
    let mut missing = options("null", "mlp");
    missing.model = "no/such.onnx".into();
    let mut setting = options("rten", "mlp");
    setting.settings.insert("thread".into(), 2.into());
    let mut library = options("onnx", "mlp");
    library.onnxruntime = Some("no/such/libonnxruntime.so".into());
    for (options, code) in [
        (unknown, Code::InvalidArgument),
        (missing, Code::NotFound),
        (setting, Code::InvalidArgument),
        (library, Code::NotInstalled),
    ] {
        let serving = serve(options, listener().await, listener().await, CancellationToken::new());
        let problem = tokio::time::timeout(PATIENCE, serving).await.expect("it fails in time").unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.hint.is_some(), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_in_progress_is_answered_when_the_server_stops() {
    let server = Server::start("rten", "resnet18").await;
    let (mut client, mut probe) = (server.client.clone(), server.client.clone());
    let call = client.model_infer(sample("resnet18", 4, 1));
    tokio::pin!(call);
    // Streams of one connection open in their order: once the second is answered, the first is known to have begun.
    tokio::select! {
        biased;
        answer = &mut call => panic!("answered before the server was stopped: {answer:?}"),
        probed = probe.server_live(ServerLiveRequest {}) => drop(probed.unwrap()),
    }
    let (answer, stopped) = tokio::join!(call, server.stop());
    stopped.unwrap();
    answer.unwrap();
    let gone = request("resnet18", vec![]);
    assert!(probe.model_infer(gone).await.is_err());
}
