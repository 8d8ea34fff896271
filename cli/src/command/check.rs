//! `check`: whether engines give the same answers, so that what is compared is the same work.

use super::{Context, print};
use crate::{
    args::CheckArgs,
    embedded, interrupt, job,
    models::{self, Local},
    report::{self, Align, Table},
    servers::discovery,
};
use modelmeter_common::{
    Code, Problem,
    config::Config,
    device::Device,
    model::{Datatype, Model},
    request::Request,
    task::Cell,
};
use modelmeter_worker::{
    EngineSpec, SlotOptions, Trial,
    engine::discover::Offer,
    inspector::{Output, ServerWait},
    sample,
};
use serde::Serialize;
use std::{collections::BTreeMap, path::Path, time::Duration};

/// A model's first call may compile it.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// One engine's answer beside the first one's.
#[derive(Debug, Serialize)]
struct Answer {
    engine: String,
    /// The format that it loaded.
    artifact: Option<String>,
    /// Over all elements of its first output.
    std_dev: Option<f64>,
    /// How far apart the items of the batch lie: the standard deviation over them, as a mean over an item's elements.
    std_dev_between_items: Option<f64>,
    /// The largest difference from the first engine's answer, in standard deviations of that.
    max_deviation: Option<f64>,
    agrees: bool,
    error: Option<Problem>,
}

pub(super) async fn run(context: &Context, args: CheckArgs) -> Result<u8, Problem> {
    let home = &context.config.home;
    if !(args.tolerance >= 0.0 && args.tolerance.is_finite()) {
        return Err(
            Problem::invalid("tolerance", format!("{} is out of range", args.tolerance)).with_hint("use 0 or more")
        );
    }
    embedded::writable(home)?;
    let target = job::named(args.model.as_deref(), &args.artifacts)?;
    let local = models::local(&target, home, ServerWait::NONE).await?.ok_or_else(|| {
        Problem::invalid("model", "only files and built-in models can be checked").with_hint("give the path of a file")
    })?;
    let (devices, _) = sample::devices();
    let cpu = devices.into_iter().next().expect("the CPU is a device of every machine");
    let trials = trials(&args, &local.model, offer(&context.config, &args)?, &cpu)?;
    let trial = Trial::new(cpu, embedded::port_policy(args.ports), home, &embedded::lock_dir(&context.config))?;
    let stop = interrupt::listen()?;
    let tried = try_each(&trial, &trials, &local, args.seed);
    let answers = tokio::select! {
        answers = tried => Some(answers),
        () = stop.cancelled() => None,
    };
    trial.stop().await;
    let answers = compare(answers.ok_or_else(interrupt::interrupted)?, args.tolerance);
    print(&if context.json { report::json(&answers) } else { table(&answers) })?;
    Ok(if answers.iter().all(|answer| answer.agrees) { 0 } else { Code::EngineFailed.exit_code() })
}

/// The engines that were named, in their order, or all that can run here.
fn offer(config: &Config, args: &CheckArgs) -> Result<Offer, Problem> {
    if args.engines == ["auto"] {
        return discovery(config).offer(&[]);
    }
    let mut offer = discovery(config).whole_offer(&args.engines)?;
    offer.specs.sort_by_key(|spec| args.engines.iter().position(|name| *name == spec.name));
    Ok(offer)
}

/// One cell an engine that loads the model, in the order of the engines.
fn trials(args: &CheckArgs, model: &Model, offer: Offer, cpu: &Device) -> Result<Vec<(EngineSpec, Cell)>, Problem> {
    let mut request = Request {
        model: model.id.to_string(),
        engines: args.engines.clone(),
        batch_sizes: vec![args.batch_size],
        ..Request::default()
    };
    request.batch_axes.extend(args.batch_axes.iter().cloned());
    for (input, shape) in &args.shapes {
        request.shapes.entry(input.clone()).or_default().push(shape.clone());
    }
    let pools = embedded::pools(&[SlotOptions { device: cpu.clone() }], &offer, &BTreeMap::new());
    let cells = embedded::cells(&request, model, &pools)?;
    let cell_of = |spec: &EngineSpec| cells.iter().find(|cell| cell.engine == spec.name).cloned();
    Ok(offer.specs.into_iter().filter_map(|spec| cell_of(&spec).map(|cell| (spec, cell))).collect())
}

async fn try_each(
    trial: &Trial,
    trials: &[(EngineSpec, Cell)],
    local: &Local,
    seed: u64,
) -> Vec<(Cell, Result<Vec<Output>, Problem>)> {
    let mut answers = Vec::new();
    for (spec, cell) in trials {
        eprintln!("trying {}", spec.name);
        let file = local.files.iter().find(|(artifact, _)| Some(artifact) == cell.artifact.as_ref());
        let path = file.map(|(_, path)| Path::new(path));
        answers.push((cell.clone(), trial.call(spec, cell, path, seed, CALL_TIMEOUT).await));
    }
    answers
}

fn compare(answers: Vec<(Cell, Result<Vec<Output>, Problem>)>, tolerance: f64) -> Vec<Answer> {
    let first = answers.first().and_then(|(_, answer)| answer.as_ref().ok()).cloned();
    let one = |(cell, answer): (Cell, Result<Vec<Output>, Problem>)| {
        let compared = match (&first, &answer) {
            (Some(first), Ok(outputs)) => deviation(first, outputs),
            _ => Err("the first engine gave no answer to compare this one with".into()),
        };
        let (deviation, why_not) = match compared {
            Ok(deviation) => (Some(deviation), None),
            Err(why) => (None, Some(Problem::new(Code::BadResponse, why))),
        };
        let output = answer.as_ref().ok().and_then(|outputs| outputs.first());
        Answer {
            engine: cell.engine,
            artifact: cell.artifact.map(|artifact| artifact.format.to_string()),
            std_dev: output.and_then(numbers).map(|values| std_dev(&values)),
            std_dev_between_items: output.and_then(between_items),
            max_deviation: deviation,
            agrees: deviation.is_some_and(|deviation| deviation <= tolerance),
            error: answer.err().or(why_not),
        }
    };
    answers.into_iter().map(one).collect()
}

/// The largest difference, over outputs of the same name, or else the same place; or why they cannot be compared.
fn deviation(first: &[Output], other: &[Output]) -> Result<f64, String> {
    if first.len() != other.len() || first.is_empty() {
        return Err(format!("it gave {} outputs, the first engine {}", other.len(), first.len()));
    }
    let apart = |a: f64, b: f64| match a == b || a.is_nan() && b.is_nan() {
        true => 0.0,
        // What is not a number in one answer alone is as far as can be.
        false if a.is_nan() || b.is_nan() => f64::INFINITY,
        false => (a - b).abs(),
    };
    let pair = |(place, one): (usize, &Output)| {
        let two = other.iter().find(|output| output.name == one.name).unwrap_or(&other[place]);
        if one.shape != two.shape {
            return Err(format!(
                "output {} has shape {:?}, that of the first engine {:?}",
                two.name, two.shape, one.shape
            ));
        }
        let words =
            |output: &Output| format!("output {} is of type {}, which cannot be compared", output.name, output.dtype);
        let (a, b) = (numbers(one).ok_or_else(|| words(one))?, numbers(two).ok_or_else(|| words(two))?);
        let largest = a.iter().zip(&b).map(|(&a, &b)| apart(a, b)).fold(0.0, f64::max);
        // What does not vary must be the same.
        Ok(if largest == 0.0 { 0.0 } else { largest / std_dev(&a) })
    };
    first.iter().enumerate().map(pair).try_fold(0.0, |most, one| Ok(f64::max(most, one?)))
}

fn between_items(output: &Output) -> Option<f64> {
    let values = numbers(output)?;
    let items = usize::try_from(*output.shape.first()?).ok().filter(|&items| items > 0)?;
    let elements = values.len() / items;
    let column = |at: usize| std_dev(&values.iter().skip(at).step_by(elements).copied().collect::<Vec<_>>());
    (elements > 0).then(|| (0..elements).map(column).sum::<f64>() / elements as f64)
}

/// Of the values that are numbers: masks may be infinite.
fn std_dev(values: &[f64]) -> f64 {
    let finite = || values.iter().filter(|value| value.is_finite());
    let n = finite().count().max(1) as f64;
    let mean = finite().sum::<f64>() / n;
    (finite().map(|value| (value - mean).powi(2)).sum::<f64>() / n).sqrt()
}

/// The elements as numbers; none for strings.
fn numbers(output: &Output) -> Option<Vec<f64>> {
    fn read<const N: usize>(raw: &[u8], one: impl Fn([u8; N]) -> f64) -> Vec<f64> {
        raw.as_chunks::<N>().0.iter().copied().map(one).collect()
    }
    let raw = &output.raw;
    Some(match output.dtype {
        Datatype::Fp32 => read(raw, |b| f64::from(f32::from_le_bytes(b))),
        Datatype::Fp64 => read(raw, f64::from_le_bytes),
        Datatype::Int64 => read(raw, |b| i64::from_le_bytes(b) as f64),
        Datatype::Uint64 => read(raw, |b| u64::from_le_bytes(b) as f64),
        Datatype::Int32 => read(raw, |b| f64::from(i32::from_le_bytes(b))),
        Datatype::Uint32 => read(raw, |b| f64::from(u32::from_le_bytes(b))),
        Datatype::Int16 => read(raw, |b| f64::from(i16::from_le_bytes(b))),
        Datatype::Uint16 => read(raw, |b| f64::from(u16::from_le_bytes(b))),
        Datatype::Int8 => read(raw, |[b]| f64::from(b as i8)),
        Datatype::Uint8 | Datatype::Bool => read(raw, |[b]| f64::from(b)),
        Datatype::Fp16 => read(raw, |b| half(u16::from_le_bytes(b))),
        Datatype::Bf16 => read(raw, |b| f64::from(f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))),
        Datatype::Bytes => return None,
    })
}

/// IEEE 754 binary16.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f64::from(bits & 0x3ff) / 1024.0);
    let size = match exponent {
        0 => fraction * 2f64.powi(-14),
        31 if fraction > 0.0 => f64::NAN,
        31 => f64::INFINITY,
        _ => (1.0 + fraction) * 2f64.powi(exponent - 15),
    };
    if bits >> 15 == 1 { -size } else { size }
}

fn table(answers: &[Answer]) -> String {
    let mut table = Table::default()
        .column("engine", Align::Left)
        .column("artifact", Align::Left)
        .column("std dev", Align::Right)
        .column("between items", Align::Right)
        .column("max deviation", Align::Right)
        .column("agrees", Align::Left);
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.3e}"));
    for answer in answers {
        table.row(vec![
            answer.engine.clone(),
            answer.artifact.clone().unwrap_or_default(),
            number(answer.std_dev),
            number(answer.std_dev_between_items),
            number(answer.max_deviation),
            if answer.agrees { "yes" } else { "no" }.into(),
        ]);
    }
    let errors = answers.iter().filter_map(|answer| Some((&answer.engine, answer.error.as_ref()?)));
    let lines: String = errors.map(|(engine, error)| format!("{engine}: {error}\n")).collect();
    format!(
        "{table}\nmax deviation: the largest difference from the first engine, in standard deviations of its output\n{lines}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(name: &str, values: &[f32]) -> Output {
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        Output { name: name.into(), dtype: Datatype::Fp32, shape: vec![2, values.len() as i64 / 2], raw: raw.into() }
    }

    #[test]
    fn engines_of_the_configuration_take_part() {
        crate::servers::this_is_the_program();
        let text = "[engines.mine]\ncommand = ['sh']\nformats = ['onnx']\n[engines.other]\ncommand = ['sh']\nformats = ['triton']";
        let home = tempfile::tempdir().unwrap();
        let config = Config { home: home.path().to_owned(), ..toml::from_str(text).unwrap() };
        let words = |words: &str| words.split(',').map(str::to_owned).collect::<Vec<_>>();
        let tried = |engines: &str| {
            let args = CheckArgs { engines: words(engines), ..args() };
            let trials = trials(&args, &model(), offer(&config, &args).unwrap(), &Device::cpu("test", None, None));
            trials.map(|trials| trials.into_iter().map(|(spec, _)| spec.name).collect::<Vec<_>>())
        };
        assert_eq!(tried("rten,mine").unwrap(), ["rten", "mine"]);
        assert_eq!(tried("mine,rten").unwrap(), ["mine", "rten"], "the first is what the others are compared with");
        let auto = tried("auto").unwrap();
        assert!(auto.contains(&"mine".to_owned()) && auto.contains(&"rten".to_owned()), "{auto:?}");
        assert!(!auto.contains(&"other".to_owned()) && !auto.contains(&"null".to_owned()), "{auto:?}");
        assert!(tried("other").unwrap_err().message.contains("loads triton"));
    }

    fn args() -> CheckArgs {
        use crate::args::{Cli, Command};
        use clap::Parser;
        let cli = Cli::try_parse_from(["modelmeter", "check", "m"]).unwrap();
        let Some(Command::Check(args)) = cli.command else { panic!("not a check") };
        args
    }

    fn model() -> Model {
        use modelmeter_common::{SCHEMA_VERSION, Timestamp, model::*};
        let shape = vec![Dim::Dynamic("batch".into()), Dim::Fixed(4)];
        Model {
            schema_version: SCHEMA_VERSION,
            id: ModelRef { name: "m".into(), version: "1".into() },
            created_at: Timestamp(0),
            artifacts: vec![ArtifactRef { format: Format::Onnx, sha256: "ab".into(), bytes: 3 }],
            inputs: vec![TensorSpec { name: "x".into(), dtype: Datatype::Fp32, shape }],
            outputs: vec![],
            weights: Default::default(),
        }
    }

    #[test]
    fn differences_are_counted_in_standard_deviations() {
        let first = [output("logits", &[1.0, -1.0, 1.0, -1.0])];
        assert_eq!(deviation(&first, &first), Ok(0.0));
        assert_eq!(deviation(&first, &[output("output", &[1.0, -1.0, 1.5, -1.0])]), Ok(0.5));
        let why = deviation(&first, &[output("logits", &[1.0, -1.0])]).unwrap_err();
        assert_eq!(why, "output logits has shape [2, 1], that of the first engine [2, 2]");
        assert_eq!(deviation(&first, &[]).unwrap_err(), "it gave 0 outputs, the first engine 1");
        let masked = [output("logits", &[1.0, f32::NEG_INFINITY, -1.0, f32::NAN])];
        assert_eq!(deviation(&masked, &masked), Ok(0.0));
        assert_eq!(deviation(&masked, &[output("logits", &[1.0, f32::NEG_INFINITY, -0.5, f32::NAN])]), Ok(0.5));
        assert_eq!(deviation(&masked, &first), Ok(f64::INFINITY));
    }

    #[test]
    fn halves_are_numbers_and_strings_are_not() {
        let of =
            |dtype, raw: &[u8]| numbers(&Output { name: "x".into(), dtype, shape: vec![1], raw: raw.to_vec().into() });
        let halves = [0x3c00u16, 0xc000, 0x3555, 0x0001].map(u16::to_le_bytes).concat();
        assert_eq!(of(Datatype::Fp16, &halves).unwrap(), [1.0, -2.0, 0.333_251_953_125, 2f64.powi(-24)]);
        assert!(half(0x7e00).is_nan() && half(0xfc00) == f64::NEG_INFINITY);
        assert_eq!(of(Datatype::Bf16, &0xbf80u16.to_le_bytes()).unwrap(), [-1.0]);
        assert_eq!(of(Datatype::Bytes, b"x"), None);
    }

    #[test]
    fn items_that_are_alike_are_seen() {
        assert_eq!(between_items(&output("x", &[1.0, 2.0, 1.0, 2.0])), Some(0.0));
        assert_eq!(between_items(&output("x", &[1.0, 2.0, 3.0, 4.0])), Some(1.0));
    }
}
