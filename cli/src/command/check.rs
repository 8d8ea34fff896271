//! `check`: whether engines give the same answers, so that what is compared is the same work.

use super::{Context, print};
use crate::{
    args::CheckArgs,
    embedded, here, interrupt, job,
    models::{self, Local},
    report::{self, Align, Table},
    servers::discovery,
};
use modelmeter_common::{Code, Problem, config::Config, device::Device, model::Model, request::Request, task::Cell};
use modelmeter_coordinator::plan::alone;
use modelmeter_worker::{
    EngineSpec, SlotOptions, Trial,
    compare::{Answer, compare},
    engine::discover::Offer,
    inspector::{Output, ServerWait},
    lock_dir, sample,
};
use std::{collections::BTreeMap, path::Path, time::Duration};

/// A model's first call may compile it.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) async fn run(context: &Context, args: CheckArgs) -> Result<u8, Problem> {
    let home = &context.config.home;
    if !(args.tolerance >= 0.0 && args.tolerance.is_finite()) {
        return Err(
            Problem::invalid("tolerance", format!("{} is out of range", args.tolerance)).with_hint("use 0 or more")
        );
    }
    embedded::writable(home)?;
    let target = job::named(args.model.as_deref(), args.artifacts.paths(), args.artifacts.inputs.clone())?;
    let local = models::local(&target, home, ServerWait::NONE).await?.ok_or_else(|| {
        Problem::invalid("model", "only files and built-in models can be checked").with_hint("give the path of a file")
    })?;
    let (devices, _) = sample::devices();
    let cpu = devices.into_iter().next().expect("the CPU is a device of every machine");
    let trials = trials(&args, &local.model, offer(&context.config, &args)?, &cpu)?;
    let trial = Trial::new(cpu, args.ports.into(), home, &lock_dir(&context.config))?;
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
    let pools = here::pools(&[SlotOptions { device: cpu.clone() }], &offer, &BTreeMap::new());
    let cells = alone::cells(&request, model, &pools)?;
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
}
