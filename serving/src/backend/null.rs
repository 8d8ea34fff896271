//! The engine that does no work: zeros of the right shape, for measuring everything around an engine.

use crate::tensor::Tensor;
use bytes::Bytes;
use modelmeter_common::{
    Problem,
    artifact::Signature,
    model::{Datatype, Dim, TensorSpec},
};

/// Answers up to this size share one block of zeros.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// The length of one axis of an output.
enum Axis {
    Fixed(u64),
    /// As long as this axis of this input.
    Of {
        input: usize,
        axis: usize,
    },
}

/// Zeros in the shape of a model's outputs.
pub struct Null {
    outputs: Vec<(Datatype, Vec<Axis>)>,
}

impl Null {
    /// An open axis of an output is as long as the input axis of the same name, the first as long as the batch, any
    /// other 1.
    pub fn new(model: &Signature) -> Self {
        let of = |symbol: &str| {
            let named = |dim: &Dim| matches!(dim, Dim::Dynamic(name) if name == symbol && !name.is_empty());
            model
                .inputs
                .iter()
                .enumerate()
                .find_map(|(input, spec)| spec.shape.iter().position(named).map(|axis| Axis::Of { input, axis }))
        };
        let batch = || model.inputs.first().filter(|x| !x.shape.is_empty()).map(|_| Axis::Of { input: 0, axis: 0 });
        let axis = |(at, dim): (usize, &Dim)| match dim {
            Dim::Fixed(length) => Axis::Fixed(*length),
            Dim::Dynamic(symbol) => of(symbol).or_else(|| batch().filter(|_| at == 0)).unwrap_or(Axis::Fixed(1)),
        };
        // Of a shape that is not told, one number.
        let shape = |output: &TensorSpec| if output.is_shaped() { output.shape.clone() } else { Vec::new() };
        let outputs = model.outputs.iter().map(|o| (o.dtype, shape(o).iter().enumerate().map(axis).collect()));
        Self { outputs: outputs.collect() }
    }

    /// The zeros that answer these inputs.
    pub fn infer(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problem> {
        let length = |axis: &Axis| match *axis {
            Axis::Fixed(length) => length,
            Axis::Of { input, axis } => inputs[input].shape[axis],
        };
        let tensor = |(dtype, axes): &(Datatype, Vec<Axis>)| {
            let shape: Vec<u64> = axes.iter().map(length).collect();
            // A string without characters is its length: four zero bytes.
            let size = dtype.size().unwrap_or(4) as u64;
            let bytes = shape.iter().try_fold(size, |bytes, &dim| bytes.checked_mul(dim));
            let bytes = bytes.and_then(|bytes| usize::try_from(bytes).ok()).filter(|&b| b <= crate::MAX_MESSAGE_BYTES);
            let bytes =
                bytes.ok_or_else(|| Problem::invalid("outputs", format!("an output of {shape:?} is too large")))?;
            let data = ZEROS.get(..bytes).map_or_else(|| Bytes::from(vec![0; bytes]), Bytes::from_static);
            Ok(Tensor { dtype: *dtype, shape, data })
        };
        self.outputs.iter().map(tensor).collect()
    }
}
