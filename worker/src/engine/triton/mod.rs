//! Triton: the model repository that it is launched on, made of an artifact, and its own statistics.

pub(crate) mod statistics;

use super::{
    material::{self, Material},
    settings::{BATCH, COUNT, DELAY_US, Kind, Settings},
};
use modelmeter_common::{
    Code, Problem,
    artifact::{self, external, triton::read},
    device::DeviceKind,
    model::{Datatype, Dim, Format, TensorShape, TensorSpec},
    request::MAX_BATCH_SIZE,
};
use std::{collections::BTreeSet, fmt::Write, path::Path};

/// The backends that an installation has, by the names of their folders, as `python` or `onnxruntime`.
pub type Backends = BTreeSet<String>;

/// What runs an artifact in Triton's Python backend.
const MODEL_PY: &str = include_str!("model.py");
const PYTHON: &str = "python";

/// `instances` run side by side, 1 when not given; `threads` are inside an inference, the backend's own choice when
/// not given; `max_batch_size` is the largest batch that a request may ask for, when not given. Batching across requests is off
/// unless `dynamic_batching` is true; they wait at most `max_queue_delay_us` for each other, 0 when not given.
pub(super) const SETTINGS: [(&str, Kind); 5] = [
    ("instances", COUNT),
    ("threads", COUNT),
    ("max_batch_size", BATCH),
    ("dynamic_batching", Kind::Flag),
    ("max_queue_delay_us", DELAY_US),
];

/// Makes the repository; gives the model's name in it. A directory of the user's is taken as it is.
///
/// # Errors
/// `invalid_argument` for settings, `not_installed` where no backend can run the artifact, `storage`.
pub(super) fn lay_out(backends: &Backends, material: &Material<'_>) -> Result<String, Problem> {
    if material.format == Format::Triton {
        // Its own configuration says all that settings could.
        Settings::check(material.engine, material.settings, &[])?;
        let config = read(material.artifact).map_err(|what| Problem::invalid("model", what))?;
        let name = config.name.unwrap_or_else(|| material.model_name.to_owned());
        if Path::new(&name).file_name() != Some(name.as_ref()) {
            return Err(Problem::invalid("model", format!("'{name}' in config.pbtxt is not a model's name")));
        }
        material::place(material.artifact, &material.folder.join(&name))?;
        return Ok(name);
    }
    let settings = Settings::check(material.engine, material.settings, &SETTINGS)?;
    let (backend, file) = backend(backends, material.format)?;
    let model = material.folder.join(material.model_name);
    material::folder(&model.join("1"))?;
    place_version(material, &model.join("1"), file)?;
    if backend == PYTHON {
        material::write(&model.join("1/model.py"), MODEL_PY)?;
    }
    material::write(&model.join("config.pbtxt"), &config(backend, material, &settings)?)?;
    Ok(material.model_name.to_owned())
}

/// Puts the artifact into the folder of its version: an ONNX file with those that hold its data.
fn place_version(material: &Material<'_>, version: &Path, file: &str) -> Result<(), Problem> {
    if material.format != Format::Onnx {
        return material::place(material.artifact, &version.join(file));
    }
    let members = external::members(material.artifact)
        .map_err(|e| Problem::invalid("model", format!("{} cannot be read: {e}", material.artifact.display())))?;
    members.into_iter().try_for_each(|(name, from)| {
        let to = version.join(name);
        material::folder(to.parent().unwrap_or(version))?;
        material::place(&from, &to)
    })
}

/// The flags that go with a repository: the Python backend's shared memory gets a name that is known when it is killed.
pub(super) fn flags(folder: &Path) -> Vec<String> {
    vec![format!("--backend-config={PYTHON},shm-region-prefix-name={}", material::shared_memory(folder))]
}

/// The backend that runs a format, and the name under which it wants the artifact: the native one where it is there.
/// A TorchScript file does not say what it gives, which the native backend must be told: the Python backend finds out.
fn backend(backends: &Backends, format: Format) -> Result<(&'static str, &'static str), Problem> {
    let (native, file) = match format {
        Format::Onnx => (Some("onnxruntime"), "model.onnx"),
        Format::Savedmodel => (Some("tensorflow"), "model.savedmodel"),
        Format::Torchscript => (None, "model.pt"),
        Format::Triton | Format::Data => (None, ""),
    };
    let found = native.into_iter().chain([PYTHON]).find(|name| backends.contains(*name));
    found.map(|name| (name, file)).ok_or_else(|| {
        let has = backends.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        let needs = native.map(|native| format!("{native} or ")).unwrap_or_default();
        Problem::new(Code::NotInstalled, format!("this Triton has no backend for {format}: it has [{has}]"))
            .with_field("engines")
            .with_hint(format!("install its backend {needs}{PYTHON}"))
    })
}

fn config(backend: &str, material: &Material<'_>, settings: &Settings<'_>) -> Result<String, Problem> {
    let (inputs, outputs) = signature(material)?;
    // Triton adds the batch axis by itself where every tensor has an open one and something after it.
    let first = |input: &TensorShape| input.batch_axis == Some(0);
    let batched = inputs.iter().chain(&outputs).all(|t| matches!(&t.shape[..], [Dim::Dynamic(_), _, ..]))
        && material.inputs.iter().all(first);
    let max_batch_size =
        if batched { settings.count("max_batch_size").unwrap_or(u64::from(MAX_BATCH_SIZE)) } else { 0 };
    let mut text = format!("backend: {}\nmax_batch_size: {max_batch_size}\n", quoted(backend));
    tensors(&mut text, "input", &inputs, batched);
    tensors(&mut text, "output", &outputs, batched);
    let kind = if material.device == DeviceKind::Gpu { "KIND_GPU" } else { "KIND_CPU" };
    line(
        &mut text,
        format_args!("instance_group [ {{ kind: {kind} count: {} }} ]", settings.count("instances").unwrap_or(1)),
    );
    if settings.flag("dynamic_batching") {
        if !batched {
            return Err(Problem::invalid(
                format!("engine_settings.{}.dynamic_batching", material.engine),
                "the model has a tensor without an open batch axis: Triton cannot batch it",
            ));
        }
        let delay = settings.count("max_queue_delay_us").unwrap_or(0);
        line(&mut text, format_args!("dynamic_batching {{ max_queue_delay_microseconds: {delay} }}"));
    } else if settings.count("max_queue_delay_us").is_some() {
        let field = format!("engine_settings.{}.max_queue_delay_us", material.engine);
        return Err(Problem::invalid(field, "belongs to dynamic batching, which is off")
            .with_hint(format!("add --set {}.dynamic_batching=true", material.engine)));
    }
    if let Some(threads) = settings.count("threads") {
        let keys: &[&str] = match backend {
            "onnxruntime" => &["intra_op_thread_count"],
            "tensorflow" => &["TF_NUM_INTRA_THREADS"],
            _ => &["threads"],
        };
        keys.iter().for_each(|key| parameter(&mut text, key, &threads.to_string()));
    }
    if material.format == Format::Torchscript {
        let example: Vec<&[u64]> = material.inputs.iter().map(|input| &input.shape[..]).collect();
        parameter(&mut text, "example", &serde_json::to_string(&example).expect("numbers are JSON"));
    }
    Ok(text)
}

/// Inputs and outputs: the artifact's own; of a TorchScript file the inputs that will be sent, whose axes stay open,
/// since one deployment serves every shape.
fn signature(material: &Material<'_>) -> Result<(Vec<TensorSpec>, Vec<TensorSpec>), Problem> {
    if material.format != Format::Torchscript {
        let found = artifact::signature(material.artifact, material.format)?;
        return Ok((found.inputs, found.outputs));
    }
    let open = |tensor: &TensorShape| TensorSpec {
        name: tensor.name.clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.iter().map(|_| Dim::Dynamic(String::new())).collect(),
    };
    Ok((material.inputs.iter().map(open).collect(), Vec::new()))
}

fn tensors(text: &mut String, word: &str, tensors: &[TensorSpec], batched: bool) {
    for tensor in tensors {
        let dims = tensor.shape.iter().skip(usize::from(batched)).map(|dim| match dim {
            Dim::Fixed(length) => length.to_string(),
            Dim::Dynamic(_) => "-1".into(),
        });
        let (name, dims) = (quoted(&tensor.name), dims.collect::<Vec<_>>().join(", "));
        let data_type = if tensor.dtype == Datatype::Bytes { "STRING" } else { tensor.dtype.as_str() };
        line(text, format_args!("{word} [ {{ name: {name} data_type: TYPE_{data_type} dims: [ {dims} ] }} ]"));
    }
}

fn parameter(text: &mut String, key: &str, value: &str) {
    let (key, value) = (quoted(key), quoted(value));
    line(text, format_args!("parameters [ {{ key: {key} value: {{ string_value: {value} }} }} ]"));
}

fn line(text: &mut String, words: std::fmt::Arguments<'_>) {
    writeln!(text, "{words}").expect("a string takes every write");
}

/// A string in the protobuf text form, whose escapes JSON shares.
fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("strings are JSON")
}

#[cfg(test)]
mod tests;
