//! What a server tells of itself and of a model, asked of one that may still be starting.

use super::{Metadata, kserve_v2, tfs};
use futures::future::BoxFuture;
use modelmeter_common::{Code, Problem, engine::Protocol};
use modelmeter_meter::{self as meter, Unanswered, endpoint::Endpoint};
use std::time::Duration;

/// How long to wait for a server.
#[derive(Clone, Copy)]
pub struct ServerWait<'a> {
    /// For the answer to one question.
    pub timeout: Duration,
    /// For a server that is not there yet or does not take calls yet.
    pub ready: Duration,
    /// Is told what is waited for, whenever that changes.
    pub say: &'a (dyn Fn(String) + Send + Sync),
}

impl ServerWait<'_> {
    /// None: a server is asked once, or not at all.
    pub const NONE: ServerWait<'static> = ServerWait { timeout: Duration::ZERO, ready: Duration::ZERO, say: &|_| () };
}

/// Asks a server for a model's signature and for its own name; one that may be starting is waited for.
///
/// # Errors
/// `unreachable`, `not_found` for a model that it does not have, `bad_response`; `invalid_argument` where it speaks
/// another protocol.
pub fn metadata<'a>(
    protocol: Protocol,
    endpoint: &'a Endpoint,
    model: &'a str,
    patience: ServerWait<'a>,
) -> BoxFuture<'a, Result<Metadata, Problem>> {
    Box::pin(async move {
        match until_up(endpoint, patience, || tell(protocol, endpoint, model, patience.timeout)).await {
            Ok(metadata) => Ok(metadata),
            Err(unanswered) => {
                let unanswered = unanswered.diagnosed(endpoint).await;
                Err(refused(unanswered, endpoint, model, protocol, patience.timeout))
            }
        }
    })
}

/// Waits until something takes connections at an endpoint, of which nothing else can be asked.
///
/// # Errors
/// `unreachable`, once the patience is over, and whatever no waiting mends.
pub fn reach<'a>(endpoint: &'a Endpoint, patience: ServerWait<'a>) -> BoxFuture<'a, Result<(), Problem>> {
    Box::pin(async move {
        let reached = until_up(endpoint, patience, || meter::reach(endpoint)).await;
        reached.map_err(|unanswered| unanswered.problem(endpoint, patience.timeout).with_field("endpoint"))
    })
}

async fn until_up<T, F: Future<Output = Result<T, Unanswered>>>(
    endpoint: &Endpoint,
    patience: ServerWait<'_>,
    question: impl Fn() -> F,
) -> Result<T, Unanswered> {
    let deadline = tokio::time::Instant::now() + patience.ready;
    let mut last = String::new();
    loop {
        let unanswered = match question().await {
            Err(unanswered) if unanswered.may_be_starting() => unanswered,
            done => return done,
        };
        if tokio::time::Instant::now() + PAUSE >= deadline {
            return Err(unanswered);
        }
        let words = unanswered.words();
        if words != last {
            let most = patience.ready.as_secs_f64();
            (patience.say)(format!(
                "waiting for a gRPC server at {endpoint}, at most {most} s: {words} (Ctrl-C ends the wait; with --no-wait there is none)"
            ));
            last = words;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Between two looks at a server that is not up yet.
const PAUSE: Duration = Duration::from_millis(250);

async fn tell(protocol: Protocol, endpoint: &Endpoint, model: &str, timeout: Duration) -> Result<Metadata, Unanswered> {
    match protocol {
        Protocol::KserveV2 => kserve_v2::metadata(endpoint, model, timeout).await,
        Protocol::Tfs => tfs::metadata(endpoint, model, timeout).await,
        Protocol::MlmodelciPredict => Err(Unanswered::Other(
            Problem::invalid("input", "a server that speaks mlmodelci-predict does not tell what a model takes")
                .with_hint("state it without its batch axis, for example --input x:fp32:3,224,224"),
        )),
    }
}

/// A server did not tell of a model.
fn refused(unanswered: Unanswered, endpoint: &Endpoint, model: &str, protocol: Protocol, timeout: Duration) -> Problem {
    let (code, hint) = match unanswered.grpc_status() {
        Some(NOT_FOUND | INVALID_ARGUMENT) => (Code::NotFound, "name a model that the server has".to_owned()),
        Some(UNIMPLEMENTED) => {
            let hint = "a server that does not tell what a model takes is told it: --input x:fp32:3,224,224";
            (Code::InvalidArgument, format!("does the server speak {} over gRPC? {hint}", protocol.as_str()))
        }
        Some(DEADLINE_EXCEEDED | CANCELLED) => (Code::DeadlineExceeded, "is the server busy?".into()),
        Some(_) => (Code::Unreachable, "look at the server's log".into()),
        None => {
            let problem = unanswered.problem(endpoint, timeout);
            return if problem.field.is_none() { problem.with_field("endpoint") } else { problem };
        }
    };
    let message = format!("{endpoint} gave no metadata of model '{model}': {}", unanswered.words());
    Problem::new(code, message).with_hint(hint)
}

/// Source: the gRPC documentation, "Status codes and their use in gRPC".
const CANCELLED: u32 = 1;
const INVALID_ARGUMENT: u32 = 3;
const DEADLINE_EXCEEDED: u32 = 4;
const NOT_FOUND: u32 = 5;
const UNIMPLEMENTED: u32 = 12;
