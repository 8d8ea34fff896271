//! Waiting on a predicate with a deadline: no test sleeps for a fixed time.

use crate::logs;
use std::{future::Future, time::Duration};
use tokio::time::{Instant, sleep};

const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(250);

/// Asks `probe` until it gives a value. At the deadline: an error that names `what`, after the logs of everything
/// that was started were printed.
pub async fn eventually<T, F, Fut>(what: &str, deadline: Duration, mut probe: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let end = Instant::now() + deadline;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Ok(Some(value)) = tokio::time::timeout_at(end, probe()).await {
            return Ok(value);
        }
        if Instant::now() >= end {
            logs::print();
            anyhow::bail!("{what}: not within {deadline:?}");
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}
