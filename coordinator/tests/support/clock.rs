//! Time that passes when a test says so.

use async_trait::async_trait;
use modelmeter_common::Timestamp;
use modelmeter_coordinator::{
    clock::Clock,
    hub::{Hub, HubError},
};
use std::time::Duration;

/// A clock that stands still until a test advances it.
pub struct Simulated {
    began: Timestamp,
    elapsed: tokio::sync::watch::Sender<Duration>,
}

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
