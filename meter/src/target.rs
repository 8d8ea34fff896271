//! The subject of a measurement: one server and one kind of call.

use crate::{check::Check, drive::Transport, endpoint::Endpoint};
use std::sync::Arc;

/// One server, and how calls are made to it.
#[derive(Clone)]
pub struct Target {
    /// The server's address.
    pub endpoint: Endpoint,
    /// Makes the calls.
    pub transport: Arc<dyn Transport>,
    /// Checks a sample of the answers.
    pub check: Arc<dyn Check>,
    /// Logical cores that the client's thread is pinned to.
    pub client_cpus: Option<Arc<[u32]>>,
}

impl Target {
    /// A target whose client may run on any core.
    pub fn new(endpoint: Endpoint, transport: Arc<dyn Transport>, check: Arc<dyn Check>) -> Self {
        Self { endpoint, transport, check, client_cpus: None }
    }
}
