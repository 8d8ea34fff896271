//! What runs a model. One file an engine; each blocks, and is owned by one thread.

pub mod null;
pub mod onnx;
pub mod rten;

use crate::tensor::Tensor;
use modelmeter_common::{Code, Problem, artifact::Signature, engine};

/// Runs one model.
pub trait Backend: Send {
    /// Runs it on inputs that fit its signature, in its order; gives all outputs in theirs.
    ///
    /// # Errors
    /// `invalid_argument` for values that the model cannot take, `engine_failed` for what the engine says.
    fn infer(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, Problem>;

    /// Does its life's work on the thread that suits it best: the caller's, or one of its own.
    fn occupy(self, work: impl FnOnce(Self) + Send)
    where
        Self: Sized,
    {
        work(self);
    }
}

/// That an engine has each element type in a signature.
fn check_types(engine: &str, signature: &Signature) -> Result<(), Problem> {
    let has = engine::find(engine).map_or(&[][..], |info| info.types);
    let mut specs = signature.inputs.iter().chain(&signature.outputs);
    let Some(spec) = specs.find(|spec| !has.contains(&spec.dtype)) else { return Ok(()) };
    let names: Vec<&str> = has.iter().map(|dtype| dtype.as_str()).collect();
    let message = format!("engine {engine} cannot serve tensor '{}' of type {}", spec.name, spec.dtype);
    Err(Problem::invalid("engines", message).with_hint(format!("it has {}", names.join(", "))))
}

fn failed(what: &str, error: impl std::fmt::Display) -> Problem {
    Problem::new(Code::EngineFailed, format!("{what}: {error}"))
}
