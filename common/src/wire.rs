//! The envelope of everything on a queue: magic, version, length, checksum, then bincode.
//!
//! The only user of bincode. Nothing is decoded before magic, version, length and checksum hold, and
//! then with a limit and to the last byte: bincode without a limit can be made to abort by ten bytes.
//!
//! Layout, big-endian: `MMTR` | version u16 | kind u16 | body length u32 | sha256 of the body, first 8 bytes | body.
//!
//! A part's metrics follow it in the body, where it has any: a part without is the same bytes as before there were metrics.

use crate::part::Metric;
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// The first bytes of every message.
pub const MAGIC: [u8; 4] = *b"MMTR";
/// The version that this build writes and reads.
pub const VERSION: u16 = 3;
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
}
impl Message for crate::part::Part {
    const KIND: Kind = Kind::Part;

    fn metrics(&mut self) -> Option<&mut Vec<Metric>> {
        Some(&mut self.point.metrics)
    }

    fn metrics_to_write(&self) -> &[Metric] {
        &self.point.metrics
    }
}
impl Message for crate::part::Final {
    const KIND: Kind = Kind::Final;
}

/// Why bytes are not a message of ours. None of these is worth a retry: quarantine it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum WireError {
    #[error("not a modelmeter message")]
    Magic,
    #[error("message of wire version {0}, this build reads {VERSION}")]
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

/// Puts a message in its envelope.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
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
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&(M::KIND as u16).to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(&checksum(&body));
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The kind of an enveloped message, its body unchecked.
pub fn kind(bytes: &[u8]) -> Result<Kind, WireError> {
    match header(bytes)?.0 {
        1 => Ok(Kind::Hint),
        2 => Ok(Kind::Part),
        3 => Ok(Kind::Final),
        got => Err(WireError::Kind { got, wanted: 0 }),
    }
}

/// Takes a message out of its envelope.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    let (kind, body) = header(bytes)?;
    if kind != M::KIND as u16 {
        return Err(WireError::Kind { got: kind, wanted: M::KIND as u16 });
    }
    if bytes[12..HEADER_BYTES] != checksum(body) {
        return Err(WireError::Checksum);
    }
    let wrong = |e: bincode::error::DecodeError| WireError::Body(e.to_string());
    let (mut message, mut used): (M, usize) = bincode::serde::decode_from_slice(body, config()).map_err(wrong)?;
    if let Some(metrics) = message.metrics()
        && used < body.len()
    {
        let (found, more) = bincode::serde::decode_from_slice(&body[used..], config()).map_err(wrong)?;
        *metrics = found;
        used += more;
    }
    if used == body.len() { Ok(message) } else { Err(WireError::Length) }
}

/// Checks magic, version and length; gives the kind and the body.
fn header(bytes: &[u8]) -> Result<(u16, &[u8]), WireError> {
    let fixed = bytes.get(..HEADER_BYTES).ok_or(WireError::Length)?;
    if fixed[..4] != MAGIC {
        return Err(WireError::Magic);
    }
    let short = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    if short(4) != VERSION {
        return Err(WireError::Version(short(4)));
    }
    let length = u32::from_be_bytes([fixed[8], fixed[9], fixed[10], fixed[11]]) as usize;
    if length > MAX_BODY_BYTES {
        return Err(WireError::TooLarge(length));
    }
    if bytes.len() != HEADER_BYTES + length {
        return Err(WireError::Length);
    }
    Ok((short(6), &bytes[HEADER_BYTES..]))
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
mod tests {
    use super::*;
    use crate::{
        RequestId, TaskId,
        load::LoadPoint,
        part::{Part, Point},
        stats::Histogram,
    };

    fn hint() -> Hint {
        Hint { task_id: TaskId(uuid::Uuid::from_u128(7)) }
    }

    #[test]
    fn golden_bytes() {
        let hex: String = encode(&hint()).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "4d4d5452000300010000002c831892e82a6278fb000000000000002430303030303030302d303030302d303030302d303030302d303030303030303030303037"
        );
    }

    #[test]
    fn every_cut_every_flip_and_every_excess_is_refused() {
        let good = encode(&hint()).unwrap();
        assert_eq!(decode::<Hint>(&good).unwrap(), hint());
        for cut in 0..good.len() {
            assert!(decode::<Hint>(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(decode::<Hint>(&bad).is_err(), "flipped byte {at}");
        }
        let mut long = good.clone();
        long.push(0);
        assert!(decode::<Hint>(&long).is_err());
    }

    #[test]
    fn a_part_without_metrics_is_the_bytes_that_it_was_before_there_were_any_and_one_with_them_comes_back() {
        let mut part = Part {
            schema_version: 2,
            request_id: RequestId(uuid::Uuid::from_u128(1)),
            task_id: TaskId(uuid::Uuid::from_u128(2)),
            attempt: 1,
            seq: 0,
            point: Point::blank(LoadPoint::Closed { concurrency: 1 }, 1),
        };
        let without = encode(&part).unwrap();
        assert_eq!(sha256_hex(&without), "6f1cc58ee0dc6638f3232f60af6e4213e9cddac6f3f7d89243ff6f7cd8814c7b");
        assert_eq!(decode::<Part>(&without).unwrap(), part);
        assert!(!serde_json::to_string(&part).unwrap().contains("metrics"));
        let mut values = Histogram::default();
        values.record(5_000_000);
        let metric = Metric { name: "m_ms".into(), unit: "ms".into(), values, failures: 1, percentiles: Vec::new() };
        part.point.metrics = vec![metric];
        let with = encode(&part).unwrap();
        assert!(with.len() > without.len());
        assert_eq!(decode::<Part>(&with).unwrap(), part);
        let json = serde_json::to_string(&part).unwrap();
        assert_eq!(serde_json::from_str::<Part>(&json).unwrap(), part);
        for cut in without.len()..with.len() {
            assert!(decode::<Part>(&with[..cut]).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_body_that_claims_a_huge_string_is_refused() {
        // A fixed-width length of u64::MAX where the id's text should be.
        let body = [0xff; 8];
        let mut bytes = [&MAGIC[..], &VERSION.to_be_bytes(), &1u16.to_be_bytes(), &8u32.to_be_bytes()].concat();
        bytes.extend_from_slice(&checksum(&body));
        bytes.extend_from_slice(&body);
        assert!(matches!(decode::<Hint>(&bytes), Err(WireError::Body(_))));
    }
}
