//! The outputs of a call, checked against themselves and against what was declared.

use super::{Subject, data};
use bytes::Bytes;
use modelmeter_common::{
    Code, Problem,
    model::{Datatype, Dim, TensorSpec, describe},
};
use modelmeter_meter::Remark;

/// An output of a call.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// The element type.
    pub dtype: Datatype,
    /// Axis by axis, as the server says it.
    pub shape: Vec<i64>,
    /// Little-endian contents; strings with four bytes of length before each.
    pub raw: Bytes,
}

/// The code of outputs that are not as they were declared.
pub const DIFFERS: &str = "output_differs";
/// The code of outputs that hold infinities or NaN.
pub const NOT_FINITE: &str = "output_not_finite";

/// Checks each output against itself and against the signature. What cannot be an answer to this batch is an error; what
/// else differs is remarked on.
pub(super) fn check_outputs(subject: &Subject, outputs: &[Output]) -> Result<Vec<Remark>, Problem> {
    if outputs.is_empty() {
        return Err(bad_response("the response has no outputs"));
    }
    let differs = |name: &str, message: String| Remark { code: DIFFERS, output: name.to_owned(), message };
    let mut remarks = Vec::new();
    for declared in subject.outputs.iter().filter(|declared| outputs.iter().all(|o| o.name != declared.name)) {
        remarks.push(differs(&declared.name, format!("output '{}' was declared and did not come", declared.name)));
    }
    for output in outputs {
        check_size(output)?;
        if let Some(declared) = subject.outputs.iter().find(|declared| declared.name == output.name) {
            remarks.extend(compare(subject, declared, output)?.map(|message| differs(&output.name, message)));
        }
        if let Some(at) = data::first_not_finite(output.dtype, &output.raw) {
            let name = output.name.clone();
            let message = format!(
                "output '{name}' holds infinities or NaN, first at element {at}: masked scores may be so by design, else give \
                 data that the model understands (--data)"
            );
            remarks.push(Remark { code: NOT_FINITE, output: name, message });
        }
    }
    Ok(remarks)
}

/// That an output has as many bytes as its shape needs.
fn check_size(Output { name, dtype, shape, raw }: &Output) -> Result<(), Problem> {
    let elements =
        elements(shape).ok_or_else(|| bad_response(format!("output '{name}' has an impossible shape {shape:?}")))?;
    match dtype.size() {
        Some(size) if elements.checked_mul(size as u64) != Some(raw.len() as u64) => {
            let message = format!("output '{name}' has {} bytes, its shape needs {elements} of {size}", raw.len());
            Err(bad_response(message))
        }
        _ => Ok(()),
    }
}

/// How an output differs from what was declared, in words; none where it does not.
///
/// # Errors
/// `bad_response` where it cannot be for this batch.
fn compare(subject: &Subject, declared: &TensorSpec, output: &Output) -> Result<Option<String>, Problem> {
    let Output { name, dtype, shape, .. } = output;
    let batch = subject.batch_size;
    let axis = subject.output_axes.get(name).copied().unwrap_or_else(|| counts_items(declared, batch));
    let differs = match fit(&declared.shape, axis, shape, i64::from(batch)) {
        Fit::OtherBatch => {
            let message = format!(
                "output '{name}' has shape {shape:?} for a batch of {batch}, {} was declared",
                describe(&declared.shape)
            );
            return Err(bad_response(message).with_field("shape"));
        }
        Fit::Differs => {
            Some(format!("has shape {shape:?} for a batch of {batch}, {} was declared", describe(&declared.shape)))
        }
        Fit::Same => None,
    };
    let other = (*dtype != declared.dtype).then(|| format!("is {dtype}, {} was declared", declared.dtype));
    let said: Vec<String> = differs.into_iter().chain(other).collect();
    Ok((!said.is_empty()).then(|| format!("output '{name}' {}", said.join(" and "))))
}

/// The axis of an output that counts items as far as the server tells it: an open first one, or one as long as the batch.
fn counts_items(declared: &TensorSpec, batch: u32) -> Option<u32> {
    match declared.shape.first() {
        Some(Dim::Dynamic(_)) => Some(0),
        Some(Dim::Fixed(length)) if batch > 1 && *length == u64::from(batch) => Some(0),
        _ => None,
    }
}

#[derive(PartialEq, Debug)]
enum Fit {
    Same,
    Differs,
    /// It can be no answer to a call of so many items.
    OtherBatch,
}

/// How a shape fits what was declared; nothing is declared by a shape without axes.
fn fit(declared: &[Dim], items: Option<u32>, got: &[i64], batch: i64) -> Fit {
    let elements = elements(got).unwrap_or(0);
    let fixed = |(got, want): (&i64, &Dim)| !matches!(want, Dim::Fixed(want) if *got as u64 != *want);
    let alike = got.len() == declared.len() && got.iter().zip(declared).all(fixed);
    match items.map(|axis| axis as usize) {
        _ if declared.is_empty() => Fit::Same,
        None if alike => Fit::Same,
        None => Fit::Differs,
        Some(axis) if got.len() == declared.len() => match got.get(axis) {
            Some(&length) if length == batch && alike => Fit::Same,
            Some(&length) if 0 < length && length < batch => Fit::OtherBatch,
            _ => Fit::Differs,
        },
        Some(_) if got.first() == Some(&batch) || elements.is_multiple_of(batch.max(1).unsigned_abs()) => Fit::Differs,
        Some(_) => Fit::OtherBatch,
    }
}

/// Strings as raw contents have them: four bytes of length before each.
pub(super) fn prefixed(strings: &[Bytes]) -> Vec<u8> {
    strings.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes()[..], text].concat()).collect()
}

/// How many elements a shape has; none for one that is impossible.
pub(super) fn elements(shape: &[i64]) -> Option<u64> {
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?))
}

/// A response that is not a valid result.
pub(crate) fn bad_response(message: impl Into<String>) -> Problem {
    Problem::new(Code::BadResponse, message)
}
