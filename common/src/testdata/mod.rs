//! Test data of a user's own: read from files, checked against the model's inputs before anything starts, carried to
//! workers as one artifact, and cut into batches there.
//!
//! What belongs here: file formats and fitting. Random data is the inspector's.

mod fill;
mod npy;
mod npz;
mod raw;

pub use fill::{Fill, half};

use crate::{
    Problem,
    batch::{Batch, Stated},
    model::{ArtifactRef, Datatype, Dim, Format, TensorShape, TensorSpec, describe},
    wire::sha256_hex,
};
use bytes::{Bytes, BytesMut};
use modelmeter_proto::kserve::{
    InferParameter, ModelInferRequest, infer_parameter::ParameterChoice, model_infer_request::InferInputTensor,
};
use prost::Message;
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// The most bytes of test data that a request may have.
pub const MAX_BYTES: u64 = 1 << 30;
const FIELD: &str = "data";

/// Where a request's test data is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Source {
    /// In the hub, as [`DataSet::encode`] gives it.
    Stored(ArtifactRef),
    /// In an `.npz` file of the user's machine, an array for each input.
    Archive(PathBuf),
    /// In a file of the user's machine for each input: `.npy`, else raw little-endian elements; or a [`Fill`] instead.
    Files(BTreeMap<String, PathBuf>),
}

/// One input's data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Array {
    /// The element type.
    pub dtype: Datatype,
    /// Axis by axis. Where the input has a batch axis, the first counts items.
    pub shape: Vec<u64>,
    /// Little-endian elements; strings as KServe v2 has them (a four-byte length before each).
    pub raw: Bytes,
}

/// What was in a user's files, before it is known what the model takes.
#[derive(Clone, PartialEq, Debug)]
pub struct Files(BTreeMap<String, Content>);

#[derive(Clone, PartialEq, Debug)]
enum Content {
    Array(Array),
    /// Elements without a shape, and the file that they are from.
    Raw(Bytes, PathBuf),
    Fill(Fill),
}

/// Test data by input; inputs that are not in it get random data.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct DataSet {
    arrays: BTreeMap<String, Array>,
    fills: BTreeMap<String, Fill>,
}

/// The parameter by which a [`Fill`] travels.
const FILL: &str = "fill";

impl Files {
    /// Reads a user's files; none where the data is in the hub already.
    ///
    /// # Errors
    /// `invalid_argument` naming the file: not there, not of its format, of elements that models do not take.
    pub fn read(source: &Source) -> Result<Option<Self>, Problem> {
        let contents = match source {
            Source::Stored(_) => return Ok(None),
            Source::Archive(path) => {
                let bytes = read(path)?;
                let arrays = npz::members(&bytes).map_err(|flaw| wrong(path, &flaw))?;
                arrays
                    .into_iter()
                    .map(|(name, member)| match npy::parse(&member) {
                        Ok(array) => Ok((name, Content::Array(array))),
                        Err(flaw) => Err(wrong(path, &format!("array '{name}': {flaw}"))),
                    })
                    .collect::<Result<_, _>>()?
            }
            Source::Files(files) => {
                let content = |path: &PathBuf| match path.to_str().and_then(Fill::parse) {
                    Some(fill) => Ok(Content::Fill(fill)),
                    None => one(path),
                };
                files.iter().map(|(name, path)| Ok((name.clone(), content(path)?))).collect::<Result<_, Problem>>()?
            }
        };
        Ok(Some(Self(contents)))
    }

    /// Fits the data to what the model takes. Axes other than the batch that the model leaves open, and that no
    /// shape of the request sets, are set in `shapes` as the data has them. `batch_axes` is where the request says that the
    /// batch is.
    ///
    /// # Errors
    /// `invalid_argument` with what was given, what the model takes, and how to change the one into the other.
    pub fn fit(
        self,
        inputs: &[TensorSpec],
        shapes: &mut BTreeMap<String, Vec<Vec<u64>>>,
        batch_axes: &BTreeMap<String, Stated>,
    ) -> Result<DataSet, Problem> {
        if self.0.is_empty() {
            return Err(Problem::invalid(FIELD, "holds no array").with_hint("np.savez(\"data.npz\", x=images)"));
        }
        let mut fitted = DataSet::default();
        let batch = Batch::of(inputs, batch_axes)?;
        for (name, content) in self.0 {
            let Some(place) = inputs.iter().position(|input| input.name == name) else {
                let known: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
                return Err(Problem::invalid(FIELD, format!("the model has no input '{name}'"))
                    .with_hint(format!("its inputs are {}", known.join(", "))));
            };
            let input = &inputs[place];
            if let Content::Fill(fill) = content {
                fill.check(&name, input.dtype)?;
                fitted.fills.insert(name, fill);
                continue;
            }
            let wanted = Wanted::new(input, &batch, place, shapes)?;
            let array = match content {
                Content::Raw(raw, path) => wanted.shaped(raw, &path)?,
                Content::Array(array) => array,
                Content::Fill(_) => unreachable!("taken above"),
            };
            wanted.check(&array)?;
            if wanted.is_open() {
                let one_item = |(at, axis)| if Some(at) == wanted.items { 1 } else { axis };
                shapes.insert(name.clone(), vec![array.shape.iter().copied().enumerate().map(one_item).collect()]);
            }
            fitted.arrays.insert(name, array);
        }
        Ok(fitted)
    }
}

fn read(path: &Path) -> Result<Bytes, Problem> {
    let unreadable = |e: std::io::Error| {
        Problem::invalid(FIELD, format!("cannot read {}: {e}", path.display()))
            .with_hint("--data INPUT=FILE, a .npy file or raw elements; or --data FILE.npz")
    };
    let metadata = fs::metadata(path).map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(unreadable(std::io::Error::other("it is no regular file")));
    }
    let size = metadata.len();
    if size > MAX_BYTES {
        return Err(Problem::invalid(FIELD, format!("{} has {size} bytes", path.display()))
            .with_hint(format!("at most {MAX_BYTES}: items are used again and again, so a few are enough")));
    }
    fs::read(path).map(Bytes::from).map_err(unreadable)
}

fn one(path: &Path) -> Result<Content, Problem> {
    let bytes = read(path)?;
    match path.extension().and_then(|e| e.to_str()) {
        Some("npy") => npy::parse(&bytes).map(Content::Array).map_err(|flaw| wrong(path, &flaw)),
        Some("npz") => Err(wrong(path, "an .npz file is for all inputs together")
            .with_hint(format!("leave the input's name out: --data {}", path.display()))),
        _ => match raw::what_else(path, &bytes) {
            Some(what) => Err(wrong(path, &format!("it is {what}, not an array")).with_hint(
                "save what the model takes: np.save(\"x.npy\", array), or its raw elements without a header",
            )),
            None => Ok(Content::Raw(bytes, path.to_owned())),
        },
    }
}

fn wrong(path: &Path, flaw: &str) -> Problem {
    Problem::invalid(FIELD, format!("{}: {flaw}", path.display()))
}

/// What an input takes.
struct Wanted<'a> {
    input: &'a TensorSpec,
    /// Its axes, as far as model and request set them; the one that counts items is none.
    axes: Vec<Option<u64>>,
    /// The axis that counts items.
    items: Option<usize>,
}

impl<'a> Wanted<'a> {
    fn new(
        input: &'a TensorSpec,
        batch: &Batch<'_>,
        place: usize,
        shapes: &BTreeMap<String, Vec<Vec<u64>>>,
    ) -> Result<Self, Problem> {
        let items = batch.items(place);
        let given = match shapes.get(&input.name).map(Vec::as_slice) {
            None => None,
            Some([one]) => Some(one),
            Some(several) => {
                let message = format!("input '{}' has data of one shape, but {} shapes", input.name, several.len());
                return Err(Problem::invalid(FIELD, message).with_hint("leave --shape out, or give one"));
            }
        };
        let axis = |(i, dim): (usize, &Dim)| match dim {
            _ if Some(i) == items => None,
            Dim::Fixed(n) => Some(*n),
            Dim::Dynamic(name) => match given {
                Some(shape) => shape.get(i).copied(),
                None => crate::batch::length_of(name, |name| shapes.get(name).cloned()),
            },
        };
        Ok(Self { input, axes: input.shape.iter().enumerate().map(axis).collect(), items })
    }

    /// Whether the data is what sets some of its axes.
    fn is_open(&self) -> bool {
        self.others().any(|axis| axis.is_none())
    }

    /// Its axes without the one that counts items.
    fn others(&self) -> impl Iterator<Item = Option<u64>> {
        self.axes.iter().enumerate().filter(|(at, _)| Some(*at) != self.items).map(|(_, axis)| *axis)
    }

    fn describe(&self) -> String {
        let name = &self.input.name;
        let items = match self.items {
            Some(0) => ", its first axis counting items".to_owned(),
            Some(axis) => format!(", its axis {axis} counting items"),
            None => ", without a batch axis".to_owned(),
        };
        format!("input '{name}' takes {} {}{items}", self.input.dtype, describe(&self.input.shape))
    }

    fn check(&self, array: &Array) -> Result<(), Problem> {
        let input = self.input;
        if array.dtype != input.dtype {
            let message = format!("{}, the data is {}", self.describe(), array.dtype);
            let hint = match numpy_name(input.dtype) {
                Some(name) => format!("convert it: array.astype(\"{name}\")"),
                None => "give raw elements of that type".into(),
            };
            return Err(Problem::invalid(FIELD, message).with_hint(hint));
        }
        let fits = array.shape.len() == self.axes.len()
            && array.shape.iter().zip(&self.axes).all(|(got, want)| want.is_none_or(|want| want == *got));
        if !fits {
            let message = format!("{}, the data has shape {:?}", self.describe(), array.shape);
            let hint = match self.items.is_some() {
                true => "an array of items, one after another, such as np.stack(items)",
                false => "the whole input as it is sent, such as array.reshape(…)",
            };
            return Err(Problem::invalid(FIELD, message).with_hint(hint));
        }
        match self.items.is_some_and(|items| array.shape[items] == 0) {
            true => Err(Problem::invalid(FIELD, format!("the data for input '{}' is empty", input.name))),
            false => Ok(()),
        }
    }

    /// Raw elements with the shape that follows from their number.
    fn shaped(&self, raw: Bytes, path: &Path) -> Result<Array, Problem> {
        let (input, dtype) = (self.input, self.input.dtype);
        if dtype.size().is_some_and(|size| size > 1) && raw::is_text(&raw) {
            return Err(wrong(path, "it is text, not an array")
                .with_hint(format!("{dtype} elements as np.save or array.tofile write them")));
        }
        let item: Option<u64> = self.others().product();
        let Some(item) = item else {
            let message = format!("{}: raw data does not tell its open axes", self.describe());
            return Err(Problem::invalid(FIELD, message)
                .with_hint(format!("set them, for example --shape {}=1,…, or give a .npy file", input.name)));
        };
        let elements = elements(dtype, &raw).map_err(|flaw| {
            Problem::invalid(FIELD, format!("the raw data for input '{}' {flaw}", input.name))
                .with_hint(format!("{dtype} elements, little-endian, in C order, without a header"))
        })?;
        let items = elements / item.max(1);
        let counted = self.items.is_some();
        if items * item != elements || (counted && items == 0) || (!counted && items != 1 && item > 0) {
            let message = format!("{}: {item} elements an item; the raw data has {elements}", self.describe());
            return Err(Problem::invalid(FIELD, message).with_hint("give whole items, without a header"));
        }
        let shape = self.axes.iter().enumerate();
        let shape = shape.map(|(at, axis)| if Some(at) == self.items { items } else { axis.unwrap_or(1) }).collect();
        Ok(Array { dtype, shape, raw })
    }
}

/// Number of elements in raw contents.
fn elements(dtype: Datatype, raw: &[u8]) -> Result<u64, String> {
    match dtype.size() {
        Some(size) if raw.len().is_multiple_of(size) => Ok((raw.len() / size) as u64),
        Some(size) => Err(format!("has {} bytes, which is no multiple of {size}", raw.len())),
        None => strings(raw).map(|ends| ends.len() as u64 - 1),
    }
}

/// Where each string of raw contents begins, and where the last one ends.
fn strings(raw: &[u8]) -> Result<Vec<usize>, String> {
    let (mut ends, mut at) = (vec![0], 0usize);
    while at < raw.len() {
        let length = raw[at..].first_chunk::<4>().map(|b| u32::from_le_bytes(*b) as usize);
        at = length.map_or(usize::MAX, |length| at + 4 + length);
        if at > raw.len() {
            return Err("is not strings with a four-byte length before each".into());
        }
        ends.push(at);
    }
    Ok(ends)
}

fn numpy_name(dtype: Datatype) -> Option<&'static str> {
    Some(match dtype {
        Datatype::Bool => "bool",
        Datatype::Uint8 => "uint8",
        Datatype::Uint16 => "uint16",
        Datatype::Uint32 => "uint32",
        Datatype::Uint64 => "uint64",
        Datatype::Int8 => "int8",
        Datatype::Int16 => "int16",
        Datatype::Int32 => "int32",
        Datatype::Int64 => "int64",
        Datatype::Fp16 => "float16",
        Datatype::Fp32 => "float32",
        Datatype::Fp64 => "float64",
        Datatype::Bytes => "bytes",
        Datatype::Bf16 => return None,
    })
}

impl DataSet {
    /// The contents of an input in the nth distinct request: the next items, over and over; data of exactly the
    /// input's shape as it is. None where there is no data for it.
    ///
    /// # Errors
    /// `invalid_argument` where the data does not fit.
    pub fn contents(&self, tensor: &TensorShape, nth: u64) -> Result<Option<Bytes>, Problem> {
        let Some(array) = self.arrays.get(&tensor.name) else { return Ok(None) };
        if array.shape == tensor.shape && array.dtype == tensor.dtype {
            return Ok(Some(array.raw.clone()));
        }
        let Some(axis) = items_axis(array, tensor) else {
            let message =
                format!("input '{}' is sent as {:?}, the data has {:?}", tensor.name, tensor.shape, array.shape);
            return Err(Problem::invalid(FIELD, message));
        };
        let (items, batch) = (array.shape[axis], tensor.shape[axis]);
        // Of each item so many elements lie together, and so many times.
        let per_item = tensor.shape[axis + 1..].iter().product::<u64>() as usize;
        let times = tensor.shape[..axis].iter().product::<u64>() as usize;
        let bounds: Box<dyn Fn(usize) -> usize> = match array.dtype.size() {
            Some(size) => Box::new(move |item| item * per_item * size),
            None => {
                let ends = strings(&array.raw).map_err(|flaw| Problem::invalid(FIELD, flaw))?;
                Box::new(move |item| ends[item * per_item])
            }
        };
        let first = nth * batch;
        let mut out = BytesMut::new();
        for block in (0..times).map(|time| time * items as usize) {
            for item in (first..first + batch).map(|i| block + (i % items) as usize) {
                out.extend_from_slice(&array.raw[bounds(item)..bounds(item + 1)]);
            }
        }
        Ok(Some(out.freeze()))
    }

    /// What fills an input.
    pub fn fill(&self, input: &str) -> Option<&Fill> {
        self.fills.get(input)
    }

    /// Whether it has something for an input.
    pub fn has(&self, input: &str) -> bool {
        self.arrays.contains_key(input) || self.fills.contains_key(input)
    }

    /// As it travels: a KServe v2 `ModelInferRequest` of all items. With it, what it is known by.
    pub fn encode(&self) -> (ArtifactRef, Vec<u8>) {
        let input = |(name, array): (&String, &Array)| InferInputTensor {
            name: name.clone(),
            datatype: array.dtype.to_string(),
            shape: array.shape.iter().map(|&axis| axis as i64).collect(),
            ..InferInputTensor::default()
        };
        let fill = |(name, fill): (&String, &Fill)| InferInputTensor {
            name: name.clone(),
            parameters: [(FILL.to_owned(), text_parameter(fill.to_string()))].into(),
            ..InferInputTensor::default()
        };
        let bytes = ModelInferRequest {
            inputs: self.arrays.iter().map(input).chain(self.fills.iter().map(fill)).collect(),
            raw_input_contents: self.arrays.values().map(|array| array.raw.clone()).collect(),
            ..ModelInferRequest::default()
        }
        .encode_to_vec();
        (ArtifactRef { format: Format::Data, sha256: sha256_hex(&bytes), bytes: bytes.len() as u64 }, bytes)
    }

    /// Reads what [`Self::encode`] gave.
    ///
    /// # Errors
    /// `invalid_argument` for anything else.
    pub fn decode(bytes: Bytes) -> Result<Self, Problem> {
        let flaw = |what: &str| Problem::invalid(FIELD, format!("the stored test data cannot be read: {what}"));
        let message = ModelInferRequest::decode(bytes).map_err(|e| flaw(&e.to_string()))?;
        let (fills, arrays): (Vec<_>, Vec<_>) =
            message.inputs.into_iter().partition(|input| input.parameters.contains_key(FILL));
        if arrays.len() != message.raw_input_contents.len() {
            return Err(flaw("inputs without contents"));
        }
        let fill = |input: InferInputTensor| {
            let fill = input.parameters.get(FILL).and_then(parameter_text).and_then(Fill::parse);
            Ok((input.name, fill.ok_or_else(|| flaw("a literal that is none"))?))
        };
        let fills = fills.into_iter().map(fill).collect::<Result<_, Problem>>()?;
        let array = |(input, raw): (InferInputTensor, Bytes)| {
            let dtype: Datatype = input.datatype.parse()?;
            let shape: Option<Vec<u64>> = input.shape.iter().map(|&axis| u64::try_from(axis).ok()).collect();
            let shape = shape.ok_or_else(|| flaw("a negative axis"))?;
            let wanted = shape.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis));
            if elements(dtype, &raw).ok() != wanted {
                return Err(flaw("contents that do not fill their shape"));
            }
            Ok((input.name, Array { dtype, shape, raw }))
        };
        let arrays = arrays.into_iter().zip(message.raw_input_contents).map(array).collect::<Result<_, _>>()?;
        Ok(Self { arrays, fills })
    }
}

fn text_parameter(text: String) -> InferParameter {
    InferParameter { parameter_choice: Some(ParameterChoice::StringParam(text)) }
}

fn parameter_text(parameter: &InferParameter) -> Option<&str> {
    match &parameter.parameter_choice {
        Some(ParameterChoice::StringParam(text)) => Some(text),
        _ => None,
    }
}

/// The axis that counts items: the only one in which the data differ from what is sent.
fn items_axis(array: &Array, tensor: &TensorShape) -> Option<usize> {
    let differing = |(at, (has, sent)): (usize, (&u64, &u64))| (has != sent).then_some(at);
    let mut axes = array.shape.iter().zip(&tensor.shape).enumerate().filter_map(differing);
    let alike = array.dtype == tensor.dtype && array.shape.len() == tensor.shape.len();
    let only = axes.next().filter(|&axis| alike && array.shape[axis] > 0);
    only.filter(|_| axes.next().is_none())
}

#[cfg(test)]
mod tests;
