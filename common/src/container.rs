//! What Docker must be told of an engine that runs in a container: a part of the engine's configuration.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An image, and how its container is set up.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Container {
    /// The image, as `repository:tag` or `repository@sha256:…`.
    pub image: String,
    /// When it is pulled.
    pub pull: PullPolicy,
    /// Instead of the image's own entry point.
    pub entrypoint: Option<Vec<String>>,
    /// Where the model lies in the container, read-only; by default in `/model`, under its own name. May hold
    /// `{model_name}`.
    pub mount: Option<String>,
    /// The gRPC port inside; by default that of the slot, so that `{grpc_port}` is the same inside and outside.
    pub grpc_port: Option<u16>,
    /// The HTTP port inside; likewise.
    pub http_port: Option<u16>,
    /// The size of `/dev/shm`, in MiB; by default Docker's 64.
    pub shm_mib: Option<u32>,
    /// Limits by their names in setrlimit(2) without `RLIMIT_`, lower case; -1: none.
    pub ulimits: BTreeMap<String, i64>,
}

/// When an image is pulled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PullPolicy {
    /// For each deployment, so that a tag that moved is followed.
    Always,
    /// If it is not here.
    #[default]
    IfMissing,
    /// It must be here.
    Never,
}
