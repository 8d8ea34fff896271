//! Calls of KServe v2 with floats, and what is right in their answers.

use modelmeter_common::{Code, Problem};
use modelmeter_meter::{
    Check, Remark,
    unary::{Call, grpc_frame},
};
use modelmeter_proto::kserve::{ModelInferRequest, ModelInferResponse, model_infer_request::InferInputTensor};
use prost::Message;

/// Different requests, sent in turn.
const DISTINCT: u8 = 8;

/// Calls of so many items with so many floats each.
pub fn floats(floats: u64, batch_size: u32) -> Call {
    let input = InferInputTensor {
        name: "x".into(),
        datatype: "FP32".into(),
        shape: vec![batch_size.into(), floats as i64],
        ..Default::default()
    };
    let request = |nth: u8| ModelInferRequest {
        model_name: "m".into(),
        inputs: vec![input.clone()],
        raw_input_contents: vec![f32::from(nth).to_le_bytes().repeat((floats * u64::from(batch_size)) as usize).into()],
        ..Default::default()
    };
    let frames = (0..DISTINCT).map(|nth| grpc_frame(&request(nth)).unwrap()).collect();
    Call { path: "/inference.GRPCInferenceService/ModelInfer".into(), frames, batch_size }
}

/// One output with a float for each item.
pub struct Floats {
    pub batch_size: u32,
}

impl Check for Floats {
    fn examine(&self, message: &[u8]) -> Result<Vec<Remark>, Problem> {
        let bad = |what: &str, field: &str| Problem::new(Code::BadResponse, what).with_field(field);
        let answer = ModelInferResponse::decode(message).map_err(|e| bad(&e.to_string(), "message"))?;
        let [output] = answer.outputs.as_slice() else { return Err(bad("not one output", "outputs")) };
        if output.shape != [i64::from(self.batch_size)] {
            return Err(bad("not one float for each item", "shape"));
        }
        let not_finite = answer.raw_output_contents.iter().flat_map(|raw| raw.chunks_exact(4)).any(|float| {
            let bytes = float.try_into().expect("four bytes");
            !f32::from_le_bytes(bytes).is_finite()
        });
        let remark = Remark { code: "output_not_finite", output: output.name.clone(), message: "not finite".into() };
        Ok(not_finite.then_some(remark).into_iter().collect())
    }
}
