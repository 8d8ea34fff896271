//! The record of a run: each call's times, what they add up to in stretches of the run, and how calls fail.
//!
//! What belongs here: values and the [`recorder`]'s bookkeeping. What does not: making calls ([`crate::drive`]) and judging
//! what was recorded ([`crate::point`]).

mod call;
mod outcome;
pub(crate) mod recorder;

pub use call::{CallRecord, Event, Metric};
pub use outcome::{Done, Failure, Lost};

pub(crate) use call::Times;
