//! Checking a request against the model's signature, and naming what is wrong with it.

use crate::{
    contents,
    tensor::{Tensor, byte_len},
};
use bytes::Bytes;
use modelmeter_common::{
    Code, Problem,
    model::{Datatype, Dim, TensorSpec},
};
use modelmeter_proto::kserve::{InferTensorContents, model_infer_request::InferInputTensor};

/// The version of the one model a server has.
pub const MODEL_VERSION: &str = "1";

/// One input as it came: by whichever road, its data are raw bytes or typed.
pub struct Given<'a> {
    pub name: &'a str,
    pub datatype: &'a str,
    pub shape: &'a [i64],
}

/// A gRPC request's inputs as tensors, in the order of the signature.
///
/// # Errors
/// `invalid_argument` with the name of the input and what the model takes.
pub fn tensors(specs: &[TensorSpec], inputs: &[InferInputTensor], raw: Vec<Bytes>) -> Result<Vec<Tensor>, Problem> {
    if !raw.is_empty() && raw.len() != inputs.len() {
        let message = format!("{} inputs came with {} raw_input_contents", inputs.len(), raw.len());
        return Err(
            Problem::invalid("raw_input_contents", message).with_hint("give one for each input, in their order")
        );
    }
    let mut raw = raw.into_iter();
    collect(specs, inputs.len(), inputs.iter(), |input, dtype| match (raw.next(), &input.contents) {
        (Some(_), Some(contents)) if *contents != InferTensorContents::default() => {
            Err(Problem::invalid(&input.name, "both contents and raw_input_contents are given"))
        }
        (Some(bytes), _) => Ok(bytes),
        (None, Some(contents)) => contents::from_typed(&input.name, dtype, contents),
        (None, None) => Err(Problem::invalid(&input.name, "no data are given")),
    })
}

impl<'a> From<&'a InferInputTensor> for Given<'a> {
    fn from(input: &'a InferInputTensor) -> Self {
        Self { name: &input.name, datatype: &input.datatype, shape: &input.shape }
    }
}

/// Checks each input and puts it in the signature's place; `data` gives an input's bytes.
pub fn collect<'a, I>(
    specs: &[TensorSpec],
    count: usize,
    inputs: impl Iterator<Item = &'a I>,
    mut data: impl FnMut(&'a I, Datatype) -> Result<Bytes, Problem>,
) -> Result<Vec<Tensor>, Problem>
where
    I: 'a,
    Given<'a>: From<&'a I>,
{
    let mut places: Vec<Option<Tensor>> = vec![None; specs.len()];
    for (at, input) in inputs.enumerate() {
        let given = Given::from(input);
        // Clients keep to the signature's order: the first look finds it.
        let place = if specs.get(at).is_some_and(|spec| spec.name == given.name) {
            at
        } else {
            specs.iter().position(|spec| spec.name == given.name).ok_or_else(|| unknown_input(given.name, specs))?
        };
        let spec = &specs[place];
        let shape = check(spec, &given)?;
        let tensor = Tensor { dtype: spec.dtype, data: data(input, spec.dtype)?, shape };
        check_length(spec, &tensor)?;
        if places[place].replace(tensor).is_some() {
            return Err(Problem::invalid(given.name, "the input is given twice"));
        }
    }
    if count < specs.len() {
        let missing = specs.iter().zip(&places).find(|(_, place)| place.is_none()).map(|(spec, _)| spec);
        let missing = missing.expect("fewer inputs than places, none twice");
        return Err(Problem::invalid(&missing.name, format!("the input is missing: {}", signature(missing))));
    }
    let tensors: Vec<Tensor> = places.into_iter().flatten().collect();
    check_symbols(specs, &tensors)?;
    Ok(tensors)
}

/// Type and shape; gives the shape.
fn check(spec: &TensorSpec, given: &Given<'_>) -> Result<Vec<u64>, Problem> {
    let wrong = |message: String| {
        Problem::invalid(&spec.name, message).with_hint(format!("the model takes {}", signature(spec)))
    };
    if given.datatype != spec.dtype.as_str() {
        return Err(wrong(format!("datatype is '{}'", given.datatype)));
    }
    let fits = !spec.is_shaped()
        || given.shape.len() == spec.shape.len()
            && given.shape.iter().zip(&spec.shape).all(|(&length, dim)| match dim {
                Dim::Fixed(fixed) => u64::try_from(length).is_ok_and(|length| length == *fixed),
                Dim::Dynamic(_) => true,
            });
    // An open axis may be empty, as the past of a first step is.
    let fits = fits && given.shape.iter().all(|&length| length >= 0);
    if !fits {
        return Err(wrong(format!("shape is {:?}", given.shape)));
    }
    Ok(given.shape.iter().map(|&length| length.unsigned_abs()).collect())
}

fn check_length(spec: &TensorSpec, tensor: &Tensor) -> Result<(), Problem> {
    let wanted = byte_len(spec.dtype, &tensor.shape);
    if wanted == Some(tensor.data.len()) {
        return Ok(());
    }
    let wanted = wanted.map_or_else(|| "more than there can be".into(), |bytes| bytes.to_string());
    let message = format!("{} bytes of data for {} {:?}", tensor.data.len(), spec.dtype, tensor.shape);
    Err(Problem::invalid(&spec.name, message).with_hint(format!("that tensor has {wanted} bytes, little-endian")))
}

/// Open axes of the same name are equally long.
fn check_symbols(specs: &[TensorSpec], tensors: &[Tensor]) -> Result<(), Problem> {
    if specs.len() < 2 {
        return Ok(());
    }
    let mut seen: Vec<(&str, u64, &str)> = Vec::new();
    for (spec, tensor) in specs.iter().zip(tensors).filter(|(spec, _)| spec.is_shaped()) {
        for (dim, &length) in spec.shape.iter().zip(&tensor.shape) {
            let Dim::Dynamic(symbol) = dim else { continue };
            match seen.iter().find(|(known, ..)| known == symbol && !symbol.is_empty()) {
                Some((_, other, first)) if *other != length => {
                    let message = format!("axis '{symbol}' is {length} here and {other} in '{first}'");
                    return Err(Problem::invalid(&spec.name, message));
                }
                Some(_) => {}
                None => seen.push((symbol, length, &spec.name)),
            }
        }
    }
    Ok(())
}

/// The outputs asked for as places in the signature; all of them when none is named.
pub fn outputs<'a>(specs: &[TensorSpec], asked: impl Iterator<Item = &'a str>) -> Result<Option<Vec<usize>>, Problem> {
    let places: Result<Vec<usize>, Problem> = asked
        .map(|name| {
            specs.iter().position(|spec| spec.name == name).ok_or_else(|| {
                Problem::invalid("outputs", format!("the model has no output '{name}'"))
                    .with_hint(format!("it has {}", names(specs)))
            })
        })
        .collect();
    places.map(|places| (!places.is_empty()).then_some(places))
}

/// That the model asked for is the one served.
pub fn check_model(served: &str, name: &str, version: &str) -> Result<(), Problem> {
    if name == served && (version.is_empty() || version == MODEL_VERSION) {
        return Ok(());
    }
    let version = if version.is_empty() { String::new() } else { format!(" version '{version}'") };
    Err(Problem::new(Code::NotFound, format!("there is no model '{name}'{version} here"))
        .with_hint(format!("this server has '{served}' version '{MODEL_VERSION}'")))
}

fn unknown_input(name: &str, specs: &[TensorSpec]) -> Problem {
    Problem::invalid("inputs", format!("the model has no input '{name}'"))
        .with_hint(format!("it takes {}", names(specs)))
}

fn names(specs: &[TensorSpec]) -> String {
    specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// A tensor of the signature for people: `x FP32 [batch, 3]`.
fn signature(spec: &TensorSpec) -> String {
    let dims: Vec<String> = spec
        .shape
        .iter()
        .map(|dim| match dim {
            Dim::Fixed(length) => length.to_string(),
            Dim::Dynamic(symbol) if symbol.is_empty() => "any".into(),
            Dim::Dynamic(symbol) => symbol.clone(),
        })
        .collect();
    format!("{} {} [{}]", spec.name, spec.dtype, dims.join(", "))
}
