//! KServe v2 (Open Inference Protocol) over gRPC: TorchScript, ONNX and Triton speak it.

use super::{Inspector, Subject, bad_response, data, grpc_frame};
use bytes::Bytes;
use modelmeter_common::{
    Code, Problem,
    model::{Datatype, Dim, TensorShape, TensorSpec},
};
use modelmeter_proto::kserve::{
    InferTensorContents, ModelInferRequest, ModelInferResponse, ModelMetadataRequest, ServerMetadataRequest,
    grpc_inference_service_client::GrpcInferenceServiceClient, model_infer_request::InferInputTensor,
    model_infer_response::InferOutputTensor, model_metadata_response::TensorMetadata,
};
use prost::Message;
use std::time::Duration;
use tonic::transport::Endpoint;

/// The method that is profiled.
pub const INFER_PATH: &str = "/inference.GRPCInferenceService/ModelInfer";
const METADATA_TIMEOUT: Duration = Duration::from_secs(10);

/// What a server says of itself and a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// The model's inputs.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs.
    pub outputs: Vec<TensorSpec>,
    /// Its versions, as the server names them.
    pub versions: Vec<String>,
    /// The server's name, for example `triton`; empty if it does not say.
    pub server_name: String,
    /// The server's version; empty if it does not say.
    pub server_version: String,
}

/// Asks a server (`host:port`) for a model's signature and for its own name.
pub async fn metadata(endpoint: &str, model: &str) -> Result<Metadata, Problem> {
    let unreachable = |e: tonic::transport::Error| {
        Problem::new(Code::Unreachable, format!("no gRPC server at {endpoint}: {}", root_cause(&e)))
            .with_field("endpoint")
            .with_hint("host:port of the server's gRPC port, without http://")
    };
    let channel = Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(|_| Problem::invalid("endpoint", format!("'{endpoint}' is not host:port")))?
        .connect_timeout(METADATA_TIMEOUT)
        .timeout(METADATA_TIMEOUT);
    let mut client = GrpcInferenceServiceClient::new(channel.connect().await.map_err(unreachable)?);
    let request = ModelMetadataRequest { name: model.to_owned(), version: String::new() };
    let found = client.model_metadata(request).await.map_err(|s| refused(endpoint, model, &s))?.into_inner();
    // Not every server answers this one; its name is not worth a failure.
    let server = client.server_metadata(ServerMetadataRequest {}).await.map(tonic::Response::into_inner);
    let server = server.unwrap_or_default();
    Ok(Metadata {
        inputs: found.inputs.iter().map(spec).collect::<Result<_, _>>()?,
        outputs: found.outputs.iter().map(spec).collect::<Result<_, _>>()?,
        versions: found.versions,
        server_name: server.name,
        server_version: server.version,
    })
}

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

fn refused(endpoint: &str, model: &str, status: &tonic::Status) -> Problem {
    let (code, hint) = match status.code() {
        tonic::Code::NotFound | tonic::Code::InvalidArgument => (Code::NotFound, "name a model that the server has"),
        tonic::Code::Unimplemented => (Code::InvalidArgument, "the server does not speak KServe v2 over gRPC"),
        tonic::Code::DeadlineExceeded | tonic::Code::Cancelled => (Code::DeadlineExceeded, "is the server busy?"),
        _ => (Code::Unreachable, "is this a gRPC port?"),
    };
    Problem::new(code, format!("{endpoint} gave no metadata of model '{model}': {}", status.message())).with_hint(hint)
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

    fn check_output(&self, output: &InferOutputTensor, raw: Option<&Bytes>) -> Result<(), Problem> {
        let name = &output.name;
        let dtype: Datatype =
            output.datatype.parse().map_err(|p: Problem| bad_response(format!("output '{name}': {p}")))?;
        if let Some(expected) = self.subject.outputs.iter().find(|o| o.name == *name) {
            check_against(expected, dtype, &output.shape, self.subject.batch_size)?;
        }
        let elements = output.shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?));
        let elements = elements
            .ok_or_else(|| bad_response(format!("output '{name}' has an impossible shape {:?}", output.shape)))?;
        let contents;
        let raw = match (raw, &output.contents) {
            (Some(raw), _) => raw.as_ref(),
            (None, Some(typed)) => {
                contents = typed_bytes(dtype, typed);
                contents.as_slice()
            }
            (None, None) => return Err(bad_response(format!("output '{name}' has no contents"))),
        };
        if let Some(size) = dtype.size()
            && raw.len() as u64 != elements * size as u64
        {
            let want = elements * size as u64;
            return Err(bad_response(format!("output '{name}' has {} bytes, its shape needs {want}", raw.len())));
        }
        match data::first_not_finite(dtype, raw) {
            Some(at) => Err(bad_response(format!("output '{name}' is not finite at element {at}"))),
            None => Ok(()),
        }
    }
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

    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        let response = ModelInferResponse::decode(message)
            .map_err(|e| bad_response(format!("the response is not a ModelInferResponse: {e}")))?;
        if response.outputs.is_empty() {
            return Err(bad_response("the response has no outputs"));
        }
        for expected in &self.subject.outputs {
            if !response.outputs.iter().any(|o| o.name == expected.name) {
                return Err(bad_response(format!("output '{}' is missing", expected.name)));
            }
        }
        let raw = &response.raw_output_contents;
        if !raw.is_empty() && raw.len() != response.outputs.len() {
            return Err(bad_response(format!("{} outputs with {} contents", response.outputs.len(), raw.len())));
        }
        response.outputs.iter().enumerate().try_for_each(|(i, output)| self.check_output(output, raw.get(i)))
    }
}

fn check_against(expected: &TensorSpec, dtype: Datatype, shape: &[i64], batch: u32) -> Result<(), Problem> {
    let name = &expected.name;
    if dtype != expected.dtype {
        return Err(bad_response(format!("output '{name}' is {dtype}, not {}", expected.dtype)));
    }
    let fits = |(axis, (got, want)): (usize, (&i64, &Dim))| match want {
        Dim::Fixed(want) => *got as u64 == *want,
        Dim::Dynamic(_) => axis > 0 || *got == i64::from(batch),
    };
    if shape.len() != expected.shape.len() || !shape.iter().zip(&expected.shape).enumerate().all(fits) {
        return Err(bad_response(format!("output '{name}' has shape {shape:?} for a batch of {batch}")));
    }
    Ok(())
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
        Datatype::Bytes => c.bytes_contents.concat(),
        Datatype::Fp16 | Datatype::Bf16 => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inspector() -> KserveV2 {
        let tensor = TensorShape { name: "x".into(), dtype: Datatype::Fp32, shape: vec![2, 3] };
        let output = TensorSpec {
            name: "y".into(),
            dtype: Datatype::Fp32,
            shape: vec![Dim::Dynamic("n".into()), Dim::Fixed(2)],
        };
        KserveV2::new(Subject {
            model: "m".into(),
            version: String::new(),
            inputs: vec![tensor],
            outputs: vec![output],
            batch_size: 2,
            seed: 3,
            data: None,
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
    fn responses_are_checked_for_name_type_shape_size_and_finite_values() {
        let it = inspector();
        it.check(&response(vec![2, 2], &[1.0; 4])).unwrap();
        let wrong = [
            (response(vec![1, 2], &[1.0; 2]), "shape"),
            (response(vec![2, 3], &[1.0; 6]), "shape"),
            (response(vec![2, 2], &[1.0; 3]), "bytes"),
            (response(vec![2, 2], &[1.0, f32::NAN, 1.0, 1.0]), "finite"),
            (vec![0xff; 9], "not a ModelInferResponse"),
            (Vec::new(), "no outputs"),
        ];
        for (message, why) in wrong {
            let problem = it.check(&message).unwrap_err();
            assert!(problem.message.contains(why), "{problem} should say {why}");
        }
    }
}
