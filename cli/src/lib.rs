//! modelmeter as a library ([`Profiler`]) and as the one binary: it parses, wires and prints; it does not measure.
//!
//! What a person types becomes raw arguments ([`args`]), then one validated [`job`], which [`run`] carries out: its `place`
//! is this process ([`embedded`]) or a cluster, and both are asked over the control API ([`client`]). What comes out is
//! text ([`report`]).

pub mod args;
pub mod client;
mod command;
pub mod data;
pub mod embedded;
pub mod failure;
mod follow;
mod here;
pub mod interrupt;
pub mod job;
mod material;
pub mod models;
mod notes;
mod place;
pub mod profiler;
pub mod progress;
pub mod report;
pub mod run;
pub mod servers;

pub use command::main;
pub use modelmeter_common::{Problem, config, engine as ports, profile, request};
pub use modelmeter_worker::inspector;
pub use profiler::{Profiler, Profiles};
