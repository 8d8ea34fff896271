//! A Triton model directory: what its `config.pbtxt` says of its name, inputs and outputs.
//!
//! The file is a protobuf in text form; this reads that form in general, and of its fields the few that are needed.

use crate::model::{Datatype, Dim, TensorSpec};
use std::path::Path;

/// What a configuration says.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Config {
    /// The model's name; none: the directory's.
    pub name: Option<String>,
    /// What it takes; empty where Triton is to find out by itself.
    pub inputs: Vec<TensorSpec>,
    /// What it gives.
    pub outputs: Vec<TensorSpec>,
}

/// Reads the configuration of the model directory `folder`, or says what is wrong with it.
pub fn read(folder: &Path) -> Result<Config, String> {
    let text = std::fs::read_to_string(folder.join("config.pbtxt")).map_err(|e| format!("config.pbtxt: {e}"))?;
    let fields = Text { rest: &text }.message(None).map_err(|e| format!("config.pbtxt: {e}"))?;
    let batched = fields.numbers("max_batch_size")?.first().is_some_and(|&size| size > 0);
    let specs = |word| fields.all(word).map(|value| spec(value, batched)).collect::<Result<Vec<_>, _>>();
    Ok(Config {
        name: fields.text("name").filter(|name| !name.is_empty()).map(str::to_owned),
        inputs: specs("input")?,
        outputs: specs("output")?,
    })
}

fn spec(value: &Value, batched: bool) -> Result<TensorSpec, String> {
    let Value::Message(fields) = value else { return Err("an input or output is not { … }".into()) };
    let name = fields.text("name").unwrap_or_default().to_owned();
    let word = fields.text("data_type").unwrap_or_default();
    let dtype = word.strip_prefix("TYPE_").map(|word| if word == "STRING" { "BYTES" } else { word });
    let dtype: Datatype = dtype
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| format!("tensor '{name}' has the unsupported data_type '{word}'"))?;
    let dim = |size: i64| u64::try_from(size).map_or(Dim::Dynamic(String::new()), Dim::Fixed);
    let batch = batched.then(|| Dim::Dynamic("batch".into()));
    Ok(TensorSpec {
        name,
        dtype,
        shape: batch.into_iter().chain(fields.numbers("dims")?.into_iter().map(dim)).collect(),
    })
}

/// A value in the text form: a number, word or string as it was written, or a message.
enum Value {
    Scalar(String),
    Message(Fields),
}

/// A message's fields in order; a list is one field several times.
struct Fields(Vec<(String, Value)>);

impl Fields {
    fn all(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |(field, _)| field == name).map(|(_, value)| value)
    }

    fn scalars(&self, name: &str) -> impl Iterator<Item = &str> {
        self.all(name).filter_map(|value| match value {
            Value::Scalar(text) => Some(text.as_str()),
            Value::Message(_) => None,
        })
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.scalars(name).next()
    }

    fn numbers(&self, name: &str) -> Result<Vec<i64>, String> {
        self.scalars(name)
            .map(|text| text.parse().map_err(|_| format!("'{text}' is not a whole number ({name})")))
            .collect()
    }
}

/// Nesting deeper than this is no configuration.
const MAX_DEPTH: usize = 32;

/// A reader of the protobuf text form. Source: the protocol buffers documentation, "Text Format Language Specification".
struct Text<'a> {
    rest: &'a str,
}

impl Text<'_> {
    /// The fields up to `close`, or to the end.
    fn message(&mut self, close: Option<char>) -> Result<Fields, String> {
        self.fields(close, 0)
    }

    fn fields(&mut self, close: Option<char>, depth: usize) -> Result<Fields, String> {
        if depth > MAX_DEPTH {
            return Err("it is nested too deep".into());
        }
        let mut fields = Vec::new();
        loop {
            self.skip();
            match (self.rest.chars().next(), close) {
                (None, None) => return Ok(Fields(fields)),
                (None, Some(close)) => return Err(format!("it ends before '{close}'")),
                (found, Some(_)) if found == close => {
                    self.rest = &self.rest[1..];
                    return Ok(Fields(fields));
                }
                _ => {}
            }
            let name = self.word()?;
            self.take(':');
            if self.take('[') {
                while !self.take(']') {
                    fields.push((name.clone(), self.value(depth)?));
                    self.take(',');
                }
            } else {
                fields.push((name, self.value(depth)?));
            }
            // Fields may be separated, and need not be.
            let _ = self.take(',') || self.take(';');
        }
    }

    fn value(&mut self, depth: usize) -> Result<Value, String> {
        for (open, close) in [('{', '}'), ('<', '>')] {
            if self.take(open) {
                return self.fields(Some(close), depth + 1).map(Value::Message);
            }
        }
        if self.rest.starts_with(['"', '\'']) { self.string() } else { self.word() }.map(Value::Scalar)
    }

    fn word(&mut self) -> Result<String, String> {
        self.skip();
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '.' | '/');
        let end = self.rest.find(|c| !plain(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        if word.is_empty() {
            let line: String = self.rest.lines().next().unwrap_or_default().chars().take(40).collect();
            return Err(format!("a word is missing at '{line}'"));
        }
        self.rest = rest;
        Ok(word.to_owned())
    }

    fn string(&mut self) -> Result<String, String> {
        let mut chars = self.rest.char_indices();
        let quote = chars.next().map(|(_, quote)| quote);
        let mut text = String::new();
        while let Some((at, c)) = chars.next() {
            match c {
                _ if Some(c) == quote => {
                    self.rest = &self.rest[at + 1..];
                    return Ok(text);
                }
                // Names have no escapes but these.
                '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
                _ => text.push(c),
            }
        }
        Err("a string does not end".into())
    }

    /// Whether `wanted` comes next; it is taken.
    fn take(&mut self, wanted: char) -> bool {
        self.skip();
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Past spaces and comments.
    fn skip(&mut self) {
        self.rest = self.rest.trim_start();
        while self.rest.starts_with('#') {
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest).trim_start();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.pbtxt"), text).unwrap();
        read(folder.path())
    }

    #[test]
    fn a_configuration_as_people_write_it_is_read() {
        let text = r#"
            # a comment { with a brace
            name: "dense \"net\""  platform: 'onnxruntime_onnx'
            max_batch_size: 8
            input [ { name: "x", data_type: TYPE_FP32, dims: [ 3, -1 ] }, { name: "ids" data_type: TYPE_STRING dims: 1 } ]
            output { name: "y"; data_type: TYPE_INT64; dims: [] }
            instance_group [ { kind: KIND_CPU count: 2 } ]
            dynamic_batching { }
            parameters < key: "threads" value: { string_value: "4" } >
        "#;
        let found = config(text).unwrap();
        let (batch, open) = (Dim::Dynamic("batch".into()), Dim::Dynamic(String::new()));
        let spec = |name: &str, dtype, shape: &[Dim]| TensorSpec { name: name.into(), dtype, shape: shape.to_vec() };
        assert_eq!(found.name.as_deref(), Some(r#"dense "net""#));
        assert_eq!(
            found.inputs,
            [
                spec("x", Datatype::Fp32, &[batch.clone(), Dim::Fixed(3), open]),
                spec("ids", Datatype::Bytes, &[batch.clone(), Dim::Fixed(1)])
            ]
        );
        assert_eq!(found.outputs, [spec("y", Datatype::Int64, &[batch])]);
    }

    #[test]
    fn without_batching_the_shape_is_whole_and_nothing_is_nothing() {
        let found = config("input { name: 'x' data_type: TYPE_BOOL dims: [1, 2] }").unwrap();
        assert_eq!(found.inputs[0].shape, [Dim::Fixed(1), Dim::Fixed(2)]);
        assert_eq!(config("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_broken_is_said() {
        for (text, why) in [
            ("input [ { name: 'x' ", "ends before '}'"),
            ("name: \"x", "does not end"),
            ("name: }", "a word is missing at '}'"),
            ("input { name: 'x' data_type: TYPE_FOO }", "TYPE_FOO"),
            ("max_batch_size: many", "many"),
            (&"a {".repeat(99), "too deep"),
        ] {
            let said = config(text).unwrap_err();
            assert!(said.contains(why), "{said} should say {why}");
        }
    }
}
