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

/// A clock that stands still until a test advances it.
#[cfg(any(test, feature = "conformance"))]
pub struct Simulated {
    began: Timestamp,
    elapsed: tokio::sync::watch::Sender<Duration>,
}

#[cfg(any(test, feature = "conformance"))]
impl Simulated {
    /// A clock that shows this time of day.
    pub fn at(began: Timestamp) -> Self {
        Self { began, elapsed: tokio::sync::watch::Sender::new(Duration::ZERO) }
    }

    /// Lets time pass, and wakes whatever waited for it.
    pub fn advance(&self, by: Duration) {
        self.elapsed.send_modify(|elapsed| *elapsed += by);
    }
}

#[cfg(any(test, feature = "conformance"))]
#[async_trait]
impl Clock for Simulated {
    fn elapsed(&self) -> Duration {
        *self.elapsed.borrow()
    }

    async fn sleep(&self, time: Duration) {
        let until = self.elapsed() + time;
        // The sender lives as long as this clock.
        let _ = self.elapsed.subscribe().wait_for(|elapsed| *elapsed >= until).await;
    }

    /// Its own time of day, unless the hub does not answer.
    async fn of_hub(&self, hub: &dyn Hub) -> Result<Timestamp, HubError> {
        hub.now().await?;
        Ok(self.began.plus(self.elapsed()))
    }
}
