//! The flags of `profile`: each field of a request, and what is particular to this command.

use super::{ArtifactArgs, parse};
use clap::{Args, ValueEnum};
use modelmeter_common::{
    batch::Stated,
    config::{Config, Ports},
    load::{Arrivals, Sla},
};
use serde_json::Value;
use std::path::PathBuf;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// One row a cell
    Table,
    /// The six indicators of each cell, as a block
    Classic,
    /// One array of the hub's documents
    Json,
}

/// How load is put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LoadMode {
    /// Calls in flight
    Closed,
    /// Calls a second
    Open,
    /// The highest rate of calls that meets --sla, at 99 % confidence
    SlaSearch,
}

fn arrivals(text: &str) -> Result<Arrivals, String> {
    match text {
        "poisson" => Ok(Arrivals::Poisson),
        "constant" => Ok(Arrivals::Constant),
        _ => Err("poisson or constant".into()),
    }
}

#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  modelmeter profile resnet50
  modelmeter profile model.onnx --engines onnx,rten --batch-sizes 1,2,4,8 --shape x=1,3,224,224
  modelmeter profile --endpoint host:8001 --protocol kserve-v2 --model m --concurrency 1,8,32
  modelmeter profile resnet50 --coordinator http://127.0.0.1:7600 --engines auto --devices all")]
pub struct ProfileArgs {
    /// A built-in reference model, a path to a model's file or directory, or NAME[:VERSION] in the hub; with --onnx,
    /// --torchscript, --savedmodel or --triton, what to call those
    pub model: Option<String>,
    /// The model's name on the server at --endpoint
    #[arg(long = "model", value_name = "NAME", conflicts_with = "model")]
    pub model_name: Option<String>,
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
    /// A request in TOML, as model = "resnet50", engines = ["onnx"], batch_sizes = [1, 8]; flags beat it
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Measure a server that already runs
    #[arg(long, value_name = "HOST:PORT", help_heading = "What to measure")]
    pub endpoint: Option<String>,
    /// What the server at --endpoint speaks [default: kserve-v2]
    #[arg(long, requires = "endpoint", help_heading = "What to measure")]
    pub protocol: Option<String>,
    /// Engine names, or auto: each that can run the model [default: rten for a built-in model without a coordinator, else
    /// auto]
    #[arg(long, value_delimiter = ',', help_heading = "What to measure")]
    pub engines: Vec<String>,
    /// An engine's setting, as onnx.threads=1,2: each value is a cell; may be repeated
    #[arg(long = "set", value_name = "ENGINE.SETTING=VALUES", value_parser = parse::setting, help_heading = "What to measure")]
    pub engine_settings: Vec<(String, String, Value)>,
    /// The shape of an input, its batch as 1, as x=1,3,224,224; or the length of an open axis by its name, as seq=128; may be
    /// repeated
    #[arg(long = "shape", value_name = "INPUT=SHAPE", value_parser = parse::shape, help_heading = "What to measure")]
    pub shapes: Vec<(String, Vec<u64>)>,
    /// The axis of an input that counts the items of a call, from 0, or none, as x=1; may be repeated [default: the axis
    /// that is named so, else an open first one]
    #[arg(long = "batch-axis", value_name = "INPUT=AXIS", value_parser = parse::batch_axis, help_heading = "What to measure")]
    pub batch_axes: Vec<(String, Stated)>,
    /// cpu, gpu, all, device classes, or one GPU of this machine as gpu:0 or by its UUID [default: cpu]
    #[arg(long, value_delimiter = ',', help_heading = "What to measure")]
    pub devices: Vec<String>,
    /// Items in a call [default: 1,2,4,8, or the only number that the model takes]
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, help_heading = "What to measure")]
    pub batch_sizes: Vec<u32>,
    /// Where engines of this process listen: on the documented ports, or on free ones [default: default]
    #[arg(long, value_parser = parse::ports, value_name = "default|auto", help_heading = "What to measure")]
    pub ports: Option<Ports>,
    /// Cores for the client, as 0-3,6 [default: what --engine-cpus leaves; one a slot where there are 4 or more]
    #[arg(long, value_name = "LIST", help_heading = "What to measure")]
    pub client_cpus: Option<String>,
    /// Cores for the engines, as 0-3,6 [default: what the client leaves]
    #[arg(long, value_name = "LIST", help_heading = "What to measure")]
    pub engine_cpus: Option<String>,
    /// Measure although other workers of this machine may measure on the CPU at the same time
    #[arg(long, help_heading = "What to measure")]
    pub shared_cpu: bool,
    /// A custom inspector's name [default: the engine's own]
    #[arg(long, value_name = "NAME", help_heading = "What to measure")]
    pub inspector: Option<String>,
    /// Test data of an input: a .npy file or raw little-endian elements, as x=x.npy; a value, as rate=16000; or a range to
    /// draw from, as ids=0..30522; may be repeated; or one .npz file for all inputs [default: random; integers 0 and 1]
    #[arg(long, value_name = "INPUT=DATA", help_heading = "What to measure")]
    pub data: Vec<String>,

    /// How load is put on [default: closed, a sweep that finds the peak]
    #[arg(long, value_enum, help_heading = "Load")]
    pub load: Option<LoadMode>,
    /// Calls in flight, each a load point
    #[arg(long, value_delimiter = ',', allow_negative_numbers = true, value_name = "N", help_heading = "Load")]
    pub concurrency: Vec<u32>,
    /// Calls a second, each a load point
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        value_name = "PER_SECOND",
        help_heading = "Load"
    )]
    pub rate: Vec<f64>,
    /// How an open loop spaces its calls: poisson or constant [default: poisson]
    #[arg(long, value_parser = arrivals, help_heading = "Load")]
    pub arrivals: Option<Arrivals>,
    /// The latency to stay under, as p95=50ms
    #[arg(long, value_parser = parse::sla, value_name = "PERCENTILE=LATENCY", help_heading = "Load")]
    pub sla: Option<Sla>,

    /// A fixed number of calls a load point instead of the stop rule
    #[arg(long, value_name = "N", help_heading = "When to stop")]
    pub batches: Option<u64>,
    /// Half width of the 95 % intervals to reach [default: 5%]
    #[arg(long, value_parser = parse::share, value_name = "SHARE", help_heading = "When to stop")]
    pub precision: Option<f64>,
    /// Measure each load point at least this long [default: 2s]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub min_duration: Option<u64>,
    /// Measure each load point at most this long [default: 30s, or twice a longer --min-duration]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub max_duration: Option<u64>,
    /// Figures to publish: at least 600 s a load point, ±1 % and 3 repeats; what was disturbed is invalid
    #[arg(long, conflicts_with_all = ["batches", "budget"], help_heading = "When to stop")]
    pub certified: bool,
    /// A call that takes longer failed [default: 10s]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub timeout: Option<u64>,
    /// Open loop: more calls than this in flight make the point invalid [default: 4096]
    #[arg(long, value_name = "N", help_heading = "When to stop")]
    pub max_in_flight: Option<u32>,
    /// Wall time for the whole request, shared out over its cells [default: 2m for a built-in model without a
    /// coordinator, unless -f, --batches, --min-duration, --max-duration or --certified says how long]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub budget: Option<u64>,
    /// Independent repetitions of each cell [default: 1]
    #[arg(long, value_name = "N", help_heading = "When to stop")]
    pub repeats: Option<u32>,

    /// Of test data, order and arrivals [default: 0]
    #[arg(long, value_name = "N", help_heading = "The request")]
    pub seed: Option<u64>,
    /// Weight among requests, 1 to 100 [default: 10]
    #[arg(long, value_name = "N", help_heading = "The request")]
    pub priority: Option<u32>,
    /// After this, cells that no slot can run fail [default: 24h]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "The request")]
    pub deadline: Option<u64>,
    /// Fail such cells at once
    #[arg(long, help_heading = "The request")]
    pub no_wait: bool,
    /// Words to find it by
    #[arg(long, value_delimiter = ',', value_parser = parse::pair, value_name = "KEY=VALUE", help_heading = "The request")]
    pub labels: Vec<(String, String)>,

    /// Show the cells, why some cannot run, and how long it will take; measure nothing
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// How to print the results [default: table]
    #[arg(long, value_enum, help_heading = "Output")]
    pub format: Option<Format>,
}

impl ProfileArgs {
    /// Flags beat the rest of the configuration.
    pub fn apply(&self, config: &mut Config) {
        if let Some(ports) = self.ports {
            config.worker.ports = ports;
        }
        let lists =
            [(&mut config.worker.client_cpus, &self.client_cpus), (&mut config.worker.engine_cpus, &self.engine_cpus)];
        for (to, list) in lists {
            *to = list.clone().or(to.take());
        }
        config.worker.shared_cpu |= self.shared_cpu;
    }
}
