//! Typed contents, as gRPC's `InferTensorContents` and REST's JSON carry them, to raw bytes and back.

use bytes::Bytes;
use modelmeter_common::{Problem, model::Datatype};
use modelmeter_proto::kserve::InferTensorContents;
use serde_json::{Number, Value};

/// The bytes of gRPC's typed contents. 16-bit floats have no typed form: they come raw.
pub fn from_typed(name: &str, dtype: Datatype, contents: &InferTensorContents) -> Result<Bytes, Problem> {
    let raw: Option<Vec<u8>> = match dtype {
        Datatype::Bool => Some(contents.bool_contents.iter().map(|&b| u8::from(b)).collect()),
        Datatype::Int8 => narrow(&contents.int_contents, |v| i8::try_from(v).ok().map(i8::to_le_bytes)),
        Datatype::Int16 => narrow(&contents.int_contents, |v| i16::try_from(v).ok().map(i16::to_le_bytes)),
        Datatype::Int32 => narrow(&contents.int_contents, |v| Some(v.to_le_bytes())),
        Datatype::Int64 => narrow(&contents.int64_contents, |v| Some(v.to_le_bytes())),
        Datatype::Uint8 => narrow(&contents.uint_contents, |v| u8::try_from(v).ok().map(u8::to_le_bytes)),
        Datatype::Uint16 => narrow(&contents.uint_contents, |v| u16::try_from(v).ok().map(u16::to_le_bytes)),
        Datatype::Uint32 => narrow(&contents.uint_contents, |v| Some(v.to_le_bytes())),
        Datatype::Uint64 => narrow(&contents.uint64_contents, |v| Some(v.to_le_bytes())),
        Datatype::Fp32 => narrow(&contents.fp32_contents, |v| Some(v.to_le_bytes())),
        Datatype::Fp64 => narrow(&contents.fp64_contents, |v| Some(v.to_le_bytes())),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => {
            return Err(bad(name, format!("{dtype} has no typed contents here: send it in raw_input_contents")));
        }
    };
    raw.map(Bytes::from).ok_or_else(|| bad(name, format!("a value does not fit {dtype}")))
}

fn narrow<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> Option<[u8; N]>) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() * N);
    for &value in values {
        bytes.extend_from_slice(&to(value)?);
    }
    Some(bytes)
}

/// The bytes of REST's `data`: one flat list, or lists in lists, row by row.
pub fn from_json(name: &str, dtype: Datatype, data: &Value) -> Result<Bytes, Problem> {
    let mut bytes = Vec::new();
    push_json(dtype, data, &mut bytes).map_err(|value| bad(name, format!("{value} is not of type {dtype}")))?;
    Ok(bytes.into())
}

/// Appends a value or every value in a list; the value that does not fit is the error.
fn push_json<'a>(dtype: Datatype, data: &'a Value, bytes: &mut Vec<u8>) -> Result<(), &'a Value> {
    if let Value::Array(items) = data {
        return items.iter().try_for_each(|item| push_json(dtype, item, bytes));
    }
    fn put<const N: usize>(bytes: &mut Vec<u8>, value: Option<[u8; N]>) -> Option<()> {
        bytes.extend_from_slice(&value?);
        Some(())
    }
    let (signed, unsigned, float) = (data.as_i64(), data.as_u64(), data.as_f64());
    match dtype {
        Datatype::Bool => put(bytes, data.as_bool().map(|b| [u8::from(b)])),
        Datatype::Int8 => put(bytes, signed.and_then(|v| i8::try_from(v).ok()).map(i8::to_le_bytes)),
        Datatype::Int16 => put(bytes, signed.and_then(|v| i16::try_from(v).ok()).map(i16::to_le_bytes)),
        Datatype::Int32 => put(bytes, signed.and_then(|v| i32::try_from(v).ok()).map(i32::to_le_bytes)),
        Datatype::Int64 => put(bytes, signed.map(i64::to_le_bytes)),
        Datatype::Uint8 => put(bytes, unsigned.and_then(|v| u8::try_from(v).ok()).map(u8::to_le_bytes)),
        Datatype::Uint16 => put(bytes, unsigned.and_then(|v| u16::try_from(v).ok()).map(u16::to_le_bytes)),
        Datatype::Uint32 => put(bytes, unsigned.and_then(|v| u32::try_from(v).ok()).map(u32::to_le_bytes)),
        Datatype::Uint64 => put(bytes, unsigned.map(u64::to_le_bytes)),
        Datatype::Fp32 => put(bytes, float.map(|v| (v as f32).to_le_bytes())),
        Datatype::Fp64 => put(bytes, float.map(f64::to_le_bytes)),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => None,
    }
    .ok_or(data)
}

/// A tensor's bytes as REST's flat `data`. What JSON cannot say (NaN, infinities) is null.
pub fn to_json(name: &str, dtype: Datatype, bytes: &[u8]) -> Result<Value, Problem> {
    fn each<const N: usize>(bytes: &[u8], to: impl Fn([u8; N]) -> Value) -> Value {
        bytes.as_chunks::<N>().0.iter().map(|&chunk| to(chunk)).collect()
    }
    let float = |value: f64| Number::from_f64(value).map_or(Value::Null, Value::Number);
    Ok(match dtype {
        Datatype::Bool => each(bytes, |[byte]| Value::Bool(byte != 0)),
        Datatype::Int8 => each(bytes, |b| i8::from_le_bytes(b).into()),
        Datatype::Int16 => each(bytes, |b| i16::from_le_bytes(b).into()),
        Datatype::Int32 => each(bytes, |b| i32::from_le_bytes(b).into()),
        Datatype::Int64 => each(bytes, |b| i64::from_le_bytes(b).into()),
        Datatype::Uint8 => each(bytes, |b| u8::from_le_bytes(b).into()),
        Datatype::Uint16 => each(bytes, |b| u16::from_le_bytes(b).into()),
        Datatype::Uint32 => each(bytes, |b| u32::from_le_bytes(b).into()),
        Datatype::Uint64 => each(bytes, |b| u64::from_le_bytes(b).into()),
        Datatype::Fp32 => each(bytes, |b| float(f64::from(f32::from_le_bytes(b)))),
        Datatype::Fp64 => each(bytes, |b| float(f64::from_le_bytes(b))),
        Datatype::Fp16 | Datatype::Bf16 | Datatype::Bytes => {
            return Err(bad(name, format!("{dtype} cannot be written as JSON: ask over gRPC")));
        }
    })
}

fn bad(name: &str, message: String) -> Problem {
    Problem::invalid(name, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_goes_to_bytes_and_back_for_every_type_it_can_carry() {
        for (dtype, data) in [
            (Datatype::Bool, json!([true, false])),
            (Datatype::Int8, json!([-128, 127])),
            (Datatype::Int16, json!([-32768, 5])),
            (Datatype::Int32, json!([-7, 2_000_000_000])),
            (Datatype::Int64, json!([i64::MIN, i64::MAX])),
            (Datatype::Uint8, json!([0, 255])),
            (Datatype::Uint16, json!([0, 65535])),
            (Datatype::Uint32, json!([0, 4_294_967_295u32])),
            (Datatype::Uint64, json!([0, u64::MAX])),
            (Datatype::Fp32, json!([0.5, -3.25])),
            (Datatype::Fp64, json!([0.1, 1e300])),
        ] {
            let bytes = from_json("x", dtype, &data).unwrap();
            assert_eq!(bytes.len(), 2 * dtype.size().unwrap());
            assert_eq!(to_json("x", dtype, &bytes).unwrap(), data, "{dtype}");
        }
    }

    #[test]
    fn nested_lists_are_read_row_by_row_and_misfits_are_named() {
        assert_eq!(from_json("x", Datatype::Uint8, &json!([[1, 2], [3, 4]])).unwrap(), vec![1, 2, 3, 4]);
        for (dtype, data) in [
            (Datatype::Uint8, json!([1, 256])),
            (Datatype::Int32, json!([1.5])),
            (Datatype::Fp32, json!(["1"])),
            (Datatype::Bool, json!([1])),
            (Datatype::Fp16, json!([1])),
        ] {
            assert!(from_json("x", dtype, &data).unwrap_err().message.contains("is not of type"));
        }
    }

    #[test]
    fn typed_contents_are_narrowed_or_refused() {
        let ints = InferTensorContents { int_contents: vec![1, -2], ..Default::default() };
        assert_eq!(from_typed("x", Datatype::Int8, &ints).unwrap(), vec![1, 254]);
        assert_eq!(from_typed("x", Datatype::Int16, &ints).unwrap(), vec![1, 0, 254, 255]);
        let large = InferTensorContents { int_contents: vec![300], ..Default::default() };
        assert!(from_typed("x", Datatype::Int8, &large).unwrap_err().message.contains("does not fit INT8"));
        assert!(from_typed("x", Datatype::Bf16, &large).unwrap_err().message.contains("raw_input_contents"));
    }
}
