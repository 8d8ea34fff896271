//! Whole plans in simulated time: the real sweep and search, with simulated servers in place of a client and a clock.

mod search;
mod sweep;

#[path = "../../../../common/tests/support/laws.rs"]
#[allow(dead_code, reason = "of the laws, only what they are made of is used here")]
mod laws;
#[path = "../../../../common/tests/support/simulate.rs"]
mod simulate;
