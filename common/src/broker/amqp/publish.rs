//! Publishing with confirms, over a few channels with one message in flight each: with several in flight lapin
//! attaches a returned message to the wrong confirm.

use super::link::{Link, is_missing, refusal, within};
use crate::broker::{BrokerError, CALL_TIMEOUT, fanout::BROADCAST_TIMEOUT};
use lapin::{
    BasicProperties, Channel, Confirmation,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::Semaphore, time::timeout};

/// Messages in flight, over all callers. A confirm waits for the disk, which takes many at once.
const CHANNELS: usize = 32;
/// Persistent.
const DELIVERY_MODE: u8 = 2;
/// How often a blocked connection is looked at again.
const BLOCKED_PAUSE: Duration = Duration::from_millis(50);
/// AMQP's reply code for a message that no queue took.
const NO_ROUTE: u16 = 312;

/// Publishes on a connection of its own.
pub(super) struct Publisher {
    link: Link,
    permits: Semaphore,
    idle: Mutex<Vec<Channel>>,
}

impl Publisher {
    pub(super) fn new(link: Link) -> Self {
        Self { link, permits: Semaphore::new(CHANNELS), idle: Mutex::default() }
    }

    pub(super) async fn connect(&self) -> Result<(), BrokerError> {
        self.link.connect().await.map(drop)
    }

    pub(super) async fn close(&self) {
        self.idle().clear();
        self.link.close().await;
    }

    /// Publishes until it is confirmed, reconnecting within the time limit.
    pub(super) async fn publish(&self, queue: &str, id: &str, body: &[u8]) -> Result<(), BrokerError> {
        let outcome = within(self.link.closed(), || self.attempt(queue, id, body)).await;
        match outcome {
            Err(BrokerError::TimedOut(_)) if self.link.blocked().await => Err(BrokerError::Refused(format!(
                "it has taken no publishes for {CALL_TIMEOUT:?}, because of its memory or disk alarm"
            ))),
            outcome => outcome,
        }
    }

    async fn attempt(&self, queue: &str, id: &str, body: &[u8]) -> Result<(), BrokerError> {
        let _permit = self.permits.acquire().await.map_err(|_| BrokerError::Closed)?;
        // On a blocked connection lapin queues what it is given, without limit and without an error.
        while self.link.blocked().await {
            tokio::time::sleep(BLOCKED_PAUSE).await;
        }
        let channel = self.channel().await?;
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = BasicProperties::default().with_delivery_mode(DELIVERY_MODE).with_message_id(id.into());
        let confirm = channel
            .basic_publish("".into(), queue.into(), options, body, properties)
            .await
            .map_err(|error| refusal(&self.link, queue, &error))?
            .await
            .map_err(|error| refusal(&self.link, queue, &error))?;
        // Only a channel with nothing in flight is used again; any other is dropped, which closes it.
        self.idle().push(channel);
        verdict(queue, confirm)
    }

    /// Publishes to the queues that are bound to this exchange, in memory only and in one attempt.
    pub(super) async fn broadcast(&self, exchange: &str, body: &[u8]) -> Result<(), BrokerError> {
        let sent = async {
            // A lost connection has a time limit of its own: with the shorter one a slow machine would never make it.
            timeout(CALL_TIMEOUT, self.link.connect()).await.map_err(|_| BrokerError::TimedOut(CALL_TIMEOUT))??;
            let attempt = timeout(BROADCAST_TIMEOUT, self.attempt_broadcast(exchange, body));
            attempt.await.unwrap_or(Err(BrokerError::TimedOut(BROADCAST_TIMEOUT)))
        };
        tokio::select! {
            biased;
            () = self.link.closed().cancelled() => Err(BrokerError::Closed),
            sent = sent => sent,
        }
    }

    async fn attempt_broadcast(&self, exchange: &str, body: &[u8]) -> Result<(), BrokerError> {
        let _permit = self.permits.acquire().await.map_err(|_| BrokerError::Closed)?;
        if self.link.blocked().await {
            return Err(BrokerError::Refused("it takes no publishes now, because of its memory or disk alarm".into()));
        }
        let channel = self.channel().await?;
        let options = BasicPublishOptions::default();
        let sent = channel.basic_publish(exchange.into(), "".into(), options, body, BasicProperties::default()).await;
        let confirmed = match sent {
            Ok(confirm) => confirm.await,
            Err(error) => Err(error),
        };
        match confirmed {
            Ok(Confirmation::Ack(_)) => {
                self.idle().push(channel);
                Ok(())
            }
            Ok(_) => Err(BrokerError::Refused("a subscriber's queue did not take the broadcast".into())),
            // Without the exchange there is no subscriber.
            Err(error) if is_missing(&error) => Ok(()),
            Err(error) => Err(refusal(&self.link, exchange, &error)),
        }
    }

    async fn channel(&self) -> Result<Channel, BrokerError> {
        while let Some(channel) = self.pop() {
            if channel.status().connected() {
                return Ok(channel);
            }
        }
        let channel = self.link.channel().await?;
        let confirms = channel.confirm_select(ConfirmSelectOptions::default()).await;
        confirms.map_err(|error| self.link.unreachable(&error))?;
        Ok(channel)
    }

    fn pop(&self) -> Option<Channel> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().expect("no code panics while it holds the idle channels")
    }
}

/// Only an acknowledgement without a returned message is a success.
fn verdict(queue: &str, confirm: Confirmation) -> Result<(), BrokerError> {
    match confirm {
        Confirmation::Ack(None) => Ok(()),
        Confirmation::Ack(Some(returned)) if returned.reply_code == NO_ROUTE => {
            Err(BrokerError::NoQueue(queue.to_owned()))
        }
        Confirmation::Ack(Some(returned)) => Err(BrokerError::Refused(returned.reply_text.to_string())),
        Confirmation::Nack(_) => {
            Err(BrokerError::Refused(format!("queue '{queue}' did not take the message; is it full?")))
        }
        Confirmation::NotRequested => Err(BrokerError::Refused("it gives no confirms on this channel".into())),
    }
}
