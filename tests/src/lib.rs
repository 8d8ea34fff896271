//! The harness of the end-to-end tests: real brokers, hubs and modelmeter processes, on loopback and free ports.
//!
//! What is started here ends with the test, also when the test is killed. What belongs here: starting, watching
//! and faulting processes. What does not: assertions on modelmeter itself.

pub mod child;
pub mod cluster;
pub mod docker;
pub mod engines;
pub mod modelmeter;
pub mod mongod;
pub mod nginx;
pub mod ports;
pub mod rabbitmq;
pub mod wait;

pub use child::Child;
pub use wait::eventually;
