//! One call, timed apart: the first inference after a server is ready, and what an inspector tries.

use super::{
    Target, caller, client,
    control::{Orders, Report},
    outcome::Failure,
    resolve,
    schedule::Pacer,
};
use crate::inspector::{Call, Remark};
use modelmeter_common::{Code, Problem, load::LoadPoint};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Attempts at a connection that one call waits for.
const ATTEMPTS: u32 = 5;

/// A successful answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// From just before the send to the whole response.
    pub latency: Duration,
    /// The response's message.
    pub message: Vec<u8>,
}

/// The first inference: engines compile and allocate in it, so it is not part of any point.
#[derive(Clone, Debug, PartialEq)]
pub struct FirstInference {
    /// From just before the send to the whole response, in ms.
    pub latency_ms: f64,
    /// How the answer differs from what was declared.
    pub remarks: Vec<Remark>,
}

/// Makes the first call and checks its answer wholly.
pub async fn first_inference(
    target: &Target,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<FirstInference, Problem> {
    let (latency, remarks) = match target.inspector.caller() {
        Some(caller) => (blocking(move || caller::once(caller, timeout)).await?, Vec::new()),
        None => {
            let answer = call_once(&target.endpoint, &target.call, timeout, cancel).await?;
            let inspector = target.inspector.clone();
            (answer.latency, blocking(move || inspector.examine(&answer.message)).await?)
        }
    };
    Ok(FirstInference { latency_ms: latency.as_secs_f64() * 1e3, remarks })
}

/// An inspector of the user's own may take a while.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Problem> + Send + 'static) -> Result<T, Problem> {
    let defect = |e: tokio::task::JoinError| Problem::new(Code::Internal, format!("the inspector panicked: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(defect)?
}

/// Makes one call with the first frame.
pub async fn call_once(
    endpoint: &str,
    call: &Call,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<Answer, Problem> {
    let orders = Orders {
        addresses: resolve(endpoint).await?,
        authority: endpoint.to_owned(),
        call: Call { frames: call.frames[..1].to_vec(), ..call.clone() },
        pacer: Pacer::new(LoadPoint::Closed { concurrency: 1 }, 0),
        timeout,
        max_in_flight: 1,
        cpus: None,
        at_once: Some(1),
    };
    let (_control, mut reports) =
        client::start(orders).map_err(|e| Problem::new(Code::Internal, format!("cannot start the client: {e}")))?;
    let deadline = tokio::time::sleep(timeout + Duration::from_secs(6));
    tokio::pin!(deadline);
    let (mut message, mut words, mut attempts) = (None, None, 0);
    loop {
        let report = tokio::select! {
            report = reports.recv() => report,
            () = cancel.cancelled() => return Err(Problem::new(Code::Cancelled, "cancelled in the first call")),
            () = &mut deadline => return Err(silent(endpoint, timeout)),
        };
        match report {
            Some(Report::Answer(answer)) => message = Some(answer),
            Some(Report::Words(_, said)) => words = Some(said),
            Some(Report::Down { words }) => {
                attempts += 1;
                if attempts == ATTEMPTS {
                    return Err(unreachable(endpoint, &words));
                }
            }
            Some(Report::Up) => {}
            Some(Report::Window(window)) => {
                if let Some(&failure) = window.errors.keys().next() {
                    let problem = failed(endpoint, failure, words.as_deref());
                    let code = if failure.is_refusal() { Code::EngineRefused } else { problem.code };
                    return Err(Problem { code, ..problem });
                }
                if let Some(message) = message.take() {
                    return Ok(Answer { latency: Duration::from_nanos(window.batch.latency.max_ns()), message });
                }
            }
            Some(Report::Ended(_)) | None => {
                return Err(Problem::new(Code::Internal, "the client ended without an answer"));
            }
        }
    }
}

/// Nothing answers at an endpoint.
pub(super) fn unreachable(endpoint: &str, words: &str) -> Problem {
    Problem::new(Code::Unreachable, format!("no gRPC server at {endpoint}: {words}"))
        .with_hint("is the server running, and is this its gRPC port?")
}

pub(super) fn silent(endpoint: &str, timeout: Duration) -> Problem {
    Problem::new(Code::DeadlineExceeded, format!("{endpoint} did not answer within {} s", timeout.as_secs_f64()))
        .with_hint("raise --timeout, or look at the server's log")
}

/// A call failed before anything was measured.
pub(super) fn failed(endpoint: &str, failure: Failure, words: Option<&str>) -> Problem {
    let code = match failure {
        Failure::Refused | Failure::Unreachable => Code::Unreachable,
        Failure::Timeout => Code::DeadlineExceeded,
        Failure::BadResponse | Failure::TooLarge | Failure::Protocol | Failure::Grpc(12) => Code::BadResponse,
        Failure::Grpc(3 | 5) => Code::InvalidArgument,
        _ => Code::EngineFailed,
    };
    let words = words.map(|w| format!(": {w}")).unwrap_or_default();
    Problem::new(code, format!("the call to {endpoint} failed with {}{words}", failure.name()))
        .with_hint("look at the server's log; check the model's name, its inputs' shapes, and that random values suit it (else --data)")
}
