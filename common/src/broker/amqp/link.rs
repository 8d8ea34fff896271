//! One connection, kept alive by ourselves: lapin's own recovery hides a loss from consumers and hangs when
//! its retries are used up.

use super::target::Target;
use crate::broker::{BrokerError, CALL_TIMEOUT};
use lapin::{Channel, Connection, Error, ErrorKind};
use std::{
    future::Future,
    hash::{BuildHasher, RandomState},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// The pause after the first failed attempt to connect; doubled after each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// The pause between attempts at a call, whose waiting is mostly in the link.
const CALL_PAUSE: Duration = Duration::from_millis(50);

/// A connection that is made again when it is lost, by whoever needs it next.
pub(super) struct Link {
    target: Arc<Target>,
    name: &'static str,
    closed: CancellationToken,
    state: Mutex<State>,
}

struct State {
    connection: Option<Arc<Connection>>,
    failures: u32,
    retry_at: Instant,
}

impl Link {
    pub(super) fn new(target: Arc<Target>, name: &'static str, closed: CancellationToken) -> Self {
        let state = State { connection: None, failures: 0, retry_at: Instant::now() };
        Self { target, name, closed, state: Mutex::new(state) }
    }

    /// One attempt at a new channel, on the connection that lives or on a new one.
    pub(super) async fn channel(&self) -> Result<Channel, BrokerError> {
        let connection = self.connect().await?;
        connection.create_channel().await.map_err(|error| self.unreachable(&error))
    }

    /// The connection that lives, or one attempt at a new one. Callers wait here for each other, so that a
    /// broker that comes back is not stormed.
    pub(super) async fn connect(&self) -> Result<Arc<Connection>, BrokerError> {
        let mut state = self.state.lock().await;
        if self.closed.is_cancelled() {
            return Err(BrokerError::Closed);
        }
        if let Some(connection) = state.connection.as_ref().filter(|c| c.status().connected()) {
            return Ok(Arc::clone(connection));
        }
        if state.connection.take().is_some() {
            tracing::warn!(broker = self.target.address(), link = self.name, "lost the broker; reconnecting");
        }
        sleep_until(state.retry_at).await;
        match self.target.connect(self.name).await {
            Ok(connection) => {
                if state.failures > 0 {
                    tracing::info!(broker = self.target.address(), link = self.name, "the broker is back");
                }
                state.failures = 0;
                let connection = Arc::new(connection);
                state.connection = Some(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) => {
                state.retry_at = Instant::now() + pause(state.failures);
                state.failures += 1;
                tracing::debug!(link = self.name, failures = state.failures, "{error}");
                Err(error)
            }
        }
    }

    /// Whether the broker has told this connection to stop publishing.
    pub(super) async fn blocked(&self) -> bool {
        let state = self.state.lock().await;
        state.connection.as_ref().is_some_and(|c| c.status().connected() && c.status().blocked())
    }

    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    pub(super) fn unreachable(&self, error: &Error) -> BrokerError {
        self.target.unreachable(error)
    }

    /// The error of what ended without one.
    pub(super) fn lost(&self, reason: &str) -> BrokerError {
        BrokerError::Unreachable { address: self.target.address(), reason: reason.to_owned() }
    }

    /// Ends the connection; with it go its channels.
    pub(super) async fn close(&self) {
        let connection = self.state.lock().await.connection.take();
        if let Some(connection) = connection {
            // A broker that does not answer any more is left to notice by itself.
            let _ = timeout(Duration::from_secs(2), connection.close(200, "closed".into())).await;
        }
    }
}

/// Exponential, and up to half as long again by chance, so that many clients do not come back as one.
fn pause(failures: u32) -> Duration {
    let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(LAST_PAUSE);
    let jitter = RandomState::new().hash_one(failures) % 512;
    pause + pause.mul_f64(jitter as f64 / 1024.0)
}

/// What a channel's error means to the caller of an operation on `queue`.
pub(super) fn refusal(link: &Link, queue: &str, error: &Error) -> BrokerError {
    match error.kind() {
        ErrorKind::ProtocolError(e) if error.is_amqp_soft_error() => {
            let text = e.get_message().as_str();
            match e.get_id() {
                NOT_FOUND if text.contains("no queue") => BrokerError::NoQueue(queue.to_owned()),
                // A queue whose leader is being elected.
                NOT_FOUND => link.unreachable(error),
                _ => BrokerError::Refused(text.to_owned()),
            }
        }
        _ => link.unreachable(error),
    }
}

/// Whether a channel was closed because an exchange or queue does not exist.
pub(super) fn is_missing(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(e) if error.is_amqp_soft_error() && e.get_id() == NOT_FOUND)
}

/// AMQP's reply code for a thing that does not exist.
const NOT_FOUND: u16 = 404;

/// Repeats `attempt` while the broker cannot be reached, for at most [`CALL_TIMEOUT`] in all.
pub(super) async fn within<T, F, A>(closed: &CancellationToken, mut attempt: A) -> Result<T, BrokerError>
where
    A: FnMut() -> F,
    F: Future<Output = Result<T, BrokerError>>,
{
    let deadline = Instant::now() + CALL_TIMEOUT;
    let mut last = BrokerError::TimedOut(CALL_TIMEOUT);
    loop {
        let outcome = tokio::select! {
            biased;
            () = closed.cancelled() => return Err(BrokerError::Closed),
            outcome = timeout_at(deadline, attempt()) => outcome,
        };
        match outcome {
            Err(_) => return Err(last),
            // A broker that starts may not know its users yet.
            Ok(Err(error @ (BrokerError::Unreachable { .. } | BrokerError::Unauthenticated { .. }))) => last = error,
            Ok(settled) => return settled,
        }
        sleep_until(deadline.min(Instant::now() + CALL_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_are_bounded() {
        assert!(pause(0) >= FIRST_PAUSE && pause(0) < FIRST_PAUSE * 2);
        assert!(pause(3) >= FIRST_PAUSE * 8);
        assert!(pause(u32::MAX) >= LAST_PAUSE && pause(u32::MAX) < LAST_PAUSE * 2);
    }
}
