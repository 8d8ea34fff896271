//! A model and its artifacts, and the tensors that go in and come out.

use crate::{Problem, Timestamp, error::did_you_mean};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, str::FromStr};

/// `name:version`, as the hub knows a model.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ModelRef {
    /// The model's name.
    pub name: String,
    /// Its version; for a file, the start of its sha256.
    pub version: String,
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.version)
    }
}

/// `NAME[:VERSION]`, as a user names a model; without a version its newest one. The version is what follows the last
/// colon: a name may have some itself, as models of a running server have, and our versions have none.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ModelName {
    /// The model's name.
    pub name: String,
    /// Its version, where one was named.
    pub version: Option<String>,
}

impl ModelName {
    /// Whether it names this model.
    pub fn is(&self, model: &ModelRef) -> bool {
        self.name == model.name && self.version.as_ref().is_none_or(|version| *version == model.version)
    }
}

impl FromStr for ModelName {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let (name, version) = text.rsplit_once(':').map_or((text, None), |(name, version)| (name, Some(version)));
        if name.is_empty() || version == Some("") {
            return Err(
                Problem::invalid("model", format!("'{text}' is not a model's name")).with_hint("NAME or NAME:VERSION")
            );
        }
        Ok(Self { name: name.into(), version: version.map(Into::into) })
    }
}

/// The format of an artifact.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// One `.onnx` file.
    Onnx,
    /// One traced or scripted `.pt` file.
    Torchscript,
    /// A TensorFlow SavedModel directory.
    Savedmodel,
    /// A Triton model directory.
    Triton,
    /// No model: test data of a request ([`crate::testdata`]).
    Data,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 5] = [Self::Onnx, Self::Torchscript, Self::Savedmodel, Self::Triton, Self::Data];

    /// The name in JSON and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Torchscript => "torchscript",
            Self::Savedmodel => "savedmodel",
            Self::Triton => "triton",
            Self::Data => "data",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The model in one format; its content is known by its sha256.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct ArtifactRef {
    /// What engines can load it.
    pub format: Format,
    /// Lower-case hex.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// A model as the hub keeps it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Model {
    /// Version of this document.
    pub schema_version: u32,
    /// Name and version.
    #[serde(flatten)]
    pub id: ModelRef,
    /// When it was added.
    pub created_at: Timestamp,
    /// The formats that it is kept in; none for a server that already runs.
    pub artifacts: Vec<ArtifactRef>,
    /// Its inputs, as its own signature names them.
    pub inputs: Vec<TensorSpec>,
    /// Its outputs.
    pub outputs: Vec<TensorSpec>,
    /// The element types of its weights, as far as its files say; empty: not known.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub weights: BTreeSet<Datatype>,
}

/// A tensor in a signature: some axes may be open.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The tensor's name.
    pub name: String,
    /// The element type.
    pub dtype: Datatype,
    /// Axis by axis; [`TensorSpec::UNSHAPED`] where not even their number is told.
    pub shape: Vec<Dim>,
}

impl TensorSpec {
    /// The one axis of a tensor of which the shape is not told, number of axes included.
    pub const UNSHAPED: &str = "...";

    /// A shape that is not told.
    pub fn unshaped() -> Vec<Dim> {
        vec![Dim::Dynamic(Self::UNSHAPED.into())]
    }

    /// Whether the shape is told.
    pub fn is_shaped(&self) -> bool {
        !matches!(&self.shape[..], [Dim::Dynamic(only)] if only == Self::UNSHAPED)
    }
}

/// One axis of a signature.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// Always this long.
    Fixed(u64),
    /// Open, with its name in the model (empty if it has none).
    Dynamic(String),
}

/// A shape as people read it: `[batch, 3, height, width]`.
pub fn describe(shape: &[Dim]) -> String {
    let axes: Vec<String> = shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(n) => n.to_string(),
            Dim::Dynamic(name) if name.is_empty() => "?".into(),
            Dim::Dynamic(name) => name.clone(),
        })
        .collect();
    format!("[{}]", axes.join(", "))
}

/// Bytes that a string is taken to have in a call, its length included.
pub const SHORT_STRING: usize = 12;

/// A concrete tensor: what is sent.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct TensorShape {
    /// The tensor's name.
    pub name: String,
    /// The element type.
    pub dtype: Datatype,
    /// Axis by axis, the batch included.
    pub shape: Vec<u64>,
    /// The axis that is as long as the batch; null where it has none, or one of a fixed length.
    #[serde(default = "first_axis", skip_serializing_if = "is_first_axis")]
    pub batch_axis: Option<u32>,
}

fn first_axis() -> Option<u32> {
    Some(0)
}

fn is_first_axis(axis: &Option<u32>) -> bool {
    *axis == first_axis()
}

impl TensorShape {
    /// A tensor with the batch on its first axis.
    pub fn new(name: impl Into<String>, dtype: Datatype, shape: Vec<u64>) -> Self {
        Self { name: name.into(), dtype, shape, batch_axis: first_axis() }
    }

    /// Number of elements; more than there can be where they are too many to count.
    pub fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |product, n| product.saturating_mul(*n))
    }

    /// Bytes that its contents take in a call; of strings, those of short ones.
    pub fn bytes(&self) -> u64 {
        self.elements().saturating_mul(self.dtype.size().unwrap_or(SHORT_STRING) as u64)
    }
}

/// Element types, named as KServe v2 names them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)]
pub enum Datatype {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    /// Strings.
    Bytes,
}

impl Datatype {
    /// Every type, in the order of the specification.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The KServe v2 name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Bytes an element, or none for strings.
    pub fn size(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Datatype {
    type Err = Problem;

    /// Accepts the KServe v2 name in either case.
    fn from_str(text: &str) -> Result<Self, Problem> {
        let (upper, names) = (text.to_ascii_uppercase(), Self::ALL.map(Self::as_str));
        Self::ALL.into_iter().find(|dtype| dtype.as_str() == upper).ok_or_else(|| {
            Problem::invalid("dtype", format!("unknown element type '{text}'")).with_hint(format!(
                "{}one of {}",
                did_you_mean(text, names),
                names.join(", ")
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_follows_the_last_colon() {
        for (text, name, version) in
            [("m", "m", None), ("m:1", "m", Some("1")), ("llama:8b:0a1b", "llama:8b", Some("0a1b"))]
        {
            let named: ModelName = text.parse().unwrap();
            assert_eq!((named.name.as_str(), named.version.as_deref()), (name, version), "{text}");
        }
        let id = ModelRef { name: "llama:8b".into(), version: "0a1b".into() };
        assert!(id.to_string().parse::<ModelName>().unwrap().is(&id), "what we print reads back");
        for bad in ["", ":", "m:", ":1"] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad}");
        }
    }
}
