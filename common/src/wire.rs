//! The envelope of everything on a queue: magic, version, length, checksum, then bincode.
//!
//! The only user of bincode. Nothing is decoded before magic, version, length and checksum hold, and
//! then with a limit and to the last byte: bincode without a limit can be made to abort by ten bytes.
//!
//! A build writes [`VERSION`] and reads [`PREVIOUS`] beside it, so that machines can be upgraded one after the other, the
//! coordinator first: it takes results of workers of either version, and its hints are what both read.
//!
//! Layout, big-endian: `MMTR` | version u16 | kind u16 | body length u32 | sha256 of the body, first 8 bytes | body.
//!
//! A part's metrics follow it in the body, where it has any: a part without is the same bytes as before there were metrics.

mod previous;

use crate::part::Metric;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// The first bytes of every message.
pub const MAGIC: [u8; 4] = *b"MMTR";
/// The version that this build writes.
pub const VERSION: u16 = 3;
/// The version that this build reads beside its own.
pub const PREVIOUS: u16 = 2;
/// Bytes before the body.
pub const HEADER_BYTES: usize = 20;
/// The largest body: a part with all its histograms is under 200 kB.
pub const MAX_BODY_BYTES: usize = 4 << 20;

/// What is inside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A task hint for a pool's queue.
    Hint = 1,
    /// A part for the results queue.
    Part = 2,
    /// A final for the results queue.
    Final = 3,
}

/// A message type and its tag.
pub trait Message: Serialize + DeserializeOwned {
    /// Its tag in the envelope.
    const KIND: Kind;
    /// Its layout in [`PREVIOUS`].
    type Previous: DeserializeOwned + Into<Self>;

    /// The metrics that follow the message; none for what cannot have any.
    fn metrics(&mut self) -> Option<&mut Vec<Metric>> {
        None
    }

    /// The same, to write them.
    fn metrics_to_write(&self) -> &[Metric] {
        &[]
    }
}

/// The hint that a task may be claimed. Losing or doubling one does no harm.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, serde::Deserialize)]
pub struct Hint {
    /// The task to claim.
    pub task_id: crate::TaskId,
}

impl Message for Hint {
    const KIND: Kind = Kind::Hint;
    type Previous = Self;
}
impl Message for crate::part::Part {
    const KIND: Kind = Kind::Part;
    type Previous = previous::Part;

    fn metrics(&mut self) -> Option<&mut Vec<Metric>> {
        Some(&mut self.point.metrics)
    }

    fn metrics_to_write(&self) -> &[Metric] {
        &self.point.metrics
    }
}
impl Message for crate::part::Final {
    const KIND: Kind = Kind::Final;
    type Previous = Self;
}

/// Why bytes are not a message of ours. None of these is worth a retry: quarantine it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum WireError {
    #[error("not a modelmeter message")]
    Magic,
    #[error("message of wire version {0}, this build reads {PREVIOUS} and {VERSION}")]
    Version(u16),
    #[error("message of kind {got} where {wanted} was expected")]
    Kind { got: u16, wanted: u16 },
    #[error("body of {0} bytes, at most {MAX_BODY_BYTES} are accepted")]
    TooLarge(usize),
    #[error("message is cut off or too long")]
    Length,
    #[error("checksum does not match")]
    Checksum,
    #[error("body does not decode: {0}")]
    Body(String),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_big_endian().with_fixed_int_encoding().with_limit::<MAX_BODY_BYTES>()
}

fn checksum(body: &[u8]) -> [u8; 8] {
    let digest = Sha256::digest(body);
    [digest[0], digest[1], digest[2], digest[3], digest[4], digest[5], digest[6], digest[7]]
}

/// Whether this build reads messages of this version.
pub fn is_read(version: u16) -> bool {
    version == VERSION || version == PREVIOUS
}

/// Puts a message in its envelope.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    enveloped(message, VERSION)
}

/// Puts a message of unchanged layout in an envelope that the previous version's builds read, too.
pub fn encode_for_both<M: Message<Previous = M>>(message: &M) -> Result<Vec<u8>, WireError> {
    enveloped(message, PREVIOUS)
}

fn enveloped<M: Message>(message: &M, version: u16) -> Result<Vec<u8>, WireError> {
    let wrong = |e: bincode::error::EncodeError| WireError::Body(e.to_string());
    let mut body = bincode::serde::encode_to_vec(message, config()).map_err(wrong)?;
    let metrics = message.metrics_to_write();
    if !metrics.is_empty() {
        body.extend(bincode::serde::encode_to_vec(metrics, config()).map_err(wrong)?);
    }
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_BODY_BYTES)
        .ok_or(WireError::TooLarge(body.len()))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&version.to_be_bytes());
    bytes.extend_from_slice(&(M::KIND as u16).to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&checksum(&body));
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The kind of an enveloped message, its body unchecked.
pub fn kind(bytes: &[u8]) -> Result<Kind, WireError> {
    match header(bytes)?.kind {
        1 => Ok(Kind::Hint),
        2 => Ok(Kind::Part),
        3 => Ok(Kind::Final),
        got => Err(WireError::Kind { got, wanted: 0 }),
    }
}

/// Takes a message out of its envelope; one of the previous version becomes one of this.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    let Header { version, kind, body } = header(bytes)?;
    if kind != M::KIND as u16 {
        return Err(WireError::Kind { got: kind, wanted: M::KIND as u16 });
    }
    if bytes[12..HEADER_BYTES] != checksum(body) {
        return Err(WireError::Checksum);
    }
    if version == PREVIOUS {
        return whole::<M::Previous>(body).map(Into::into);
    }
    let (mut message, mut used): (M, usize) = from_slice(body)?;
    if let Some(metrics) = message.metrics()
        && used < body.len()
    {
        let (found, more) = from_slice(&body[used..])?;
        *metrics = found;
        used += more;
    }
    if used == body.len() { Ok(message) } else { Err(WireError::Length) }
}

fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, usize), WireError> {
    bincode::serde::decode_from_slice(bytes, config()).map_err(|e| WireError::Body(e.to_string()))
}

/// Decodes a body, to its last byte.
fn whole<T: DeserializeOwned>(body: &[u8]) -> Result<T, WireError> {
    let (message, used) = from_slice(body)?;
    if used == body.len() { Ok(message) } else { Err(WireError::Length) }
}

struct Header<'a> {
    version: u16,
    kind: u16,
    body: &'a [u8],
}

/// Checks magic, version and length.
fn header(bytes: &[u8]) -> Result<Header<'_>, WireError> {
    let fixed = bytes.get(..HEADER_BYTES).ok_or(WireError::Length)?;
    if fixed[..4] != MAGIC {
        return Err(WireError::Magic);
    }
    let short = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let version = short(4);
    if !is_read(version) {
        return Err(WireError::Version(version));
    }
    let length = u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]) as usize;
    if length > MAX_BODY_BYTES {
        return Err(WireError::TooLarge(length));
    }
    if bytes.len() != HEADER_BYTES + length {
        return Err(WireError::Length);
    }
    Ok(Header { version, kind: short(6), body: &bytes[HEADER_BYTES..] })
}

/// The sha256 (hex) of a message's wire form: how a final names its parts.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(Sha256::new_with_prefix(bytes))
}

/// What was hashed as its sha256 in lower-case hex.
pub fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
