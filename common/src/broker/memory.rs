//! The broker inside one process, for embedded mode and tests: the same promises as RabbitMQ, redelivery
//! included, except that nothing outlives the process.

use super::{
    Broker, BrokerError, Consumer, Delivery, MAX_QUEUE_MESSAGES, QUARANTINE, Settle, Verdict, check_name,
    fanout::{MAX_BACKLOG, Subscription, check_size},
};
use async_trait::async_trait;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::Notify;

/// An in-process broker. Clones share the queues.
#[derive(Clone, Default)]
pub struct MemoryBroker(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Woken after each change that may let a consumer go on.
    changed: Notify,
}

#[derive(Default)]
struct State {
    queues: HashMap<String, VecDeque<Message>>,
    consumers: HashMap<u64, Consuming>,
    subscribers: HashMap<u64, Subscriber>,
    /// The last consumer id, subscriber id and delivery tag given out.
    last_id: u64,
    closed: bool,
}

type Message = Arc<[u8]>;

/// What the broker knows of a consumer: its deliveries by tag, in the order of delivery.
struct Consuming {
    queue: String,
    unacked: BTreeMap<u64, Message>,
}

/// The broker's side of a subscription.
struct Subscriber {
    topic: String,
    backlog: VecDeque<Message>,
}

impl MemoryBroker {
    /// An empty broker.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds the broker's lock")
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, BrokerError> {
        let state = self.lock();
        if state.closed { Err(BrokerError::Closed) } else { Ok(state) }
    }

    /// The next message, and its tag, for a consumer that has fewer than `prefetch` unacknowledged.
    fn take(&self, consumer: u64, prefetch: usize) -> Result<Option<(u64, Message)>, BrokerError> {
        let mut state = self.open()?;
        let State { queues, consumers, last_id, .. } = &mut *state;
        let consuming = consumers.get_mut(&consumer).ok_or(BrokerError::Closed)?;
        // A queue deleted under its consumer comes back, as with the other adapter.
        let queue = queues.entry(consuming.queue.clone()).or_default();
        if prefetch > 0 && consuming.unacked.len() >= prefetch {
            return Ok(None);
        }
        let Some(message) = queue.pop_front() else { return Ok(None) };
        *last_id += 1;
        consuming.unacked.insert(*last_id, Arc::clone(&message));
        Ok(Some((*last_id, message)))
    }

    fn settle(&self, consumer: u64, tag: u64, verdict: Verdict) -> bool {
        let mut state = self.lock();
        let State { queues, consumers, .. } = &mut *state;
        let Some(consuming) = consumers.get_mut(&consumer) else { return false };
        let Some(message) = consuming.unacked.remove(&tag) else { return false };
        match verdict {
            Verdict::Ack => {}
            Verdict::Requeue => give_back(queues, &consuming.queue, message),
            Verdict::Reject if consuming.queue == QUARANTINE => {}
            Verdict::Reject => queues.entry(QUARANTINE.to_owned()).or_default().push_back(message),
        }
        drop(state);
        self.changed.notify_waiters();
        true
    }

    fn forget(&self, consumer: u64) {
        let mut state = self.lock();
        if let Some(consuming) = state.consumers.remove(&consumer) {
            for message in consuming.unacked.into_values().rev() {
                give_back(&mut state.queues, &consuming.queue, message);
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }
}

/// Back to the front, unless the queue was deleted meanwhile.
fn give_back(queues: &mut HashMap<String, VecDeque<Message>>, queue: &str, message: Message) {
    if let Some(queue) = queues.get_mut(queue) {
        queue.push_front(message);
    }
}

#[async_trait]
impl Broker for MemoryBroker {
    async fn declare(&self, queue: &str) -> Result<(), BrokerError> {
        check_name("queue name", queue)?;
        let mut state = self.0.open()?;
        state.queues.entry(QUARANTINE.to_owned()).or_default();
        state.queues.entry(queue.to_owned()).or_default();
        Ok(())
    }

    async fn publish(&self, queue: &str, message_id: &str, body: &[u8]) -> Result<(), BrokerError> {
        check_name("queue name", queue)?;
        check_name("message id", message_id)?;
        let mut state = self.0.open()?;
        let messages = state.queues.get_mut(queue).ok_or_else(|| BrokerError::NoQueue(queue.to_owned()))?;
        if messages.len() >= MAX_QUEUE_MESSAGES {
            return Err(BrokerError::Refused(format!("queue '{queue}' is full with {MAX_QUEUE_MESSAGES} messages")));
        }
        messages.push_back(body.into());
        drop(state);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn consume(&self, queue: &str, prefetch: u16) -> Result<Box<dyn Consumer>, BrokerError> {
        let mut state = self.0.open()?;
        if !state.queues.contains_key(queue) {
            return Err(BrokerError::NoQueue(queue.to_owned()));
        }
        state.last_id += 1;
        let id = state.last_id;
        state.consumers.insert(id, Consuming { queue: queue.to_owned(), unacked: BTreeMap::new() });
        drop(state);
        Ok(Box::new(MemoryConsumer { shared: Arc::clone(&self.0), id, prefetch: prefetch.into() }))
    }

    async fn depth(&self, queue: &str) -> Result<Option<u64>, BrokerError> {
        Ok(self.0.open()?.queues.get(queue).map(|messages| messages.len() as u64))
    }

    async fn delete(&self, queue: &str) -> Result<(), BrokerError> {
        let mut state = self.0.open()?;
        state.queues.remove(queue);
        for consuming in state.consumers.values_mut().filter(|c| c.queue == queue) {
            consuming.unacked.clear();
        }
        drop(state);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn broadcast(&self, topic: &str, body: &[u8]) -> Result<(), BrokerError> {
        check_name("topic", topic)?;
        check_size(body)?;
        let mut state = self.0.open()?;
        let message: Message = body.into();
        for subscriber in state.subscribers.values_mut().filter(|subscriber| subscriber.topic == topic) {
            if subscriber.backlog.len() == MAX_BACKLOG {
                subscriber.backlog.pop_front();
            }
            subscriber.backlog.push_back(Arc::clone(&message));
        }
        drop(state);
        self.0.changed.notify_waiters();
        Ok(())
    }

    async fn subscribe(&self, topic: &str) -> Result<Box<dyn Subscription>, BrokerError> {
        check_name("topic", topic)?;
        let mut state = self.0.open()?;
        state.last_id += 1;
        let id = state.last_id;
        state.subscribers.insert(id, Subscriber { topic: topic.to_owned(), backlog: VecDeque::new() });
        Ok(Box::new(MemorySubscription { shared: Arc::clone(&self.0), id }))
    }

    async fn close(&self) {
        let consumers: Vec<u64> = {
            let mut state = self.0.lock();
            state.closed = true;
            state.consumers.keys().copied().collect()
        };
        for consumer in consumers {
            self.0.forget(consumer);
        }
        self.0.changed.notify_waiters();
    }
}

struct MemoryConsumer {
    shared: Arc<Shared>,
    id: u64,
    prefetch: usize,
}

#[async_trait]
impl Consumer for MemoryConsumer {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Listen before looking, so that no change falls between the two.
            changed.as_mut().enable();
            if let Some((tag, message)) = self.shared.take(self.id, self.prefetch)? {
                let settle = MemorySettle { shared: Arc::clone(&self.shared), consumer: self.id, tag };
                return Ok(Delivery::new(message.to_vec(), Box::new(settle)));
            }
            changed.await;
        }
    }
}

impl Drop for MemoryConsumer {
    fn drop(&mut self) {
        self.shared.forget(self.id);
    }
}

struct MemorySubscription {
    shared: Arc<Shared>,
    id: u64,
}

impl MemorySubscription {
    fn take(&self) -> Result<Option<Message>, BrokerError> {
        let mut state = self.shared.open()?;
        let subscriber = state.subscribers.get_mut(&self.id).ok_or(BrokerError::Closed)?;
        Ok(subscriber.backlog.pop_front())
    }
}

#[async_trait]
impl Subscription for MemorySubscription {
    async fn next(&mut self) -> Result<Vec<u8>, BrokerError> {
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(message) = self.take()? {
                return Ok(message.to_vec());
            }
            changed.await;
        }
    }
}

impl Drop for MemorySubscription {
    fn drop(&mut self) {
        self.shared.lock().subscribers.remove(&self.id);
    }
}

struct MemorySettle {
    shared: Arc<Shared>,
    consumer: u64,
    tag: u64,
}

#[async_trait]
impl Settle for MemorySettle {
    async fn settle(self: Box<Self>, verdict: Verdict) -> Result<bool, BrokerError> {
        Ok(self.shared.settle(self.consumer, self.tag, verdict))
    }
}
