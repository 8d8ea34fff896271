//! The one histogram configuration of the whole system, and its safe serial form.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

/// Values closer than this are not told apart, in nanoseconds: a thousandth of 16 µs, which a call to a null engine takes.
const LOW_NS: u64 = 16;
/// Highest value, in nanoseconds: ten minutes. Greater ones are counted as this.
const HIGH_NS: u64 = 600_000_000_000;
/// Significant decimal digits.
const DIGITS: u8 = 3;
/// Bytes of a V2 header, and where its fields lie. Source: HdrHistogram, "V2 encoding".
const HEADER: usize = 40;
const V2_COOKIE: u32 = 0x1c84_9303;

/// Counts of nanoseconds, to three significant digits from 16 µs to 10 min, and to 16 ns below. Merging adds counts, so it
/// is associative and commutative to the bit.
#[derive(Clone, PartialEq, Debug)]
pub struct Histogram(hdrhistogram::Histogram<u64>);

/// Why bytes are not a histogram of ours.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum HistogramError {
    #[error("not an uncompressed V2 histogram")]
    NotV2,
    #[error("histogram of other bounds or digits than ours")]
    OtherBounds,
    #[error("histogram is cut off or corrupt")]
    Corrupt,
}

impl Default for Histogram {
    fn default() -> Self {
        let inner = hdrhistogram::Histogram::new_with_bounds(LOW_NS, HIGH_NS, DIGITS);
        Self(inner.expect("the bounds are constants that hdrhistogram accepts"))
    }
}

impl Histogram {
    /// Counts one value.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// Adds another's counts.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("all histograms have the same bounds");
    }

    /// Number of values.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Forgets all values, keeps the memory.
    pub fn clear(&mut self) {
        self.0.reset();
    }

    /// The value at this percentile (0 to 100), in nanoseconds; 0 if empty.
    pub fn percentile_ns(&self, q: f64) -> u64 {
        self.0.value_at_percentile(q)
    }

    /// The value at this rank (1 to `len`), in nanoseconds.
    pub fn rank_ns(&self, rank: u64) -> u64 {
        if self.is_empty() { 0 } else { self.0.value_at_quantile((rank as f64 - 0.5) / self.len() as f64) }
    }

    /// Number of values of at most this (to within the digits), in nanoseconds.
    pub fn count_up_to(&self, ns: u64) -> u64 {
        self.0.count_between(0, ns)
    }

    /// The same of values in rising order, in one pass.
    pub fn counts_up_to<const N: usize>(&self, rising_ns: [u64; N]) -> [u64; N] {
        let (mut from, mut count) = (0, 0);
        rising_ns.map(|ns| {
            if ns >= from {
                count += self.0.count_between(from, ns);
                from = self.0.next_non_equivalent(ns);
            }
            count
        })
    }

    /// The mean, in nanoseconds.
    pub fn mean_ns(&self) -> f64 {
        self.0.mean()
    }

    /// The greatest value, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.0.max()
    }

    /// Uncompressed V2.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        V2Serializer::new().serialize(&self.0, &mut bytes).expect("a vector takes every write");
        bytes
    }

    /// Accepts only uncompressed V2 with our own bounds and digits, so that a header cannot claim memory.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HistogramError> {
        let header: &[u8; HEADER] =
            bytes.get(..HEADER).and_then(|h| h.try_into().ok()).ok_or(HistogramError::Corrupt)?;
        let word = |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
        if word(0) != V2_COOKIE | 0x10 && word(0) != V2_COOKIE {
            return Err(HistogramError::NotV2);
        }
        if (word(8), word(12), long(16), long(24)) != (0, u32::from(DIGITS), LOW_NS, HIGH_NS) {
            return Err(HistogramError::OtherBounds);
        }
        if word(4) as usize != bytes.len() - HEADER {
            return Err(HistogramError::Corrupt);
        }
        Deserializer::new().deserialize(&mut &bytes[..]).map(Self).map_err(|_| HistogramError::Corrupt)
    }
}

/// Base64 in JSON, bytes on the wire.
impl Serialize for Histogram {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        let bytes = self.to_bytes();
        if s.is_human_readable() { s.serialize_str(&STANDARD.encode(bytes)) } else { s.serialize_bytes(&bytes) }
    }
}

impl<'de> Deserialize<'de> for Histogram {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let bytes = if d.is_human_readable() {
            STANDARD.decode(String::deserialize(d)?).map_err(D::Error::custom)?
        } else {
            Vec::<u8>::deserialize(d)?
        };
        Self::from_bytes(&bytes).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Histogram {
        let mut h = Histogram::default();
        (1..=10_000u64).for_each(|i| h.record(i * 10_000));
        h
    }

    #[test]
    fn counts_are_the_same_one_by_one_and_in_one_pass() {
        let mut h = Histogram::default();
        (0..5000u64).for_each(|i| h.record(i * i * 37));
        let values = [0, 40_000, 40_001, 40_001, 900_000, 3_000_000, 900_000_000_000];
        assert_eq!(h.counts_up_to(values), values.map(|ns| h.count_up_to(ns)));
    }

    #[test]
    fn survives_its_serial_form_and_nothing_else_is_accepted() {
        let bytes = sample().to_bytes();
        assert_eq!(Histogram::from_bytes(&bytes).unwrap(), sample());
        for cut in [0, 3, HEADER, bytes.len() - 1] {
            assert!(Histogram::from_bytes(&bytes[..cut]).is_err());
        }
        let mut huge = bytes.clone();
        huge[24..32].copy_from_slice(&u64::MAX.to_be_bytes());
        assert!(matches!(Histogram::from_bytes(&huge), Err(HistogramError::OtherBounds)));
    }

    #[test]
    fn ranks_and_percentiles_agree_within_the_digits() {
        let h = sample();
        assert!((h.rank_ns(5_000) as f64 / 50_000_000.0 - 1.0).abs() < 1e-3);
        assert!((h.percentile_ns(99.0) as f64 / 99_000_000.0 - 1.0).abs() < 1e-3);
    }
}
