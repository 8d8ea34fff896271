//! Inspectors: turn a model's signature into requests that are ready to send, and check the answers.
//!
//! What belongs here: protocols, one file each, and those of a user's own ([`Custom`]). What does not: sending in a loop and timing, which is
//! [`modelmeter_meter`]'s. Requests are encoded once, before any clock starts.

mod child;
mod configured;
pub mod data;
pub mod kserve_v2;
mod pipe;
pub mod predict;
mod process;
mod program;
mod registry;
pub mod tfs;

pub use configured::configured;
pub use program::Program;
pub use registry::{Custom, Maker, find};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use modelmeter_common::{
    Code, Problem,
    engine::Protocol,
    model::{Datatype, Dim, TensorShape, TensorSpec},
    request::describe,
    testdata::DataSet,
};
use modelmeter_meter::{
    self as meter, Caller, Callers, Check, Remark, Target, Transport, Unanswered, call_once,
    endpoint::Endpoint,
    unary::{Call, Unary},
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

/// Different requests that are made of one signature, and sent in turn.
pub const DISTINCT_REQUESTS: usize = 8;
/// The most bytes that they take together; at least one is made.
pub const MAX_REQUEST_BYTES: u64 = 256 << 20;

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
    /// The axis that counts items in each output of which that is known; none: its rows are its own.
    pub output_axes: BTreeMap<String, Option<u32>>,
}

impl Subject {
    /// The raw contents of each input in the nth distinct request: the user's own, else random from the seed.
    ///
    /// # Errors
    /// `invalid_argument` for data that does not fit.
    pub fn contents(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        let seed = |i: usize| self.seed ^ (nth << 32) ^ ((i as u64) << 48);
        let of = |(i, tensor): (usize, &TensorShape)| {
            let Some(given) = &self.data else { return Ok(data::generate(tensor, seed(i))) };
            match given.fill(&tensor.name) {
                Some(fill) => Ok(data::filled(tensor, fill, seed(i))),
                None => Ok(given.contents(tensor, nth)?.unwrap_or_else(|| data::generate(tensor, seed(i)))),
            }
        };
        self.inputs.iter().enumerate().map(of).collect()
    }

    /// What the user may have to say of inputs for which random values are likely wrong, integers that nobody gave; none
    /// where there is no such input.
    pub fn doubts(&self) -> Option<String> {
        let is_given = |input: &&TensorShape| self.data.as_ref().is_some_and(|data| data.has(&input.name));
        let integers =
            [Datatype::Int16, Datatype::Int32, Datatype::Int64, Datatype::Uint16, Datatype::Uint32, Datatype::Uint64];
        let doubtful = self.inputs.iter().filter(|input| integers.contains(&input.dtype) && !is_given(input));
        let flag = |input: &TensorShape| match input.elements() {
            0 | 1 => format!("--data {}=16000", input.name),
            _ => format!("--data {}=0..30000", input.name),
        };
        let flags: Vec<String> = doubtful.map(flag).collect();
        (!flags.is_empty()).then(|| {
            format!("random integers are 0 and 1, which may be wrong here; say what they are, as {}", flags.join(" "))
        })
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

/// The code of outputs that are not as they were declared.
pub const DIFFERS: &str = "output_differs";
/// The code of outputs that hold infinities or NaN.
pub const NOT_FINITE: &str = "output_not_finite";

/// Checks each output against itself and against the signature. What cannot be an answer to this batch is an error; what
/// else differs is remarked on.
fn check_outputs(subject: &Subject, outputs: &[Output]) -> Result<Vec<Remark>, Problem> {
    if outputs.is_empty() {
        return Err(bad_response("the response has no outputs"));
    }
    let differs = |name: &str, message: String| Remark { code: DIFFERS, output: name.to_owned(), message };
    let mut remarks = Vec::new();
    for declared in subject.outputs.iter().filter(|declared| outputs.iter().all(|o| o.name != declared.name)) {
        remarks.push(differs(&declared.name, format!("output '{}' was declared and did not come", declared.name)));
    }
    for output in outputs {
        check_size(output)?;
        if let Some(declared) = subject.outputs.iter().find(|declared| declared.name == output.name) {
            remarks.extend(compare(subject, declared, output)?.map(|message| differs(&output.name, message)));
        }
        if let Some(at) = data::first_not_finite(output.dtype, &output.raw) {
            let name = output.name.clone();
            let message = format!(
                "output '{name}' holds infinities or NaN, first at element {at}: masked scores may be so by design, else give \
                 data that the model understands (--data)"
            );
            remarks.push(Remark { code: NOT_FINITE, output: name, message });
        }
    }
    Ok(remarks)
}

/// That an output has as many bytes as its shape needs.
fn check_size(Output { name, dtype, shape, raw }: &Output) -> Result<(), Problem> {
    let elements =
        elements(shape).ok_or_else(|| bad_response(format!("output '{name}' has an impossible shape {shape:?}")))?;
    match dtype.size() {
        Some(size) if elements.checked_mul(size as u64) != Some(raw.len() as u64) => {
            let message = format!("output '{name}' has {} bytes, its shape needs {elements} of {size}", raw.len());
            Err(bad_response(message))
        }
        _ => Ok(()),
    }
}

/// How an output differs from what was declared, in words; none where it does not.
///
/// # Errors
/// `bad_response` where it cannot be for this batch.
fn compare(subject: &Subject, declared: &TensorSpec, output: &Output) -> Result<Option<String>, Problem> {
    let Output { name, dtype, shape, .. } = output;
    let batch = subject.batch_size;
    let axis = subject.output_axes.get(name).copied().unwrap_or_else(|| counts_items(declared, batch));
    let differs = match fit(&declared.shape, axis, shape, i64::from(batch)) {
        Fit::OtherBatch => {
            let message = format!(
                "output '{name}' has shape {shape:?} for a batch of {batch}, {} was declared",
                describe(&declared.shape)
            );
            return Err(bad_response(message).with_field("shape"));
        }
        Fit::Differs => {
            Some(format!("has shape {shape:?} for a batch of {batch}, {} was declared", describe(&declared.shape)))
        }
        Fit::Same => None,
    };
    let other = (*dtype != declared.dtype).then(|| format!("is {dtype}, {} was declared", declared.dtype));
    let said: Vec<String> = differs.into_iter().chain(other).collect();
    Ok((!said.is_empty()).then(|| format!("output '{name}' {}", said.join(" and "))))
}

/// The axis of an output that counts items as far as the server tells it: an open first one, or one as long as the batch.
fn counts_items(declared: &TensorSpec, batch: u32) -> Option<u32> {
    match declared.shape.first() {
        Some(Dim::Dynamic(_)) => Some(0),
        Some(Dim::Fixed(length)) if batch > 1 && *length == u64::from(batch) => Some(0),
        _ => None,
    }
}

#[derive(PartialEq, Debug)]
enum Fit {
    Same,
    Differs,
    /// It can be no answer to a call of so many items.
    OtherBatch,
}

/// How a shape fits what was declared; nothing is declared by a shape without axes.
fn fit(declared: &[Dim], items: Option<u32>, got: &[i64], batch: i64) -> Fit {
    let elements = elements(got).unwrap_or(0);
    let fixed = |(got, want): (&i64, &Dim)| !matches!(want, Dim::Fixed(want) if *got as u64 != *want);
    let alike = got.len() == declared.len() && got.iter().zip(declared).all(fixed);
    match items.map(|axis| axis as usize) {
        _ if declared.is_empty() => Fit::Same,
        None if alike => Fit::Same,
        None => Fit::Differs,
        Some(axis) if got.len() == declared.len() => match got.get(axis) {
            Some(&length) if length == batch && alike => Fit::Same,
            Some(&length) if 0 < length && length < batch => Fit::OtherBatch,
            _ => Fit::Differs,
        },
        Some(_) if got.first() == Some(&batch) || elements.is_multiple_of(batch.max(1).unsigned_abs()) => Fit::Differs,
        Some(_) => Fit::OtherBatch,
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

    /// Checks a response's message (without the prefix) wholly: whether it can be an answer to the call.
    fn check(&self, message: &[u8]) -> Result<(), Problem>;

    /// The same, with what is otherwise worth a word.
    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem> {
        self.check(message).map(|()| Vec::new())
    }

    /// What the user may have to say of the inputs if the server refuses them.
    fn doubts(&self) -> Option<String> {
        None
    }

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
        let answer = call_once(endpoint, &Unary::new(self.prepare_one()?), timeout, &cancel).await?;
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

/// What the meter drives: a server, the inspector's requests, and its checks of the answers.
///
/// # Errors
/// As the inspector's, in making its requests.
pub fn target(endpoint: Endpoint, inspector: Arc<dyn Inspector>) -> Result<Target, Problem> {
    let (call, caller) = (inspector.prepare()?, inspector.clone());
    let transport: Arc<dyn Transport> = match inspector.caller() {
        Some(_) => Arc::new(Callers::new(call.batch_size, move || caller.caller())),
        None => Arc::new(Unary::new(call)),
    };
    Ok(Target::new(endpoint, transport, Arc::new(Checked(inspector))))
}

/// An inspector as the meter knows it.
struct Checked(Arc<dyn Inspector>);

impl Check for Checked {
    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem> {
        self.0.examine(message)
    }
}

/// A response that is not a valid result.
pub(crate) fn bad_response(message: impl Into<String>) -> Problem {
    Problem::new(Code::BadResponse, message)
}
