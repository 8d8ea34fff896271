//! The leader's lease in the hub: one document, changed by compare-and-swap.

use super::HubError;
use async_trait::async_trait;
use modelmeter_common::{SCHEMA_VERSION, Timestamp};
use serde::{Deserialize, Serialize};

/// The lease by which one coordinator leads.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lead {
    /// Version of this document.
    pub schema_version: u32,
    /// The process that leads: another at each start.
    pub holder: String,
    /// The machine and address on which it answers. Two processes never share it at one time.
    pub place: String,
    /// Raised with each new leader.
    pub epoch: u64,
    /// When the lease ends unless renewed, by the hub's clock.
    pub expires_at: Timestamp,
}

impl Lead {
    /// A lease of this holder.
    pub fn new(holder: &str, place: &str, epoch: u64, expires_at: Timestamp) -> Self {
        let (holder, place) = (holder.to_owned(), place.to_owned());
        Self { schema_version: SCHEMA_VERSION, holder, place, epoch, expires_at }
    }
}

/// The one lease of the hub's leader.
#[async_trait]
pub trait Leaders: Send + Sync {
    /// The lease as it is; none before the first leader.
    async fn lead(&self) -> Result<Option<Lead>, HubError>;

    /// Stores `new` if the lease still equals `old` in holder, epoch and expiry; `false`: it did not.
    async fn swap_lead(&self, old: Option<&Lead>, new: &Lead) -> Result<bool, HubError>;
}
