//! RabbitMQ through lapin. Why each choice is made: `design.md` beside the trait.
//!
//! `target` knows where the broker is, `link` keeps one connection alive, `publish` uses one, `consume` and `subscribe`
//! another.

mod consume;
mod link;
mod publish;
mod subscribe;
mod target;

use super::{
    Broker, BrokerError, CALL_TIMEOUT, Consumer, MAX_QUEUE_MESSAGES, QUARANTINE, check_name,
    fanout::{Subscription, check_size},
};
use async_trait::async_trait;
use consume::AmqpConsumer;
use lapin::{
    options::{QueueDeclareOptions, QueueDeleteOptions},
    types::{AMQPValue, FieldTable},
};
use link::{Link, refusal, within};
use publish::Publisher;
use std::{sync::Arc, time::Duration};
use target::Target;
use tokio_util::sync::CancellationToken;

/// Redeliveries of one message before the broker quarantines it. High, because a redelivery is no fault of
/// the message: a cut connection counts as one too. Failures are counted in the hub.
const DELIVERY_LIMIT: i64 = 10_000;
/// The quarantine has nowhere to pass a message on to: past a limit it would vanish.
const QUARANTINE_DELIVERY_LIMIT: i64 = 1_000_000_000;
/// How long a delivery may stay unacknowledged; read by RabbitMQ 3.12 and later.
const CONSUMER_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// A broker over AMQP 0-9-1. Clones share its two connections.
#[derive(Clone)]
pub struct AmqpBroker(Arc<Shared>);

struct Shared {
    closed: CancellationToken,
    publisher: Publisher,
    /// Consumers and declarations. It never publishes, so a memory alarm never blocks it.
    link: Arc<Link>,
}

/// Connects, so that a broker that cannot be reached is known at once.
pub async fn connect(url: &str) -> Result<AmqpBroker, BrokerError> {
    connect_within(url, CALL_TIMEOUT).await
}

/// The same with another limit on the time that connecting may take.
pub async fn connect_within(url: &str, limit: Duration) -> Result<AmqpBroker, BrokerError> {
    let target = Arc::new(Target::parse(url, limit)?);
    let closed = CancellationToken::new();
    let link = Arc::new(Link::new(Arc::clone(&target), "modelmeter consume", closed.clone()));
    let publisher = Publisher::new(Link::new(target, "modelmeter publish", closed.clone()));
    link.connect().await?;
    publisher.connect().await?;
    Ok(AmqpBroker(Arc::new(Shared { closed, publisher, link })))
}

/// One attempt at declaring a queue with its quarantine, on a channel of its own: a refusal closes the channel.
async fn declare(link: &Link, queue: &str) -> Result<(), BrokerError> {
    let channel = link.channel().await?;
    for name in [QUARANTINE, queue] {
        channel
            .queue_declare(name.into(), QueueDeclareOptions::durable(), arguments(name))
            .await
            .map_err(|error| refusal(link, queue, &error))?;
    }
    Ok(())
}

/// Quorum queues survive a node; at-least-once dead lettering needs overflow by refusal.
fn arguments(queue: &str) -> FieldTable {
    let text = |value: &str| AMQPValue::LongString(value.into());
    let mut table = FieldTable::default();
    table.insert("x-queue-type".into(), text("quorum"));
    table.insert("x-overflow".into(), text("reject-publish"));
    table.insert("x-max-length".into(), AMQPValue::LongLongInt(MAX_QUEUE_MESSAGES as i64));
    if queue == QUARANTINE {
        table.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(QUARANTINE_DELIVERY_LIMIT));
        return table;
    }
    table.insert("x-delivery-limit".into(), AMQPValue::LongLongInt(DELIVERY_LIMIT));
    table.insert("x-consumer-timeout".into(), AMQPValue::LongLongInt(CONSUMER_TIMEOUT.as_millis() as i64));
    table.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    table.insert("x-dead-letter-exchange".into(), text(""));
    table.insert("x-dead-letter-routing-key".into(), text(QUARANTINE));
    table
}

impl AmqpBroker {
    async fn passive_depth(&self, queue: &str) -> Result<Option<u64>, BrokerError> {
        let link = &self.0.link;
        let options = QueueDeclareOptions::durable().passive();
        let channel = link.channel().await?;
        match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
            Ok(found) => Ok(Some(found.message_count().into())),
            Err(error) => match refusal(link, queue, &error) {
                BrokerError::NoQueue(_) => Ok(None),
                error => Err(error),
            },
        }
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    async fn declare(&self, queue: &str) -> Result<(), BrokerError> {
        check_name("queue name", queue)?;
        within(&self.0.closed, || declare(&self.0.link, queue)).await
    }

    async fn publish(&self, queue: &str, message_id: &str, body: &[u8]) -> Result<(), BrokerError> {
        check_name("queue name", queue)?;
        check_name("message id", message_id)?;
        self.0.publisher.publish(queue, message_id, body).await
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        check_name("queue name", queue)?;
        let mut consumer =
            AmqpConsumer::new(Arc::clone(&self.0.link), self.0.closed.clone(), queue.to_owned(), prefetch);
        consumer.start().await?;
        Ok(Box::new(consumer))
    }

    async fn depth(&self, queue: &str) -> Result<Option<u64>, BrokerError> {
        check_name("queue name", queue)?;
        within(&self.0.closed, || self.passive_depth(queue)).await
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        check_name("queue name", queue)?;
        within(&self.0.closed, || async {
            let channel = self.0.link.channel().await?;
            let deleted = channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await;
            deleted.map(drop).map_err(|error| refusal(&self.0.link, queue, &error))
        })
        .await
    }

    async fn broadcast(&self, topic: &str, body: &[u8]) -> Result<(), BrokerError> {
        check_name("topic", topic)?;
        check_size(body)?;
        self.0.publisher.broadcast(topic, body).await
    }

    async fn subscribe(&self, topic: &str) -> Result<Box<dyn Subscription>, BrokerError> {
        check_name("topic", topic)?;
        let subscription = within(&self.0.closed, || subscribe::subscribe(&self.0.link, topic)).await?;
        Ok(Box::new(subscription))
    }

    async fn close(&self) {
        self.0.closed.cancel();
        tokio::join!(self.0.link.close(), self.0.publisher.close());
    }
}
