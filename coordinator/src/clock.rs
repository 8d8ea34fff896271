//! The time by which the coordinator's rules go: leases, deadlines, rounds of the loops. Tests simulate it.

use crate::hub::{Hub, HubError};
use async_trait::async_trait;
use modelmeter_common::Timestamp;
use std::time::{Duration, Instant};

/// A clock: a time that only grows, waiting for it, and the hub's time of day.
#[async_trait]
pub trait Clock: Send + Sync + 'static {
    /// Time since this clock began. It only grows.
    fn elapsed(&self) -> Duration;

    /// Returns once this much time has passed.
    async fn sleep(&self, time: Duration);

    /// Reads the hub's time of day, by which leases are judged.
    async fn of_hub(&self, hub: &dyn Hub) -> Result<Timestamp, HubError>;
}

/// The machine's monotonic clock, and the hub's own.
pub struct Real(Instant);

impl Default for Real {
    fn default() -> Self {
        Self(Instant::now())
    }
}

#[async_trait]
impl Clock for Real {
    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    async fn sleep(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }

    async fn of_hub(&self, hub: &dyn Hub) -> Result<Timestamp, HubError> {
        hub.now().await
    }
}
