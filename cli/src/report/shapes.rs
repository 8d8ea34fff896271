//! What tells cells apart, in words: the shapes of their inputs and the settings of their engine.

use modelmeter_common::model::TensorShape;
use serde_json::Value;
use std::collections::BTreeMap;

/// `x FP32 [N, 3, 224, 224]`, the batch axis left open where it is.
pub(crate) fn shapes(inputs: &[TensorShape]) -> String {
    let one = |input: &TensorShape| {
        let axis =
            |(at, n): (usize, &u64)| if Some(at as u32) == input.batch_axis { "N".into() } else { n.to_string() };
        let axes: Vec<String> = input.shape.iter().enumerate().map(axis).collect();
        format!("{} {} [{}]", input.name, input.dtype, axes.join(", "))
    };
    inputs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whether these cells differ in their inputs, besides the batch.
pub(crate) fn shapes_differ<'a>(mut cells: impl Iterator<Item = &'a [TensorShape]>) -> bool {
    let first = cells.next().map(shapes);
    cells.any(|inputs| Some(shapes(inputs)) != first)
}

/// For dry runs and logs: settings as `threads=2, mode=fast`.
pub fn settings_text(settings: &BTreeMap<String, Value>) -> String {
    let one = |(k, v): (&String, &Value)| match v {
        Value::String(text) => format!("{k}={text}"),
        other => format!("{k}={other}"),
    };
    settings.iter().map(one).collect::<Vec<_>>().join(", ")
}
