//! The flags of `profile`: each field of a request, and what is particular to this command.

use super::{
    ArtifactArgs,
    parse::{self, Budget, Steps},
};
use crate::report::{Format, View};
use clap::{Args, ValueEnum};
use modelmeter_common::{
    batch::Stated,
    config::{Config, Ports},
    load::{Arrivals, Sla},
};
use modelmeter_meter::endpoint::TlsFiles;
use serde_json::Value;
use std::path::PathBuf;

/// How results are shown.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Output")]
pub struct ReportArgs {
    /// Form of the results [default: table]
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Print everything that is known: each warning, why figures are missing, cold starts, servers' own times
    #[arg(long)]
    pub detail: bool,
    /// Leave out the plot of latency against throughput (only a terminal shows one)
    #[arg(long)]
    pub no_plot: bool,
}

impl ReportArgs {
    /// The format that was asked for; `json`: by the flag of every command.
    pub fn format(&self, json: bool) -> Format {
        self.format.unwrap_or(if json { Format::Json } else { Format::Table })
    }

    /// What to show on standard output. `points`: a table of the load points too.
    pub fn view(&self, points: bool) -> View {
        let out = View::of_stdout();
        View { detail: self.detail, plot: out.plot && !self.no_plot, points, ..out }
    }
}

/// How load is put on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LoadMode {
    /// A fixed number of calls in flight
    Closed,
    /// A fixed number of calls a second
    Open,
    /// Find the highest rate of calls that keeps --sla, at 99 % confidence
    SlaSearch,
}

fn arrivals(text: &str) -> Result<Arrivals, String> {
    match text {
        "poisson" => Ok(Arrivals::Poisson),
        "constant" => Ok(Arrivals::Constant),
        _ => Err("poisson or constant".into()),
    }
}

/// How TLS is spoken to the server at `--endpoint`.
#[derive(Args, Debug, Default)]
pub struct TlsArgs {
    /// PEM file with the CA that signed the server's certificate, or with that certificate [default: this machine's CAs]
    #[arg(
        long,
        value_name = "FILE",
        requires = "endpoint",
        conflicts_with = "insecure",
        help_heading = "What to measure"
    )]
    pub ca: Option<PathBuf>,
    /// PEM file with the client certificate, for a server that asks for one
    #[arg(long, value_name = "FILE", requires_all = ["endpoint", "key"], help_heading = "What to measure")]
    pub cert: Option<PathBuf>,
    /// PEM file with the private key of --cert
    #[arg(long, value_name = "FILE", requires_all = ["endpoint", "cert"], help_heading = "What to measure")]
    pub key: Option<PathBuf>,
    /// Accept any certificate of the server, without checking it
    #[arg(long, requires = "endpoint", help_heading = "What to measure")]
    pub insecure: bool,
}

impl TlsArgs {
    /// The same as the worker takes them.
    pub fn files(&self) -> TlsFiles {
        let [ca, cert, key] = [&self.ca, &self.cert, &self.key].map(Clone::clone);
        TlsFiles { ca, cert, key, insecure: self.insecure }
    }
}

#[derive(Args, Debug, Default)]
#[command(after_help = "Examples:
  modelmeter profile resnet50
  modelmeter profile model.onnx --engines onnx,rten --batch-sizes 1,2,4,8 --shape x=1,3,224,224
  modelmeter profile --endpoint host:8001 --protocol kserve-v2 --model m --concurrency 1,8,32
  modelmeter profile resnet50 --coordinator http://127.0.0.1:7600 --engines auto --devices all")]
pub struct ProfileArgs {
    /// Built-in model (resnet50, resnet18, mobilenet_v2, bert_small, mlp), path of a model, or NAME[:VERSION] in the hub;
    /// with --onnx, --torchscript, --savedmodel or --triton, its name
    pub model: Option<String>,
    /// Name of the model on the server at --endpoint
    #[arg(long = "model", value_name = "NAME", conflicts_with = "model", help_heading = "What to measure")]
    pub model_name: Option<String>,
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
    /// Request in TOML, such as model = "resnet50", batch_sizes = [1, 8]; flags override it
    #[arg(short, long, value_name = "FILE", help_heading = "What to measure")]
    pub file: Option<PathBuf>,

    /// Measure a server that already runs, instead of launching engines: HOST:PORT, https://HOST:PORT for TLS, or unix:/PATH
    #[arg(long, value_name = "HOST:PORT", help_heading = "What to measure")]
    pub endpoint: Option<String>,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Device of the server at --endpoint, as nvidia-a10; only results of equal devices are compared [default: remote]
    #[arg(long, requires = "endpoint", value_name = "NAME", help_heading = "What to measure")]
    pub device_class: Option<String>,
    /// Protocol of the server at --endpoint: kserve-v2, tfs or mlmodelci-predict [default: kserve-v2]
    #[arg(long, requires = "endpoint", help_heading = "What to measure")]
    pub protocol: Option<String>,
    /// Engines, or auto: every engine that can run the model [default: rten for a built-in model without a coordinator,
    /// else auto]
    #[arg(long, value_delimiter = ',', help_heading = "What to measure")]
    pub engines: Vec<String>,
    /// Setting of an engine, as onnx.threads=1,2; each value is a cell of its own; repeat it for other settings
    #[arg(long = "set", value_name = "ENGINE.SETTING=VALUES", value_parser = parse::setting, help_heading = "What to measure")]
    pub engine_settings: Vec<(String, String, Value)>,
    /// Shape of an input, its batch as 1, as x=1,3,224,224; or length of an open axis by its name, as seq=128; repeat it for
    /// others
    #[arg(long = "shape", value_name = "INPUT=SHAPE", value_parser = parse::shape, help_heading = "What to measure")]
    pub shapes: Vec<(String, Vec<u64>)>,
    /// Axis of an input that counts the items of a call, from 0, or none, as x=1; repeat it for other inputs [default: the
    /// axis that is named so, else an open first one]
    #[arg(long = "batch-axis", value_name = "INPUT=AXIS", value_parser = parse::batch_axis, help_heading = "What to measure")]
    pub batch_axes: Vec<(String, Stated)>,
    /// Devices: cpu, gpu, all, a device class, or one GPU of this machine as gpu:0 or by its UUID [default: cpu]
    #[arg(long, value_delimiter = ',', help_heading = "What to measure")]
    pub devices: Vec<String>,
    /// Items in each call, as 1,2,4 or a range, 2:8:2 [default: 1,2,4,8, or the only number that the model takes]
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        value_parser = parse::counts,
        value_name = "N",
        help_heading = "What to measure"
    )]
    pub batch_sizes: Vec<Steps<u32>>,
    /// Ports of the engines: the documented ones (default), or free ones (auto) [default: default]
    #[arg(long, value_parser = parse::ports, value_name = "default|auto", help_heading = "What to measure")]
    pub ports: Option<Ports>,
    /// Cores for the client, as 0-3,6 [default: what --engine-cpus leaves, else one on 4 cores or more]
    #[arg(long, value_name = "LIST", help_heading = "What to measure")]
    pub client_cpus: Option<String>,
    /// Cores for the engines, as 0-3,6 [default: those that the client does not have]
    #[arg(long, value_name = "LIST", help_heading = "What to measure")]
    pub engine_cpus: Option<String>,
    /// Measure at the same time as others that share this CPU, too (figures get less exact)
    #[arg(long, help_heading = "What to measure")]
    pub shared_cpu: bool,
    /// Custom inspector that makes the calls, by its name in the configuration [default: the engine's own]
    #[arg(long, value_name = "NAME", help_heading = "What to measure")]
    pub inspector: Option<String>,
    /// Test data of an input: a .npy file or raw little-endian elements, as x=x.npy; a value, as rate=16000; or a range to
    /// draw from, as ids=0..30522; repeat it for other inputs; or one .npz file for all [default: random; integers 0 and 1]
    #[arg(long, value_name = "INPUT=DATA", help_heading = "What to measure")]
    pub data: Vec<String>,

    /// Kind of load [default: closed, with as many calls in flight as give the best throughput]
    #[arg(long, value_enum, help_heading = "Load")]
    pub load: Option<LoadMode>,
    /// Numbers of calls in flight, each a load point: 1,4,16 or a range, 1:8:2
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        value_parser = parse::counts,
        value_name = "N",
        help_heading = "Load"
    )]
    pub concurrency: Vec<Steps<u32>>,
    /// Calls a second, each a load point: 100,200 or a range, 100:500:100
    #[arg(
        long,
        value_delimiter = ',',
        allow_negative_numbers = true,
        value_parser = parse::rates,
        value_name = "PER_SECOND",
        help_heading = "Load"
    )]
    pub rate: Vec<Steps<f64>>,
    /// Gaps between calls at a rate: poisson or constant [default: poisson]
    #[arg(long, value_parser = arrivals, help_heading = "Load")]
    pub arrivals: Option<Arrivals>,
    /// Latency that a percentile must stay under, as p95=50ms
    #[arg(long, value_parser = parse::sla, value_name = "PERCENTILE=LATENCY", help_heading = "Load")]
    pub sla: Option<Sla>,

    /// Number of calls for each load point, instead of measuring to --precision
    #[arg(long, value_name = "N", help_heading = "When to stop")]
    pub batches: Option<u64>,
    /// Measure until the 95 % intervals are this narrow, as half of their width [default: 5%]
    #[arg(long, value_parser = parse::share, value_name = "SHARE", help_heading = "When to stop")]
    pub precision: Option<f64>,
    /// Measure each load point for at least this long [default: 5s; 2s while looking for the peak]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub min_duration: Option<u64>,
    /// Measure each load point for at most this long [default: 30s, or twice a longer --min-duration, or what
    /// --budget gives a cell]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub max_duration: Option<u64>,
    /// Figures to publish: 600 s or more for each load point, ±1 %, 3 repeats; a disturbed load point is invalid
    #[arg(long, conflicts_with_all = ["batches", "budget"], help_heading = "When to stop")]
    pub certified: bool,
    /// Time after which a call has failed [default: 10s]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "When to stop")]
    pub timeout: Option<u64>,
    /// Calls at a rate: with more than this in flight the load point is invalid [default: 4096]
    #[arg(long, value_name = "N", help_heading = "When to stop")]
    pub max_in_flight: Option<u32>,
    /// Wall time for the whole request, shared out over its cells; none: no limit [default: without a coordinator 30s a cell,
    /// at most 10m, unless --batches, --min-duration, --max-duration or --certified says how long]
    #[arg(long, value_parser = parse::budget, value_name = "DURATION|none", help_heading = "When to stop")]
    pub budget: Option<Budget>,
    /// Measure each cell this many times independently [default: 1]
    #[arg(long, value_name = "N", help_heading = "When to stop")]
    pub repeats: Option<u32>,

    /// Seed for random test data, the order of cells and the gaps between calls [default: 0]
    #[arg(long, value_name = "N", help_heading = "The request")]
    pub seed: Option<u64>,
    /// Share of the workers that this request gets beside others, 1 to 100 [default: 10]
    #[arg(long, value_name = "N", help_heading = "The request")]
    pub priority: Option<u32>,
    /// Time after which cells that no worker can run fail [default: 24h]
    #[arg(long, value_parser = parse::millis, value_name = "DURATION", help_heading = "The request")]
    pub deadline: Option<u64>,
    /// Fail cells that no worker can run, instead of queueing them, and end at once where another process holds a device
    #[arg(long, help_heading = "The request")]
    pub no_wait: bool,
    /// Labels to find the request by
    #[arg(long, value_delimiter = ',', value_parser = parse::pair, value_name = "KEY=VALUE", help_heading = "The request")]
    pub labels: Vec<(String, String)>,

    /// Only show the cells, why some cannot run, and how long measuring would take
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
    /// Exit with 4 when a cell misses --sla, or does not show that it keeps it
    #[arg(long, help_heading = "Output")]
    pub fail_on_sla: bool,
    #[command(flatten)]
    pub report: ReportArgs,
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
