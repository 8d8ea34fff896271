//! Values that fill an input whatever its shape: a literal as `16000`, a range as `0..30522`.

use super::FIELD;
use crate::{
    Problem,
    model::{Datatype, TensorShape},
};
use bytes::Bytes;
use std::fmt;

/// What fills an input.
#[derive(Clone, PartialEq, Debug)]
pub enum Fill {
    /// This number everywhere.
    Number(f64),
    /// This whole number everywhere: floats do not hold all of 64 bits.
    Whole(i128),
    /// Uniform numbers from the first up to the second, which is not among them; of integers whole ones.
    Range(f64, f64),
    /// This string everywhere.
    Text(String),
}

impl Fill {
    /// What the text means; none where it is no literal, so that it names a file.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if let Some((low, high)) = text.split_once("..") {
            return Some(Self::Range(number(low)?, number(high)?));
        }
        match text {
            "true" => return Some(Self::Whole(1)),
            "false" => return Some(Self::Whole(0)),
            _ => {}
        }
        if let Some(quoted) = text.strip_prefix('"') {
            return quoted.strip_suffix('"').map(|text| Self::Text(text.to_owned()));
        }
        text.parse().map(Self::Whole).ok().or_else(|| number(text).map(Self::Number))
    }

    /// That an input of this type can hold it.
    ///
    /// # Errors
    /// `invalid_argument` with what the type holds.
    pub(super) fn check(&self, input: &str, dtype: Datatype) -> Result<(), Problem> {
        let wrong = |what: String, hint: &str| Err(Problem::invalid(FIELD, what).with_hint(hint));
        match (self, dtype) {
            (Self::Text(_), Datatype::Bytes) => Ok(()),
            (Self::Text(_), _) => {
                wrong(format!("input '{input}' takes {dtype}, not text"), "a number, or a range as 0..10")
            }
            (_, Datatype::Bytes) => {
                wrong(format!("input '{input}' takes strings, not {self}"), "quote it, as --data 'x=\"some words\"'")
            }
            (Self::Range(low, high), _) if low >= high => wrong(
                format!("the range {self} for input '{input}' is empty"),
                "from the first up to the second, as 0..10",
            ),
            (Self::Range(low, high), dtype) if bounds(dtype).is_some() => {
                let (least, most) = bounds(dtype).expect("looked at above");
                let is_whole = low.fract() == 0.0 && high.fract() == 0.0;
                if is_whole && *low >= least as f64 && *high <= most as f64 + 1.0 {
                    return Ok(());
                }
                wrong(
                    format!("input '{input}' takes {dtype}, not {self}"),
                    &format!("whole numbers from {least} to {most}"),
                )
            }
            (Self::Whole(value), dtype) => match bounds(dtype) {
                Some((least, most)) if !(least..=most).contains(value) => wrong(
                    format!("input '{input}' takes {dtype}, not {value}"),
                    &format!("whole numbers from {least} to {most}"),
                ),
                _ => Ok(()),
            },
            (Self::Number(_), dtype) if bounds(dtype).is_some() => {
                wrong(format!("input '{input}' takes {dtype}, not {self}"), "a whole number, or a range as 0..10")
            }
            _ => Ok(()),
        }
    }

    /// The contents of an input; `uniform` gives numbers from 0 up to 1.
    pub fn contents(&self, tensor: &TensorShape, mut uniform: impl FnMut() -> f64) -> Bytes {
        let elements = tensor.elements() as usize;
        let mut out = Vec::with_capacity(tensor.bytes() as usize);
        for _ in 0..elements {
            match self {
                Self::Text(text) => {
                    out.extend((text.len() as u32).to_le_bytes());
                    out.extend(text.as_bytes());
                }
                Self::Whole(value) => push(&mut out, tensor.dtype, *value as f64, *value),
                Self::Number(value) => push(&mut out, tensor.dtype, *value, *value as i128),
                Self::Range(low, high) => {
                    let value = low + uniform() * (high - low);
                    push(&mut out, tensor.dtype, value, value.floor() as i128);
                }
            }
        }
        out.into()
    }
}

impl fmt::Display for Fill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(value) => value.fmt(f),
            Self::Whole(value) => value.fmt(f),
            Self::Range(low, high) => write!(f, "{low}..{high}"),
            Self::Text(text) => write!(f, "\"{text}\""),
        }
    }
}

fn number(text: &str) -> Option<f64> {
    let is_number = text.trim().starts_with(|first: char| first.is_ascii_digit() || matches!(first, '-' | '+' | '.'));
    text.trim().parse().ok().filter(|value: &f64| is_number && value.is_finite())
}

/// The least and the largest of an integer type; booleans are 0 and 1.
fn bounds(dtype: Datatype) -> Option<(i128, i128)> {
    Some(match dtype {
        Datatype::Bool => (0, 1),
        Datatype::Uint8 => (0, u8::MAX.into()),
        Datatype::Uint16 => (0, u16::MAX.into()),
        Datatype::Uint32 => (0, u32::MAX.into()),
        Datatype::Uint64 => (0, u64::MAX.into()),
        Datatype::Int8 => (i8::MIN.into(), i8::MAX.into()),
        Datatype::Int16 => (i16::MIN.into(), i16::MAX.into()),
        Datatype::Int32 => (i32::MIN.into(), i32::MAX.into()),
        Datatype::Int64 => (i64::MIN.into(), i64::MAX.into()),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Fp32 | Datatype::Fp64 | Datatype::Bytes => return None,
    })
}

fn push(out: &mut Vec<u8>, dtype: Datatype, float: f64, whole: i128) {
    match dtype {
        Datatype::Bool | Datatype::Uint8 | Datatype::Int8 => out.push(whole as u8),
        Datatype::Uint16 | Datatype::Int16 => out.extend((whole as u16).to_le_bytes()),
        Datatype::Uint32 | Datatype::Int32 => out.extend((whole as u32).to_le_bytes()),
        Datatype::Uint64 | Datatype::Int64 => out.extend((whole as u64).to_le_bytes()),
        Datatype::Fp16 => out.extend(half(float as f32).to_le_bytes()),
        Datatype::Bf16 => out.extend((((float as f32).to_bits() >> 16) as u16).to_le_bytes()),
        Datatype::Fp32 => out.extend((float as f32).to_le_bytes()),
        Datatype::Fp64 => out.extend(float.to_le_bytes()),
        Datatype::Bytes => unreachable!("numbers for strings are refused"),
    }
}

/// The IEEE half of a float, cut, not rounded; what is too small is 0, what is too large infinity.
pub fn half(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = (bits >> 16) & 0x8000;
    let exponent = ((bits >> 23) & 0xff) as i32 - 127 + 15;
    if value == 0.0 || exponent <= 0 {
        return sign as u16;
    }
    if exponent >= 31 {
        return (sign | 0x7c00) as u16;
    }
    (sign | ((exponent as u32) << 10) | ((bits >> 13) & 0x3ff)) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_ranges_are_told_from_files() {
        for (text, fill) in [
            ("16000", Fill::Whole(16000)),
            ("-3", Fill::Whole(-3)),
            ("0.5", Fill::Number(0.5)),
            ("1e-3", Fill::Number(1e-3)),
            ("true", Fill::Whole(1)),
            ("0..30522", Fill::Range(0.0, 30522.0)),
            ("-1..1", Fill::Range(-1.0, 1.0)),
            ("\"two words\"", Fill::Text("two words".into())),
        ] {
            assert_eq!(Fill::parse(text), Some(fill), "{text}");
        }
        for file in ["x.npy", "./16000", "inf", "nan", "a..b", "../up.npy", "infinity.bin", "\"open", "1..", ""] {
            assert_eq!(Fill::parse(file), None, "{file}");
        }
    }

    #[test]
    fn what_a_type_cannot_hold_is_refused() {
        let refused = |text: &str, dtype| Fill::parse(text).unwrap().check("x", dtype).is_err();
        for (text, dtype) in [
            ("256", Datatype::Uint8),
            ("-1", Datatype::Uint64),
            ("0.5", Datatype::Int32),
            ("0..257", Datatype::Uint8),
            ("0.5..2", Datatype::Int64),
            ("5..5", Datatype::Fp32),
            ("2", Datatype::Bool),
            ("1", Datatype::Bytes),
            ("\"a\"", Datatype::Fp32),
        ] {
            assert!(refused(text, dtype), "{text} {dtype}");
        }
        for (text, dtype) in
            [("255", Datatype::Uint8), ("0..256", Datatype::Uint8), ("3", Datatype::Fp16), ("0..1", Datatype::Fp32)]
        {
            assert!(!refused(text, dtype), "{text} {dtype}");
        }
    }

    #[test]
    fn contents_are_of_the_inputs_type_and_within_the_range() {
        let of = |text: &str, dtype, shape: &[u64]| {
            let mut draws = [0.0, 0.5, 0.999_999].into_iter().cycle();
            let tensor = TensorShape::new("x", dtype, shape.to_vec());
            Fill::parse(text).unwrap().contents(&tensor, || draws.next().unwrap())
        };
        assert_eq!(of("16000", Datatype::Int64, &[]), 16000i64.to_le_bytes().to_vec());
        assert_eq!(of("2", Datatype::Fp32, &[2]), [2f32.to_le_bytes(); 2].concat());
        assert_eq!(of("0..10", Datatype::Uint8, &[3]), vec![0, 5, 9]);
        assert_eq!(of("-2..2", Datatype::Int8, &[3]), vec![254, 0, 1]);
        assert_eq!(of("\"ab\"", Datatype::Bytes, &[1]), b"\x02\0\0\0ab".to_vec());
        assert_eq!(of("1", Datatype::Fp16, &[1]), 0x3c00u16.to_le_bytes().to_vec());
        assert_eq!(of("1", Datatype::Bool, &[0]), Vec::<u8>::new());
    }
}
