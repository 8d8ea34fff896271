//! The small languages of flag values: durations, shapes, settings, agreements. Pure; each error says what is allowed.

use modelmeter_common::{
    Problem,
    batch::Stated,
    config::{self, Ports},
    load::Sla,
    model::{Dim, TensorSpec},
    request::MAX_POINTS,
};
use serde_json::Value;

fn wrong(text: &str, what: &str, example: &str) -> Problem {
    Problem::new(modelmeter_common::Code::InvalidArgument, format!("'{text}' is not {what}, for example {example}"))
}

/// A duration in milliseconds: `2s`, `500ms`, `2m`.
pub fn millis(text: &str) -> Result<u64, Problem> {
    let duration = config::duration(text).map_err(|_| wrong(text, "a duration", "2s, 500ms or 2m"))?;
    u64::try_from(duration.as_millis()).map_err(|_| wrong(text, "a duration that ends", "2m"))
}

/// How long a request may take in all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Budget {
    /// As long as its stop rules take.
    None,
    /// So many milliseconds.
    Time(u64),
}

/// A duration, or `none`.
pub fn budget(text: &str) -> Result<Budget, Problem> {
    if text.trim() == "none" { Ok(Budget::None) } else { millis(text).map(Budget::Time) }
}

/// Numbers that a flag names at once: one, or the steps of a range.
#[derive(Clone, PartialEq, Debug)]
pub struct Steps<T>(pub Vec<T>);

/// The most numbers that a range may stand for.
const MAX_STEPS: usize = MAX_POINTS;

/// A count, `8`, or a range of them with both ends, `1:8` or `1:8:2`.
pub fn counts(text: &str) -> Result<Steps<u32>, Problem> {
    let wrong = || wrong(text, "a count, or a range of them (start:end:step)", "8, or a list as 1,2,4,8, or 2:8:2");
    let numbers: Option<Vec<u32>> = text.split(':').map(|number| number.trim().parse().ok()).collect();
    match numbers.ok_or_else(wrong)?[..] {
        [one] => Ok(Steps(vec![one])),
        [start, end] => steps(start, end, 1).ok_or_else(wrong),
        [start, end, step] => steps(start, end, step).ok_or_else(wrong),
        _ => Err(wrong()),
    }
}

fn steps(start: u32, end: u32, step: u32) -> Option<Steps<u32>> {
    let all: Vec<u32> =
        (start..=end).step_by(usize::try_from(step).ok().filter(|step| *step > 0)?).take(MAX_STEPS + 1).collect();
    (!all.is_empty() && all.len() <= MAX_STEPS).then_some(Steps(all))
}

/// A rate, `99.5`, or a range of them, `100:500:100`.
pub fn rates(text: &str) -> Result<Steps<f64>, Problem> {
    let wrong =
        || wrong(text, "a rate, or a range of them (start:end:step)", "100, or a list as 100,200,400, or 100:500:100");
    let numbers: Option<Vec<f64>> = text.split(':').map(|number| number.trim().parse().ok()).collect();
    let (start, end, step) = match numbers.ok_or_else(wrong)?[..] {
        [one] => return Ok(Steps(vec![one])),
        [start, end, step] => (start, end, step),
        _ => return Err(wrong()),
    };
    // A hair more than the end, so that rounding does not lose it.
    let count = ((end - start) / step * (1.0 + 1e-9)).floor();
    if !(step > 0.0 && (0.0..MAX_STEPS as f64).contains(&count)) {
        return Err(wrong());
    }
    Ok(Steps((0..=count as u32).map(|n| f64::from(n).mul_add(step, start)).collect()))
}

/// A share: `5%` or `0.05`.
pub fn share(text: &str) -> Result<f64, Problem> {
    let (number, scale) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent.trim(), 100.0),
        None => (text.trim(), 1.0),
    };
    number.parse::<f64>().map(|n| n / scale).map_err(|_| wrong(text, "a share", "5% or 0.05"))
}

/// An agreement: `p95=50ms`.
pub fn sla(text: &str) -> Result<Sla, Problem> {
    let wrong = || wrong(text, "a latency agreement", "p95=50ms");
    let (percentile, latency) = text.split_once('=').ok_or_else(wrong)?;
    let percentile = percentile.trim().strip_prefix('p').and_then(|p| p.parse().ok()).ok_or_else(wrong)?;
    let latency_ms = config::duration(latency).map_err(|_| wrong())?.as_secs_f64() * 1e3;
    Ok(Sla { percentile, latency_ms })
}

/// The whole shape of an input, batch axis first: `x=1,3,224,224`.
pub fn shape(text: &str) -> Result<(String, Vec<u64>), Problem> {
    let wrong = || wrong(text, "an input with its shape", "x=1,3,224,224");
    // The last '=': input names may hold one.
    let (name, axes) = text.rsplit_once('=').ok_or_else(wrong)?;
    let axes: Option<Vec<u64>> = axes.split(',').map(|axis| axis.trim().parse().ok()).collect();
    match (name.trim(), axes) {
        ("", _) | (_, None) => Err(wrong()),
        (name, Some(axes)) => Ok((name.to_owned(), axes)),
    }
}

/// Where the batch of an input is: `x=1`, or `x=none`.
pub fn batch_axis(text: &str) -> Result<(String, Stated), Problem> {
    let wrong = || wrong(text, "an input with its batch axis", "x=1 or x=none");
    let (name, axis) = text.rsplit_once('=').ok_or_else(wrong)?;
    match (name.trim(), axis.parse()) {
        ("", _) | (_, Err(_)) => Err(wrong()),
        (name, Ok(axis)) => Ok((name.to_owned(), axis)),
    }
}

/// One setting of one engine, with one value or several: `onnx.threads=1,2`.
pub fn setting(text: &str) -> Result<(String, String, Value), Problem> {
    let wrong = || wrong(text, "an engine's setting", "onnx.threads=1,2");
    let (path, values) = text.split_once('=').ok_or_else(wrong)?;
    let (engine, setting) = path.split_once('.').ok_or_else(wrong)?;
    if engine.trim().is_empty() || setting.trim().is_empty() || values.trim().is_empty() {
        return Err(wrong());
    }
    let mut values: Vec<Value> = values.split(',').map(|v| scalar(v.trim())).collect();
    let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
    Ok((engine.trim().to_owned(), setting.trim().to_owned(), value))
}

/// A number or a truth value where it reads as one, else text.
fn scalar(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text.to_owned()),
    }
}

/// `key=value`.
pub fn pair(text: &str) -> Result<(String, String), Problem> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => Ok((key.trim().to_owned(), value.to_owned())),
        _ => Err(wrong(text, "a label", "team=vision")),
    }
}

/// An input without its batch axis: `x:fp32:3,224,224`; an axis may be a name, then it is open.
pub fn tensor(text: &str) -> Result<TensorSpec, Problem> {
    let wrong = || wrong(text, "an input", "x:fp32:3,224,224");
    let mut fields = text.rsplitn(3, ':');
    let (axes, dtype, name) = (fields.next(), fields.next(), fields.next());
    let (Some(axes), Some(dtype), Some(name)) = (axes, dtype, name) else { return Err(wrong()) };
    let dim = |axis: &str| axis.trim().parse().map_or_else(|_| Dim::Dynamic(axis.trim().to_owned()), Dim::Fixed);
    let mut shape = vec![Dim::Dynamic("batch".into())];
    shape.extend(axes.split(',').filter(|axis| !axis.trim().is_empty()).map(dim));
    Ok(TensorSpec { name: name.to_owned(), dtype: dtype.parse()?, shape })
}

/// Where engines listen.
pub fn ports(text: &str) -> Result<Ports, Problem> {
    match text {
        "default" => Ok(Ports::Default),
        "auto" => Ok(Ports::Auto),
        _ => Err(wrong(text, "a choice of ports", "default or auto")),
    }
}

/// How a user names a request.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum RequestWord {
    /// The newest.
    #[default]
    Latest,
    /// The start of its id, or all of it: hexadecimal digits and hyphens, in lower case.
    Id(String),
}

/// A request's id, the start of one, or `latest`.
pub fn request(text: &str) -> Result<RequestWord, Problem> {
    let word = text.trim().to_ascii_lowercase();
    match word.as_str() {
        "latest" => Ok(RequestWord::Latest),
        id if !id.is_empty() && id.chars().all(|c| c.is_ascii_hexdigit() || c == '-') => Ok(RequestWord::Id(word)),
        _ => Err(wrong(
            text,
            "a request's id, the start of one, or latest (`modelmeter requests` lists them)",
            "4b1f2c6e",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::model::Datatype;
    use serde_json::json;

    #[test]
    fn values_read_as_documented() {
        assert_eq!(millis("500ms").unwrap(), 500);
        assert_eq!(millis("2m").unwrap(), 120_000);
        assert!((share("5%").unwrap() - 0.05).abs() < 1e-12 && (share("0.05").unwrap() - 0.05).abs() < 1e-12);
        assert_eq!(sla("p99.9=1.5s").unwrap(), Sla { percentile: 99.9, latency_ms: 1500.0 });
        assert_eq!(shape("x=1,3,224,224").unwrap(), ("x".into(), vec![1, 3, 224, 224]));
        assert_eq!(shape("a=b=1,2").unwrap().0, "a=b");
        assert_eq!(batch_axis("x=1").unwrap(), ("x".into(), Stated(Some(1))));
        assert_eq!(batch_axis("x=none").unwrap().1, Stated(None));
        assert_eq!(setting("onnx.threads=1,2").unwrap(), ("onnx".into(), "threads".into(), json!([1, 2])));
        assert_eq!(setting("rten.mode=fast").unwrap().2, json!("fast"));
        assert_eq!(setting("onnx.arena=true").unwrap().2, json!(true));
        assert_eq!(request("Latest").unwrap(), RequestWord::Latest);
        assert_eq!(request("4B1f-").unwrap(), RequestWord::Id("4b1f-".into()));
        let input = tensor("x:fp32:3,h,224").unwrap();
        assert_eq!((input.name.as_str(), input.dtype), ("x", Datatype::Fp32));
        assert_eq!(input.shape[1..], [Dim::Fixed(3), Dim::Dynamic("h".into()), Dim::Fixed(224)]);
    }

    #[test]
    fn a_range_stands_for_its_steps() {
        let counted = |text| counts(text).unwrap().0;
        assert_eq!((counted("4"), counted("2:5"), counted("1:8:2")), (vec![4], vec![2, 3, 4, 5], vec![1, 3, 5, 7]));
        assert_eq!((counted("8:8"), counted("0")), (vec![8], vec![0]));
        let rated = |text| rates(text).unwrap().0;
        assert_eq!((rated("99.5"), rated("100:300:100")), (vec![99.5], vec![100.0, 200.0, 300.0]));
        assert_eq!(rated("0.1:0.3:0.1").len(), 3, "rounding loses no end");
    }

    #[test]
    fn what_does_not_read_says_what_would() {
        for error in [
            millis("5").unwrap_err(),
            share("some").unwrap_err(),
            sla("95=50ms").unwrap_err(),
            shape("x=1,a").unwrap_err(),
            shape("1,3").unwrap_err(),
            batch_axis("x=first").unwrap_err(),
            batch_axis("1").unwrap_err(),
            setting("threads=1").unwrap_err(),
            setting("onnx.threads=").unwrap_err(),
            pair("team").unwrap_err(),
            tensor("x:3,4").unwrap_err(),
            request("x7").unwrap_err(),
            request("").unwrap_err(),
            counts("1:8:0").unwrap_err(),
            counts("8:1").unwrap_err(),
            counts("1:2:3:4").unwrap_err(),
            counts("1:4000000000").unwrap_err(),
            counts("-1").unwrap_err(),
            rates("1:2").unwrap_err(),
            rates("5:1:1").unwrap_err(),
            rates("0:1:1e-9").unwrap_err(),
            rates("a").unwrap_err(),
        ] {
            assert!(error.message.contains("for example"), "{error}");
        }
        assert!(tensor("x:float:3").unwrap_err().hint.unwrap().contains("FP32"));
    }
}
