//! The seam to the message broker, in our words: durable queues of small messages, confirmed publishes,
//! one unacknowledged delivery at a time. Messages are droppable hints or insert-only results, so at
//! least once is enough; an adapter may deliver twice, and must redeliver what was not acknowledged. Broadcasts
//! ([`fanout`]) reach every subscriber at most once.

pub mod amqp;
pub mod fanout;
pub mod memory;

use crate::{Code, PoolId, Problem};
use async_trait::async_trait;
use fanout::Subscription;
use std::time::Duration;

/// A broker. Cheap to clone behind an `Arc`; every call reconnects by itself within its own deadline.
#[async_trait]
pub trait Broker: Send + Sync + 'static {
    /// Declares a long-lived queue; repeated, it changes nothing.
    async fn declare(&self, queue: &str) -> Result<(), BrokerError>;

    /// Publishes one message and waits for the broker's confirm. An unknown queue is an error, never a silent loss.
    async fn publish(&self, queue: &str, message_id: &str, body: &[u8]) -> Result<(), BrokerError>;

    /// Consumes with at most `prefetch` deliveries unacknowledged. Survives reconnects: what was not
    /// acknowledged comes again.
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError>;

    /// Messages ready in a queue; none if it does not exist.
    async fn depth(&self, queue: &str) -> Result<Option<u64>, BrokerError>;

    /// Deletes a queue with what is in it.
    async fn delete(&self, queue: &str) -> Result<(), BrokerError>;

    /// Gives a message to everyone who subscribes to this topic now, at most once each. It is dropped where a subscriber is
    /// slow, and where the broker does not take it within [`fanout::BROADCAST_TIMEOUT`] or cannot be reached, which is an
    /// error.
    async fn broadcast(&self, topic: &str, body: &[u8]) -> Result<(), BrokerError>;

    /// Subscribes to a topic, from now on.
    async fn subscribe(&self, topic: &str) -> Result<Box<dyn Subscription>, BrokerError>;

    /// Closes the connections; unacknowledged deliveries go back.
    async fn close(&self);
}

/// A stream of deliveries. Dropping it cancels the consumer, and what was not acknowledged goes back.
#[async_trait]
pub trait Consumer: Send {
    /// The next delivery. Waits through a lost connection (reconnecting with backoff); fails only when
    /// the broker was closed.
    async fn next(&mut self) -> Result<Delivery, BrokerError>;
}

/// One message, to be settled by exactly one of `ack`, `requeue` and `reject`. Dropped unsettled it
/// stays unacknowledged until its consumer goes.
pub struct Delivery {
    /// The message.
    pub body: Vec<u8>,
    settle: Box<dyn Settle>,
}

/// How an adapter settles a delivery.
#[async_trait]
pub trait Settle: Send + Sync {
    /// `true` if the broker took it; `false` if the delivery's channel is gone and it will come again.
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<bool, BrokerError>;
}

/// What becomes of a delivery.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Handled: forget it.
    Ack,
    /// Not handled: deliver it again.
    Requeue,
    /// Cannot be handled by anyone: to the quarantine queue.
    Reject,
}

impl Delivery {
    /// For adapters.
    pub fn new(body: Vec<u8>, settle: Box<dyn Settle>) -> Self {
        Self { body, settle }
    }

    /// Handled. `false` means that the channel is gone and the message will come again.
    pub async fn ack(self) -> Result<bool, BrokerError> {
        self.settle.settle(Verdict::Ack).await
    }

    /// Not handled: deliver it again.
    pub async fn requeue(self) -> Result<bool, BrokerError> {
        self.settle.settle(Verdict::Requeue).await
    }

    /// To the quarantine queue ([`QUARANTINE`]).
    pub async fn reject(self) -> Result<bool, BrokerError> {
        self.settle.settle(Verdict::Reject).await
    }
}

/// Where rejected messages are kept for a person to look at.
pub const QUARANTINE: &str = "modelmeter.quarantine";
/// The results queue.
pub const RESULTS: &str = "modelmeter.results";

/// The task queue of a pool.
pub fn task_queue(pool: &PoolId) -> String {
    format!("modelmeter.tasks.{pool}")
}

/// The longest that a publish or declare may take before it counts as failed.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest queue name and message id, in bytes: AMQP's short strings carry no more.
pub const MAX_NAME_BYTES: usize = 255;

/// The most messages that wait in one queue; a publish beyond is refused.
pub const MAX_QUEUE_MESSAGES: usize = 1_000_000;

/// Names go on the wire as AMQP's short strings, so both adapters refuse the same ones.
fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(BrokerError::Refused(format!("a {what} of {} bytes: it takes 1 to {MAX_NAME_BYTES}", name.len())));
    }
    Ok(())
}

/// Why a broker call failed. All but `Closed`, `BadUrl`, `Unauthenticated` and `NoQueue` may succeed when tried again.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BrokerError {
    #[error("cannot reach the broker at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("the broker at {address} refused the credentials: {reason}")]
    Unauthenticated { address: String, reason: String },
    #[error("broker address '{address}' is not valid: {reason}")]
    BadUrl { address: String, reason: String },
    #[error("the broker did not confirm within {0:?}")]
    TimedOut(Duration),
    #[error("queue '{0}' does not exist")]
    NoQueue(String),
    #[error("the broker refused: {0}")]
    Refused(String),
    #[error("the broker connection was closed")]
    Closed,
}

impl From<BrokerError> for Problem {
    fn from(error: BrokerError) -> Self {
        let code = match error {
            BrokerError::BadUrl { .. } => Code::InvalidArgument,
            BrokerError::Unauthenticated { .. } => Code::Unauthenticated,
            _ => Code::Unreachable,
        };
        Self::new(code, error.to_string()).with_field("broker").with_hint(
            "amqp://user:password@host:port/vhost; check that RabbitMQ runs and that this machine reaches it",
        )
    }
}
