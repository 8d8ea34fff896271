//! The meter measures how fast a server answers: it drives the server with a client of its own and reports latency and
//! throughput with their 95 % intervals. It is a library of its own, which knows no engine, queue or hub.
//!
//! ```no_run
#![doc = include_str!("../examples/alone.rs")]
//! ```
//!
//! | to find | read |
//! |---|---|
//! | which loads are measured, how a budget is shared out, where the peak or an SLA's highest rate is sought | [`plan`] |
//! | when a call is due | [`schedule`] |
//! | how a point warms up, ends and becomes valid or invalid | `point/` |
//! | the event loop that makes the calls, and the seams for other protocols ([`Transport`], [`Protocol`], [`Connection`]) | `drive/` |
//! | gRPC over HTTP/2, and calls that the user makes | `transports/` |
//! | a call's record, windows of calls, kinds of failures | `record/` |
//! | addresses, TLS, sockets | [`endpoint`] |
//!
//! The user of the meter brings encoded calls ([`unary::Call`]), checks of answers ([`Check`]) and figures of the machine
//! ([`Probe`]); `()` stands for no check and no probe. The rules of warm-up, precision and intervals are in
//! [`modelmeter_common::stats`].
//!
//! A client has a thread of its own and speaks HTTP/2 itself, below any gRPC library, because the client's own cost shows in
//! the figures.

mod check;
mod drive;
pub mod endpoint;
mod first;
pub mod plan;
mod point;
mod probe;
mod record;
mod rules;
pub mod schedule;
mod sys;
mod target;
pub mod threads;
mod transports;

pub use check::{Check, Remark};
pub use drive::{
    Answer, Called, Connection, Orders, Protocol, Seen, Started, Transport, Unanswered, call_once, reach, start,
};
pub use first::{FirstInference, first_inference};
pub use plan::{Bench, Budget, Measure, run_plan};
pub use point::measure;
pub use probe::{Probe, Quota, Samples, Sampling};
pub use record::{CallRecord, Done, Event, Failure, Lost, Metric};
pub use rules::{Aim, Rules, Slice};
pub use target::Target;
pub use transports::{Caller, Callers, Ended, unary};
