//! Our documents as BSON and back: exactly their JSON, except that times are dates.
//!
//! One rule for every collection, so that no document needs code of its own: text in a field whose name
//! ends in `_at` and that is a time exactly as we write it becomes a date.

use super::super::HubError;
use modelmeter_common::Timestamp;
use mongodb::bson::{Bson, DateTime, Decimal128, Document};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Number, Value};
use std::str::FromStr as _;

/// Encodes a struct as the document to store.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Document, HubError> {
    let refused = |reason: String| HubError::Storage(format!("a document cannot be stored: {reason}"));
    match serde_json::to_value(value).map_err(|error| refused(error.to_string()))? {
        Value::Object(fields) => Ok(to_document(fields)),
        other => Err(refused(format!("{other} is not an object"))),
    }
}

/// Decodes a stored document; unknown fields are ignored.
pub(super) fn decode<T: DeserializeOwned>(what: &'static str, document: Document) -> Result<T, HubError> {
    let value = from_bson(Bson::Document(document)).map_err(|reason| HubError::Corrupt { what, reason })?;
    serde_json::from_value(value).map_err(|error| HubError::Corrupt { what, reason: error.to_string() })
}

/// A point in time as BSON has it.
pub(super) fn date(at: Timestamp) -> Bson {
    Bson::DateTime(DateTime::from_millis(at.0))
}

fn to_document(fields: Map<String, Value>) -> Document {
    fields.into_iter().map(|(key, value)| (key.clone(), to_bson(&key, value))).collect()
}

/// A value under this key as BSON has it.
pub(super) fn to_bson(key: &str, value: Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(value),
        Value::Number(number) => number_to_bson(&number),
        Value::String(text) => match canonical_time(key, &text) {
            Some(at) => date(at),
            None => Bson::String(text),
        },
        Value::Array(items) => Bson::Array(items.into_iter().map(|item| to_bson("", item)).collect()),
        Value::Object(fields) => Bson::Document(to_document(fields)),
    }
}

/// Only text that a date gives back exactly becomes a date: a user's label keeps its spelling.
fn canonical_time(key: &str, text: &str) -> Option<Timestamp> {
    key.ends_with("_at").then(|| Timestamp::parse(text)).flatten().filter(|at| at.to_string() == text)
}

/// BSON has no unsigned 64-bit integer: a number beyond the signed ones (a seed may be one) is a decimal.
fn number_to_bson(number: &Number) -> Bson {
    if let Some(int) = number.as_i64() {
        Bson::Int64(int)
    } else if number.is_u64() {
        let decimal = Decimal128::from_str(&number.to_string());
        Bson::Decimal128(decimal.expect("34 digits hold every unsigned 64-bit integer"))
    } else {
        number.as_f64().map_or(Bson::Null, Bson::Double)
    }
}

fn from_bson(value: Bson) -> Result<Value, String> {
    Ok(match value {
        Bson::Null | Bson::Undefined => Value::Null,
        Bson::Boolean(value) => Value::Bool(value),
        Bson::Int32(value) => value.into(),
        Bson::Int64(value) => value.into(),
        Bson::Double(value) => Number::from_f64(value).map_or(Value::Null, Value::Number),
        Bson::Decimal128(value) => {
            let text = value.to_string();
            Value::Number(Number::from_str(&text).map_err(|_| format!("{text} is not a number that we write"))?)
        }
        Bson::String(text) | Bson::Symbol(text) => Value::String(text),
        Bson::DateTime(at) => Value::String(Timestamp(at.timestamp_millis()).to_string()),
        Bson::ObjectId(id) => Value::String(id.to_hex()),
        Bson::Array(items) => Value::Array(items.into_iter().map(from_bson).collect::<Result<_, _>>()?),
        Bson::Document(fields) => Value::Object(
            fields.into_iter().map(|(key, value)| Ok((key, from_bson(value)?))).collect::<Result<_, String>>()?,
        ),
        other => return Err(format!("a value of type {:?}", other.element_type())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_json_value_survives_and_keeps_its_type() {
        let value = json!({
            "_id": "a:b", "created_at": "2026-03-20T14:34:56.789Z", "ended_at": null,
            "nested": [{"expires_at": "1969-12-31T23:59:59.999Z"}, [1, -1, 1.0, -0.0, 0.1, 1e300]],
            "seed": u64::MAX, "least": i64::MIN, "great": i64::MAX, "übung": "日本 \u{1f600} \u{0}", "a.b": {"$c": true},
        });
        let document = encode(&value).unwrap();
        assert_eq!(document.get("created_at"), Some(&date(Timestamp(1_774_017_296_789))));
        assert!(matches!(document.get("seed"), Some(Bson::Decimal128(_))));
        assert!(matches!(document.get("great"), Some(Bson::Int64(i64::MAX))));
        let numbers = document.get_array("nested").unwrap()[1].as_array().unwrap();
        assert_eq!((&numbers[0], &numbers[2]), (&Bson::Int64(1), &Bson::Double(1.0)));
        assert_eq!(decode::<Value>("value", document).unwrap(), value);
    }

    #[test]
    fn only_times_as_we_write_them_become_dates() {
        for text in ["2026-03-20T14:34:56Z", "2026-02-31T00:00:00.000Z", "soon", "2026-03-20T14:34:56.789123Z"] {
            let document = encode(&json!({"built_at": text})).unwrap();
            assert_eq!(document.get_str("built_at").unwrap(), text);
        }
        let document = encode(&json!({"built": "2026-03-20T14:34:56.789Z"})).unwrap();
        assert!(document.get_str("built").is_ok());
    }

    #[test]
    fn what_no_adapter_wrote_is_corrupt() {
        let document = mongodb::bson::doc! {"a": mongodb::bson::Bson::MaxKey};
        assert!(matches!(decode::<Value>("task", document), Err(HubError::Corrupt { what: "task", .. })));
    }
}
