//! A journaled result's way to the broker: published until it is confirmed, its delivery settled.

use crate::{Context, attempts::Attempt, journal::Entry, patience::Backoff};
use modelmeter_common::broker::{BrokerError, Delivery};
use std::{sync::Arc, time::Duration};

/// For each of the last words to broker or coordinator when stopping.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

/// Publishes parts, then the final, each confirmed; tries for as long as the broker does not take them.
pub(crate) async fn deliver(
    context: Arc<Context>,
    queue: String,
    attempt: Attempt,
    entry: Entry,
    delivery: Option<Delivery>,
) {
    let stop = &context.stop;
    let published = async {
        let mut backoff = Backoff::default();
        while let Err(error) = once(&context, &queue, &entry).await {
            tracing::warn!(task = %attempt.task, %error, "the result waits in the journal");
            backoff.pause().await;
        }
    };
    let left = tokio::select! {
        // A result that the broker takes at once is not left behind by a stop.
        () = published => false,
        () = async { stop.cancelled().await; tokio::time::sleep(FAREWELL).await } => true,
    };
    if !left {
        attempt.published();
    }
    match delivery {
        Some(delivery) if left => settled(delivery.requeue().await),
        Some(delivery) => settled(delivery.ack().await),
        None => {}
    }
}

/// Publishes one attempt; repeated after a failure it does no harm, since results are inserted once.
pub(crate) async fn once(context: &Context, queue: &str, entry: &Entry) -> Result<(), BrokerError> {
    for (id, body) in &entry.messages {
        let sent = match context.broker.publish(queue, id, body).await {
            Err(BrokerError::NoQueue(_)) => {
                context.broker.declare(queue).await?;
                context.broker.publish(queue, id, body).await
            }
            sent => sent,
        };
        sent?;
    }
    Ok(())
}

/// A settlement that failed means that the message comes again, which its next claim absorbs.
pub(crate) fn settled(result: Result<bool, BrokerError>) {
    if !matches!(result, Ok(true)) {
        tracing::debug!(?result, "a delivery was not settled; it comes again");
    }
}
