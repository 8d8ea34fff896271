//! The amqp adapter against a real RabbitMQ: the conformance suite, and the faults that only a real broker has.

use anyhow::{Context, Result};
use modelmeter_common::broker::{
    Broker, BrokerError, Consumer, Delivery,
    amqp::{self, AmqpBroker},
    fanout::BROADCAST_TIMEOUT,
};
use modelmeter_tests::{
    conformance::broker::{self as conformance, fresh},
    eventually,
    rabbitmq::Node,
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

/// The longest that anything may take that the broker must do at some time.
const LIMIT: Duration = Duration::from_secs(30);

/// One node for all of it: a start takes longer than the whole suite.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rabbitmq_conforms_and_survives_faults() -> Result<()> {
    let mut node = Node::start().await?;
    refusals_are_told_apart(&node).await?;
    let url = node.url();
    let connect = || async { Arc::new(amqp::connect(&url).await.expect("the node runs")) as Arc<dyn Broker> };
    conformance::run_all(connect).await;
    conformance::fanout::run_all(connect).await;
    publishing_is_fast_enough(&node).await?;
    closed_connections_lose_nothing(&node).await?;
    a_subscription_ends_with_its_connection_and_leaves_nothing(&node).await?;
    an_alarm_holds_publishes_but_not_acknowledgements(&node).await?;
    a_killed_node_loses_nothing(&mut node).await?;
    a_wiped_node_gets_its_queues_again(&mut node).await?;
    a_frozen_node_is_noticed(&mut node).await?;
    node.stop().await
}

#[tokio::test]
async fn an_unreachable_broker_is_told_with_what_was_tried() -> Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let port = silent.local_addr()?.port();
    let url = format!("amqp://joe:hunter2@127.0.0.1:{port}/lab");
    let error = failure(amqp::connect_within(&url, Duration::from_millis(300)).await)?;
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("no answer"), "{error}");

    drop(silent);
    let error = failure(amqp::connect(&url).await)?;
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("connection refused"), "{error}");

    let error = failure(amqp::connect("amqp://joe:hunter2@no-such-host.invalid/").await)?;
    assert!(error.contains("no-such-host.invalid:5672"), "{error}");
    Ok(())
}

async fn refusals_are_told_apart(node: &Node) -> Result<()> {
    let port = node.port();
    let error = failure(amqp::connect(&format!("amqp://joe:hunter2@127.0.0.1:{port}")).await)?;
    assert!(error.contains("was refused: check user and password") && error.contains("Unauthenticated"), "{error}");
    let error = failure(amqp::connect(&format!("amqp://guest:guest@127.0.0.1:{port}/lab")).await)?;
    assert!(error.contains("'lab'") && error.contains("Unauthenticated"), "{error}");
    Ok(())
}

/// The text of an error, which never holds a credential.
fn failure(outcome: Result<AmqpBroker, BrokerError>) -> Result<String> {
    let error = outcome.err().context("it connected")?;
    let text = format!("{error} {error:?}");
    eprintln!("{error}");
    assert!(!text.contains("joe") && !text.contains("hunter2"), "{text}");
    Ok(text)
}

/// The floor is far below what is usual, since the machine may be busy; the figure is printed.
async fn publishing_is_fast_enough(node: &Node) -> Result<()> {
    const MESSAGES: u32 = 4000;
    let (broker, queue) = queue(node).await?;
    let started = Instant::now();
    let publishers: Vec<_> = (0..64_u32)
        .map(|publisher| {
            let (broker, queue) = (broker.clone(), queue.clone());
            tokio::spawn(async move {
                for i in (publisher..MESSAGES).step_by(64) {
                    broker.publish(&queue, &i.to_string(), &[7; 200]).await?;
                }
                Ok::<_, BrokerError>(())
            })
        })
        .collect();
    for publisher in publishers {
        publisher.await??;
    }
    let rate = f64::from(MESSAGES) / started.elapsed().as_secs_f64();
    eprintln!("confirmed publishes: {rate:.0}/s");
    assert!(rate > 300.0, "only {rate:.0} confirmed publishes a second");
    broker.delete(&queue).await?;
    broker.close().await;
    Ok(())
}

async fn queue(node: &Node) -> Result<(AmqpBroker, String)> {
    let broker = amqp::connect(&node.url()).await?;
    let queue = fresh("fault");
    broker.declare(&queue).await?;
    Ok((broker, queue))
}

/// Publishes numbers in the background; gives those that were confirmed once it is told to stop.
struct Stream {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(BTreeSet<u32>, u32)>,
}

impl Stream {
    fn start(broker: &AmqpBroker, queue: &str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (broker, queue, stopped) = (broker.clone(), queue.to_owned(), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let (mut confirmed, mut failed) = (BTreeSet::new(), 0);
            for i in 0_u32.. {
                match broker.publish(&queue, &i.to_string(), &i.to_be_bytes()).await {
                    Ok(()) => _ = confirmed.insert(i),
                    Err(error) => {
                        eprintln!("publish {i}: {error}");
                        failed += 1;
                    }
                }
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
            }
            (confirmed, failed)
        });
        Self { stop, task }
    }

    async fn stop(self) -> Result<(BTreeSet<u32>, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

fn number(delivery: &Delivery) -> Result<u32> {
    Ok(u32::from_be_bytes(delivery.body.as_slice().try_into()?))
}

/// Takes and acknowledges until it has all that is wanted.
async fn drain(consumer: &mut Box<dyn Consumer>, got: &mut BTreeSet<u32>, wanted: &BTreeSet<u32>) -> Result<()> {
    while !wanted.is_subset(got) {
        let delivery = conformance::expect(consumer).await;
        got.insert(number(&delivery)?);
        delivery.ack().await?;
    }
    Ok(())
}

async fn closed_connections_lose_nothing(node: &Node) -> Result<()> {
    let (broker, queue) = queue(node).await?;
    let mut consumer = broker.consume(&queue, 8).await?;
    let stream = Stream::start(&broker, &queue);
    let mut got = BTreeSet::new();
    for _ in 0..3 {
        let held = conformance::expect(&mut consumer).await;
        got.insert(number(&held)?);
        node.close_all_connections().await?;
        // What was held comes again: to have settled it on the lost channel is not an error.
        assert!(!held.ack().await?, "an acknowledgement on a closed connection counted");
        for _ in 0..20 {
            let delivery = conformance::expect(&mut consumer).await;
            got.insert(number(&delivery)?);
            delivery.ack().await?;
        }
    }
    let (confirmed, failed) = stream.stop().await?;
    assert_eq!(failed, 0, "publishes wait for the broker to come back");
    drain(&mut consumer, &mut got, &confirmed).await?;
    eprintln!("connections closed three times: {} confirmed, all delivered", confirmed.len());
    drop(consumer);
    broker.delete(&queue).await?;
    broker.close().await;
    Ok(())
}

async fn a_subscription_ends_with_its_connection_and_leaves_nothing(node: &Node) -> Result<()> {
    let broker = amqp::connect(&node.url()).await?;
    let topic = fresh("topic");
    let mut subscription = broker.subscribe(&topic).await?;
    broker.broadcast(&topic, b"before").await?;
    assert_eq!(tokio::time::timeout(LIMIT, subscription.next()).await??, b"before");
    node.close_all_connections().await?;
    let ended = tokio::time::timeout(LIMIT, subscription.next()).await?;
    assert!(matches!(ended, Err(BrokerError::Unreachable { .. })), "{ended:?}");
    let mut subscription = broker.subscribe(&topic).await?;
    eventually("a broadcast passes again", LIMIT, || async { broker.broadcast(&topic, b"after").await.ok() }).await?;
    assert_eq!(tokio::time::timeout(LIMIT, subscription.next()).await??, b"after");
    drop(subscription);
    eventually("the queues of subscriptions are gone", LIMIT, || async {
        let queues = node.ctl(&["list_queues", "name"]).await.ok()?;
        (!queues.contains("modelmeter.subscription")).then_some(())
    })
    .await?;
    broker.close().await;
    Ok(())
}

async fn a_killed_node_loses_nothing(node: &mut Node) -> Result<()> {
    let (broker, queue) = queue(node).await?;
    let mut consumer = broker.consume(&queue, 8).await?;
    let stream = Stream::start(&broker, &queue);
    let mut got = BTreeSet::new();
    // A queue that is older than a moment: one declared just before a crash may lose what it confirmed.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(2) {
        let delivery = conformance::expect(&mut consumer).await;
        got.insert(number(&delivery)?);
        delivery.ack().await?;
    }
    let seen = got.len();
    node.restart().await?;
    while got.len() < seen + 20 {
        let delivery = conformance::expect(&mut consumer).await;
        got.insert(number(&delivery)?);
        delivery.ack().await?;
    }
    let (confirmed, _) = stream.stop().await?;
    drain(&mut consumer, &mut got, &confirmed).await?;
    eprintln!("killed and restarted: {} confirmed, all delivered", confirmed.len());
    drop(consumer);
    broker.delete(&queue).await?;
    broker.close().await;
    Ok(())
}

async fn a_wiped_node_gets_its_queues_again(node: &mut Node) -> Result<()> {
    let (broker, queue) = queue(node).await?;
    let mut consumer = broker.consume(&queue, 1).await?;
    node.kill()?;
    node.wipe()?;
    node.restart().await?;
    let publisher = broker.clone();
    let name = queue.clone();
    let published = tokio::spawn(async move {
        // The consumer declares the queue again once it is back; what was not confirmed until then is for its sender to
        // send again.
        eventually("a publish is confirmed again", Duration::from_secs(60), || async {
            publisher.publish(&name, "after", b"after").await.ok()
        })
        .await
    });
    let delivery = conformance::expect(&mut consumer).await;
    assert_eq!(delivery.body, b"after");
    assert!(delivery.ack().await?);
    published.await??;
    broker.close().await;
    Ok(())
}

async fn an_alarm_holds_publishes_but_not_acknowledgements(node: &Node) -> Result<()> {
    let (broker, queue) = queue(node).await?;
    broker.publish(&queue, "before", b"before").await?;
    let mut consumer = broker.consume(&queue, 1).await?;
    let before = conformance::expect(&mut consumer).await;
    node.ctl(&["set_vm_memory_high_watermark", "0.0001"]).await?;
    let publisher = broker.clone();
    let name = queue.clone();
    let held = tokio::spawn(async move {
        let started = Instant::now();
        publisher.publish(&name, "held", b"held").await.map(|()| started.elapsed())
    });
    assert!(before.ack().await?, "an alarm stops acknowledgements");
    assert!(tokio::time::timeout(Duration::from_secs(2), consumer.next()).await.is_err(), "no alarm was raised");
    assert!(!held.is_finished(), "the publish did not wait");
    let refused = broker.broadcast(&queue, b"refused").await;
    assert!(matches!(refused, Err(BrokerError::Refused(_))), "a hint does not wait for the alarm to end: {refused:?}");
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
    let waited = held.await??;
    eprintln!("a publish waited {waited:?} for the alarm to end");
    let delivery = conformance::expect(&mut consumer).await;
    assert_eq!(delivery.body, b"held");
    assert!(delivery.ack().await?);
    broker.delete(&queue).await?;
    broker.close().await;
    Ok(())
}

async fn a_frozen_node_is_noticed(node: &mut Node) -> Result<()> {
    let broker = amqp::connect(&format!("{}/?heartbeat=2", node.url())).await?;
    let queue = fresh("frozen");
    broker.declare(&queue).await?;
    let mut consumer = broker.consume(&queue, 1).await?;
    node.signal(libc::SIGSTOP)?;
    let started = Instant::now();
    broker.broadcast(&queue, b"frozen").await.expect_err("the node is frozen");
    assert!(started.elapsed() < 2 * BROADCAST_TIMEOUT, "a broadcast hangs on a frozen broker");
    let started = Instant::now();
    let error = broker.publish(&queue, "frozen", b"frozen").await.expect_err("the node is frozen");
    eprintln!("frozen: {error} after {:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(15), "a publish hangs on a frozen broker");
    node.signal(libc::SIGCONT)?;
    broker.publish(&queue, "thawed", b"thawed").await?;
    loop {
        let delivery = conformance::expect(&mut consumer).await;
        let last = delivery.body == b"thawed";
        delivery.ack().await?;
        if last {
            break;
        }
    }
    broker.close().await;
    Ok(())
}
