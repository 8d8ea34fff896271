//! Consuming, one channel a consumer, rebuilt by ourselves when the channel, the connection or the queue goes.

use super::{
    declare,
    link::{Link, refusal, within},
};
use crate::broker::{BrokerError, CALL_TIMEOUT, Consumer, Delivery, Settle, Verdict};
use async_trait::async_trait;
use futures::StreamExt;
use lapin::{
    Acker, Channel,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, BasicRejectOptions},
    types::FieldTable,
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// How often a silent stream is checked for a channel that died without a word.
const CHECK_PERIOD: Duration = Duration::from_secs(5);
/// The pause after a failed attempt to consume again, beside the link's own.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

pub(super) struct AmqpConsumer {
    link: Arc<Link>,
    closed: CancellationToken,
    queue: String,
    prefetch: u16,
    live: Option<Live>,
}

struct Live {
    channel: Channel,
    deliveries: lapin::Consumer,
}

impl AmqpConsumer {
    pub(super) fn new(link: Arc<Link>, closed: CancellationToken, queue: String, prefetch: u16) -> Self {
        Self { link, closed, queue, prefetch, live: None }
    }

    /// Starts consuming; an unknown queue is an error.
    pub(super) async fn start(&mut self) -> Result<(), BrokerError> {
        self.live = Some(within(&self.closed, || self.open()).await?);
        Ok(())
    }

    async fn open(&self) -> Result<Live, BrokerError> {
        let fail = |error| refusal(&self.link, &self.queue, &error);
        let channel = self.link.channel().await?;
        channel.basic_qos(self.prefetch, BasicQosOptions::default()).await.map_err(fail)?;
        let options = BasicConsumeOptions::default();
        let deliveries = channel.basic_consume(self.queue.as_str().into(), "".into(), options, FieldTable::default());
        let deliveries = deliveries.await.map_err(fail)?;
        Ok(Live { channel, deliveries })
    }

    /// Consumes again, until it works. The queue is declared again where it is gone.
    async fn reopen(&self) -> Live {
        loop {
            let attempt = async {
                match self.open().await {
                    Err(BrokerError::NoQueue(_)) => {
                        tracing::warn!(queue = self.queue, "the queue is gone; declaring it again");
                        declare(&self.link, &self.queue).await?;
                        self.open().await
                    }
                    outcome => outcome,
                }
            };
            match timeout(CALL_TIMEOUT, attempt).await {
                Ok(Ok(live)) => return live,
                Ok(Err(error)) => tracing::debug!(queue = self.queue, "cannot consume yet: {error}"),
                Err(_) => tracing::debug!(queue = self.queue, "cannot consume yet: no answer in {CALL_TIMEOUT:?}"),
            }
            tokio::time::sleep(RETRY_PAUSE).await;
        }
    }

    /// The next delivery of the channel that lives; none once it is gone.
    async fn receive(live: &mut Live) -> Option<Delivery> {
        loop {
            match timeout(CHECK_PERIOD, live.deliveries.next()).await {
                Ok(Some(Ok(delivery))) => {
                    let settle = AmqpSettle(delivery.acker);
                    return Some(Delivery::new(delivery.data, Box::new(settle)));
                }
                Ok(Some(Err(_)) | None) => return None,
                Err(_) if live.channel.status().connected() => {}
                Err(_) => return None,
            }
        }
    }

    async fn next_open(&mut self) -> Delivery {
        loop {
            if self.live.is_none() {
                self.live = Some(self.reopen().await);
            }
            if let Some(live) = &mut self.live {
                if let Some(delivery) = Self::receive(live).await {
                    return delivery;
                }
                self.live = None;
            }
        }
    }
}

#[async_trait]
impl Consumer for AmqpConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        let closed = self.closed.clone();
        tokio::select! {
            biased;
            () = closed.cancelled() => Err(BrokerError::Closed),
            delivery = self.next_open() => Ok(delivery),
        }
    }
}

impl Drop for AmqpConsumer {
    /// Closing the channel is what gives the unacknowledged back; without a runtime the connection goes too.
    fn drop(&mut self) {
        if let (Some(live), Ok(runtime)) = (self.live.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let _ = timeout(CALL_TIMEOUT, live.channel.close(200, "consumer dropped".into())).await;
            });
        }
    }
}

struct AmqpSettle(Acker);

#[async_trait]
impl Settle for AmqpSettle {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<bool, BrokerError> {
        let settled = async {
            match verdict {
                Verdict::Ack => self.0.ack(BasicAckOptions::default()).await,
                Verdict::Requeue => self.0.nack(BasicNackOptions { requeue: true, multiple: false }).await,
                Verdict::Reject => self.0.reject(BasicRejectOptions { requeue: false }).await,
            }
        };
        match timeout(CALL_TIMEOUT, settled).await {
            // An error is a channel that died on the way: the message comes again.
            Ok(outcome) => Ok(outcome.unwrap_or(false)),
            Err(_) => Err(BrokerError::TimedOut(CALL_TIMEOUT)),
        }
    }
}
