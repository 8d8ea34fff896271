//! The meter: drives a server with a real client and says what came of it.
//!
//! What belongs here: pacing ([`schedule`]), the client and its connections, what it records, one point from warm-up
//! to its warnings, and which loads to try ([`plan`]). What does not: the rules by which warm-up and measuring end
//! ([`modelmeter_common::stats`]), making requests and checking answers ([`Check`]), and figures of device and host
//! ([`Probe`]): whoever uses the meter brings them.

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
pub use drive::{Answer, Connection, Orders, Protocol, Seen, Started, Transport, Unanswered, call_once, reach, start};
pub use first::{FirstInference, first_inference};
pub use plan::{Bench, Budget, Measure, run_plan};
pub use point::measure;
pub use probe::{Probe, Quota, Samples, Sampling};
pub use record::{CallRecord, Done, Event, Failure, Lost, Metric};
pub use rules::{Aim, Rules, Slice};
pub use target::Target;
pub use transports::{Caller, Callers, Ended, unary};
