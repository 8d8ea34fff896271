//! KServe v2 (Open Inference Protocol) over gRPC: TorchScript, ONNX and Triton speak it.

use super::{Inspector, Metadata, Output, Subject, bad_response, check_outputs};
use bytes::Bytes;
use modelmeter_common::{
    Problem,
    model::{Datatype, Dim, TensorShape, TensorSpec},
};
use modelmeter_meter::{
    Remark, Unanswered,
    endpoint::Endpoint,
    unary::{self, grpc_frame},
};
use modelmeter_proto::kserve::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse,
    ServerMetadataRequest, ServerMetadataResponse, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};
use prost::Message;
use std::time::Duration;

/// The method that is profiled.
pub const INFER_PATH: &str = "/inference.GRPCInferenceService/ModelInfer";
const METADATA_METHOD: &str = "/inference.GRPCInferenceService/ModelMetadata";
const SERVER_METHOD: &str = "/inference.GRPCInferenceService/ServerMetadata";

/// Asks a server for a model's signature and for its own name.
pub(super) async fn metadata(endpoint: &Endpoint, model: &str, timeout: Duration) -> Result<Metadata, Unanswered> {
    let question = ModelMetadataRequest { name: model.to_owned(), version: String::new() };
    let found: ModelMetadataResponse = unary::ask(endpoint, METADATA_METHOD, &question, timeout).await?;
    // Not every server answers this one; its name is not worth a failure.
    let server = server(endpoint, timeout).await.unwrap_or_default();
    let specs = |tensors: &[TensorMetadata]| tensors.iter().map(spec).collect::<Result<_, _>>();
    Ok(Metadata {
        inputs: specs(&found.inputs).map_err(Unanswered::Other)?,
        outputs: specs(&found.outputs).map_err(Unanswered::Other)?,
        signature: String::new(),
        versions: found.versions,
        server_name: server.name,
        server_version: server.version,
    })
}

/// Asks a server for its own name, version and extensions.
pub(crate) async fn server(endpoint: &Endpoint, timeout: Duration) -> Result<ServerMetadataResponse, Unanswered> {
    unary::ask(endpoint, SERVER_METHOD, &ServerMetadataRequest {}, timeout).await
}

fn spec(tensor: &TensorMetadata) -> Result<TensorSpec, Problem> {
    let dtype: Datatype =
        tensor.datatype.parse().map_err(|p: Problem| bad_response(format!("tensor '{}': {p}", tensor.name)))?;
    let dim = |&d: &i64| u64::try_from(d).map_or_else(|_| Dim::Dynamic(String::new()), Dim::Fixed);
    Ok(TensorSpec { name: tensor.name.clone(), dtype, shape: tensor.shape.iter().map(dim).collect() })
}

/// The client of one model with inputs of one shape.
#[derive(Clone, Debug)]
pub struct KserveV2 {
    subject: Subject,
}

impl KserveV2 {
    /// A client that sends what `subject` says.
    pub fn new(subject: Subject) -> Self {
        Self { subject }
    }

    fn input(&self, tensor: &TensorShape) -> InferInputTensor {
        InferInputTensor {
            name: tensor.name.clone(),
            datatype: tensor.dtype.to_string(),
            shape: tensor.shape.iter().map(|&d| d as i64).collect(),
            ..InferInputTensor::default()
        }
    }
}

fn output(output: &InferOutputTensor, raw: Option<&Bytes>) -> Result<Output, Problem> {
    let name = &output.name;
    let dtype: Datatype =
        output.datatype.parse().map_err(|p: Problem| bad_response(format!("output '{name}': {p}")))?;
    let raw = match (raw, &output.contents) {
        (Some(raw), _) => raw.clone(),
        (None, Some(typed)) => typed_bytes(dtype, typed).into(),
        (None, None) => return Err(bad_response(format!("output '{name}' has no contents"))),
    };
    Ok(Output { name: name.clone(), dtype, shape: output.shape.clone(), raw })
}

impl Inspector for KserveV2 {
    fn data_preprocess(&self, nth: u64) -> Result<Vec<Bytes>, Problem> {
        self.subject.contents(nth)
    }

    fn make_request(&self, data: &[Bytes]) -> Result<Bytes, Problem> {
        grpc_frame(&ModelInferRequest {
            model_name: self.subject.model.clone(),
            model_version: self.subject.version.clone(),
            inputs: self.subject.inputs.iter().map(|t| self.input(t)).collect(),
            raw_input_contents: data.to_vec(),
            ..ModelInferRequest::default()
        })
    }

    fn path(&self) -> &str {
        INFER_PATH
    }

    fn batch_size(&self) -> u32 {
        self.subject.batch_size
    }

    fn decode(&self, message: &[u8]) -> Result<Vec<Output>, Problem> {
        let response = ModelInferResponse::decode(message)
            .map_err(|e| bad_response(format!("the response is not a ModelInferResponse: {e}")))?;
        let raw = &response.raw_output_contents;
        if !raw.is_empty() && raw.len() != response.outputs.len() {
            return Err(bad_response(format!("{} outputs with {} contents", response.outputs.len(), raw.len())));
        }
        response.outputs.iter().enumerate().map(|(i, one)| output(one, raw.get(i))).collect()
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

/// Contents in typed fields as the bytes that the raw form has. Halves have no typed field.
fn typed_bytes(dtype: Datatype, c: &InferTensorContents) -> Vec<u8> {
    match dtype {
        Datatype::Bool => c.bool_contents.iter().map(|&v| u8::from(v)).collect(),
        Datatype::Int8 => c.int_contents.iter().map(|&v| v as u8).collect(),
        Datatype::Int16 => c.int_contents.iter().flat_map(|&v| (v as i16).to_le_bytes()).collect(),
        Datatype::Int32 => c.int_contents.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Int64 => c.int64_contents.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Uint8 => c.uint_contents.iter().map(|&v| v as u8).collect(),
        Datatype::Uint16 => c.uint_contents.iter().flat_map(|&v| (v as u16).to_le_bytes()).collect(),
        Datatype::Uint32 => c.uint_contents.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Uint64 => c.uint64_contents.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Fp32 => c.fp32_contents.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Fp64 => c.fp64_contents.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Datatype::Bytes => super::prefixed(&c.bytes_contents),
        Datatype::Fp16 | Datatype::Bf16 => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{DIFFERS, NOT_FINITE},
        *,
    };
    use std::collections::BTreeMap;

    fn inspector() -> KserveV2 {
        let tensor = TensorShape::new("x", Datatype::Fp32, vec![2, 3]);
        let output = TensorSpec {
            name: "y".into(),
            dtype: Datatype::Fp32,
            shape: vec![Dim::Dynamic("n".into()), Dim::Fixed(2)],
        };
        KserveV2::new(Subject {
            model: "m".into(),
            version: String::new(),
            signature: String::new(),
            inputs: vec![tensor],
            outputs: vec![output],
            batch_size: 2,
            seed: 3,
            data: None,
            output_axes: BTreeMap::new(),
        })
    }

    fn response(shape: Vec<i64>, values: &[f32]) -> Vec<u8> {
        let output =
            InferOutputTensor { name: "y".into(), datatype: "FP32".into(), shape, ..InferOutputTensor::default() };
        let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        ModelInferResponse {
            outputs: vec![output],
            raw_output_contents: vec![raw.into()],
            ..ModelInferResponse::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn requests_are_whole_frames_and_differ() {
        let call = inspector().prepare().unwrap();
        assert_eq!((call.frames.len(), call.batch_size), (DISTINCT, 2));
        assert_ne!(call.frames[0], call.frames[1]);
        let frame = &call.frames[0];
        assert_eq!(u32::from_be_bytes([frame[1], frame[2], frame[3], frame[4]]) as usize, frame.len() - 5);
        let decoded = ModelInferRequest::decode(&frame[5..]).unwrap();
        assert_eq!((decoded.inputs[0].shape.as_slice(), decoded.raw_input_contents[0].len()), ([2, 3].as_slice(), 24));
    }

    const DISTINCT: usize = super::super::DISTINCT_REQUESTS;

    #[test]
    fn an_answer_that_cannot_be_for_the_batch_is_wrong() {
        let it = inspector();
        it.check(&response(vec![2, 2], &[1.0; 4])).unwrap();
        let wrong = [
            (response(vec![1, 2], &[1.0; 2]), "shape [1, 2] for a batch of 2, [n, 2] was declared"),
            (response(vec![1], &[1.0]), "shape [1] for a batch of 2"),
            (response(vec![2, 2], &[1.0; 3]), "bytes"),
            (response(vec![-2, 2], &[1.0; 3]), "impossible"),
            (vec![0xff; 9], "not a ModelInferResponse"),
            (Vec::new(), "no outputs"),
        ];
        for (message, why) in wrong {
            let problem = it.check(&message).unwrap_err();
            assert!(problem.message.contains(why), "{problem} should say {why}");
        }
    }

    #[test]
    fn what_else_differs_is_remarked_on_with_what_was_expected_and_got() {
        let it = inspector();
        assert!(it.examine(&response(vec![2, 2], &[1.0; 4])).unwrap().is_empty());
        for (shape, values, code, says) in [
            (vec![2, 3], vec![1.0; 6], DIFFERS, "[2, 3] for a batch of 2, [n, 2] was declared"),
            (vec![5, 2], vec![1.0; 10], DIFFERS, "[5, 2]"),
            (vec![0, 2], vec![], DIFFERS, "[0, 2]"),
            (vec![2], vec![1.0; 2], DIFFERS, "[2] for a batch of 2"),
            (vec![1, 2, 2], vec![1.0; 4], DIFFERS, "[1, 2, 2]"),
            (vec![2, 2], vec![1.0, f32::NEG_INFINITY, 1.0, 1.0], NOT_FINITE, "element 1"),
            (vec![2, 2], vec![1.0, 1.0, 1.0, f32::NAN], NOT_FINITE, "element 3"),
        ] {
            let [only] = it.examine(&response(shape, &values)).unwrap().try_into().unwrap();
            assert!(only.code == code && only.message.contains(says), "{only:?}");
        }
    }

    #[test]
    fn rows_of_their_own_are_as_many_as_they_are() {
        let with = |axis| {
            let mut it = inspector();
            it.subject.output_axes = [("y".to_owned(), axis)].into();
            it
        };
        let one_row = response(vec![1, 2], &[1.0; 2]);
        assert!(with(None).examine(&one_row).unwrap().is_empty());
        assert!(with(Some(0)).examine(&one_row).is_err());
        assert!(with(Some(1)).examine(&response(vec![7, 2], &[1.0; 14])).unwrap().is_empty());
        assert!(with(Some(1)).examine(&response(vec![2, 1], &[1.0; 2])).is_err());
    }

    #[test]
    fn integers_that_nobody_gave_are_doubted_with_the_flag_that_sets_them() {
        let mut it = inspector();
        assert_eq!(it.doubts(), None);
        it.subject.inputs.push(TensorShape::new("rate", Datatype::Int64, vec![]));
        it.subject.inputs.push(TensorShape::new("ids", Datatype::Int32, vec![2, 9]));
        let doubts = it.doubts().unwrap();
        assert!(doubts.contains("--data rate=16000 --data ids=0..30000"), "{doubts}");
    }
}
