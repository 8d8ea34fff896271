//! Opening a model file: its format, content address and signature.
//!
//! What belongs here: telling formats apart and reading what a request needs to know of a model before
//! anything starts. Loading a model to run it is the engine's.

pub mod archive;
pub mod external;
pub mod savedmodel;
mod tensors;
pub mod triton;
pub mod verify;

use crate::{
    Code, Problem,
    model::{ArtifactRef, Datatype, Dim, Format, TensorSpec},
    wire::hex,
};
use bytes::{Bytes, BytesMut};
use modelmeter_proto::onnx::{
    GraphProto, ModelProto, TensorProto, ValueInfoProto, tensor_proto, tensor_shape_proto::dimension, type_proto,
};
use prost::Message;
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    io::{self, Cursor, Read, Write},
    path::Path,
};

/// The largest ONNX file: protobuf cannot hold more.
pub const MAX_ONNX_BYTES: u64 = (2 << 30) - 1;

/// What reading a model file gave.
#[derive(Clone, PartialEq, Debug)]
pub struct Opened {
    /// Format, sha256 and size.
    pub artifact: ArtifactRef,
    /// What the model takes: the graph's inputs that are not weights.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
    /// The element types of its weights, where the format says them.
    pub weights: BTreeSet<Datatype>,
    /// The file's or directory's name without its extension: the model's name where it has no other.
    pub name_stem: String,
}

/// What a model says of itself.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Signature {
    /// What it takes.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
    /// The element types of its weights, where the format says them.
    pub weights: BTreeSet<Datatype>,
}

/// Reads the model at `path` whole and checks it. The artifact of a directory, and of an ONNX file with its data in files
/// beside it ([`external`]), is an [`archive`].
///
/// # Errors
/// `not_found` when nothing is there; `invalid_argument` when it is not what its name or kind says, is cut off, lacks a
/// file that holds its data, or has inputs that are not plain tensors.
pub fn open(path: &Path) -> Result<Opened, Problem> {
    let format = detect(path)?;
    let Signature { inputs, outputs, weights } = signature(path, format)?;
    let artifact = addressed(path, format)?;
    let name_stem = path.file_stem().unwrap_or_default().to_string_lossy().replace(char::is_control, "_");
    Ok(Opened { artifact, inputs, outputs, weights, name_stem })
}

/// What an artifact says of itself: nothing of a TorchScript file or of test data. An ONNX file may be the folder that its
/// archive was unpacked to.
///
/// # Errors
/// As [`open`].
pub fn signature(path: &Path, format: Format) -> Result<Signature, Problem> {
    match format {
        Format::Onnx => {
            let path = external::model_file(path);
            onnx_signature(&path, read_whole(&path)?).map_err(|what| what.at(&path))
        }
        Format::Torchscript => check_torchscript(path).map(|()| Signature::default()),
        Format::Data => Ok(Signature::default()),
        Format::Savedmodel => {
            let found = savedmodel::read(path).map_err(|what| {
                invalid(format!("{} cannot be served: {what}", path.display()))
                    .with_hint("save it with tf.saved_model.save(…, signatures=…) or model.export(…)")
            })?;
            Ok(Signature { inputs: found.inputs, outputs: found.outputs, weights: BTreeSet::new() })
        }
        Format::Triton => {
            let found = triton::read(path).map_err(|what| invalid(format!("{}: {what}", path.display())))?;
            Ok(Signature { inputs: found.inputs, outputs: found.outputs, weights: BTreeSet::new() })
        }
    }
}

/// Hashes what travels of an artifact.
fn addressed(path: &Path, format: Format) -> Result<ArtifactRef, Problem> {
    let (sha256, bytes) = sha256_of(path).map_err(|error| unreadable(path, &error))?;
    Ok(ArtifactRef { format, sha256, bytes })
}

/// The sha256, in hex, and the size of what travels of a file or directory.
///
/// # Errors
/// What reading failed with.
pub fn sha256_of(path: &Path) -> io::Result<(String, u64)> {
    let mut hash = Hashing(Sha256::new(), 0);
    archive::write_to(path, &mut hash)?;
    Ok((hex(hash.0), hash.1))
}

struct Hashing(Sha256, u64);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        self.1 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A TorchScript file is a zip archive with `constants.pkl` in it, which saved weights alone do not have. The archive's
/// directory, with its names, is at its end.
fn check_torchscript(path: &Path) -> Result<(), Problem> {
    const DIRECTORY_BYTES: u64 = 4 << 20;
    const MARK: &[u8] = b"/constants.pkl";
    let read = || -> io::Result<([u8; 2], Vec<u8>)> {
        let (mut start, mut end) = ([0; 2], Vec::new());
        let mut file = File::open(path)?;
        file.read_exact(&mut start)?;
        let tail = file.metadata()?.len().saturating_sub(DIRECTORY_BYTES);
        io::Seek::seek(&mut file, io::SeekFrom::Start(tail))?;
        file.read_to_end(&mut end)?;
        Ok((start, end))
    };
    let found = match read() {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
        found => Some(found.map_err(|error| unreadable(path, &error))?),
    };
    match found {
        Some((start, end)) if start == *b"PK" && end.windows(MARK.len()).any(|window| window == MARK) => Ok(()),
        _ => Err(invalid(format!("{} is not a TorchScript file", path.display()))
            .with_hint("save it with torch.jit.save: weights alone, as torch.save writes them, cannot be served")),
    }
}

/// The format of what is at `path`, by its kind and name; content is looked at by [`open`].
///
/// # Errors
/// `not_found` when nothing is there, `invalid_argument` for a directory that is no model.
pub fn detect(path: &Path) -> Result<Format, Problem> {
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(path, &error))?;
    if metadata.is_dir() {
        return match () {
            () if path.join("saved_model.pb").is_file() => Ok(Format::Savedmodel),
            () if path.join("config.pbtxt").is_file() => Ok(Format::Triton),
            () => Err(invalid(format!("{} is a directory without a model", path.display())).with_hint(
                "a SavedModel has a saved_model.pb, a Triton model a config.pbtxt; else name an .onnx file",
            )),
        };
    }
    if !metadata.is_file() {
        return Err(invalid(format!("{} is neither a file nor a directory", path.display()))
            .with_hint("name a model's file, or the folder of a SavedModel or of a Triton model"));
    }
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    Ok(if matches!(extension.as_str(), "pt" | "pth") { Format::Torchscript } else { Format::Onnx })
}

/// The bytes of an ONNX file.
fn read_whole(path: &Path) -> Result<Bytes, Problem> {
    let failed = |error: std::io::Error| unreadable(path, &error);
    let mut file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size > MAX_ONNX_BYTES {
        return Err(invalid(format!("{} has {size} bytes: an ONNX file has at most 2 GiB", path.display()))
            .with_hint("save larger weights beside it: onnx.save_model(…, save_as_external_data=True)"));
    }
    let mut bytes = BytesMut::zeroed(usize::try_from(size).expect("under 2 GiB"));
    file.read_exact(&mut bytes).map_err(failed)?;
    Ok(bytes.freeze())
}

fn invalid(message: impl Into<String>) -> Problem {
    Problem::invalid("model", message)
}

fn unreadable(path: &Path, error: &std::io::Error) -> Problem {
    let shown = path.display();
    match error.kind() {
        std::io::ErrorKind::NotFound => Problem::new(Code::NotFound, format!("there is no model file {shown}"))
            .with_hint("check the path; built-in reference models go by their bare name, such as resnet50"),
        _ => Problem::new(Code::InvalidArgument, format!("cannot read {shown}: {error}"))
            .with_hint("the file must be readable by the user that runs modelmeter"),
    }
    .with_field("model")
}

/// What is wrong with the bytes of a model.
#[derive(PartialEq, Debug)]
enum Flaw {
    NotOnnx,
    Truncated(String),
    External(String, &'static str),
    NoInputs,
    Unsupported(String),
}

impl Flaw {
    fn at(self, path: &Path) -> Problem {
        let file = path.display();
        let (message, hint) = match self {
            Self::NotOnnx => {
                (format!("{file} is not an ONNX file"), "name a model exported as ONNX, such as model.onnx")
            }
            Self::Truncated(what) => (
                format!("{file} is a damaged or cut off ONNX file: {what}"),
                "copy or export the file again, and compare its size with the original's",
            ),
            Self::External(what, hint) => (format!("{file}: {what}"), hint),
            Self::NoInputs => (format!("{file} has no graph inputs"), "a model to profile takes at least one tensor"),
            Self::Unsupported(what) => {
                (format!("{file}: {what}"), "inputs and outputs must be tensors of plain numbers, booleans or strings")
            }
        };
        invalid(message).with_hint(hint)
    }
}

/// What the ONNX file at `path`, which holds these bytes, says of itself. Outputs that are no tensors are left out.
fn onnx_signature(path: &Path, bytes: Bytes) -> Result<Signature, Flaw> {
    scan(&bytes)?;
    let tensors = tensors::read(Cursor::new(&bytes)).map_err(|error| Flaw::Truncated(error.to_string()))?;
    external::check(path, &tensors).map_err(|(what, hint)| Flaw::External(what, hint))?;
    let model = ModelProto::decode(bytes).map_err(|error| Flaw::Truncated(error.to_string()))?;
    let graph = model.graph.ok_or_else(|| Flaw::Truncated("it has no graph".into()))?;
    if model.opset_import.is_empty() {
        return Err(Flaw::Truncated("it names no operator set".into()));
    }
    graph.initializer.iter().try_for_each(check_initializer)?;
    let inputs = specs(graph_inputs(&graph), "input")?;
    let outputs = specs(graph.output.iter().filter(|output| tensor_type(output).is_some()), "output")?;
    if inputs.is_empty() {
        return Err(Flaw::NoInputs);
    }
    if outputs.is_empty() {
        return Err(Flaw::Unsupported("the graph has no outputs that are tensors".into()));
    }
    Ok(Signature { inputs, outputs, weights: tensors.types })
}

/// Old exporters list the weights among the inputs: those are not asked of the client.
fn graph_inputs(graph: &GraphProto) -> impl Iterator<Item = &ValueInfoProto> {
    let weights: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    graph.input.iter().filter(move |input| !weights.contains(input.name.as_str()))
}

fn specs<'a>(values: impl Iterator<Item = &'a ValueInfoProto>, role: &str) -> Result<Vec<TensorSpec>, Flaw> {
    values.map(|value| spec(value, role)).collect()
}

fn tensor_type(value: &ValueInfoProto) -> Option<&type_proto::Tensor> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => Some(tensor),
    }
}

fn spec(value: &ValueInfoProto, role: &str) -> Result<TensorSpec, Flaw> {
    let name = &value.name;
    let Some(tensor) = tensor_type(value) else {
        return Err(Flaw::Unsupported(format!("{role} '{name}' is not a tensor")));
    };
    let dtype = datatype(tensor.elem_type).ok_or_else(|| {
        let got = tensor_proto::DataType::try_from(tensor.elem_type)
            .map_or_else(|_| format!("number {}", tensor.elem_type), |known| known.as_str_name().to_owned());
        Flaw::Unsupported(format!("{role} '{name}' has elements of the unsupported type {got}"))
    })?;
    let Some(shape) = &tensor.shape else {
        return Ok(TensorSpec { name: name.clone(), dtype, shape: TensorSpec::unshaped() });
    };
    let shape = shape.dim.iter().map(|dim| match &dim.value {
        Some(dimension::Value::DimValue(length)) => {
            u64::try_from(*length).map_or(Dim::Dynamic(String::new()), Dim::Fixed)
        }
        Some(dimension::Value::DimParam(symbol)) => Dim::Dynamic(symbol.clone()),
        None => Dim::Dynamic(String::new()),
    });
    Ok(TensorSpec { name: name.clone(), dtype, shape: shape.collect() })
}

/// The element type of an ONNX `TensorProto.DataType`, where KServe v2 has one.
pub fn datatype(onnx: i32) -> Option<Datatype> {
    use tensor_proto::DataType as T;
    Some(match T::try_from(onnx).ok()? {
        T::Float => Datatype::Fp32,
        T::Uint8 => Datatype::Uint8,
        T::Int8 => Datatype::Int8,
        T::Uint16 => Datatype::Uint16,
        T::Int16 => Datatype::Int16,
        T::Int32 => Datatype::Int32,
        T::Int64 => Datatype::Int64,
        T::String => Datatype::Bytes,
        T::Bool => Datatype::Bool,
        T::Float16 => Datatype::Fp16,
        T::Double => Datatype::Fp64,
        T::Uint32 => Datatype::Uint32,
        T::Uint64 => Datatype::Uint64,
        T::Bfloat16 => Datatype::Bf16,
        T::Undefined | T::Complex64 | T::Complex128 => return None,
    })
}

/// A weight that is in the file must be whole.
fn check_initializer(tensor: &TensorProto) -> Result<(), Flaw> {
    if tensor.data_location == tensor_proto::DataLocation::External as i32 {
        return Ok(());
    }
    let Some(size) = datatype(tensor.data_type).and_then(Datatype::size) else { return Ok(()) };
    let wanted = tensor.dims.iter().try_fold(size as u64, |bytes, &dim| bytes.checked_mul(u64::try_from(dim).ok()?));
    // Only raw bytes are measured: the typed fields hold elements of several sizes.
    if !tensor.raw_data.is_empty() && wanted != Some(tensor.raw_data.len() as u64) {
        let (name, got, dims) = (&tensor.name, tensor.raw_data.len(), &tensor.dims);
        return Err(Flaw::Truncated(format!("tensor '{name}' of dimensions {dims:?} has {got} bytes of data")));
    }
    Ok(())
}

/// Walks the fields of the outermost message. It tells what is no ONNX at all (a picture, a text) from an ONNX
/// file that ends too early, which a decoder's error does not.
fn scan(bytes: &[u8]) -> Result<(), Flaw> {
    let (mut rest, mut versioned) = (bytes, false);
    let cut = |versioned: bool| {
        if versioned { Flaw::Truncated(format!("it ends after {} bytes", bytes.len())) } else { Flaw::NotOnnx }
    };
    while !rest.is_empty() {
        let tag = varint(&mut rest).ok_or_else(|| cut(versioned))?;
        if !tensors::is_model_field(tag >> 3, tag & 7) {
            return Err(if versioned { Flaw::Truncated("it has unknown parts".into()) } else { Flaw::NotOnnx });
        }
        let value = varint(&mut rest).ok_or_else(|| cut(versioned))?;
        if tag & 7 == 2 {
            let length = usize::try_from(value).ok().filter(|&length| length <= rest.len());
            rest = &rest[length.ok_or_else(|| cut(versioned))?..];
        }
        // ir_version, which every ONNX file has; writers put fields in order, so it comes first.
        versioned |= tag >> 3 == 1;
    }
    if versioned { Ok(()) } else { Err(Flaw::NotOnnx) }
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, tail) = rest.split_first()?;
        *rest = tail;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
#[path = "artifact_tests.rs"]
mod tests;
