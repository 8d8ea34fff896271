//! What every broker must do with broadcasts. Both adapters pass this suite beside the one on queues.
#![allow(clippy::unwrap_used)] // these are tests, and a failure is meant to panic

use super::{DEADLINE, LIMIT, SILENCE, Shared, fresh};
use modelmeter_common::broker::{
    BrokerError, MAX_NAME_BYTES,
    fanout::{MAX_BACKLOG, MAX_BROADCAST_BYTES, Subscription},
};
use std::{future::Future, sync::Arc};
use tokio::time::{Instant, timeout};

/// Runs each property on a broker that `make` gives; panics at the first that does not hold.
pub async fn run_all<F, Fut>(make: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Shared>,
{
    properties!(make:
        each_subscriber_gets_each_message_in_order,
        a_broadcast_to_nobody_is_no_error,
        a_late_subscriber_gets_what_comes_later,
        topics_are_apart,
        a_slow_subscriber_loses_the_oldest_and_holds_up_nobody,
        a_dropped_subscription_is_gone,
        a_dropped_wait_loses_no_broadcast,
        what_is_too_long_is_refused,
        closing_ends_subscriptions,
    );
}

async fn heard(subscription: &mut Box<dyn Subscription>) -> String {
    let body = timeout(DEADLINE, subscription.next()).await.expect("no broadcast came in time").unwrap();
    String::from_utf8(body).unwrap()
}

async fn silent(subscription: &mut Box<dyn Subscription>) {
    if let Ok(body) = timeout(SILENCE, subscription.next()).await {
        panic!("{:?} was broadcast", body.map(|body| String::from_utf8_lossy(&body).into_owned()));
    }
}

async fn broadcast(broker: &Shared, topic: &str, texts: &[&str]) {
    for text in texts {
        broker.broadcast(topic, text.as_bytes()).await.unwrap();
    }
}

async fn each_subscriber_gets_each_message_in_order(broker: Shared, topic: &str) {
    let mut first = broker.subscribe(topic).await.unwrap();
    let mut second = broker.subscribe(topic).await.unwrap();
    broadcast(&broker, topic, &["a", "b", "c"]).await;
    for subscription in [&mut first, &mut second] {
        for text in ["a", "b", "c"] {
            assert_eq!(heard(subscription).await, text);
        }
        silent(subscription).await;
    }
}

async fn a_broadcast_to_nobody_is_no_error(broker: Shared, topic: &str) {
    broadcast(&broker, topic, &["lost", "lost"]).await;
    let mut subscription = broker.subscribe(topic).await.unwrap();
    broadcast(&broker, topic, &["heard"]).await;
    assert_eq!(heard(&mut subscription).await, "heard");
}

async fn a_late_subscriber_gets_what_comes_later(broker: Shared, topic: &str) {
    let mut early = broker.subscribe(topic).await.unwrap();
    broadcast(&broker, topic, &["before"]).await;
    let mut late = broker.subscribe(topic).await.unwrap();
    broadcast(&broker, topic, &["after"]).await;
    assert_eq!(heard(&mut late).await, "after");
    assert_eq!((heard(&mut early).await, heard(&mut early).await), ("before".into(), "after".into()));
}

async fn topics_are_apart(broker: Shared, topic: &str) {
    let mut subscription = broker.subscribe(topic).await.unwrap();
    let other = fresh("other");
    let _other = broker.subscribe(&other).await.unwrap();
    broadcast(&broker, &other, &["elsewhere"]).await;
    silent(&mut subscription).await;
}

async fn a_slow_subscriber_loses_the_oldest_and_holds_up_nobody(broker: Shared, topic: &str) {
    let mut slow = broker.subscribe(topic).await.unwrap();
    let mut quick = broker.subscribe(topic).await.unwrap();
    let sent = 4 * MAX_BACKLOG;
    for number in 0..sent {
        broadcast(&broker, topic, &[&number.to_string()]).await;
        assert_eq!(heard(&mut quick).await, number.to_string());
    }
    let mut got = Vec::new();
    while got.last() != Some(&(sent - 1)) {
        got.push(heard(&mut slow).await.parse::<usize>().unwrap());
    }
    assert!(got.windows(2).all(|pair| pair[0] < pair[1]), "{got:?}");
    // An adapter may hold some more on the way.
    assert!(got.len() <= 2 * MAX_BACKLOG, "{} of {sent} waited", got.len());
    silent(&mut slow).await;
}

async fn a_dropped_subscription_is_gone(broker: Shared, topic: &str) {
    let first = broker.subscribe(topic).await.unwrap();
    let mut second = broker.subscribe(topic).await.unwrap();
    drop(first);
    broadcast(&broker, topic, &["a"]).await;
    assert_eq!(heard(&mut second).await, "a");
}

async fn a_dropped_wait_loses_no_broadcast(broker: Shared, topic: &str) {
    let mut subscription = broker.subscribe(topic).await.unwrap();
    for round in 0..20 {
        let waited = timeout(std::time::Duration::from_micros(200), subscription.next()).await;
        assert!(waited.is_err(), "a broadcast that nobody sent");
        broadcast(&broker, topic, &[&round.to_string()]).await;
        assert_eq!(heard(&mut subscription).await, round.to_string());
    }
}

async fn what_is_too_long_is_refused(broker: Shared, topic: &str) {
    let long = "x".repeat(MAX_NAME_BYTES + 1);
    for name in ["", &long] {
        assert!(matches!(broker.broadcast(name, b"").await, Err(BrokerError::Refused(_))));
        assert!(matches!(broker.subscribe(name).await, Err(BrokerError::Refused(_))));
    }
    let mut subscription = broker.subscribe(topic).await.unwrap();
    let body = vec![b'x'; MAX_BROADCAST_BYTES + 1];
    assert!(matches!(broker.broadcast(topic, &body).await, Err(BrokerError::Refused(_))));
    broker.broadcast(topic, &body[1..]).await.unwrap();
    assert_eq!(heard(&mut subscription).await.len(), MAX_BROADCAST_BYTES);
}

async fn closing_ends_subscriptions(broker: Shared, topic: &str) {
    let mut subscription = broker.subscribe(topic).await.unwrap();
    let waiting = tokio::spawn(async move { subscription.next().await });
    tokio::task::yield_now().await;
    broker.close().await;
    let outcome = timeout(DEADLINE, waiting).await.expect("the subscriber waits on").unwrap();
    assert!(matches!(outcome, Err(BrokerError::Closed)));
    assert!(matches!(broker.broadcast(topic, b"").await, Err(BrokerError::Closed)));
    assert!(matches!(broker.subscribe(topic).await, Err(BrokerError::Closed)));
}
