//! The vocabulary that coordinator, worker, serving and command line share.
//!
//! What belongs here: documents (request, task, part, profile), the pure rules on them (ids, state
//! transitions, statistics), the wire envelope, the `Broker` seam, and channels between processes. What does not: anything that
//! launches, measures, stores or serves.

pub mod artifact;
pub mod batch;
pub mod broker;
pub mod cgroup;
pub mod config;
pub mod container;
pub mod device;
pub mod engine;
pub mod error;
pub mod event;
pub mod fold;
pub mod grpc;
pub mod ids;
pub mod load;
pub mod model;
pub mod net;
pub mod part;
pub mod profile;
pub mod program;
pub mod redact;
pub mod request;
pub mod signature;
pub mod stats;
pub mod status;
pub mod task;
pub mod testdata;
pub mod time;
pub mod unsupported;
pub mod warning;
pub mod wire;

pub use error::{Code, Problem};
pub use ids::{Incarnation, PoolId, ProfileId, RequestId, TaskId};
pub use time::Timestamp;

/// Version of every document in the hub; raised when a field changes its meaning.
pub const SCHEMA_VERSION: u32 = 2;

/// The version of modelmeter that this was built from.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
