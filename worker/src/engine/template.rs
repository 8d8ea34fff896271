//! Filling the placeholders of an engine's arguments.

use modelmeter_common::{
    Problem,
    device::{Device, DeviceKind},
    model::TensorShape,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, path::Path};

const PLACEHOLDERS: [&str; 8] =
    ["model", "model_name", "grpc_port", "http_port", "metrics_port", "settings", "device", "signature"];
/// The longest name that is handed to an engine.
const MAX_NAME: usize = 128;

/// What placeholders stand for in one deployment.
pub(super) struct Values<'a> {
    pub model: Option<&'a Path>,
    pub model_name: &'a str,
    pub grpc_port: u16,
    pub http_port: u16,
    pub metrics_port: Option<u16>,
    pub settings: &'a BTreeMap<String, Value>,
    pub device: &'a Device,
    pub inputs: &'a [TensorShape],
}

impl Values<'_> {
    pub fn expand_all(&self, templates: &[String]) -> Result<Vec<String>, Problem> {
        templates.iter().map(|template| self.expand(template)).collect()
    }

    /// Replaces each `{placeholder}` once; what is put in is not looked at again. Other braces stay as they are.
    pub fn expand(&self, template: &str) -> Result<String, Problem> {
        let mut text = String::with_capacity(template.len());
        let mut rest = template;
        while let Some((before, name, after)) = next_placeholder(rest) {
            text.push_str(before);
            text.push_str(&self.value(name)?);
            rest = after;
        }
        text.push_str(rest);
        Ok(text)
    }

    fn value(&self, name: &str) -> Result<String, Problem> {
        Ok(match name {
            "model" => {
                let missing = || Problem::invalid("model", "the engine needs a model file and the cell has none");
                self.model.ok_or_else(missing)?.to_str().ok_or_else(not_utf8)?.to_owned()
            }
            "model_name" => self.model_name.to_owned(),
            "grpc_port" => self.grpc_port.to_string(),
            "http_port" => self.http_port.to_string(),
            "metrics_port" => {
                let missing = || Problem::invalid("ports", "the engine has no metrics port");
                self.metrics_port.ok_or_else(missing)?.to_string()
            }
            "settings" => serde_json::to_string(self.settings).expect("JSON values are JSON"),
            // The engine sees the slot's GPU alone (CUDA_VISIBLE_DEVICES), which is then its first.
            "device" => match self.device.kind {
                DeviceKind::Cpu | DeviceKind::Remote => "cpu".to_owned(),
                DeviceKind::Gpu => "cuda:0".to_owned(),
            },
            "signature" => signature(self.inputs),
            other => return Err(unknown(other, "engines")),
        })
    }
}

/// The inputs as JSON, for engines whose artifacts do not say what they take. The batch axis is open (-1): one
/// deployment serves every batch size.
fn signature(inputs: &[TensorShape]) -> String {
    let input = |tensor: &TensorShape| {
        let axes =
            tensor.shape.iter().enumerate().map(|(axis, &length)| if axis == 0 { json!(-1) } else { json!(length) });
        json!({ "name": tensor.name, "dtype": tensor.dtype, "shape": axes.collect::<Vec<_>>() })
    };
    json!({ "inputs": inputs.iter().map(input).collect::<Vec<_>>() }).to_string()
}

fn not_utf8() -> Problem {
    Problem::invalid("home", "the path of the cache is not UTF-8")
}

fn unknown(name: &str, field: &str) -> Problem {
    let known = PLACEHOLDERS.map(|name| format!("{{{name}}}")).join(", ");
    Problem::invalid(field, format!("unknown placeholder {{{name}}}")).with_hint(format!("there are {known}"))
}

/// Checks that a template names known placeholders only.
pub(super) fn check(template: &str, field: &str) -> Result<(), Problem> {
    let mut rest = template;
    while let Some((_, name, after)) = next_placeholder(rest) {
        if !PLACEHOLDERS.contains(&name) {
            return Err(unknown(name, field));
        }
        rest = after;
    }
    Ok(())
}

/// Splits at the first `{word}`, a word being lower-case letters and underscores: so JSON may stand in a template.
fn next_placeholder(text: &str) -> Option<(&str, &str, &str)> {
    text.match_indices('{').find_map(|(open, _)| {
        let (name, after) = text[open + 1..].split_once('}')?;
        let is_word = !name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        is_word.then_some((&text[..open], name, after))
    })
}

/// A model's name as it is handed to an engine: letters, digits, dots, hyphens and underscores, never like a flag.
pub(super) fn model_name(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') { c } else { '_' };
    let name: String = name.chars().take(MAX_NAME).map(plain).collect();
    if name.starts_with(|c: char| c.is_ascii_alphanumeric()) { name } else { format!("m{name}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::model::Datatype;

    static DEVICE: Device = Device {
        kind: DeviceKind::Gpu,
        class: String::new(),
        name: String::new(),
        index: Some(3),
        uuid: None,
        driver: None,
        cuda: None,
        ecc_enabled: None,
        mig_enabled: None,
        memory_total_bytes: None,
        cores: None,
    };

    fn values(settings: &BTreeMap<String, Value>) -> Values<'_> {
        let model = Some(Path::new("/cache/a.onnx"));
        let (grpc_port, http_port, metrics_port) = (8002, 8001, None);
        Values { model, model_name: "m", grpc_port, http_port, metrics_port, settings, device: &DEVICE, inputs: &[] }
    }

    #[test]
    fn the_signature_leaves_the_batch_open_and_a_gpu_is_the_first_that_is_seen() {
        let settings = BTreeMap::new();
        let inputs = [TensorShape::new("x", Datatype::Fp32, vec![8, 3, 224])];
        let values = Values { inputs: &inputs, ..values(&settings) };
        assert_eq!(values.expand("{device}").unwrap(), "cuda:0");
        let cpu = Device { kind: DeviceKind::Cpu, ..DEVICE.clone() };
        assert_eq!(Values { device: &cpu, ..values }.expand("{device}").unwrap(), "cpu");
        let values = Values { inputs: &inputs, ..self::values(&settings) };
        let signature: Value = serde_json::from_str(&values.expand("{signature}").unwrap()).unwrap();
        assert_eq!(signature, json!({"inputs": [{"name": "x", "dtype": "FP32", "shape": [-1, 3, 224]}]}));
    }

    #[test]
    fn each_placeholder_is_filled_and_what_is_put_in_is_not_expanded_again() {
        let settings = BTreeMap::from([("note".to_owned(), Value::from("{model} $(id)"))]);
        let expanded =
            values(&settings).expand("--at {model}:{grpc_port}/{http_port} {model_name} {settings}").unwrap();
        assert_eq!(expanded, r#"--at /cache/a.onnx:8002/8001 m {"note":"{model} $(id)"}"#);
    }

    #[test]
    fn json_in_a_template_stays_and_unknown_words_are_refused() {
        let settings = BTreeMap::new();
        let kept = r#"{"threads": 1} { } {} }{ {"#;
        assert_eq!(values(&settings).expand(kept).unwrap(), kept);
        assert!(check(kept, "engines.x").is_ok() && check("{model}{settings}", "engines.x").is_ok());
        let problem = check("--port {port}", "engines.x").unwrap_err();
        assert!(problem.message.contains("{port}") && problem.hint.unwrap().contains("{grpc_port}"));
        assert!(values(&settings).expand("{port}").is_err());
        assert_eq!(values(&settings).expand("{ {model_name}").unwrap(), "{ m");
    }

    #[test]
    fn a_model_that_is_missing_is_said() {
        let settings = BTreeMap::new();
        let values = Values { model: None, ..values(&settings) };
        assert!(values.expand("{model}").is_err());
        assert_eq!(values.expand("{model_name}").unwrap(), "m");
    }

    #[test]
    fn names_never_look_like_flags_or_paths() {
        assert_eq!(model_name("resnet50"), "resnet50");
        assert_eq!(model_name("--engine=x"), "m--engine_x");
        assert_eq!(model_name("../../etc"), "m.._.._etc");
        assert_eq!(model_name(""), "m");
    }
}
