//! Two coordinators on one hub and broker: what one does, those who follow a request at the other hear at once, and the
//! leader's dispatcher hears of work that comes in at the other.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[allow(dead_code, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    Timestamp,
    device::Device,
    event::What,
    request::RequestState,
    status::Status,
    task::{Assignment, TaskState},
    wire::{self, Hint},
};
use modelmeter_coordinator::{
    clock::{Clock, Real},
    hub::Hub,
};
use modelmeter_proto::control::{RegisterRequest, SubmitRequest, WatchRequest, control_client::ControlClient};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use support::{House, clock::Simulated, counting::Counting, cpu, faulty::Faulty, slot, watcher::Watcher, watching};
use tonic::transport::Channel;

const LEASE: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(20);
/// Far below the second after which a watcher that hears nothing looks.
const AT_ONCE: Duration = Duration::from_millis(250);
const CELLS: u32 = 5000;

async fn real(broker: Arc<Faulty>) -> House {
    let house = House::on(broker, LEASE, Arc::new(Real::default())).await;
    house.leads().await;
    house
}

/// A leader that is watched at a follower: `times` the task's holder says something new, and the watcher shows it after so
/// long each time; gives the median and the longest.
async fn delays(
    house: &mut House,
    follower: &mut ControlClient<Channel>,
    task: &Assignment,
    word: &str,
    times: usize,
) -> (Duration, Duration) {
    let mut watcher = Watcher::begin(follower, watching(task.request_id)).await;
    let says = |status: &Status, words: &str| status.cells.iter().any(|cell| cell.reason.as_deref() == Some(words));
    let mut delays = Vec::new();
    for time in 0..times {
        let words = format!("{word} {time}");
        let began = Instant::now();
        house.renewed("one", task, &words).await;
        watcher.until(|told| says(&told.status, &words)).await;
        delays.push(began.elapsed());
    }
    delays.sort();
    (delays[times / 2], delays[times - 1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followers_watcher_is_told_at_once_and_without_broadcasts_later() {
    let broker = Arc::new(Faulty::default());
    let mut house = real(broker.clone()).await;
    let (other, mut follower, _) = house.another(LEASE).await;
    let id = house.submit(|request| request.batch_sizes = vec![1, 2]).await;
    let task = house.claim("one").await.unwrap();
    let (told, longest) = delays(&mut house, &mut follower, &task, "told", 20).await;
    broker.fault.cancel();
    let (looked, longest_look) = delays(&mut house, &mut follower, &task, "untold", 3).await;
    eprintln!("a follower shows the leader's change after {told:.1?} (longest {longest:.1?})");
    eprintln!("without broadcasts after {looked:.1?} (longest {longest_look:.1?})");
    assert!(told < AT_ONCE, "{told:?}");

    // Nothing waits for the broker, and the end is seen all the same.
    house.measure(&task, 10.0).await;
    let task = house.claim("one").await.unwrap();
    house.measure(&task, 10.0).await;
    let mut watcher = Watcher::begin(&mut follower, watching(id)).await;
    watcher.until(|told| told.status.state == RequestState::Done).await;
    other.stop().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_another_coordinator_with_the_whole_and_its_own_numbers() {
    let mut house = real(Arc::default()).await;
    let (other, mut follower, _) = house.another(LEASE).await;
    let id = house.submit(|request| request.batch_sizes = vec![1, 2]).await;
    let mut first = Watcher::begin(&mut house.control, watching(id)).await;
    let mut second = Watcher::begin(&mut follower, watching(id)).await;
    let task = house.claim("one").await.unwrap();
    for watcher in [&mut first, &mut second] {
        watcher.until(|told| told.count(TaskState::Claimed) == 1).await;
        assert!(watcher.events.windows(2).all(|pair| pair[0].seq < pair[1].seq), "{:?}", watcher.events);
    }
    let after = |watcher: &Watcher| WatchRequest {
        request_id: id.to_string(),
        feed: watcher.last.feed.clone(),
        after_seq: watcher.last.seq,
    };
    let (of_first, of_second) = (after(&first), after(&second));
    drop((first, second));
    house.measure(&task, 10.0).await;

    let moved = Watcher::begin(&mut follower, of_first.clone()).await;
    assert_ne!(moved.last.feed, of_first.feed, "a place of another coordinator: the whole anew");
    let mut replies = follower.watch(of_second.clone()).await.unwrap().into_inner();
    let mut told = Vec::new();
    while !told.iter().any(|what| matches!(what, What::CellDone { .. })) {
        let next = tokio::time::timeout(LIMIT, replies.message()).await.expect("it is told").unwrap().unwrap();
        assert!(next.status_json.is_empty() && next.feed == of_second.feed, "{next:?}");
        let events = support::watcher::events(&next);
        assert!(events.iter().all(|event| event.seq > of_second.after_seq), "{events:?}");
        told.extend(events.into_iter().map(|event| event.what));
    }
    other.stop().await;
    house.close().await;
}

/// A leader and a follower in time that stands still: no loop looks again by itself.
async fn timeless() -> House {
    let clock = Arc::new(Simulated::at(Timestamp(1_700_000_000_000)));
    let house = House::on(Arc::new(Faulty::default()), LEASE, clock as Arc<dyn Clock>).await;
    house.leads().await;
    house
}

async fn hint(house: &House, queue: &str) {
    let mut hints = house.broker.consume(queue, 1).await.unwrap();
    let hint = tokio::time::timeout(LIMIT, hints.next()).await.expect("a hint").unwrap();
    wire::decode::<Hint>(&hint.body).unwrap();
    hint.ack().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_at_a_follower_wakes_the_leaders_dispatcher() {
    let house = timeless().await;
    let (other, mut follower, _) = house.another(LEASE).await;
    let request_json = r#"{"model": "m", "engines": ["rten"], "batch_sizes": [1]}"#.to_owned();
    let began = Instant::now();
    follower.submit(SubmitRequest { request_id: uuid::Uuid::new_v4().to_string(), request_json }).await.unwrap();
    hint(&house, &house.queue).await;
    eprintln!("queued {:.1?} after a follower was asked", began.elapsed());
    other.stop().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_registers_at_a_follower_is_given_work_by_the_leader() {
    let mut house = timeless().await;
    let (other, _, mut work) = house.another(LEASE).await;
    house.submit(|request| (request.engines, request.batch_sizes) = (vec!["onnx".into()], vec![1])).await;
    let device: Device = cpu();
    let registration = RegisterRequest {
        worker: "v".into(),
        incarnation: "one".into(),
        slots: vec![slot(&device, &["onnx"])],
        wire_version: wire::VERSION.into(),
        ..Default::default()
    };
    let queue = work.register(registration).await.unwrap().into_inner().queues.remove(0);
    hint(&house, &queue).await;
    other.stop().await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_of_five_thousand_cells_reads_none_of_them_again() {
    let mut house = real(Arc::default()).await;
    let counting = Arc::new(Counting::new(house.hub.clone()));
    let seen: Arc<dyn Hub> = counting.clone();
    let (other, mut follower, _) = house.another_on(&seen, LEASE).await;
    let engines = vec!["rten".to_owned(), "onnx".to_owned()];
    let id =
        house.submit(|request| (request.engines, request.batch_sizes) = (engines, (1..=CELLS / 2).collect())).await;
    let mut watcher = Watcher::begin(&mut follower, watching(id)).await;
    assert_eq!(watcher.status.cells.len(), CELLS as usize);
    watcher.until(|told| told.count(TaskState::Queued) == 2).await;
    watcher.events.clear();
    counting.since();
    for _ in 0..10 {
        let task = house.claim("one").await.unwrap();
        house.measure(&task, 10.0).await;
        let done = watcher.count(TaskState::Done) + 1;
        watcher.until(|told| told.count(TaskState::Done) == done).await;
    }
    let ((tasks, reads), events) = (counting.since(), watcher.events.len());
    eprintln!("{events} events of {CELLS} cells: {tasks} tasks read, {reads} calls to the hub");
    assert_eq!(tasks, 0, "tasks were read for {events} events");
    assert!(reads <= events as u64, "{reads} calls for {events} events");
    other.stop().await;
    house.close().await;
}
