//! The suites that adapters pass: one for brokers, one for hubs. They are test code: each panics at the first thing that
//! does not hold.
//!
//! What belongs here: what the trait of a seam promises, seen through the trait alone. What an adapter adds (the faults of a
//! real server, two processes on one file, the types of the stored fields) is tested in `tests/tests` or beside the adapter.

pub mod broker;
pub mod hub;
