//! What every broker must do. Both adapters pass this one suite, memory and RabbitMQ.
//!
//! Each property is a function on a fresh queue. What is not named here is not promised: order, and that a
//! message comes only once.
#![allow(clippy::unwrap_used)] // these are tests, and a failure is meant to panic

/// Runs each property with a name of its own on a broker of its own, made by `$make`.
macro_rules! properties {
    ($make:ident: $($property:ident),* $(,)?) => {$(
        let broker = $make().await;
        let started = Instant::now();
        let name = stringify!($property);
        eprintln!("conformance: {name}");
        let queue = fresh(name);
        let outcome = timeout(LIMIT, $property(Arc::clone(&broker), &queue)).await;
        assert!(outcome.is_ok(), "{name} did not end within {LIMIT:?}");
        eprintln!("conformance: {name} holds ({:?})", started.elapsed());
        let _ = broker.delete(&queue).await;
        broker.close().await;
    )*};
}

pub mod fanout;

use modelmeter_common::broker::{Broker, BrokerError, Consumer, Delivery, MAX_NAME_BYTES, QUARANTINE};
use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout};

type Shared = Arc<dyn Broker>;

/// The longest that a broker may take for what it must do at some time.
const DEADLINE: Duration = Duration::from_secs(20);
/// How long a delivery that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);
/// The longest that one property may take.
const LIMIT: Duration = Duration::from_secs(90);

/// Runs each property on a broker that `make` gives; panics at the first that does not hold.
pub async fn run_all<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Shared>,
{
    properties!(make:
        declaring_again_changes_nothing,
        everything_published_is_delivered,
        publishing_to_an_unknown_queue_is_an_error,
        consuming_an_unknown_queue_is_an_error,
        names_that_do_not_fit_are_refused,
        prefetch_bounds_what_is_unacknowledged,
        what_a_dropped_consumer_held_comes_again,
        what_is_requeued_comes_again,
        what_is_rejected_is_quarantined,
        what_is_acknowledged_never_comes_again,
        a_late_acknowledgement_says_so,
        depth_counts_what_is_ready,
        two_consumers_share_a_queue,
        deleting_a_queue_deletes_its_messages,
        a_consumer_outlives_the_deletion_of_its_queue,
        a_dropped_wait_loses_nothing,
        four_mebibytes_pass,
        two_hundred_publish_at_once,
        closing_ends_the_waiting,
    );
}

/// A queue name that no other test uses.
pub fn fresh(name: &str) -> String {
    format!("conformance.{name}.{}", uuid::Uuid::new_v4())
}

/// The next delivery, which must come.
pub async fn expect(consumer: &mut Box<dyn Consumer>) -> Delivery {
    timeout(DEADLINE, consumer.next()).await.expect("no delivery came in time").unwrap()
}

async fn expect_none(consumer: &mut Box<dyn Consumer>) {
    if let Ok(delivery) = timeout(SILENCE, consumer.next()).await {
        panic!("{:?} was delivered", delivery.map(|d| String::from_utf8_lossy(&d.body).into_owned()));
    }
}

async fn expect_depth(broker: &Shared, queue: &str, wanted: Option<u64>) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let depth = broker.depth(queue).await.unwrap();
        if depth == wanted {
            return;
        }
        assert!(Instant::now() < deadline, "the depth stays {depth:?}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn publish(broker: &Shared, queue: &str, texts: &[&str]) {
    for text in texts {
        broker.publish(queue, &uuid::Uuid::new_v4().to_string(), text.as_bytes()).await.unwrap();
    }
}

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.body.clone()).unwrap()
}

async fn declaring_again_changes_nothing(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["kept"]).await;
    broker.declare(queue).await.unwrap();
    broker.declare(QUARANTINE).await.unwrap();
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    assert_eq!(text(&expect(&mut consumer).await), "kept");
}

async fn everything_published_is_delivered(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let mut consumer = broker.consume(queue, 4).await.unwrap();
    let sent: Vec<String> = (0..50).map(|i| i.to_string()).collect();
    for text in &sent {
        publish(&broker, queue, &[text]).await;
    }
    let mut got = Vec::new();
    while got.len() < sent.len() {
        let delivery = expect(&mut consumer).await;
        got.push(text(&delivery).parse::<usize>().unwrap());
        assert!(delivery.ack().await.unwrap());
    }
    got.sort_unstable();
    assert_eq!(got, (0..50).collect::<Vec<_>>());
    expect_none(&mut consumer).await;
}

async fn publishing_to_an_unknown_queue_is_an_error(broker: Shared, queue: &str) {
    for _ in 0..3 {
        let error = broker.publish(queue, "id", b"lost").await.unwrap_err();
        assert!(matches!(&error, BrokerError::NoQueue(name) if name == queue), "{error}");
    }
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["taken"]).await;
    expect_depth(&broker, queue, Some(1)).await;
}

async fn consuming_an_unknown_queue_is_an_error(broker: Shared, queue: &str) {
    let error = broker.consume(queue, 1).await.err().unwrap();
    assert!(matches!(&error, BrokerError::NoQueue(name) if name == queue), "{error}");
    assert_eq!(broker.depth(queue).await.unwrap(), None);
}

async fn names_that_do_not_fit_are_refused(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", &long] {
        assert!(matches!(broker.declare(name).await, Err(BrokerError::Refused(_))));
        assert!(matches!(broker.publish(name, "id", b"").await, Err(BrokerError::Refused(_))));
        assert!(matches!(broker.publish(queue, name, b"").await, Err(BrokerError::Refused(_))));
    }
    publish(&broker, queue, &["fits"]).await;
}

async fn prefetch_bounds_what_is_unacknowledged(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["a", "b", "c"]).await;
    let mut consumer = broker.consume(queue, 2).await.unwrap();
    let first = expect(&mut consumer).await;
    let second = expect(&mut consumer).await;
    expect_none(&mut consumer).await;
    assert!(first.ack().await.unwrap());
    let third = expect(&mut consumer).await;
    assert!(second.ack().await.unwrap() && third.ack().await.unwrap());
}

async fn what_a_dropped_consumer_held_comes_again(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["a", "b"]).await;
    let mut first = broker.consume(queue, 2).await.unwrap();
    let (_a, _b) = (expect(&mut first).await, expect(&mut first).await);
    drop(first);
    let mut second = broker.consume(queue, 2).await.unwrap();
    let mut got = Vec::new();
    for _ in 0..2 {
        let delivery = expect(&mut second).await;
        got.push(text(&delivery));
        assert!(delivery.ack().await.unwrap());
    }
    got.sort();
    assert_eq!(got, ["a", "b"]);
}

async fn what_is_requeued_comes_again(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["again"]).await;
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    assert!(expect(&mut consumer).await.requeue().await.unwrap());
    let delivery = expect(&mut consumer).await;
    assert_eq!(text(&delivery), "again");
    assert!(delivery.ack().await.unwrap());
}

async fn what_is_rejected_is_quarantined(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let marker = fresh("poison");
    publish(&broker, queue, &[&marker]).await;
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    assert!(expect(&mut consumer).await.reject().await.unwrap());
    expect_none(&mut consumer).await;
    let mut quarantine = broker.consume(QUARANTINE, 1).await.unwrap();
    loop {
        let delivery = expect(&mut quarantine).await;
        let found = text(&delivery) == marker;
        assert!(delivery.ack().await.unwrap());
        if found {
            return;
        }
    }
}

async fn what_is_acknowledged_never_comes_again(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["once"]).await;
    let mut first = broker.consume(queue, 1).await.unwrap();
    assert!(expect(&mut first).await.ack().await.unwrap());
    expect_none(&mut first).await;
    drop(first);
    let mut second = broker.consume(queue, 1).await.unwrap();
    expect_none(&mut second).await;
    expect_depth(&broker, queue, Some(0)).await;
}

async fn a_late_acknowledgement_says_so(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["slow"]).await;
    let mut first = broker.consume(queue, 1).await.unwrap();
    let late = expect(&mut first).await;
    drop(first);
    let mut second = broker.consume(queue, 1).await.unwrap();
    let delivery = expect(&mut second).await;
    assert!(!late.ack().await.unwrap(), "an acknowledgement counted after its consumer was gone");
    assert!(delivery.ack().await.unwrap());
}

async fn depth_counts_what_is_ready(broker: Shared, queue: &str) {
    assert_eq!(broker.depth(queue).await.unwrap(), None);
    broker.declare(queue).await.unwrap();
    expect_depth(&broker, queue, Some(0)).await;
    publish(&broker, queue, &["a", "b", "c"]).await;
    expect_depth(&broker, queue, Some(3)).await;
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    let held = expect(&mut consumer).await;
    expect_depth(&broker, queue, Some(2)).await;
    assert!(held.ack().await.unwrap());
}

async fn two_consumers_share_a_queue(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let mut first = broker.consume(queue, 1).await.unwrap();
    let mut second = broker.consume(queue, 1).await.unwrap();
    publish(&broker, queue, &["a", "b"]).await;
    // Each holds one, so neither can have both.
    let (a, b) = (expect(&mut first).await, expect(&mut second).await);
    let mut got = [text(&a), text(&b)];
    got.sort();
    assert_eq!(got, ["a", "b"]);
    assert!(a.ack().await.unwrap() && b.ack().await.unwrap());
}

async fn deleting_a_queue_deletes_its_messages(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    publish(&broker, queue, &["gone"]).await;
    broker.delete(queue).await.unwrap();
    broker.delete(queue).await.unwrap();
    assert_eq!(broker.depth(queue).await.unwrap(), None);
    assert!(matches!(broker.publish(queue, "id", b"").await, Err(BrokerError::NoQueue(_))));
    broker.declare(queue).await.unwrap();
    expect_depth(&broker, queue, Some(0)).await;
}

async fn a_consumer_outlives_the_deletion_of_its_queue(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    broker.delete(queue).await.unwrap();
    let waiting = tokio::spawn(async move { expect(&mut consumer).await.body });
    // The consumer declares it again by itself.
    expect_depth(&broker, queue, Some(0)).await;
    publish(&broker, queue, &["after"]).await;
    assert_eq!(waiting.await.unwrap(), b"after");
}

async fn a_dropped_wait_loses_nothing(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    for round in 0..20 {
        expect_soon(&mut consumer, Duration::from_micros(200)).await;
        let sent = round.to_string();
        publish(&broker, queue, &[&sent]).await;
        let deadline = Instant::now() + DEADLINE;
        let delivery = loop {
            assert!(Instant::now() < deadline, "a delivery was lost with a dropped wait");
            if let Ok(delivery) = timeout(Duration::from_micros(500), consumer.next()).await {
                break delivery.unwrap();
            }
        };
        assert_eq!(text(&delivery), sent);
        assert!(delivery.ack().await.unwrap());
    }
}

/// Waits for a delivery that does not come, and drops the wait.
async fn expect_soon(consumer: &mut Box<dyn Consumer>, limit: Duration) {
    assert!(timeout(limit, consumer.next()).await.is_err(), "a delivery that nobody sent");
}

async fn four_mebibytes_pass(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let body: Vec<u8> = (0..4_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    broker.publish(queue, "large", &body).await.unwrap();
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    let delivery = expect(&mut consumer).await;
    assert!(delivery.body == body, "the bytes differ");
    assert!(delivery.ack().await.unwrap());
}

async fn two_hundred_publish_at_once(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let missing = fresh("missing");
    let publishes: Vec<_> = (0..200_u32)
        .map(|i| {
            // Every tenth goes nowhere, and only that one may be told so.
            let (broker, queue) = (Arc::clone(&broker), if i % 10 == 0 { missing.clone() } else { queue.to_owned() });
            tokio::spawn(async move { broker.publish(&queue, &i.to_string(), &i.to_be_bytes()).await })
        })
        .collect();
    for (i, publish) in publishes.into_iter().enumerate() {
        let outcome = publish.await.unwrap();
        assert_eq!(matches!(outcome, Err(BrokerError::NoQueue(_))), i % 10 == 0, "publish {i}: {outcome:?}");
        assert!(i % 10 == 0 || outcome.is_ok(), "publish {i}: {outcome:?}");
    }
    let mut consumer = broker.consume(queue, 50).await.unwrap();
    let mut got = BTreeMap::new();
    for _ in 0..180 {
        let delivery = expect(&mut consumer).await;
        let sent = u32::from_be_bytes(delivery.body.as_slice().try_into().unwrap());
        *got.entry(sent).or_insert(0) += 1;
        assert!(delivery.ack().await.unwrap());
    }
    assert_eq!(got.len(), 180);
}

async fn closing_ends_the_waiting(broker: Shared, queue: &str) {
    broker.declare(queue).await.unwrap();
    let mut consumer = broker.consume(queue, 1).await.unwrap();
    let waiting = tokio::spawn(async move { consumer.next().await });
    expect_depth(&broker, queue, Some(0)).await;
    broker.close().await;
    let outcome = timeout(DEADLINE, waiting).await.expect("the consumer waits on").unwrap();
    assert!(matches!(outcome, Err(BrokerError::Closed)));
    assert!(matches!(broker.publish(queue, "id", b"").await, Err(BrokerError::Closed)));
    assert!(matches!(broker.declare(queue).await, Err(BrokerError::Closed)));
}
