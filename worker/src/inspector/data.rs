//! Test data from a seed: values that most models take, and the check that values are finite.

use bytes::Bytes;
use modelmeter_common::{
    model::{Datatype, SHORT_STRING, TensorShape},
    testdata::{Fill, half},
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// Integers of 16 bits and more are drawn below this: flags and indexes that are valid almost everywhere.
const INTEGERS: u64 = 2;
/// Strings end in a number below this.
const WORDS: u64 = 1000;

/// Little-endian contents for a tensor; strings as KServe v2 has them (a four-byte length before each).
pub fn generate(tensor: &TensorShape, seed: u64) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(seed);
    let n = tensor.elements() as usize;
    let mut out = Vec::with_capacity(n * tensor.dtype.size().unwrap_or(SHORT_STRING));
    let fixed = fixed_value(&tensor.name);
    for _ in 0..n {
        push(&mut out, tensor.dtype, fixed, &mut rng);
    }
    out.into()
}

/// The contents of an input that a user fills, a range from the seed.
pub fn filled(tensor: &TensorShape, fill: &Fill, seed: u64) -> Bytes {
    let mut rng = SmallRng::seed_from_u64(seed);
    fill.contents(tensor, || rng.random())
}

/// What masks and segment ids of transformers must be for the input to be one whole sentence.
fn fixed_value(name: &str) -> Option<u64> {
    let name = name.to_ascii_lowercase();
    if name.contains("mask") {
        Some(1)
    } else if name.contains("token_type") || name.contains("segment") {
        Some(0)
    } else {
        None
    }
}

fn push(out: &mut Vec<u8>, dtype: Datatype, fixed: Option<u64>, rng: &mut SmallRng) {
    let id = fixed.unwrap_or_else(|| rng.random_range(0..INTEGERS));
    match dtype {
        Datatype::Bool => out.push(id.min(1) as u8),
        Datatype::Uint8 => out.push(fixed.unwrap_or_else(|| rng.random_range(0..256)) as u8),
        Datatype::Int8 => out.push(fixed.unwrap_or_else(|| rng.random_range(0..128)) as u8),
        Datatype::Uint16 | Datatype::Int16 => out.extend((id as u16).to_le_bytes()),
        Datatype::Uint32 | Datatype::Int32 => out.extend((id as u32).to_le_bytes()),
        Datatype::Uint64 | Datatype::Int64 => out.extend(id.to_le_bytes()),
        Datatype::Fp16 => out.extend(half(real(fixed, rng)).to_le_bytes()),
        Datatype::Bf16 => out.extend(((real(fixed, rng).to_bits() >> 16) as u16).to_le_bytes()),
        Datatype::Fp32 => out.extend(real(fixed, rng).to_le_bytes()),
        Datatype::Fp64 => out.extend(f64::from(real(fixed, rng)).to_le_bytes()),
        Datatype::Bytes => {
            let text = format!("text {}", rng.random_range(0..WORDS));
            out.extend((text.len() as u32).to_le_bytes());
            out.extend(text.as_bytes());
        }
    }
}

/// About standard normal: the sum of four uniform draws, scaled; never denormal, at most 3.5 from 0.
fn real(fixed: Option<u64>, rng: &mut SmallRng) -> f32 {
    if let Some(value) = fixed {
        return value as f32;
    }
    let sum: f32 = (0..4).map(|_| rng.random::<f32>() - 0.5).sum();
    let value = sum * 3f32.sqrt();
    // Denormals slow some engines down a hundredfold.
    if value.abs() < 1e-3 { 1e-3 } else { value }
}

/// The place of the first value that is not finite, in elements; none for integers and strings.
pub fn first_not_finite(dtype: Datatype, raw: &[u8]) -> Option<usize> {
    match dtype {
        Datatype::Fp32 => raw.as_chunks::<4>().0.iter().position(|b| !f32::from_le_bytes(*b).is_finite()),
        Datatype::Fp64 => raw.as_chunks::<8>().0.iter().position(|b| !f64::from_le_bytes(*b).is_finite()),
        Datatype::Fp16 => raw.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
        Datatype::Bf16 => raw.as_chunks::<2>().0.iter().position(|b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, dtype: Datatype) -> TensorShape {
        TensorShape::new(name, dtype, vec![4, 256])
    }

    #[test]
    fn every_type_has_its_size_and_is_the_same_from_the_same_seed() {
        for dtype in Datatype::ALL {
            let raw = generate(&tensor("x", dtype), 7);
            assert_eq!(raw, generate(&tensor("x", dtype), 7));
            assert_ne!(raw, generate(&tensor("x", dtype), 8), "{dtype}");
            assert_eq!(first_not_finite(dtype, &raw), None);
            if let Some(size) = dtype.size() {
                assert_eq!(raw.len(), 1024 * size);
            }
        }
    }

    #[test]
    fn floats_look_normal_and_masks_are_ones() {
        let raw = generate(&tensor("x", Datatype::Fp32), 1);
        let values: Vec<f32> = raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let mean = values.iter().sum::<f32>() / 1024.0;
        let sd = (values.iter().map(|v| v * v).sum::<f32>() / 1024.0).sqrt();
        assert!(mean.abs() < 0.1 && (sd - 1.0).abs() < 0.1, "{mean} {sd}");
        let ones = generate(&tensor("attention_mask", Datatype::Int64), 1);
        assert!(ones.as_chunks::<8>().0.iter().all(|b| i64::from_le_bytes(*b) == 1));
        assert_eq!(half(1.0), 0x3c00);
        assert_eq!(half(-2.0), 0xc000);
    }

    #[test]
    fn what_is_not_finite_is_found() {
        let raw: Vec<u8> = [1.0f32, f32::NAN].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(first_not_finite(Datatype::Fp32, &raw), Some(1));
        assert_eq!(first_not_finite(Datatype::Fp16, &0x7c00u16.to_le_bytes()), Some(0));
    }
}
