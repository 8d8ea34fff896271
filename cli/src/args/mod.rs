//! The command line as typed: raw arguments, one struct a command. What they mean together is decided in
//! [`crate::job`] and by each command.

mod parse;
mod profile;

pub use parse::{Budget, RequestWord, Steps};
pub use profile::{LoadMode, ProfileArgs, ReportArgs, TlsArgs};

use clap::{Args, Parser, Subcommand};
use modelmeter_common::{
    batch::Stated,
    config::{Config, Ports},
    model::{self, TensorSpec},
};
use std::path::PathBuf;

/// Profile a machine-learning model the way it will be served.
#[derive(Parser, Debug)]
#[command(
    name = "modelmeter",
    version,
    max_term_width = 100,
    arg_required_else_help = true,
    after_help = "Exit codes:
  0    done
  1    failed
  2    bad input, nothing was started
  3    some cells failed
  4    measured, but an SLA was missed (--fail-on-sla)
  130  interrupted"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Flags of every command.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Directory for the cache, the journal and the local hub [default: the user's data directory]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global")]
    pub home: Option<PathBuf>,
    /// Configuration file [default: ./modelmeter.toml, then modelmeter.toml in --home]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    pub config: Option<PathBuf>,
    /// Coordinator to ask, as http://host:port; repeat it for several [default: measure in this process]
    #[arg(long = "coordinator", global = true, value_name = "URL", value_delimiter = ',', help_heading = "Global")]
    pub coordinators: Vec<String>,
    /// Print results and errors as JSON
    #[arg(long, global = true, help_heading = "Global")]
    pub json: bool,
    /// Print the effective configuration without its passwords, then exit
    #[arg(long, global = true, help_heading = "Global")]
    pub dump_config: bool,
    /// Log more to standard error; -vv for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global")]
    pub verbose: u8,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Measure a model on engines × devices × batch sizes
    Profile(Box<ProfileArgs>),
    /// Add, list and write models
    #[command(subcommand)]
    Model(ModelCommand),
    /// Run a coordinator for workers on other machines
    Coordinator(CoordinatorArgs),
    /// Run a worker that measures on this machine
    Worker(WorkerArgs),
    /// List the requests, newest first
    Requests(ListArgs),
    /// Show the state of each cell of a request, and why it waits
    Status(IdArgs),
    /// Wait until a request ends, then print its results
    Watch(WatchArgs),
    /// Stop a request; load points that are finished are kept
    Cancel(IdArgs),
    /// List the workers and their slots
    Workers,
    /// Check that engines give the same answers to the same input
    Check(CheckArgs),
    /// List the engines: which can run here, and what the others need
    Engines,
    /// Measure the limits of this machine and of the client itself
    Selfcheck,
    /// Print results that are kept in the hub
    Results(ResultsArgs),
    /// Serve one model over KServe v2 (the built-in engines are launched so)
    #[command(hide = true)]
    Serve(ServeArgs),
}

#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    /// Add a model, or another format of one
    Add(ModelAddArgs),
    /// Write a built-in reference model as an ONNX file
    Write {
        /// Built-in model, such as resnet50
        name: String,
        /// File to write
        path: PathBuf,
    },
    /// List the models
    #[command(visible_alias = "ls")]
    List {
        /// Only models of this name
        name: Option<String>,
    },
}

#[derive(Args, Debug)]
pub struct ModelAddArgs {
    /// NAME or NAME:VERSION [default version: the first digits of its content's sha256]
    pub name: String,
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Built-in model, or the path of a model; with --onnx, --torchscript, --savedmodel or --triton, its name
    pub model: Option<String>,
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
    /// Engines to compare with the first of them; auto: every engine that can run here
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    pub engines: Vec<String>,
    /// Shape of an input, its batch as 1, as x=1,3,224,224; or length of an open axis by its name, as seq=128; repeat it for others
    #[arg(long = "shape", value_name = "INPUT=SHAPE", value_parser = parse::shape)]
    pub shapes: Vec<(String, Vec<u64>)>,
    /// Axis of an input that counts the items of the call, from 0, or none, as x=1; repeat it for other inputs
    #[arg(long = "batch-axis", value_name = "INPUT=AXIS", value_parser = parse::batch_axis)]
    pub batch_axes: Vec<(String, Stated)>,
    /// Items of the call
    #[arg(long, default_value_t = 2)]
    pub batch_size: u32,
    /// Seed for random test data
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Largest difference that counts as equal, in standard deviations of the output
    #[arg(long, default_value_t = 1e-3)]
    pub tolerance: f64,
    /// Ports of the engines: the documented ones (default), or free ones (auto)
    #[arg(long, value_parser = parse::ports, value_name = "default|auto", default_value = "auto")]
    pub ports: Ports,
}

/// A model in one or more formats.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The model's files")]
pub struct ArtifactArgs {
    /// ONNX file
    #[arg(long, value_name = "FILE")]
    pub onnx: Option<PathBuf>,
    /// TorchScript file; needs --input, unless a file of another format tells the inputs
    #[arg(long, value_name = "FILE")]
    pub torchscript: Option<PathBuf>,
    /// SavedModel directory
    #[arg(long, value_name = "DIR")]
    pub savedmodel: Option<PathBuf>,
    /// Triton model directory with its config.pbtxt
    #[arg(long, value_name = "DIR")]
    pub triton: Option<PathBuf>,
    /// Input of the model without its batch axis, as x:fp32:3,224,224, where file or server does not tell it; repeat it for
    /// other inputs
    #[arg(long = "input", value_name = "NAME:TYPE:SHAPE", value_parser = parse::tensor)]
    pub inputs: Vec<TensorSpec>,
}

impl ArtifactArgs {
    /// The files and directories named, each with its format.
    pub fn paths(&self) -> Vec<(model::Format, PathBuf)> {
        let named = [
            (model::Format::Onnx, &self.onnx),
            (model::Format::Torchscript, &self.torchscript),
            (model::Format::Savedmodel, &self.savedmodel),
            (model::Format::Triton, &self.triton),
        ];
        named.into_iter().filter_map(|(format, path)| Some((format, path.clone()?))).collect()
    }
}

#[derive(Args, Debug)]
pub struct CoordinatorArgs {
    /// Message broker, as amqp://user:password@host:5672/%2f
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// Hub, as mongodb://host:27017/modelmeter, or the path of an SQLite file
    #[arg(long, value_name = "URL")]
    pub hub: Option<String>,
    /// Address for gRPC; port 0 takes a free one [default: 127.0.0.1:7600]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address for HTTP [default: 127.0.0.1:7601]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Time after which a silent worker is taken for dead [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub lease: Option<String>,
    /// Allow addresses that other machines reach, although callers are not authenticated
    #[arg(long)]
    pub insecure_listen: bool,
    /// End at once where broker or hub cannot be reached, instead of waiting
    #[arg(long)]
    pub no_wait: bool,
}

impl CoordinatorArgs {
    /// Flags beat the rest of the configuration.
    pub fn apply(&self, config: &mut Config) {
        let to = &mut config.coordinator;
        over(&mut to.broker, self.broker.clone().map(Some));
        over(&mut to.hub, self.hub.clone().map(Some));
        over(&mut to.listen, self.listen.clone());
        over(&mut to.http, self.http.clone());
        over(&mut to.lease, self.lease.clone());
        to.insecure_listen |= self.insecure_listen;
    }
}

#[derive(Args, Debug)]
pub struct WorkerArgs {
    /// Message broker, as amqp://user:password@host:5672/%2f
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// Name of the worker, unique in its cluster [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Devices to measure on: cpu, gpu, all, a device class, or one GPU as gpu:0 or by its UUID [default: all]
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Measure this many cells at a time on the CPU, each on its share of the cores [default: 1]
    #[arg(long, value_name = "N")]
    pub cpu_slots: Option<u32>,
    /// Ports of the engines: the documented ones (default), or free ones (auto) [default: default]
    #[arg(long, value_parser = parse::ports, value_name = "default|auto")]
    pub ports: Option<Ports>,
    /// Engines to offer [default: every engine that can run here]
    #[arg(long, value_delimiter = ',')]
    pub engines: Vec<String>,
    /// Labels that `modelmeter workers` shows
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub labels: Vec<(String, String)>,
    /// Directory of the device locks, the same for all workers of a host
    #[arg(long, value_name = "DIR")]
    pub lock_dir: Option<PathBuf>,
    /// Cores for the client, as 0-3,6 [default: what --engine-cpus leaves, else one a slot on 4 cores or more]
    #[arg(long, value_name = "LIST")]
    pub client_cpus: Option<String>,
    /// Cores for the engines, as 0-3,6 [default: those that the client does not have]
    #[arg(long, value_name = "LIST")]
    pub engine_cpus: Option<String>,
    /// Measure at the same time as others that share this CPU, too (figures get less exact)
    #[arg(long)]
    pub shared_cpu: bool,
    /// End at once where another process holds a device, or broker or coordinator cannot be reached, instead of waiting
    #[arg(long)]
    pub no_wait: bool,
}

impl WorkerArgs {
    /// Flags beat the rest of the configuration.
    pub fn apply(&self, config: &mut Config) {
        let to = &mut config.worker;
        over(&mut to.broker, self.broker.clone().map(Some));
        over(&mut to.name, self.name.clone().map(Some));
        over(&mut to.devices, non_empty(&self.devices));
        over(&mut to.cpu_slots, self.cpu_slots);
        over(&mut to.ports, self.ports);
        over(&mut to.engines, non_empty(&self.engines));
        over(&mut to.lock_dir, self.lock_dir.clone().map(Some));
        over(&mut to.client_cpus, self.client_cpus.clone().map(Some));
        over(&mut to.engine_cpus, self.engine_cpus.clone().map(Some));
        to.labels.extend(self.labels.iter().cloned());
        to.shared_cpu |= self.shared_cpu;
    }
}

#[derive(Args, Debug)]
pub struct ListArgs {
    /// Show at most this many
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
}

#[derive(Args, Debug)]
pub struct IdArgs {
    /// Request: its id, the start of it, or latest
    #[arg(value_name = "ID", value_parser = parse::request, default_value = "latest")]
    pub id: RequestWord,
}

#[derive(Args, Debug)]
pub struct WatchArgs {
    #[command(flatten)]
    pub id: IdArgs,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(Args, Debug)]
pub struct ResultsArgs {
    /// Only this model, NAME or NAME:VERSION
    #[arg(long)]
    pub model: Option<String>,
    /// Only this request: its id, the start of it, or latest [default: latest, unless --model or --all is given]
    #[arg(value_name = "ID", value_parser = parse::request, conflicts_with = "request")]
    pub id: Option<RequestWord>,
    /// The same as ID
    #[arg(long, value_name = "ID", value_parser = parse::request)]
    pub request: Option<RequestWord>,
    /// Profiles of all requests
    #[arg(long, conflicts_with_all = ["id", "request"])]
    pub all: bool,
    /// Show at most this many, newest first [default: as many as the coordinator gives]
    #[arg(long)]
    pub limit: Option<u32>,
    /// Show each load point, not only the lowest load and the best throughput
    #[arg(long)]
    pub points: bool,
    #[command(flatten)]
    pub report: ReportArgs,
}

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// Engine: onnx, rten or null
    #[arg(long)]
    pub engine: String,
    /// Model file
    #[arg(long)]
    pub model: PathBuf,
    /// Name of the model for clients
    #[arg(long)]
    pub model_name: String,
    /// Port for gRPC; 0 takes a free one
    #[arg(long)]
    pub grpc_port: u16,
    /// Port for HTTP; 0 takes a free one
    #[arg(long)]
    pub http_port: u16,
    /// Address to listen on; every caller that reaches it is served. In a container: 0.0.0.0
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// Settings of the engine, as a JSON object
    #[arg(long, default_value = "{}")]
    pub settings: String,
    /// ONNX Runtime library
    #[arg(long, value_name = "FILE")]
    pub onnxruntime: Option<PathBuf>,
}

fn over<T>(to: &mut T, with: Option<T>) {
    if let Some(value) = with {
        *to = value;
    }
}

fn non_empty<T: Clone>(list: &[T]) -> Option<Vec<T>> {
    (!list.is_empty()).then(|| list.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_beat_the_configuration() {
        let cli =
            Cli::parse_from(["modelmeter", "worker", "--devices", "cpu,gpu", "--ports", "auto", "--labels", "a=b"]);
        let Some(Command::Worker(args)) = cli.command else { panic!("not a worker") };
        let mut config = Config::default();
        config.worker.name = Some("kept".into());
        args.apply(&mut config);
        assert_eq!(config.worker.devices, ["cpu", "gpu"]);
        assert_eq!(config.worker.ports, Ports::Auto);
        assert_eq!(config.worker.name.as_deref(), Some("kept"));
        assert_eq!(config.worker.labels["a"], "b");
    }
}
