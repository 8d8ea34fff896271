//! MLModelCI's Predict protocol, against a mock that takes and gives just what MLModelCI's containers do.

use anyhow::{Context, Result};
use modelmeter_proto::mlmodelci::{
    InferRequest, InferResponse,
    predict_server::{Predict, PredictServer},
};
use modelmeter_tests::modelmeter;
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

const LIMIT: Duration = Duration::from_secs(60);

/// Two outputs a sample, as an ONNX container writes them: a list of outputs, each a list of samples.
#[derive(Clone, Default)]
struct Mock {
    answer: Option<&'static str>,
    samples: Arc<AtomicU64>,
}

/// The samples' values, decoded as MLModelCI's servicer does; what it raises is an unknown error.
fn decode(request: &InferRequest) -> Result<Vec<Vec<f32>>> {
    let meta: Value = serde_json::from_str(&request.meta)?;
    let elements: u64 = meta["shape"].as_array().context("no shape")?.iter().filter_map(Value::as_u64).product();
    anyhow::ensure!(meta["dtype"] == 11 && meta["torch_flag"].is_boolean(), "not TYPE_FP32: {meta}");
    let sample = |raw: &bytes::Bytes| -> Result<Vec<f32>> {
        anyhow::ensure!(raw.len() as u64 == elements * 4, "cannot reshape {} bytes into {meta}", raw.len());
        Ok(raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    anyhow::ensure!(!request.raw_input.is_empty(), "need at least one array to stack");
    request.raw_input.iter().map(sample).collect()
}

#[tonic::async_trait]
impl Predict for Mock {
    async fn infer(&self, request: Request<InferRequest>) -> Result<Response<InferResponse>, Status> {
        let samples =
            decode(request.get_ref()).map_err(|e| Status::unknown(format!("Exception calling application: {e}")))?;
        self.samples.fetch_add(samples.len() as u64, Ordering::Relaxed);
        let sums: Vec<[f32; 1]> = samples.iter().map(|sample| [sample.iter().sum()]).collect();
        let json = self.answer.map_or_else(|| json!([sums, samples]).to_string(), str::to_owned);
        Ok(Response::new(InferResponse { json, meta: String::new() }))
    }
}

async fn serve(mock: Mock) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(
        Server::builder().add_service(PredictServer::new(mock)).serve_with_incoming(TcpListenerStream::new(listener)),
    );
    Ok(address)
}

async fn profile(address: &str, more: &[&str]) -> Result<modelmeter::Output> {
    let home = tempfile::tempdir()?;
    let locks = home.path().join("locks");
    std::fs::write(home.path().join("modelmeter.toml"), format!("[worker]\nlock_dir = '{}'\n", locks.display()))?;
    let endpoint = ["profile", "--endpoint", address, "--protocol", "mlmodelci-predict", "--model", "m"];
    let load = ["--batch-sizes", "1,4", "--concurrency", "1,2", "--batches", "50", "--max-duration", "5s", "--json"];
    let args: Vec<&str> = endpoint.iter().chain(&load).chain(more).copied().collect();
    modelmeter::run(home.path(), &args, LIMIT).await
}

#[tokio::test]
async fn a_server_that_speaks_it_is_profiled() -> Result<()> {
    let mock = Mock::default();
    let address = serve(mock.clone()).await?;
    let profiles = profile(&address, &["--input", "x:fp32:3,4"]).await?.json()?;
    let cells = profiles.as_array().context("not an array")?;
    assert_eq!(cells.len(), 2);
    let mut measured = 0;
    for cell in cells {
        assert_eq!((&cell["state"], &cell["engine"]["launch"]), (&json!("done"), &json!("attach")), "{cell:#}");
        for point in cell["points"].as_array().context("no points")? {
            assert_eq!((&point["errors"], &point["requests"]), (&json!(0), &json!(50)), "{point:#}");
            measured += 50 * cell["batch_size"].as_u64().context("no batch size")?;
        }
    }
    // Warm-up and first inferences come on top.
    assert!(mock.samples.load(Ordering::Relaxed) > measured);
    Ok(())
}

#[tokio::test]
async fn answers_that_are_no_results_fail_the_cell() -> Result<()> {
    for (answer, said) in [("[[1, 2], [3, 4]]", "samples"), ("<html>", "not JSON")] {
        let address = serve(Mock { answer: Some(answer), ..Mock::default() }).await?;
        let output = profile(&address, &["--input", "x:fp32:3,4"]).await?;
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(output.out.contains(said), "{said} in {output:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_missing_is_said_before_anything_starts() -> Result<()> {
    let without_input = profile(&serve(Mock::default()).await?, &[]).await?;
    assert!(without_input.code == Some(2) && without_input.err.contains("--input x:fp32"), "{without_input:?}");
    let nobody = profile("127.0.0.1:9", &["--input", "x:fp32:3", "--no-wait"]).await?;
    assert!(nobody.code == Some(2) && nobody.err.contains("no gRPC server at 127.0.0.1:9"), "{nobody:?}");
    Ok(())
}
