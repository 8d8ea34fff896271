//! rten: pure Rust, always there.

use super::{Backend, check_types, failed};
use crate::{
    settings::Settings,
    tensor::{Tensor, elements, into_bytes},
};
use modelmeter_common::{
    Code, Problem,
    artifact::{Signature, external},
    model::Datatype,
};
use rten::{Model, ModelOptions, NodeId, RunOptions, ThreadPool, Value, ValueOrView, ValueView};
use rten_tensor::Layout;
use std::{path::Path, sync::Arc};

/// The version of the rten crate that is linked; a test compares it with the lock file.
pub const VERSION: &str = "0.27.0";

/// One instance: the model is shared, threads are not.
pub struct Rten {
    model: Arc<Model>,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    types: Vec<Datatype>,
    options: RunOptions,
    pool: Arc<ThreadPool>,
    scratch: Vec<Vec<u64>>,
}

/// Loads a model and makes as many instances as are set.
///
/// # Errors
/// `invalid_argument` for element types that rten has not, `engine_failed` for what it cannot load.
pub fn load(path: &Path, signature: &Signature, settings: &Settings) -> Result<Vec<Rten>, Problem> {
    check_types("rten", signature)?;
    let model = Arc::new(read(path, settings)?);
    let nodes = |specs: &[modelmeter_common::model::TensorSpec]| {
        let ids: Result<Vec<NodeId>, _> = specs.iter().map(|spec| model.node_id(&spec.name)).collect();
        ids.map_err(|error| failed("rten cannot find a tensor", error))
    };
    let (inputs, outputs) = (nodes(&signature.inputs)?, nodes(&signature.outputs)?);
    let instance = |_| {
        let pool = Arc::new(ThreadPool::with_num_threads(settings.threads));
        Rten {
            model: model.clone(),
            inputs: inputs.clone(),
            outputs: outputs.clone(),
            types: signature.outputs.iter().map(|output| output.dtype).collect(),
            options: RunOptions::default().with_thread_pool(Some(pool.clone())),
            pool,
            scratch: vec![Vec::new(); inputs.len()],
        }
    };
    Ok((0..settings.instances).map(instance).collect())
}

fn read(path: &Path, settings: &Settings) -> Result<Model, Problem> {
    let mut options = ModelOptions::with_all_ops();
    options.prepack_weights(settings.prepack_weights);
    let unread = |error: std::io::Error| failed("cannot read the model", error);
    let beside = external::files(path).map_err(unread)?;
    if !beside.iter().all(|file| file.is_complete && is_taken(&file.location)) {
        let name = |location: &str| {
            let place = beside.iter().position(|file| file.location == location).unwrap_or_default();
            format!("{place}.data")
        };
        for file in &beside {
            options.external_data(&name(&file.location), std::fs::read(&file.path).map_err(unread)?);
        }
        let model = std::fs::read(path).and_then(|model| external::renamed(&model, name)).map_err(unread)?;
        return options.load(model).map_err(unloaded);
    }
    // A file is read piece by piece, but only under this name: a cache may name files by their sha256.
    let model = if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("onnx")) {
        options.load_file(path)
    } else {
        options.load(std::fs::read(path).map_err(unread)?)
    };
    model.map_err(unloaded)
}

fn unloaded(error: impl std::fmt::Display) -> Problem {
    failed("rten cannot load the model", error).with_hint("try another engine: --engines onnx runs every ONNX operator")
}

/// Whether rten takes a data file of this name: one beside the model, called `….data` or `….onnx_data`.
fn is_taken(location: &str) -> bool {
    let path = Path::new(location);
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    path.file_name() == Some(path.as_os_str()) && (extension.starts_with("data") || extension.starts_with("onnx_data"))
}

impl Backend for Rten {
    /// A member of the pool need not hand each request over to it.
    fn occupy(self, work: impl FnOnce(Self) + Send) {
        let pool = self.pool.clone();
        pool.run(|| work(self));
    }

    fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problem> {
        let values = inputs.iter().zip(&mut self.scratch).zip(&self.inputs);
        let values: Result<Vec<_>, Problem> =
            values.map(|((tensor, scratch), &id)| Ok((id, value(tensor, scratch)?))).collect();
        let outputs = self
            .model
            .run(values?, &self.outputs, Some(self.options.clone()))
            .map_err(|error| failed("rten cannot run the model", error))?;
        outputs.into_iter().zip(&self.types).map(|(value, &dtype)| tensor(value, dtype)).collect()
    }
}

fn value<'a>(tensor: &'a Tensor, scratch: &'a mut Vec<u64>) -> Result<ValueOrView<'a>, Problem> {
    let (dims, data) = (tensor.dims(), &tensor.data[..]);
    let misfit = |error: &dyn std::fmt::Display| Problem::new(Code::Internal, error.to_string());
    Ok(match tensor.dtype {
        Datatype::Fp32 => ValueView::from_shape(dims, elements::<f32>(data, scratch)).map_err(|e| misfit(&e))?.into(),
        Datatype::Int32 => ValueView::from_shape(dims, elements::<i32>(data, scratch)).map_err(|e| misfit(&e))?.into(),
        Datatype::Int8 => ValueView::from_shape(dims, elements::<i8>(data, scratch)).map_err(|e| misfit(&e))?.into(),
        Datatype::Uint8 => ValueView::from_shape(dims, data).map_err(|e| misfit(&e))?.into(),
        Datatype::Int64 => {
            let narrow: Result<Vec<i32>, _> =
                elements::<i64>(data, scratch).iter().map(|&v| i32::try_from(v)).collect();
            let narrow = narrow.map_err(|_| {
                Problem::new(Code::InvalidArgument, "an INT64 value does not fit the 32 bits that rten computes with")
                    .with_hint("send values from -2147483648 to 2147483647, or use --engines onnx")
            })?;
            Value::from_shape(dims, narrow).map_err(|e| misfit(&e))?.into()
        }
        _ => {
            // BOOL: the types were checked at load.
            let wide: Vec<i32> = data.iter().map(|&byte| i32::from(byte != 0)).collect();
            Value::from_shape(dims, wide).map_err(|e| misfit(&e))?.into()
        }
    })
}

fn tensor(value: Value, dtype: Datatype) -> Result<Tensor, Problem> {
    let shape = value.shape().iter().map(|&dim| dim as u64).collect();
    let data = match (value, dtype) {
        (Value::FloatTensor(floats), Datatype::Fp32) => into_bytes(floats.into_data()),
        (Value::Int32Tensor(ints), Datatype::Int32) => into_bytes(ints.into_data()),
        (Value::Int32Tensor(ints), Datatype::Int64) => {
            into_bytes(ints.into_data().into_iter().map(i64::from).collect::<Vec<i64>>())
        }
        (Value::Int32Tensor(ints), Datatype::Bool) => {
            into_bytes(ints.into_data().into_iter().map(|v| u8::from(v != 0)).collect::<Vec<u8>>())
        }
        (Value::Int8Tensor(bytes), Datatype::Int8) => into_bytes(bytes.into_data()),
        (Value::UInt8Tensor(bytes), Datatype::Uint8) => into_bytes(bytes.into_data()),
        (other, _) => return Err(failed("rten gave an output of another type than the model says", other.dtype())),
    };
    Ok(Tensor { dtype, shape, data })
}

#[cfg(test)]
mod tests {
    #[test]
    fn version_is_the_one_that_is_linked() {
        let lock = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.lock")).unwrap();
        assert!(lock.contains(&format!("name = \"rten\"\nversion = \"{}\"", super::VERSION)));
    }
}
