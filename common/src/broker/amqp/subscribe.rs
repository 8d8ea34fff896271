//! Broadcasts: a fanout exchange for each topic, and for each subscription a queue that goes with it.

use super::link::{Link, refusal};
use crate::broker::{
    BrokerError,
    fanout::{BROADCAST_TIMEOUT, MAX_BACKLOG, MAX_BROADCAST_BYTES, Subscription},
};
use async_trait::async_trait;
use futures::StreamExt;
use lapin::{
    Channel, ExchangeKind,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions,
        QueueDeclareOptions,
    },
    types::{AMQPValue, FieldTable},
};
use std::{sync::Arc, time::Duration};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Messages on the way to this process. The rest wait at the broker, which drops the oldest.
const PREFETCH: u16 = 16;
/// The most bytes that wait at the broker for one subscriber.
const MAX_BACKLOG_BYTES: i64 = 16 * MAX_BROADCAST_BYTES as i64;
/// How often a silent subscription is checked for a channel that died without a word.
const CHECK_PERIOD: Duration = Duration::from_secs(5);

pub(super) struct AmqpSubscription {
    link: Arc<Link>,
    closed: CancellationToken,
    channel: Channel,
    messages: lapin::Consumer,
}

/// One attempt at a subscription.
pub(super) async fn subscribe(link: &Arc<Link>, topic: &str) -> Result<AmqpSubscription, BrokerError> {
    let fail = |error| refusal(link, topic, &error);
    let channel = link.channel().await?;
    // The exchange stays, so that a broadcast finds it while nobody subscribes.
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let declared = channel.exchange_declare(topic.into(), ExchangeKind::Fanout, durable, FieldTable::default());
    declared.await.map_err(fail)?;
    // A new name each time: the queue of a connection that broke may not be gone yet.
    let queue = format!("modelmeter.subscription.{}", uuid::Uuid::new_v4());
    let own = QueueDeclareOptions::exclusive().auto_delete();
    channel.queue_declare(queue.as_str().into(), own, bounded()).await.map_err(fail)?;
    let (options, none) = (QueueBindOptions::default(), FieldTable::default());
    channel.queue_bind(queue.as_str().into(), topic.into(), "".into(), options, none).await.map_err(fail)?;
    channel.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(fail)?;
    let options = BasicConsumeOptions { exclusive: true, ..BasicConsumeOptions::default() };
    let messages = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default());
    let messages = messages.await.map_err(fail)?;
    Ok(AmqpSubscription { link: Arc::clone(link), closed: link.closed().clone(), channel, messages })
}

fn bounded() -> FieldTable {
    let text = |value: &str| AMQPValue::LongString(value.into());
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("classic"));
    table.insert("x-overflow".into(), text("drop-head"));
    table.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_BACKLOG as i64));
    table.insert("x-max-length-bytes".into(), AMQPValue::LongLongInt(MAX_BACKLOG_BYTES));
    table
}

impl AmqpSubscription {
    async fn receive(&mut self) -> Result<Vec<u8>, BrokerError> {
        loop {
            match timeout(CHECK_PERIOD, self.messages.next()).await {
                Ok(Some(Ok(delivery))) => {
                    // Not waited for: a wait that is dropped here would lose the message.
                    let acker = delivery.acker;
                    tokio::spawn(async move { acker.ack(BasicAckOptions::default()).await });
                    return Ok(delivery.data);
                }
                Ok(Some(Err(error))) => return Err(self.link.unreachable(&error)),
                Err(_) if self.channel.status().connected() => {}
                Ok(None) | Err(_) => return Err(self.link.lost("the subscription ended")),
            }
        }
    }
}

#[async_trait]
impl Subscription for AmqpSubscription {
    async fn next(&mut self) -> Result<Vec<u8>, BrokerError> {
        let closed = self.closed.clone();
        let received = tokio::select! {
            biased;
            () = closed.cancelled() => return Err(BrokerError::Closed),
            received = self.receive() => received,
        };
        received.map_err(|error| if closed.is_cancelled() { BrokerError::Closed } else { error })
    }
}

impl Drop for AmqpSubscription {
    /// Its queue goes with its consumer; without a runtime the connection goes, too.
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let channel = self.channel.clone();
            runtime.spawn(async move {
                let _ = timeout(BROADCAST_TIMEOUT, channel.close(200, "subscription dropped".into())).await;
            });
        }
    }
}
