//! One call by itself, and why it was not answered.

use super::{
    Transport,
    control::{Orders, Report, Started},
    problems::{failed, silent, unreachable},
};
use crate::{
    endpoint::{Endpoint, Trouble},
    record::Failure,
};
use modelmeter_common::{Code, Problem};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Attempts at a connection that one call waits for.
const ATTEMPTS: u32 = 5;
/// Time left to the client after a time-out, so that it can report the time-out itself.
const SLACK: Duration = Duration::from_millis(250);
/// Longest probe of a port that may speak TLS.
const LOOK: Duration = Duration::from_secs(2);

/// A successful answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Time from just before the send to the whole response.
    pub latency: Duration,
    /// The response's message.
    pub message: Vec<u8>,
}

/// Runs a function that may block for a while, such as a user's own check.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let defect = |e: tokio::task::JoinError| Problem::new(Code::Internal, format!("the inspector panicked: {e}"));
    tokio::task::spawn_blocking(work).await.map_err(defect)?
}

/// Makes one call. The time-out holds for its connection too.
///
/// # Errors
/// The reason why the call was not answered, with what to do.
pub async fn call_once(
    endpoint: &Endpoint,
    transport: &dyn Transport,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<Answer, Problem> {
    let answered = tokio::select! {
        answered = exchange(endpoint, transport, timeout, ATTEMPTS) => answered,
        () = cancel.cancelled() => return Err(Problem::new(Code::Cancelled, "cancelled in the first call")),
    };
    match answered {
        Ok(answer) => Ok(answer),
        Err(unanswered) => Err(unanswered.diagnosed(endpoint).await.problem(endpoint, timeout)),
    }
}

/// Connects to a server, TLS included, and hangs up.
///
/// # Errors
/// The reason why there was no connection.
pub async fn reach(endpoint: &Endpoint) -> Result<(), Unanswered> {
    let reached = endpoint.reach().await.map_err(Unanswered::Other)?;
    reached.map_err(|e| Unanswered::Unconnected { failure: (&e).into(), words: e.to_string() })
}

/// The reason why one call was not answered.
#[derive(Debug)]
pub enum Unanswered {
    /// There was no connection.
    Unconnected { failure: Failure, words: String },
    /// The call failed.
    Failed { failure: Failure, words: Option<String> },
    /// Nothing came in time.
    Silent,
    /// The call could not be tried.
    Other(Problem),
}

impl Unanswered {
    /// The status that the server answered with.
    pub fn grpc_status(&self) -> Option<u32> {
        match self {
            Self::Failed { failure: Failure::Grpc(status), .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether a server that is only starting may be the reason.
    pub fn may_be_starting(&self) -> bool {
        match self {
            Self::Unconnected { failure, .. } | Self::Failed { failure, .. } => failure.may_be_starting(),
            Self::Silent | Self::Other(_) => false,
        }
    }

    /// Whether nothing listens there.
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Unconnected { failure: Failure::Refused, .. })
    }

    /// Whether a later attempt would fail in the same way.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unconnected { failure: Failure::Tls(trouble), .. } => trouble.is_about_certificates(),
            Self::Other(_) => true,
            _ => false,
        }
    }

    /// The reason in words.
    pub fn words(&self) -> String {
        match self {
            Self::Unconnected { words, .. } => words.clone(),
            Self::Failed { failure, words } => words.clone().unwrap_or_else(|| failure.name()),
            Self::Silent => "it does not answer in time".into(),
            Self::Other(problem) => problem.message.clone(),
        }
    }

    /// The same reason, after a probe for TLS where the port speaks no protocol that is known.
    pub async fn diagnosed(self, endpoint: &Endpoint) -> Self {
        let is_strange = |failure| matches!(failure, Failure::Reset | Failure::Protocol | Failure::Unreachable);
        if !matches!(&self, Self::Unconnected { failure, .. } if is_strange(*failure)) {
            return self;
        }
        let looked = tokio::time::timeout(LOOK, endpoint.would_speak_tls()).await;
        if !looked.unwrap_or(false) {
            return self;
        }
        let failure = Failure::Tls(Trouble::PlainToTls);
        Self::Unconnected { failure, words: failure.words() }
    }

    /// The error message for the user.
    pub fn problem(self, endpoint: &Endpoint, timeout: Duration) -> Problem {
        match self {
            Self::Unconnected { failure, words } => unreachable(endpoint, failure, &words),
            Self::Failed { failure, words } => {
                let problem = failed(endpoint, failure, words.as_deref());
                let code = if failure.is_refusal() { Code::EngineRefused } else { problem.code };
                Problem { code, ..problem }
            }
            Self::Silent => silent(endpoint, timeout),
            Self::Other(problem) => problem,
        }
    }
}

/// Makes one call, with so many attempts at a connection.
pub(crate) async fn exchange(
    endpoint: &Endpoint,
    transport: &dyn Transport,
    timeout: Duration,
    attempts: u32,
) -> Result<Answer, Unanswered> {
    let begun = tokio::time::Instant::now();
    let orders = Orders::new(endpoint, timeout).await.map_err(Unanswered::Other)?;
    let Started { control: _control, mut reports } = transport
        .start(Orders { at_once: Some(1), ..orders })
        .map_err(|e| Unanswered::Other(Problem::new(Code::Internal, format!("cannot start the client: {e}"))))?;
    let (mut message, mut words, mut down, mut tried) = (None, None, None, 0);
    loop {
        match tokio::time::timeout_at(begun + timeout + SLACK, reports.recv()).await {
            Err(_) => return Err(down.unwrap_or(Unanswered::Silent)),
            Ok(Some(Report::Answer(answer))) => message = Some(answer),
            Ok(Some(Report::Words(_, said))) => words = Some(said),
            Ok(Some(Report::Down { failure, words })) => {
                tried += 1;
                let lost = Unanswered::Unconnected { failure, words };
                if tried == attempts || matches!(failure, Failure::Tls(_)) {
                    return Err(lost);
                }
                down = Some(lost);
            }
            Ok(Some(Report::Up)) => down = None,
            Ok(Some(Report::Window(window))) => {
                if let Some(&failure) = window.errors.keys().next() {
                    return Err(match failure {
                        Failure::Timeout => Unanswered::Silent,
                        failure => Unanswered::Failed { failure, words },
                    });
                }
                if let Some(message) = message.take() {
                    return Ok(Answer { latency: Duration::from_nanos(window.batch.latency.max_ns()), message });
                }
            }
            Ok(Some(Report::Ended(_)) | None) => {
                let message = "the client ended without an answer";
                return Err(Unanswered::Other(Problem::new(Code::Internal, message)));
            }
        }
    }
}
