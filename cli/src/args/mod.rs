//! The command line as typed: raw arguments, one struct a command. What they mean together is decided in
//! [`crate::job`] and by each command.

mod parse;
mod profile;

pub use profile::{Format, LoadMode, ProfileArgs};

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
    after_help = "Exit codes: 0 done, 1 failed, 2 bad input (nothing was started), 3 some cells failed, 130 interrupted."
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
    /// Where cache, journal and the local hub live [default: the user's data directory]
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global")]
    pub home: Option<PathBuf>,
    /// The configuration file [default: ./modelmeter.toml, then the one at home]
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global")]
    pub config: Option<PathBuf>,
    /// A coordinator's http://host:port, may be repeated [default: run in this process]
    #[arg(long = "coordinator", global = true, value_name = "URL", value_delimiter = ',', help_heading = "Global")]
    pub coordinators: Vec<String>,
    /// Print JSON documents, and errors as JSON
    #[arg(long, global = true, help_heading = "Global")]
    pub json: bool,
    /// Print the effective configuration, passwords blanked out, and end
    #[arg(long, global = true, help_heading = "Global")]
    pub dump_config: bool,
    /// Log more to standard error; twice for debugging
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = "Global")]
    pub verbose: u8,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Measure a model: engines × devices × batch sizes
    Profile(Box<ProfileArgs>),
    /// Keep models in the hub
    #[command(subcommand)]
    Model(ModelCommand),
    /// Run a coordinator for workers on other machines
    Coordinator(CoordinatorArgs),
    /// Run a worker that measures on this machine
    Worker(WorkerArgs),
    /// List the requests
    Requests(ListArgs),
    /// Show where a request stands, what each cell waits for and why
    Status(IdArgs),
    /// Follow a request to its end, then print its results
    Watch(WatchArgs),
    /// Stop a request; what is measured already stays
    Cancel(IdArgs),
    /// List the workers and their slots
    Workers,
    /// Deploy each engine once and compare what they answer: whether they do the same work
    Check(CheckArgs),
    /// Say for each engine whether it can run here and, if not, what it needs
    Engines,
    /// Measure this machine's own limits, and say what can be measured here
    Selfcheck,
    /// Print profiles out of the hub
    Results(ResultsArgs),
    /// Serve one model over KServe v2: what the built-in engines are launched as
    #[command(hide = true)]
    Serve(ServeArgs),
}

#[derive(Subcommand, Debug)]
pub enum ModelCommand {
    /// Add a model, or another artifact of one
    Add(ModelAddArgs),
    /// Write a built-in reference model as an ONNX file
    Write {
        /// The model's name
        name: String,
        /// The file
        path: PathBuf,
    },
    /// List the models
    List {
        /// Those of this name
        name: Option<String>,
    },
}

#[derive(Args, Debug)]
pub struct ModelAddArgs {
    /// NAME or NAME:VERSION [default version: the start of a sha256 of its content]
    pub name: String,
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// A built-in reference model, a path to a model's file or directory, or what to call the files named below
    pub model: Option<String>,
    #[command(flatten)]
    pub artifacts: ArtifactArgs,
    /// Engines to compare, the first being what the others are compared with; auto: each that can run here
    #[arg(long, value_delimiter = ',', default_value = "auto")]
    pub engines: Vec<String>,
    /// The shape of an input, its batch as 1, as x=1,3,224,224; or the length of an open axis by its name, as seq=128; may be
    /// repeated
    #[arg(long = "shape", value_name = "INPUT=SHAPE", value_parser = parse::shape)]
    pub shapes: Vec<(String, Vec<u64>)>,
    /// The axis of an input that counts the items of the call, from 0, or none, as x=1; may be repeated
    #[arg(long = "batch-axis", value_name = "INPUT=AXIS", value_parser = parse::batch_axis)]
    pub batch_axes: Vec<(String, Stated)>,
    /// Items in the call
    #[arg(long, default_value_t = 2)]
    pub batch_size: u32,
    /// Of the test data
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// The largest difference that still agrees, in standard deviations of the output
    #[arg(long, default_value_t = 1e-3)]
    pub tolerance: f64,
    /// Where engines listen: on the documented ports, or on free ones
    #[arg(long, value_parser = parse::ports, value_name = "default|auto", default_value = "auto")]
    pub ports: Ports,
}

/// A model in one or more formats.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The model's files")]
pub struct ArtifactArgs {
    /// An ONNX file
    #[arg(long, value_name = "FILE")]
    pub onnx: Option<PathBuf>,
    /// A TorchScript file; needs --input unless another format says what it takes
    #[arg(long, value_name = "FILE")]
    pub torchscript: Option<PathBuf>,
    /// A SavedModel directory
    #[arg(long, value_name = "DIR")]
    pub savedmodel: Option<PathBuf>,
    /// A Triton model directory, with its config.pbtxt
    #[arg(long, value_name = "DIR")]
    pub triton: Option<PathBuf>,
    /// An input without its batch axis, as x:fp32:3,224,224, where file or server does not tell it; may be repeated
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
    /// The message broker, amqp://…
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// The hub, mongodb://… or a path of an sqlite file
    #[arg(long, value_name = "URL")]
    pub hub: Option<String>,
    /// Where to answer gRPC; port 0 takes a free one [default: 127.0.0.1:7600]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Where to answer HTTP [default: 127.0.0.1:7601]
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// How long a claim holds without being renewed [default: 30s]
    #[arg(long, value_name = "DURATION")]
    pub lease: Option<String>,
    /// Listen beyond loopback although nothing authenticates the callers
    #[arg(long)]
    pub insecure_listen: bool,
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
    /// The message broker, amqp://…
    #[arg(long, value_name = "URL")]
    pub broker: Option<String>,
    /// Unique in its cluster [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// cpu, gpu, all, device classes, or one GPU as gpu:0 or by its UUID [default: all]
    #[arg(long, value_delimiter = ',')]
    pub devices: Vec<String>,
    /// Share the host's cores out over this many slots [default: 1]
    #[arg(long, value_name = "N")]
    pub cpu_slots: Option<u32>,
    /// Where engines listen: on the documented ports, or on free ones [default: default]
    #[arg(long, value_parser = parse::ports, value_name = "default|auto")]
    pub ports: Option<Ports>,
    /// The engines to offer [default: each that can run here]
    #[arg(long, value_delimiter = ',')]
    pub engines: Vec<String>,
    /// Words that `workers` shows
    #[arg(long, value_delimiter = ',', value_name = "KEY=VALUE", value_parser = parse::pair)]
    pub labels: Vec<(String, String)>,
    /// Where device locks lie, shared by the workers of a host
    #[arg(long, value_name = "DIR")]
    pub lock_dir: Option<PathBuf>,
    /// Cores for the client, as 0-3,6 [default: what --engine-cpus leaves; one a slot where there are 4 or more]
    #[arg(long, value_name = "LIST")]
    pub client_cpus: Option<String>,
    /// Cores for the engines, as 0-3,6 [default: what the client leaves]
    #[arg(long, value_name = "LIST")]
    pub engine_cpus: Option<String>,
    /// Let other workers of this host measure on the CPU at the same time
    #[arg(long)]
    pub shared_cpu: bool,
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
    /// At most this many
    #[arg(long, default_value_t = 20)]
    pub limit: u32,
}

#[derive(Args, Debug)]
pub struct IdArgs {
    /// The request's id
    #[arg(value_name = "ID", value_parser = parse::request_id)]
    pub id: modelmeter_common::RequestId,
}

#[derive(Args, Debug)]
pub struct WatchArgs {
    #[command(flatten)]
    pub id: IdArgs,
    /// How to print the results
    #[arg(long, value_enum)]
    pub format: Option<Format>,
}

#[derive(Args, Debug)]
pub struct ResultsArgs {
    /// Of this model, NAME or NAME:VERSION
    #[arg(long)]
    pub model: Option<String>,
    /// Of this request
    #[arg(long, value_name = "ID", value_parser = parse::request_id)]
    pub request: Option<modelmeter_common::RequestId>,
    /// At most this many, newest first [default: the coordinator's]
    #[arg(long)]
    pub limit: Option<u32>,
    /// Show each load point, not only reference and peak
    #[arg(long)]
    pub points: bool,
    /// How to print them
    #[arg(long, value_enum)]
    pub format: Option<Format>,
}

#[derive(Args, Debug)]
pub struct ServeArgs {
    /// The engine: onnx, rten or null
    #[arg(long)]
    pub engine: String,
    /// The model file
    #[arg(long)]
    pub model: PathBuf,
    /// What clients call it
    #[arg(long)]
    pub model_name: String,
    /// The gRPC port; 0 takes a free one
    #[arg(long)]
    pub grpc_port: u16,
    /// The HTTP port; 0 takes a free one
    #[arg(long)]
    pub http_port: u16,
    /// Where to listen; anyone who reaches another address than loopback is served. In a container: 0.0.0.0
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub host: std::net::IpAddr,
    /// The engine's settings, as a JSON object
    #[arg(long, default_value = "{}")]
    pub settings: String,
    /// The ONNX Runtime library
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
