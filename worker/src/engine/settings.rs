//! Settings of engines that are configured by files or flags of their own: names and values, checked whole.

use modelmeter_common::{Problem, error::did_you_mean, request::MAX_BATCH_SIZE};
use serde_json::Value;
use std::collections::BTreeMap;

/// What a setting may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// A whole number within these bounds.
    Count(u64, u64),
    Flag,
}

impl Kind {
    fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Count(least, most) => value.as_u64().is_some_and(|count| (least..=most).contains(&count)),
            Self::Flag => value.is_boolean(),
        }
    }

    fn allowed(self) -> String {
        match self {
            Self::Count(least, most) => format!("a whole number from {least} to {most}"),
            Self::Flag => "true or false".into(),
        }
    }
}

/// The bounds of a batch's size, as a setting.
pub(super) const BATCH: Kind = Kind::Count(1, MAX_BATCH_SIZE as u64);
/// More threads or instances than this are a slip of the hand.
pub(super) const COUNT: Kind = Kind::Count(1, 1024);
/// Up to a second, in microseconds.
pub(super) const DELAY_US: Kind = Kind::Count(0, 1_000_000);

/// One engine's settings, known and of the right kind.
#[derive(Debug)]
pub(super) struct Settings<'a>(&'a BTreeMap<String, Value>);

impl<'a> Settings<'a> {
    /// Checks `given` against what the engine knows.
    ///
    /// # Errors
    /// `invalid_argument`, naming the setting, what it got and what is allowed.
    pub fn check(
        engine: &str,
        given: &'a BTreeMap<String, Value>,
        known: &[(&'static str, Kind)],
    ) -> Result<Self, Problem> {
        for (name, value) in given {
            let field = format!("engine_settings.{engine}.{name}");
            let Some((_, kind)) = known.iter().find(|(known, _)| known == name) else {
                let names = known.iter().map(|(name, _)| *name);
                let meant = did_you_mean(name, names.clone());
                let all = names.collect::<Vec<_>>().join(", ");
                let hint = if all.is_empty() { "it takes none here".into() } else { format!("{meant}it takes {all}") };
                return Err(Problem::invalid(field, format!("engine {engine} has no setting '{name}'")).with_hint(hint));
            };
            if !kind.accepts(value) {
                return Err(Problem::invalid(field, format!("{value} is not {}", kind.allowed())));
            }
        }
        Ok(Self(given))
    }

    pub fn count(&self, name: &str) -> Option<u64> {
        self.0.get(name).and_then(Value::as_u64)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_bool).unwrap_or(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_and_values_are_checked() {
        let known = [("threads", Kind::Count(1, 8)), ("batching", Kind::Flag)];
        let given = |name: &str, value: Value| BTreeMap::from([(name.to_owned(), value)]);
        let good = BTreeMap::from([("threads".to_owned(), json!(2)), ("batching".to_owned(), json!(true))]);
        let settings = Settings::check("x", &good, &known).unwrap();
        assert_eq!((settings.count("threads"), settings.flag("batching")), (Some(2), true));
        let refused = |name, value| Settings::check("x", &given(name, value), &known).unwrap_err();
        assert!(refused("thread", json!(1)).hint.unwrap().contains("did you mean 'threads'"));
        for (name, value) in
            [("threads", json!(0)), ("threads", json!(9)), ("threads", json!("2")), ("batching", json!(1))]
        {
            let problem = refused(name, value);
            assert_eq!(problem.field.unwrap(), format!("engine_settings.x.{name}"));
        }
    }
}
