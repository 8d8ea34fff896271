//! The calls of a load point as they are sent: a gRPC method and its encoded messages.

use bytes::Bytes;
use modelmeter_common::Problem;

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
