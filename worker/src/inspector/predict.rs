//! MLModelCI's own ONNX and PyTorch containers: the gRPC service `Predict`, samples as bytes in, JSON out.
//!
//! They tell neither their signature nor whether they are ready: the user says the one, and that they answer at all
//! is the other, since they load their model before they listen. Source: MLModelCI, `modelci/hub/deployer`.

use super::{Inspector, Output, Subject, bad_response};
use bytes::Bytes;
use modelmeter_common::{
    Problem,
    model::{Datatype, TensorShape},
};
use modelmeter_meter::{Remark, unary::grpc_frame};
use modelmeter_proto::mlmodelci::{InferRequest, InferResponse};
use prost::Message;
use serde_json::{Value, json};

/// The method that is profiled.
pub const INFER_PATH: &str = "/Predict/Infer";

/// The client of one model with one input of one shape.
#[derive(Clone, Debug)]
pub struct Predict {
    subject: Subject,
    meta: String,
}

impl Predict {
    /// A client that sends what `subject` says.
    ///
    /// # Errors
    /// `invalid_argument` for what the protocol cannot carry: more than one input, strings, bfloat16.
    pub fn new(subject: Subject) -> Result<Self, Problem> {
        let [input] = subject.inputs.as_slice() else {
            let message = format!("MLModelCI's containers take one input, the model has {}", subject.inputs.len());
            return Err(Problem::invalid("inputs", message).with_hint("serve it with an engine that speaks kserve-v2"));
        };
        let Some(dtype) = number(input.dtype) else {
            let message = format!("MLModelCI's containers do not take {} ('{}')", input.dtype, input.name);
            return Err(Problem::invalid("inputs", message).with_hint("serve it with an engine that speaks kserve-v2"));
        };
        // PyTorch containers want the flag; ONNX containers do not look at it.
        let meta = json!({"shape": sample(input), "dtype": dtype, "torch_flag": true}).to_string();
        Ok(Self { subject, meta })
    }
}

/// A sample's shape.
fn sample(input: &TensorShape) -> &[u64] {
    input.shape.get(1..).unwrap_or_default()
}

/// The type's number in MLModelCI's `DataType`.
fn number(dtype: Datatype) -> Option<u32> {
    Some(match dtype {
        Datatype::Bool => 1,
        Datatype::Uint8 => 2,
        Datatype::Uint16 => 3,
        Datatype::Uint32 => 4,
        Datatype::Uint64 => 5,
        Datatype::Int8 => 6,
        Datatype::Int16 => 7,
        Datatype::Int32 => 8,
        Datatype::Int64 => 9,
        Datatype::Fp16 => 10,
        Datatype::Fp32 => 11,
        Datatype::Fp64 => 12,
        Datatype::Bytes | Datatype::Bf16 => return None,
    })
}

impl Inspector for Predict {
    fn data_preprocess(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        self.subject.contents(nth)
    }

    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem> {
        let samples = self.subject.batch_size as usize;
        let [batch] = data else { return Err(Problem::invalid("inputs", "the containers take one input")) };
        if samples == 0 || !batch.len().is_multiple_of(samples) {
            let message = format!("{} bytes are not {samples} samples", batch.len());
            return Err(Problem::invalid("inputs", message));
        }
        let bytes = batch.len() / samples;
        grpc_frame(&InferRequest {
            model_name: self.subject.model.clone(),
            meta: self.meta.clone(),
            raw_input: (0..samples).map(|nth| batch.slice(nth * bytes..(nth + 1) * bytes)).collect(),
        })
    }

    fn path(&self) -> &str {
        INFER_PATH
    }

    fn batch_size(&self) -> u32 {
        self.subject.batch_size
    }

    fn decode(&self, message: &[u8]) -> Result<Vec<Output>, Problem> {
        let response = InferResponse::decode(message)
            .map_err(|e| bad_response(format!("the response is not an InferResponse: {e}")))?;
        let output: Value = serde_json::from_str(&quoted_words(&response.json))
            .map_err(|e| bad_response(format!("the output is not JSON: {e}")))?;
        let samples = self.subject.batch_size as usize;
        let is_batch = |value: &Value| value.as_array().is_some_and(|list| list.len() == samples);
        match output.as_array() {
            Some(list) if !list.is_empty() && list.iter().all(is_batch) => list.iter().map(tensor).collect(),
            Some(list) if list.len() == samples => Ok(vec![tensor(&output)?]),
            _ => Err(bad_response(format!("the output is not one of {samples} samples"))),
        }
    }

    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        self.examine(message).map(drop)
    }

    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem> {
        let outputs = self.decode(message)?;
        let is_finite = |output: &Output| super::data::first_not_finite(output.dtype, &output.raw).is_none();
        if outputs.iter().all(is_finite) {
            return Ok(Vec::new());
        }
        let message = "an output holds infinities or NaN: give data that the model understands (--data)".to_owned();
        Ok(vec![Remark { code: super::NOT_FINITE, output: String::new(), message }])
    }

    fn doubts(&self) -> Option<String> {
        self.subject.doubts()
    }
}

/// What Python writes for infinities and NaN, which is no JSON.
const NOT_NUMBERS: [&str; 3] = ["-Infinity", "Infinity", "NaN"];

/// The text with those as strings. The output is made of numbers, so that nothing else is a string.
fn quoted_words(json: &str) -> String {
    let is_word = |c: char| c.is_ascii_alphabetic() || c == '-';
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some(at) = rest.find(NOT_NUMBERS.map(|word| word.chars().next().unwrap_or_default())) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len()).max(1);
        let word = &rest[..end];
        if NOT_NUMBERS.contains(&word) {
            out.extend(["\"", word, "\""]);
        } else {
            out.push_str(word);
        }
        rest = &rest[end..];
    }
    out + rest
}

/// Nested lists of equal lengths as a tensor. They have neither name nor type.
fn tensor(value: &Value) -> Result<Output, Problem> {
    let firsts = std::iter::successors(Some(value), |value| value.as_array()?.first());
    let shape: Vec<i64> = firsts.map_while(|value| Some(value.as_array()?.len() as i64)).collect();
    let mut raw = Vec::new();
    push(value, &mut raw)?;
    if shape.iter().product::<i64>() * 4 != raw.len() as i64 {
        return Err(bad_response("the output's lists differ in their lengths"));
    }
    Ok(Output { name: String::new(), dtype: Datatype::Fp32, shape, raw: raw.into() })
}

fn push(value: &Value, raw: &mut Vec<u8>) -> Result<(), Problem> {
    match value {
        Value::Array(list) => list.iter().try_for_each(|value| push(value, raw)),
        _ => {
            let word = || value.as_str().filter(|text| NOT_NUMBERS.contains(text)).map(|_| f64::NAN);
            let number = value.as_f64().or_else(|| value.as_bool().map(f64::from)).or_else(word);
            let number = number.ok_or_else(|| bad_response("the output is not made of numbers"))?;
            raw.extend((number as f32).to_le_bytes());
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(inputs: Vec<TensorShape>) -> Subject {
        Subject {
            model: "m".into(),
            version: String::new(),
            signature: String::new(),
            inputs,
            outputs: Vec::new(),
            batch_size: 2,
            seed: 3,
            data: None,
            output_axes: Default::default(),
        }
    }

    fn tensor(dtype: Datatype) -> TensorShape {
        TensorShape::new("x", dtype, vec![2, 3, 4])
    }

    #[test]
    fn a_request_has_one_entry_a_sample_and_says_their_shape() {
        let inspector = Predict::new(subject(vec![tensor(Datatype::Fp32)])).unwrap();
        let call = inspector.prepare().unwrap();
        let request = InferRequest::decode(&call.frames[0][5..]).unwrap();
        let meta: Value = serde_json::from_str(&request.meta).unwrap();
        assert_eq!(meta, json!({"shape": [3, 4], "dtype": 11, "torch_flag": true}));
        assert_eq!(request.raw_input.iter().map(Bytes::len).collect::<Vec<_>>(), [48, 48]);
        assert_eq!((request.model_name.as_str(), call.path.as_str()), ("m", "/Predict/Infer"));
        assert_ne!(call.frames[0], call.frames[1]);
    }

    #[test]
    fn what_the_protocol_cannot_carry_is_refused() {
        for inputs in [vec![], vec![tensor(Datatype::Fp32); 2], vec![tensor(Datatype::Bytes)]] {
            assert!(Predict::new(subject(inputs)).is_err());
        }
    }

    #[test]
    fn outputs_are_checked_for_batch_numbers_and_finite_values() {
        let inspector = Predict::new(subject(vec![tensor(Datatype::Fp32)])).unwrap();
        let check =
            |json: &str| inspector.check(&InferResponse { json: json.into(), meta: String::new() }.encode_to_vec());
        for good in ["[[1.0, 2, 3], [3, 4, 5]]", "[[[1, 2], [3, 4]], [[1], [2]]]", "[1, 2]", "[[true, false]]"] {
            check(good).unwrap();
        }
        for (bad, why) in [
            ("[[1, 2, 3]]", "2 samples"),
            ("[[1, null], [1, 2]]", "numbers"),
            ("", "JSON"),
            ("3", "samples"),
            ("[]", "samples"),
            ("[[1, 2], [3]]", "lengths"),
        ] {
            let problem = check(bad).unwrap_err();
            assert!(problem.message.contains(why), "{bad}: {problem}");
        }
        let odd = InferResponse { json: "[[1, NaN], [-Infinity, -2]]".into(), meta: String::new() }.encode_to_vec();
        let [only] = inspector.examine(&odd).unwrap().try_into().unwrap();
        assert_eq!(only.code, super::super::NOT_FINITE);
        let two = InferResponse { json: "[[[1], [2]], [[3, 4], [5, 6]]]".into(), meta: String::new() };
        let outputs = inspector.decode(&two.encode_to_vec()).unwrap();
        assert_eq!(outputs.iter().map(|output| output.shape.clone()).collect::<Vec<_>>(), [vec![2, 1], vec![2, 2]]);
        assert_eq!(outputs[1].raw[4..8], 4f32.to_le_bytes());
    }
}
