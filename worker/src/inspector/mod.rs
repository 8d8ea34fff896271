//! Inspectors: turn a model's signature into requests that are ready to send, and check the answers.
//!
//! What belongs here: protocols, one file each, and those of a user's own ([`Custom`]). What does not: sending in a loop and timing, which is
//! [`modelmeter_meter`]'s. Requests are encoded once, before any clock starts.

mod answer;
mod child;
mod configured;
pub mod data;
pub mod kserve_v2;
mod pipe;
pub mod predict;
mod process;
mod program;
mod registry;
mod server;
mod subject;
pub mod tfs;

pub use answer::{DIFFERS, NOT_FINITE, Output};
pub use configured::configured;
pub use program::Program;
pub use registry::{Custom, Maker, find};
pub use server::{ServerWait, metadata, reach};
pub use subject::{Metadata, Subject};

pub(crate) use answer::bad_response;
use answer::{check_outputs, elements, prefixed};

use async_trait::async_trait;
use bytes::Bytes;
use modelmeter_common::{Problem, engine::Protocol};
use modelmeter_meter::{
    Caller, Callers, Check, Remark, Target, Transport, call_once,
    endpoint::Endpoint,
    unary::{Call, Unary},
};
use std::{sync::Arc, time::Duration};

/// Different requests that are made of one signature, and sent in turn.
pub const DISTINCT_REQUESTS: usize = 8;
/// The most bytes that they take together; at least one is made.
pub const MAX_REQUEST_BYTES: u64 = 256 << 20;

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
