//! TensorFlow Serving: Predict on a SavedModel's signature.

use super::{Inspector, Metadata, Output, Subject, bad_response, check_outputs};
use bytes::Bytes;
use modelmeter_common::{
    Problem,
    artifact::savedmodel::{self, datatype, tensorflow_type},
    model::{Datatype, TensorShape},
};
use modelmeter_meter::{
    Remark, Unanswered,
    endpoint::Endpoint,
    unary::{self, grpc_frame},
};
use modelmeter_proto::tensorflow::{
    DataType, TensorProto, TensorShapeProto,
    serving::{
        GetModelMetadataRequest, GetModelMetadataResponse, ModelSpec, PredictRequest, PredictResponse, SignatureDefMap,
    },
    tensor_shape_proto,
};
use prost::Message;
use std::time::Duration;

/// The method that is profiled.
pub const PREDICT_PATH: &str = "/tensorflow.serving.PredictionService/Predict";
/// The field of a model's metadata that holds its signatures.
const SIGNATURES: &str = "signature_def";
/// More elements than this are in no output, however many equal ones are left out.
const MAX_ELEMENTS: u64 = 1 << 28;
const METADATA_METHOD: &str = "/tensorflow.serving.PredictionService/GetModelMetadata";

/// Asks a server for the signature that Predict is to call.
pub(super) async fn metadata(endpoint: &Endpoint, model: &str, timeout: Duration) -> Result<Metadata, Unanswered> {
    let question = GetModelMetadataRequest {
        model_spec: Some(ModelSpec { name: model.to_owned(), ..ModelSpec::default() }),
        metadata_field: vec![SIGNATURES.into()],
    };
    let found: GetModelMetadataResponse = unary::ask(endpoint, METADATA_METHOD, &question, timeout).await?;
    let unclear = |what: String| Unanswered::Other(bad_response(format!("{endpoint} says of model '{model}': {what}")));
    let any = found.metadata.get(SIGNATURES).ok_or_else(|| unclear("no signatures".into()))?;
    let signatures = SignatureDefMap::decode(any.value.as_slice()).map_err(|e| unclear(e.to_string()))?;
    let signature = savedmodel::choose(&signatures.signature_def).map_err(unclear)?;
    let version = found.model_spec.and_then(|spec| spec.version).map(|version| version.to_string());
    Ok(Metadata {
        inputs: signature.inputs,
        outputs: signature.outputs,
        signature: signature.name,
        versions: version.into_iter().collect(),
        server_name: "tensorflow_model_server".into(),
        server_version: String::new(),
    })
}

/// The client of one model's signature with inputs of one shape.
#[derive(Clone, Debug)]
pub struct Tfs {
    subject: Subject,
}

impl Tfs {
    /// A client that sends what `subject` says.
    pub fn new(subject: Subject) -> Self {
        Self { subject }
    }
}

impl Inspector for Tfs {
    fn data_preprocess(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        self.subject.contents(nth)
    }

    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem> {
        let inputs =
            self.subject.inputs.iter().zip(data).map(|(tensor, raw)| (tensor.name.clone(), encode(tensor, raw)));
        grpc_frame(&PredictRequest {
            model_spec: Some(ModelSpec {
                name: self.subject.model.clone(),
                version: self.subject.version.parse().ok(),
                signature_name: self.subject.signature.clone(),
            }),
            inputs: inputs.collect(),
            output_filter: Vec::new(),
        })
    }

    fn path(&self) -> &str {
        PREDICT_PATH
    }

    fn batch_size(&self) -> u32 {
        self.subject.batch_size
    }

    fn decode(&self, message: &[u8]) -> Result<Vec<Output>, Problem> {
        let response = PredictResponse::decode(message)
            .map_err(|e| bad_response(format!("the response is not a PredictResponse: {e}")))?;
        response.outputs.into_iter().map(|(name, tensor)| output(name, &tensor)).collect()
    }

    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        self.examine(message).map(drop)
    }

    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem> {
        check_outputs(&self.subject, &self.decode(message)?)
    }

    fn doubts(&self) -> Option<String> {
        self.subject.doubts()
    }
}

fn output(name: String, tensor: &TensorProto) -> Result<Output, Problem> {
    let dtype = datatype(tensor.dtype())
        .ok_or_else(|| bad_response(format!("output '{name}' has the type {}", tensor.dtype().as_str_name())))?;
    let shape: Vec<i64> = tensor.tensor_shape.iter().flat_map(|shape| &shape.dim).map(|dim| dim.size).collect();
    let raw = contents(tensor, &shape);
    Ok(Output { name, dtype, shape, raw })
}

fn encode(tensor: &TensorShape, raw: &Bytes) -> TensorProto {
    let dim = tensor.shape.iter().map(|&size| tensor_shape_proto::Dim { size: size as i64, name: String::new() });
    let shape = TensorShapeProto { dim: dim.collect(), unknown_rank: false };
    let tensor_shape = Some(shape);
    let dtype = tensorflow_type(tensor.dtype).into();
    if tensor.dtype == Datatype::Bytes {
        return TensorProto { dtype, tensor_shape, string_val: strings(raw), ..TensorProto::default() };
    }
    TensorProto { dtype, tensor_shape, tensor_content: raw.clone(), ..TensorProto::default() }
}

/// The strings of a raw tensor, each with four bytes of length before it.
fn strings(raw: &Bytes) -> Vec<Bytes> {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some(length) = raw.get(at..at + 4) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        found.push(raw.slice(at + 4..at + 4 + length));
        at += 4 + length;
    }
    found
}

/// An output's elements as raw bytes. Typed fields may leave out equal values at the end: the last stands for the rest.
fn contents(tensor: &TensorProto, shape: &[i64]) -> Bytes {
    if !tensor.tensor_content.is_empty() {
        return tensor.tensor_content.clone();
    }
    // What comes from a server must not make us allocate without bound: a response has at most so many bytes.
    let elements = super::elements(shape).filter(|&n| n <= MAX_ELEMENTS).unwrap_or(0) as usize;
    fn bytes<T: Copy, const N: usize>(values: &[T], elements: usize, to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
        let Some(&last) = values.last() else { return Vec::new() };
        let rest = elements.saturating_sub(values.len());
        values.iter().copied().chain(std::iter::repeat_n(last, rest)).flat_map(to).collect()
    }
    let raw = match tensor.dtype() {
        DataType::DtFloat => bytes(&tensor.float_val, elements, f32::to_le_bytes),
        DataType::DtDouble => bytes(&tensor.double_val, elements, f64::to_le_bytes),
        DataType::DtInt64 => bytes(&tensor.int64_val, elements, i64::to_le_bytes),
        DataType::DtUint64 => bytes(&tensor.uint64_val, elements, u64::to_le_bytes),
        DataType::DtUint32 => bytes(&tensor.uint32_val, elements, u32::to_le_bytes),
        DataType::DtInt32 => bytes(&tensor.int_val, elements, i32::to_le_bytes),
        DataType::DtInt16 | DataType::DtUint16 => bytes(&tensor.int_val, elements, |v| (v as u16).to_le_bytes()),
        DataType::DtInt8 | DataType::DtUint8 => bytes(&tensor.int_val, elements, |v| [v as u8]),
        DataType::DtBool => bytes(&tensor.bool_val, elements, |v| [u8::from(v)]),
        DataType::DtHalf | DataType::DtBfloat16 => bytes(&tensor.half_val, elements, |v| (v as u16).to_le_bytes()),
        DataType::DtString => super::prefixed(&tensor.string_val),
        DataType::DtInvalid => Vec::new(),
    };
    raw.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::model::{Dim, TensorSpec};
    use std::collections::BTreeMap;

    fn inspector(dtype: Datatype) -> Tfs {
        let output = TensorSpec {
            name: "y".into(),
            dtype: Datatype::Fp32,
            shape: vec![Dim::Dynamic(String::new()), Dim::Fixed(2)],
        };
        Tfs::new(Subject {
            model: "m".into(),
            version: String::new(),
            signature: "serving_default".into(),
            inputs: vec![TensorShape::new("x", dtype, vec![2, 3])],
            outputs: vec![output],
            batch_size: 2,
            seed: 3,
            data: None,
            output_axes: BTreeMap::new(),
        })
    }

    fn response(shape: &[i64], tensor: TensorProto) -> Vec<u8> {
        let dim = shape.iter().map(|&size| tensor_shape_proto::Dim { size, name: String::new() }).collect();
        let tensor_shape = Some(TensorShapeProto { dim, unknown_rank: false });
        let tensor = TensorProto { dtype: DataType::DtFloat.into(), tensor_shape, ..tensor };
        PredictResponse { outputs: BTreeMap::from([("y".into(), tensor)]), model_spec: None }.encode_to_vec()
    }

    fn request(inspector: &Tfs) -> PredictRequest {
        PredictRequest::decode(&inspector.prepare_one().unwrap().frames[0][5..]).unwrap()
    }

    #[test]
    fn a_request_names_model_signature_and_inputs() {
        let sent = request(&inspector(Datatype::Fp32));
        let spec = sent.model_spec.unwrap();
        assert_eq!((spec.name.as_str(), spec.signature_name.as_str(), spec.version), ("m", "serving_default", None));
        let x = &sent.inputs["x"];
        assert_eq!((x.dtype(), x.tensor_content.len()), (DataType::DtFloat, 24));
        assert_eq!(x.tensor_shape.as_ref().unwrap().dim.iter().map(|d| d.size).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn strings_go_one_by_one() {
        let sent = request(&inspector(Datatype::Bytes));
        let x = &sent.inputs["x"];
        assert_eq!((x.dtype(), x.string_val.len(), x.tensor_content.len()), (DataType::DtString, 6, 0));
        assert!(x.string_val.iter().all(|text| text.starts_with(b"text ")));
    }

    #[test]
    fn both_forms_of_contents_are_checked() {
        let it = inspector(Datatype::Fp32);
        let typed = |values: &[f32]| TensorProto { float_val: values.to_vec(), ..TensorProto::default() };
        let raw = |values: &[f32]| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            TensorProto { tensor_content: bytes.into(), ..TensorProto::default() }
        };
        it.check(&response(&[2, 2], typed(&[1.0; 4]))).unwrap();
        it.check(&response(&[2, 2], raw(&[1.0; 4]))).unwrap();
        // Equal values at the end may be left out.
        it.check(&response(&[2, 2], typed(&[1.0, 2.0]))).unwrap();
        let wrong = [
            (response(&[1, 2], raw(&[1.0; 2])), "shape"),
            (response(&[2, 2], raw(&[1.0; 3])), "bytes"),
            (response(&[2, 2], TensorProto::default()), "bytes"),
            (vec![0xff; 9], "not a PredictResponse"),
            (Vec::new(), "no outputs"),
        ];
        for (message, why) in wrong {
            let problem = it.check(&message).unwrap_err();
            assert!(problem.message.contains(why), "{problem} should say {why}");
        }
    }
}
