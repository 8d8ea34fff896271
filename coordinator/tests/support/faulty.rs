//! A broker whose broadcasts can be made to fail, as those of one that is frozen or away.

use async_trait::async_trait;
use modelmeter_common::broker::{Broker, BrokerError, Consumer, fanout::Subscription, memory::MemoryBroker};
use std::future::pending;
use tokio_util::sync::CancellationToken;

/// The memory broker. From the fault on no broadcast returns, and nobody can subscribe.
#[derive(Default)]
pub struct Faulty {
    pub inner: MemoryBroker,
    pub fault: CancellationToken,
}

struct Faulted(Box<dyn Subscription>, CancellationToken);

fn away() -> BrokerError {
    BrokerError::Unreachable { address: "test".into(), reason: "the test says so".into() }
}

#[async_trait]
impl Broker for Faulty {
    async fn declare(&self, queue: &str) -> Result<(), BrokerError> {
        self.inner.declare(queue).await
    }
    async fn publish(&self, queue: &str, message_id: &str, body: &[u8]) -> Result<(), BrokerError> {
        self.inner.publish(queue, message_id, body).await
    }
    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        self.inner.consume(queue, prefetch).await
    }
    async fn depth(&self, queue: &str) -> Result<Option<u64>, BrokerError> {
        self.inner.depth(queue).await
    }
    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        self.inner.delete(queue).await
    }
    async fn broadcast(&self, topic: &str, body: &[u8]) -> Result<(), BrokerError> {
        if self.fault.is_cancelled() {
            return pending().await;
        }
        self.inner.broadcast(topic, body).await
    }
    async fn subscribe(&self, topic: &str) -> Result<Box<dyn Subscription>, BrokerError> {
        if self.fault.is_cancelled() {
            return Err(away());
        }
        Ok(Box::new(Faulted(self.inner.subscribe(topic).await?, self.fault.clone())))
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}

#[async_trait]
impl Subscription for Faulted {
    async fn next(&mut self) -> Result<Vec<u8>, BrokerError> {
        tokio::select! {
            () = self.1.cancelled() => Err(away()),
            next = self.0.next() => next,
        }
    }
}
