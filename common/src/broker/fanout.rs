//! Broadcasts: hints that each subscriber of a topic gets at most once. Nothing is kept for a subscriber that is away, and a
//! slow one loses the oldest messages, so that neither costs the sender anything. A receiver that must know of a loss numbers
//! the messages.

use super::BrokerError;
use async_trait::async_trait;
use std::time::Duration;

/// The most messages that wait for one subscriber; the oldest is dropped for a newer one.
pub const MAX_BACKLOG: usize = 256;
/// The largest message.
pub const MAX_BROADCAST_BYTES: usize = 1 << 20;
/// The longest that a broadcast may take before it counts as lost.
pub const BROADCAST_TIMEOUT: Duration = Duration::from_secs(2);

/// A subscription to one topic. It ends when it is dropped, or with its connection.
#[async_trait]
pub trait Subscription: Send {
    /// The next message. An error ends the subscription: subscribe again, and expect to have missed messages. `Closed`: the
    /// broker was closed.
    async fn next(&mut self) -> Result<Vec<u8>, BrokerError>;
}

/// Both adapters refuse the same sizes.
pub(super) fn check_size(body: &[u8]) -> Result<(), BrokerError> {
    if body.len() > MAX_BROADCAST_BYTES {
        let bytes = body.len();
        return Err(BrokerError::Refused(format!("a broadcast of {bytes} bytes: it takes {MAX_BROADCAST_BYTES}")));
    }
    Ok(())
}
