//! What tests share: the harness of the end-to-end tests (real brokers, hubs and modelmeter processes, on loopback and free
//! ports), the suites that adapters pass, and documents to build a test's own on. No crate depends on this one but for tests.
//!
//! A process that the harness starts ends with the test, also when the test is killed. Assertions on modelmeter belong in
//! `conformance` where every adapter of a seam must keep them, in `tests/tests` otherwise.

pub mod child;
pub mod cluster;
pub mod conformance;
pub mod docker;
pub mod documents;
pub mod engines;
pub mod logs;
pub mod modelmeter;
pub mod mongod;
pub mod nginx;
pub mod ports;
pub mod rabbitmq;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod rooms;
pub mod wait;

pub use child::Child;
pub use wait::eventually;
