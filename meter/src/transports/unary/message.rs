//! gRPC's frames around messages. Source: the gRPC documentation, "gRPC over HTTP2", Length-Prefixed-Message.

use bytes::Bytes;
use modelmeter_common::Problem;

/// A complete gRPC frame around a message.
pub fn grpc_frame(message: &impl prost::Message) -> Result<Bytes, Problem> {
    let mut frame = frame_head(message.encoded_len())?;
    message.encode(&mut frame).expect("a vector takes every write");
    Ok(frame.into())
}

/// A complete gRPC frame around a message that is encoded already.
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
