//! The ways to make calls, one file or folder each. Each is a [`Transport`](crate::Transport).

mod caller;
pub mod unary;

pub use caller::{Caller, Callers, Ended};
