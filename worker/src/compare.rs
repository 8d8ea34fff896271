//! Whether engines give the same answers: each beside the first one's, purely.

use crate::inspector::Output;
use modelmeter_common::{Code, Problem, model::Datatype, task::Cell};
use serde::Serialize;

/// One engine's answer beside the first one's.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The engine.
    pub engine: String,
    /// The format that it loaded.
    pub artifact: Option<String>,
    /// Over all elements of its first output.
    pub std_dev: Option<f64>,
    /// How far apart the items of the batch lie: the standard deviation over them, as a mean over an item's elements.
    pub std_dev_between_items: Option<f64>,
    /// The largest difference from the first engine's answer, in standard deviations of that.
    pub max_deviation: Option<f64>,
    /// Whether that is within the tolerance.
    pub agrees: bool,
    /// Why there is no answer, or none that can be compared.
    pub error: Option<Problem>,
}

/// Each answer beside the first; with a deviation of at most `tolerance` it agrees.
pub fn compare(answers: Vec<(Cell, Result<Vec<Output>, Problem>)>, tolerance: f64) -> Vec<Answer> {
    let first = answers.first().and_then(|(_, answer)| answer.as_ref().ok()).cloned();
    let one = |(cell, answer): (Cell, Result<Vec<Output>, Problem>)| {
        let compared = match (&first, &answer) {
            (Some(first), Ok(outputs)) => deviation(first, outputs),
            _ => Err("the first engine gave no answer to compare this one with".into()),
        };
        let (deviation, why_not) = match compared {
            Ok(deviation) => (Some(deviation), None),
            Err(why) => (None, Some(Problem::new(Code::BadResponse, why))),
        };
        let output = answer.as_ref().ok().and_then(|outputs| outputs.first());
        Answer {
            engine: cell.engine,
            artifact: cell.artifact.map(|artifact| artifact.format.to_string()),
            std_dev: output.and_then(numbers).map(|values| std_dev(&values)),
            std_dev_between_items: output.and_then(between_items),
            max_deviation: deviation,
            agrees: deviation.is_some_and(|deviation| deviation <= tolerance),
            error: answer.err().or(why_not),
        }
    };
    answers.into_iter().map(one).collect()
}

/// The largest difference, over outputs of the same name, or else the same place; or why they cannot be compared.
fn deviation(first: &[Output], other: &[Output]) -> Result<f64, String> {
    if first.len() != other.len() || first.is_empty() {
        return Err(format!("it gave {} outputs, the first engine {}", other.len(), first.len()));
    }
    let apart = |a: f64, b: f64| match a == b || a.is_nan() && b.is_nan() {
        true => 0.0,
        // What is not a number in one answer alone is as far as can be.
        false if a.is_nan() || b.is_nan() => f64::INFINITY,
        false => (a - b).abs(),
    };
    let pair = |(place, one): (usize, &Output)| {
        let two = other.iter().find(|output| output.name == one.name).unwrap_or(&other[place]);
        if one.shape != two.shape {
            return Err(format!(
                "output {} has shape {:?}, that of the first engine {:?}",
                two.name, two.shape, one.shape
            ));
        }
        let words =
            |output: &Output| format!("output {} is of type {}, which cannot be compared", output.name, output.dtype);
        let (a, b) = (numbers(one).ok_or_else(|| words(one))?, numbers(two).ok_or_else(|| words(two))?);
        let largest = a.iter().zip(&b).map(|(&a, &b)| apart(a, b)).fold(0.0, f64::max);
        // What does not vary must be the same.
        Ok(if largest == 0.0 { 0.0 } else { largest / std_dev(&a) })
    };
    first.iter().enumerate().map(pair).try_fold(0.0, |most, one| Ok(f64::max(most, one?)))
}

fn between_items(output: &Output) -> Option<f64> {
    let values = numbers(output)?;
    let items = usize::try_from(*output.shape.first()?).ok().filter(|&items| items > 0)?;
    let elements = values.len() / items;
    let column = |at: usize| std_dev(&values.iter().skip(at).step_by(elements).copied().collect::<Vec<_>>());
    (elements > 0).then(|| (0..elements).map(column).sum::<f64>() / elements as f64)
}

/// Of the values that are numbers: masks may be infinite.
fn std_dev(values: &[f64]) -> f64 {
    let finite = || values.iter().filter(|value| value.is_finite());
    let n = finite().count().max(1) as f64;
    let mean = finite().sum::<f64>() / n;
    (finite().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// The elements as numbers; none for strings.
fn numbers(output: &Output) -> Option<Vec<f64>> {
    fn read<const N: usize>(raw: &[u8], one: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.as_chunks::<N>().0.iter().copied().map(one).collect()
    }
    let raw = &output.raw;
    Some(match output.dtype {
        Datatype::Fp32 => read(raw, |b| f64::from(f32::from_le_bytes(b))),
        Datatype::Fp64 => read(raw, f64::from_le_bytes),
        Datatype::Int64 => read(raw, |b| i64::from_le_bytes(b) as f64),
        Datatype::Uint64 => read(raw, |b| u64::from_le_bytes(b) as f64),
        Datatype::Int32 => read(raw, |b| f64::from(i32::from_le_bytes(b))),
        Datatype::Uint32 => read(raw, |b| f64::from(u32::from_le_bytes(b))),
        Datatype::Int16 => read(raw, |b| f64::from(i16::from_le_bytes(b))),
        Datatype::Uint16 => read(raw, |b| f64::from(u16::from_le_bytes(b))),
        Datatype::Int8 => read(raw, |[b]| f64::from(b as i8)),
        Datatype::Uint8 | Datatype::Bool => read(raw, |[b]| f64::from(b)),
        Datatype::Fp16 => read(raw, |b| half(u16::from_le_bytes(b))),
        Datatype::Bf16 => read(raw, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
        Datatype::Bytes => return None,
    })
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff) / 1024.0);
    let size = match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction > 0.0 => f64::NAN,
        31 => f64::INFINITY,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -size } else { size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, values: &[f32]) -> Output {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Output { name: name.into(), dtype: Datatype::Fp32, shape: vec![2, values.len() as i64 / 2], raw: raw.into() }
    }

    #[test]
    fn differences_are_counted_in_standard_deviations() {
        let first = [output("logits", &[1.0, -1.0, 1.0, -1.0])];
        assert_eq!(deviation(&first, &first), Ok(0.0));
        assert_eq!(deviation(&first, &[output("output", &[1.0, -1.0, 1.5, -1.0])]), Ok(0.5));
        let why = deviation(&first, &[output("logits", &[1.0, -1.0])]).unwrap_err();
        assert_eq!(why, "output logits has shape [2, 1], that of the first engine [2, 2]");
        assert_eq!(deviation(&first, &[]).unwrap_err(), "it gave 0 outputs, the first engine 1");
        let masked = [output("logits", &[1.0, f32::NEG_INFINITY, -1.0, f32::NAN])];
        assert_eq!(deviation(&masked, &masked), Ok(0.0));
        assert_eq!(deviation(&masked, &[output("logits", &[1.0, f32::NEG_INFINITY, -0.5, f32::NAN])]), Ok(0.5));
        assert_eq!(deviation(&masked, &first), Ok(f64::INFINITY));
    }

    #[test]
    fn halves_are_numbers_and_strings_are_not() {
        let of =
            |dtype, raw: &[u8]| numbers(&Output { name: "x".into(), dtype, shape: vec![1], raw: raw.to_vec().into() });
        let halves = [0x3c00u16, 0xc000, 0x3555, 0x0001].map(u16::to_le_bytes).concat();
        assert_eq!(of(Datatype::Fp16, &halves).unwrap(), [1.0, -2.0, 0.333_251_953_125, 2f64.powi(-24)]);
        assert!(half(0x7e00).is_nan() && half(0xfc00) == f64::NEG_INFINITY);
        assert_eq!(of(Datatype::Bf16, &0xbf80u16.to_le_bytes()).unwrap(), [-1.0]);
        assert_eq!(of(Datatype::Bytes, b"x"), None);
    }

    #[test]
    fn items_that_are_alike_are_seen() {
        assert_eq!(between_items(&output("x", &[1.0, 2.0, 1.0, 2.0])), Some(0.0));
        assert_eq!(between_items(&output("x", &[1.0, 2.0, 3.0, 4.0])), Some(1.0));
    }
}
