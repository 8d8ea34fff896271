//! Inspectors: turn a model's signature into requests that are ready to send, and check the answers.
//!
//! What belongs here: protocols, one file each, and those of a user's own ([`Custom`]). What does not: sending in a loop and timing, which is
//! [`crate::load`]'s. Requests are encoded once, before any clock starts.

mod child;
pub mod data;
pub mod kserve_v2;
mod pipe;
pub mod predict;
mod process;
mod registry;
pub mod tfs;

pub use registry::{Custom, Maker, Program, find};

use crate::{
    endpoint::Endpoint,
    load::{self, Caller, Unanswered},
};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use modelmeter_common::{
    Code, Problem,
    engine::Protocol,
    model::{Datatype, Dim, TensorShape, TensorSpec},
    testdata::DataSet,
};
use std::{sync::Arc, time::Duration};

/// Different requests that are made of one signature, and sent in turn.
pub const DISTINCT_REQUESTS: usize = 8;
/// The most bytes that they take together; at least one is made.
pub const MAX_REQUEST_BYTES: u64 = 256 << 20;

/// What to call, and with what: ready-made gRPC messages, sent in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The gRPC method, `/package.Service/Method`.
    pub path: String,
    /// Complete gRPC frames (five bytes of prefix, then the message). Never empty.
    pub frames: Vec<Bytes>,
    /// Items in a call.
    pub batch_size: u32,
}

/// What a test input is made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Subject {
    /// The model's name as the server knows it.
    pub model: String,
    /// Its version as the server knows it; empty: the server's choice.
    pub version: String,
    /// Of the signature to call, where the protocol has several; empty: the server's choice.
    pub signature: String,
    /// What is sent, batch axis included.
    pub inputs: Vec<TensorShape>,
    /// What is expected back; empty: whatever comes.
    pub outputs: Vec<TensorSpec>,
    /// Items in a call.
    pub batch_size: u32,
    /// Of the test data.
    pub seed: u64,
    /// Test data of the user's own.
    pub data: Option<Arc<DataSet>>,
}

impl Subject {
    /// The raw contents of each input in the nth distinct request: the user's own, else random from the seed.
    ///
    /// # Errors
    /// `invalid_argument` for data that does not fit.
    pub fn contents(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        let seed = |i: usize| self.seed ^ (nth << 32) ^ ((i as u64) << 48);
        let given = |tensor| self.data.as_ref().map_or(Ok(None), |data| data.contents(tensor, nth));
        let inputs = self.inputs.iter().enumerate();
        inputs.map(|(i, t)| Ok(given(t)?.unwrap_or_else(|| data::generate(t, seed(i))))).collect()
    }
}

/// What a server says of itself and a model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// The model's inputs.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs.
    pub outputs: Vec<TensorSpec>,
    /// The signature that these are of, where the protocol has several; else empty.
    pub signature: String,
    /// The model's versions, as the server names them.
    pub versions: Vec<String>,
    /// The server's name, for example `triton`; empty if it does not say.
    pub server_name: String,
    /// The server's version; empty if it does not say.
    pub server_version: String,
}

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
        let reached = until_up(endpoint, patience, || load::reach(endpoint)).await;
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
            (patience.say)(format!("waiting for a server at {endpoint}, at most {most} s: {words}"));
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

/// A protocol's own client.
///
/// # Errors
/// `invalid_argument` for a subject that the protocol cannot carry.
pub fn built_in(protocol: Protocol, subject: Subject) -> Result<Arc<dyn Inspector>, Problem> {
    match protocol {
        Protocol::KserveV2 => Ok(Arc::new(kserve_v2::KserveV2::new(subject))),
        Protocol::Tfs => Ok(Arc::new(tfs::Tfs::new(subject))),
        Protocol::MlmodelciPredict => Ok(Arc::new(predict::Predict::new(subject)?)),
    }
}

/// A server did not tell of a model.
fn refused(unanswered: Unanswered, endpoint: &Endpoint, model: &str, protocol: Protocol, timeout: Duration) -> Problem {
    let (code, hint) = match unanswered.grpc_status() {
        Some(NOT_FOUND | INVALID_ARGUMENT) => (Code::NotFound, "name a model that the server has".to_owned()),
        Some(UNIMPLEMENTED) => {
            (Code::InvalidArgument, format!("the server does not speak {} over gRPC", protocol.as_str()))
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

/// An output of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// The element type.
    pub dtype: Datatype,
    /// Axis by axis, as the server says it.
    pub shape: Vec<i64>,
    /// Little-endian contents; strings with four bytes of length before each.
    pub raw: Bytes,
}

/// Checks that each expected output is there, and each output against the signature and against itself: type, shape,
/// size, finite values.
fn check_outputs(subject: &Subject, outputs: &[Output]) -> Result<(), Problem> {
    if outputs.is_empty() {
        return Err(bad_response("the response has no outputs"));
    }
    if let Some(missing) = subject.outputs.iter().find(|expected| outputs.iter().all(|o| o.name != expected.name)) {
        return Err(bad_response(format!("output '{}' is missing", missing.name)));
    }
    outputs.iter().try_for_each(|output| check_output(subject, output))
}

fn check_output(subject: &Subject, output: &Output) -> Result<(), Problem> {
    let Output { name, dtype, shape, raw } = output;
    if let Some(expected) = subject.outputs.iter().find(|expected| expected.name == *name) {
        check_against(expected, *dtype, shape, subject.batch_size)?;
    }
    let elements =
        elements(shape).ok_or_else(|| bad_response(format!("output '{name}' has an impossible shape {shape:?}")))?;
    if let Some(size) = dtype.size()
        && elements.checked_mul(size as u64) != Some(raw.len() as u64)
    {
        let message = format!("output '{name}' has {} bytes, its shape needs {elements} of {size}", raw.len());
        return Err(bad_response(message));
    }
    match data::first_not_finite(*dtype, raw) {
        Some(at) => Err(bad_response(format!("output '{name}' is not finite at element {at}")).with_field("values")),
        None => Ok(()),
    }
}

/// Strings as raw contents have them: four bytes of length before each.
fn prefixed(strings: &[Bytes]) -> Vec<u8> {
    strings.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes()[..], text].concat()).collect()
}

/// How many elements a shape has; none for one that is impossible.
fn elements(shape: &[i64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
}

fn check_against(expected: &TensorSpec, dtype: Datatype, shape: &[i64], batch: u32) -> Result<(), Problem> {
    let name = &expected.name;
    if dtype != expected.dtype {
        return Err(bad_response(format!("output '{name}' is {dtype}, not {}", expected.dtype)).with_field("dtype"));
    }
    let fits = |(axis, (got, want)): (usize, (&i64, &Dim))| match want {
        Dim::Fixed(want) => *got as u64 == *want,
        Dim::Dynamic(_) => axis > 0 || *got == i64::from(batch),
    };
    if shape.len() != expected.shape.len() || !shape.iter().zip(&expected.shape).enumerate().all(fits) {
        let message = format!("output '{name}' has shape {shape:?} for a batch of {batch}");
        return Err(bad_response(message).with_field("shape"));
    }
    Ok(())
}

/// One protocol's client. The hooks have the names that users of MLModelCI's inspectors know.
#[async_trait]
pub trait Inspector: Send + Sync {
    /// Test data: the raw contents of each input, for the nth distinct request.
    fn data_preprocess(&self, nth: u64) -> Result<Vec<Bytes>, Problem>;

    /// One message of the protocol, as a complete gRPC frame, from what `data_preprocess` gave.
    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem>;

    /// The gRPC method that the frames are for.
    fn path(&self) -> &str;

    /// Items in a call.
    fn batch_size(&self) -> u32;

    /// The outputs in a response's message (without the prefix).
    ///
    /// # Errors
    /// `bad_response`; `invalid_argument` where it does not tell outputs apart.
    fn decode(&self, _message: &[u8]) -> Result<Vec<Output>, Problem> {
        Err(Problem::invalid("inspector", "this inspector does not tell the outputs of a response apart"))
    }

    /// Checks a response's message (without the prefix) wholly: names, types, shapes, sizes, finite values.
    fn check(&self, message: &[u8]) -> Result<(), Problem>;

    /// Calls that it makes itself, for the timed loop to time; none where its requests are sent.
    fn caller(&self) -> Option<Box<dyn Caller>> {
        None
    }

    /// Whether it can go on. A program of the user's may have ended, or said what it must not.
    async fn health(&self) -> Result<(), Problem> {
        Ok(())
    }

    /// One call, untimed, checked.
    async fn infer(&self, endpoint: &Endpoint) -> Result<(), Problem> {
        let timeout = Duration::from_secs(60);
        let cancel = tokio_util::sync::CancellationToken::new();
        let answer = crate::load::call_once(endpoint, &self.prepare_one()?, timeout, &cancel).await?;
        self.check(&answer.message)
    }

    /// The first distinct request alone.
    fn prepare_one(&self) -> Result<Call, Problem> {
        let frame = self.make_request(&self.data_preprocess(0)?)?;
        Ok(Call { path: self.path().to_owned(), frames: vec![frame], batch_size: self.batch_size() })
    }

    /// Everything the timed loop sends: [`DISTINCT_REQUESTS`], fewer where they would take too much memory.
    fn prepare(&self) -> Result<Call, Problem> {
        let mut call = self.prepare_one()?;
        let bytes = call.frames[0].len() as u64;
        let most = (MAX_REQUEST_BYTES / bytes.max(1)).clamp(1, DISTINCT_REQUESTS as u64);
        for nth in 1..most {
            call.frames.push(self.make_request(&self.data_preprocess(nth)?)?);
        }
        Ok(call)
    }
}

/// A complete gRPC frame around a message. Source: the gRPC documentation, "gRPC over HTTP2",
/// Length-Prefixed-Message.
pub fn grpc_frame(message: &impl prost::Message) -> Result<Bytes, Problem> {
    let mut frame = frame_head(message.encoded_len())?;
    message.encode(&mut frame).expect("a vector takes every write");
    Ok(frame.into())
}

/// The same around a message that is encoded already.
pub fn frame_around(message: &[u8]) -> Result<Bytes, Problem> {
    let mut frame = frame_head(message.len())?;
    frame.extend_from_slice(message);
    Ok(frame.into())
}

/// The prefix of a frame, with room for the message.
fn frame_head(len: usize) -> Result<Vec<u8>, Problem> {
    let prefix = u32::try_from(len)
        .map_err(|_| Problem::invalid("shapes", "a request is over 4 GiB").with_hint("use a smaller batch"))?;
    let mut frame = Vec::with_capacity(len + 5);
    frame.push(0);
    frame.extend_from_slice(&prefix.to_be_bytes());
    Ok(frame)
}

/// A response that is not a valid result.
pub(crate) fn bad_response(message: impl Into<String>) -> Problem {
    Problem::new(Code::BadResponse, message)
}
