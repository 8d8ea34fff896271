//! Seeded weights: the same bytes on every machine, whatever versions of crates are linked.
//!
//! Only integer arithmetic and single IEEE operations are used, so nothing depends on a libm, on the order of a
//! sum or on vector width.

/// A stream of 64-bit numbers. Source: G. Steele, D. Lea, C. Flood, "Fast Splittable Pseudorandom Number
/// Generators" (OOPSLA 2014), SplitMix64.
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The stream of a name: its FNV-1a hash is the seed.
    pub fn named(name: &str) -> Self {
        Self(
            name.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)),
        )
    }

    /// The next number.
    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// About normal, in units of [`UNIT`] of its standard deviation: the sum of four uniform 16-bit numbers, centred.
    #[inline]
    pub fn next_bell(&mut self) -> i32 {
        let bits = self.next_u64();
        let sum = (bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48);
        sum as i32 - 2 * 0xffff
    }
}

/// What one standard deviation of [`SplitMix64::next_bell`] is: √(4·(2¹⁶)²/12) = 2¹⁶/√3.
const UNIT: f32 = 37_837.227;

/// `rows` filters of `row` weights, about normal with standard deviation `std`, as little-endian bytes. With
/// `centred` each filter sums to zero, so that it does not answer to the mean of its inputs.
pub fn weights(random: &mut SplitMix64, rows: usize, row: usize, std: f32, centred: bool) -> Vec<u8> {
    let scale = std / UNIT;
    let mut bytes = Vec::with_capacity(rows * row * 4);
    let mut filter = vec![0i32; row];
    for _ in 0..rows {
        filter.iter_mut().for_each(|weight| *weight = random.next_bell());
        let mean = if centred { filter.iter().map(|&w| i64::from(w)).sum::<i64>() as f32 / row as f32 } else { 0.0 };
        bytes.extend(filter.iter().flat_map(|&weight| ((weight as f32 - mean) * scale).to_le_bytes()));
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_is_the_published_one() {
        // First outputs for seed 1234567, as printed by the reference implementation.
        let mut random = SplitMix64(1_234_567);
        assert_eq!(random.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(random.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn weights_have_the_spread_asked_for_and_centred_filters_sum_to_zero() {
        let bytes = weights(&mut SplitMix64::named("test"), 200, 500, 0.5, true);
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
        let variance = values.iter().map(|&v| f64::from(v * v)).sum::<f64>() / values.len() as f64;
        assert!((variance.sqrt() - 0.5).abs() < 0.005, "{}", variance.sqrt());
        for filter in values.chunks_exact(500) {
            assert!(filter.iter().sum::<f32>().abs() < 1e-3);
        }
    }
}
