//! ONNX Runtime, loaded at run time.

use super::{Backend, check_types, failed};
use crate::{
    onnxruntime::{self, Located},
    settings::Settings,
    tensor::{Tensor, elements},
};
use bytes::Bytes;
use modelmeter_common::{Problem, artifact::Signature, model::Datatype};
use ort::{
    environment::Environment,
    logging::LogLevel,
    memory::Allocator,
    session::{Session, SessionInputValue, builder::GraphOptimizationLevel},
    value::{DynTensor, DynTensorValueType, DynValue, TensorElementType, TensorRef},
};
use std::path::Path;

/// One instance: a session of its own.
pub struct Onnx {
    session: Session,
    inputs: Vec<String>,
    outputs: Vec<(String, Datatype)>,
    scratch: Vec<Vec<u64>>,
}

/// Loads the library once a process, and a session for each instance.
///
/// # Errors
/// `invalid_argument` for strings, `not_installed` when the library does not load, `engine_failed` for what
/// ONNX Runtime says of the model.
pub fn load(located: &Located, path: &Path, signature: &Signature, settings: &Settings) -> Result<Vec<Onnx>, Problem> {
    check_types("onnx", signature)?;
    let environment = onnxruntime::environment(located)?;
    let instance = |_| {
        let session = session(&environment, path, settings)
            .map_err(|error| failed("ONNX Runtime cannot load the model", error))?;
        Ok(Onnx {
            session,
            inputs: signature.inputs.iter().map(|input| input.name.clone()).collect(),
            outputs: signature.outputs.iter().map(|output| (output.name.clone(), output.dtype)).collect(),
            scratch: vec![Vec::new(); signature.inputs.len()],
        })
    };
    (0..settings.instances).map(instance).collect()
}

fn session(environment: &Environment, path: &Path, settings: &Settings) -> ort::Result<Session> {
    let level = match settings.graph_optimization_level.as_str() {
        "disabled" => GraphOptimizationLevel::Disable,
        "basic" => GraphOptimizationLevel::Level1,
        "extended" => GraphOptimizationLevel::Level2,
        _ => GraphOptimizationLevel::All,
    };
    Session::builder(environment)?
        .with_log_level(LogLevel::Warning)?
        .with_optimization_level(level)?
        // Always said: by itself it would pin threads to cores of the host, also to those that are not the slot's.
        .with_intra_threads(settings.threads)?
        .commit_from_file(path)
}

impl Backend for Onnx {
    fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problem> {
        let said = |error: ort::Error| failed("ONNX Runtime cannot run the model", error);
        let values = self.inputs.iter().zip(inputs).zip(&mut self.scratch);
        let values: Result<Vec<_>, Problem> =
            values.map(|((name, tensor), scratch)| Ok((name.as_str(), value(tensor, scratch)?))).collect();
        let mut given = self.session.run(values?).map_err(said)?;
        let outputs = self.outputs.iter().map(|(name, dtype)| {
            let value = given.remove(name).ok_or_else(|| failed("ONNX Runtime gave no output", name))?;
            tensor(value, *dtype)
        });
        outputs.collect()
    }
}

/// A view of the tensor's bytes; a copy for types that have no Rust form.
fn value<'a>(tensor: &'a Tensor, scratch: &'a mut Vec<u64>) -> Result<SessionInputValue<'a>, Problem> {
    let data = &tensor.data[..];
    macro_rules! view {
        ($type:ty) => {
            TensorRef::from_array_view((tensor.dims(), elements::<$type>(data, scratch))).map(Into::into)
        };
    }
    match tensor.dtype {
        Datatype::Uint8 => view!(u8),
        Datatype::Uint16 => view!(u16),
        Datatype::Uint32 => view!(u32),
        Datatype::Uint64 => view!(u64),
        Datatype::Int8 => view!(i8),
        Datatype::Int16 => view!(i16),
        Datatype::Int32 => view!(i32),
        Datatype::Int64 => view!(i64),
        Datatype::Fp32 => view!(f32),
        Datatype::Fp64 => view!(f64),
        Datatype::Fp16 => copied(tensor, TensorElementType::Float16),
        Datatype::Bf16 => copied(tensor, TensorElementType::Bfloat16),
        Datatype::Bool | Datatype::Bytes => {
            let flags: Vec<bool> = data.iter().map(|&byte| byte != 0).collect();
            ort::value::Tensor::from_array((tensor.dims(), flags)).map(Into::into)
        }
    }
    .map_err(|error| failed("ONNX Runtime cannot take an input", error))
}

fn copied<'a>(tensor: &Tensor, element: TensorElementType) -> ort::Result<SessionInputValue<'a>> {
    let mut copy = DynTensor::new(&Allocator::default(), element, tensor.dims())?;
    // SAFETY: a CPU tensor of this type and shape has exactly these bytes: they were counted on arrival.
    unsafe { std::ptr::copy_nonoverlapping(tensor.data.as_ptr(), copy.data_ptr_mut().cast(), tensor.data.len()) };
    Ok(copy.into())
}

/// The output's own memory as bytes, kept alive by them.
fn tensor(value: DynValue, dtype: Datatype) -> Result<Tensor, Problem> {
    struct Owner {
        tensor: DynTensor,
        bytes: usize,
    }
    impl AsRef<[u8]> for Owner {
        fn as_ref(&self) -> &[u8] {
            if self.bytes == 0 {
                return &[];
            }
            // SAFETY: a CPU tensor of this type and shape has this many bytes, for as long as it lives.
            unsafe { std::slice::from_raw_parts(self.tensor.data_ptr().cast(), self.bytes) }
        }
    }
    let tensor: DynTensor =
        value.downcast::<DynTensorValueType>().map_err(|error| failed("ONNX Runtime gave no tensor", error))?;
    let shape: Vec<u64> = tensor.shape().iter().map(|&dim| dim.unsigned_abs()).collect();
    let bytes = crate::tensor::byte_len(dtype, &shape);
    if bytes != tensor.data_type().byte_size(tensor.shape().num_elements()) || !tensor.memory_info().is_cpu_accessible()
    {
        return Err(failed("ONNX Runtime gave an output of another type than the model says", tensor.data_type()));
    }
    let data = Bytes::from_owner(Owner { bytes: bytes.unwrap_or(0), tensor });
    Ok(Tensor { dtype, shape, data })
}
