//! Inspectors: turn a model's signature into requests that are ready to send, and check the answers.
//!
//! What belongs here: protocols, one file each, and those of a user's own ([`Custom`]). What does not: sending in a loop and timing, which is
//! [`crate::load`]'s. Requests are encoded once, before any clock starts.

mod child;
pub mod data;
pub mod kserve_v2;
mod pipe;
mod process;
mod registry;

pub use registry::{Custom, DEFAULT, Maker, Program, find};

use crate::load::Caller;
use async_trait::async_trait;
use bytes::Bytes;
use modelmeter_common::{
    Code, Problem,
    model::{TensorShape, TensorSpec},
    testdata::DataSet,
};
use std::sync::Arc;

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

    /// One call, untimed, checked: the endpoint is `host:port`.
    async fn infer(&self, endpoint: &str) -> Result<(), Problem> {
        let timeout = std::time::Duration::from_secs(60);
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
