//! A whole worker against a memory broker, a small coordinator over real gRPC and a small KServe v2 server.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod support;

use async_trait::async_trait;
use modelmeter_common::{
    Code, Problem,
    broker::{Broker, BrokerError, Consumer, QUARANTINE, RESULTS, fanout::Subscription},
    part::Outcome,
    status::Abilities,
};
use modelmeter_worker::{Options, Patience, PortPair, PortPolicy, start};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use support::{Bench, FakeCoordinator, QUEUE, State, assignment, until, with_artifact};

/// So many calls that no test waits for the end.
const ENDLESS: u64 = 1_000_000_000;

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_server_that_still_loads_its_model_is_waited_for_and_told() {
    let bench = Bench::new().await;
    bench.server.counts.loading.store(true, SeqCst);
    let worker = start(bench.options()).await.unwrap();
    bench.hint(bench.coordinator.add(assignment(1, "endpoint", 5))).await;
    let told = |words: &str| bench.coordinator.book().progress.iter().any(|progress| progress.contains(words));
    until("it is told", || told("waiting until zeros is ready, at most 60 s: it answers: the model is not ready"))
        .await;
    assert_eq!(bench.server.calls(), 0);
    bench.server.counts.loading.store(false, SeqCst);
    let results = bench.results(1).await;
    assert!(matches!(results.finals[0].outcome, Outcome::Done { .. }), "{:?}", results.finals[0]);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_measured_journaled_published_and_forgotten_once_the_coordinator_has_it() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let task = bench.coordinator.add(assignment(1, "endpoint", 50));
    bench.hint(task).await;

    let results = bench.results(1).await;
    let last = &results.finals[0];
    assert_eq!((last.task_id, last.attempt, last.worker.as_str()), (task, 1, "w1"));
    let Outcome::Done { parts, deployment } = &last.outcome else { panic!("{:?}", last.outcome) };
    let hashes: Vec<_> = results.parts.iter().map(|(_, sha256)| sha256.clone()).collect();
    assert_eq!(*parts, hashes);
    let loads: Vec<_> = results.parts.iter().map(|(part, _)| (part.seq, part.point.load.to_string())).collect();
    assert_eq!(loads, [(0, "1 in flight".to_owned()), (1, "2 in flight".to_owned())]);
    for (part, _) in &results.parts {
        assert!(part.point.requests >= 50 && part.point.errors == 0 && part.point.batch_size == 2, "{part:?}");
    }
    assert_eq!((deployment.launch.as_str(), deployment.engine_version.as_str()), ("attach", "1.2.3"));
    assert_eq!((deployment.deploy_ms, deployment.first_inference_ms), (None, None));

    let registered = bench.coordinator.book().registered[0].clone();
    assert_eq!(registered.slots[0].engines, ["broken", "endpoint", "stuck"]);
    let abilities: Abilities = serde_json::from_str(&registered.slots[0].abilities_json).unwrap();
    assert!(abilities.formats.keys().eq(["broken", "endpoint", "stuck"]));
    let said = (abilities.lacking["onnx"].message.as_str(), abilities.no_gpu.as_ref().unwrap().message.as_str());
    assert_eq!(said, ("no library", "no driver"));
    assert_eq!(bench.journals(), 1, "kept until the task is terminal");
    bench.coordinator.set(task, State::Terminal);
    until("the journal is forgotten", || bench.journals() == 0).await;
    worker.stop().await;
    assert_eq!(bench.broker.depth(QUEUE).await.unwrap(), Some(0), "the hint is settled");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_hint_brings_all_tasks_of_its_deployment() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let tasks = [1, 2, 3].map(|n| bench.coordinator.add(assignment(n, "endpoint", 5)));
    bench.hint(tasks[0]).await;
    let results = bench.results(3).await;
    let mut ids: Vec<_> = results.finals.iter().map(|last| last.task_id).collect();
    ids.sort();
    assert_eq!(ids, tasks);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_and_unreadable_hints_are_dropped_and_work_goes_on() {
    let bench = Bench::new().await;
    let ended = bench.coordinator.add(assignment(1, "endpoint", 5));
    let held = bench.coordinator.add(assignment(2, "endpoint", 5));
    bench.coordinator.set(ended, State::Terminal);
    bench.coordinator.set(held, State::Claimed);
    let unknown = assignment(3, "endpoint", 5).task_id;
    for task in [ended, held, unknown] {
        bench.hint(task).await;
    }
    bench.broker.publish(QUEUE, "x", b"not a hint").await.unwrap();
    let good = bench.coordinator.add(assignment(4, "endpoint", 5));
    bench.hint(good).await;

    let worker = start(bench.options()).await.unwrap();
    assert_eq!(bench.results(1).await.finals[0].task_id, good);
    worker.stop().await;
    assert_eq!(bench.broker.depth(QUEUE).await.unwrap(), Some(0));
    assert_eq!(bench.broker.depth(QUARANTINE).await.unwrap(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_stops_at_once_and_leaves_no_result() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let task = bench.coordinator.add(assignment(1, "endpoint", ENDLESS));
    bench.hint(task).await;
    until("it is measured", || bench.coordinator.book().progress.iter().any(|p| p.contains("measuring"))).await;
    bench.coordinator.set(task, State::Cancelled);
    let next = bench.coordinator.add(assignment(2, "endpoint", 5));
    bench.hint(next).await;
    let finals = bench.results(1).await.finals;
    assert_eq!(finals[0].task_id, next);
    let calls = bench.server.calls();
    worker.stop().await;
    assert_eq!(bench.server.calls(), calls, "nothing is called any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_task_does_is_told_soon_however_long_the_lease() {
    let bench = Bench::new().await;
    bench.coordinator.book().lease_ms = Some(600_000);
    let worker = start(bench.options()).await.unwrap();
    bench.hint(bench.coordinator.add(assignment(1, "endpoint", ENDLESS))).await;
    until("it is told", || bench.coordinator.book().progress.iter().any(|p| p.contains("measuring"))).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_hands_back_what_runs_and_ends_engines_in_time() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let content = b"model";
    let task = bench.coordinator.add(with_artifact(assignment(1, "stuck", 5), content));
    let sha256 = modelmeter_common::wire::sha256_hex(content);
    bench.coordinator.book().artifacts.insert(sha256, content.to_vec());
    bench.hint(task).await;
    let pid = || std::fs::read_to_string(bench.pid_file()).ok()?.trim().parse::<u32>().ok();
    until("the engine runs", || pid().is_some()).await;

    let started = Instant::now();
    worker.stop().await;
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    let handed_back = bench.coordinator.book().handed_back.clone();
    assert_eq!((handed_back[0].task_id.clone(), handed_back[0].attempt), (task.to_string(), 1));
    let engine = std::path::PathBuf::from(format!("/proc/{}", pid().unwrap()));
    assert!(!engine.exists(), "the engine outlived its worker");
    assert_eq!(bench.broker.depth(RESULTS).await.unwrap(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_results_that_say_why() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let fails = async |number, engine: &str, content: &[u8], served: &[u8]| {
        let assignment = with_artifact(assignment(number, engine, 5), content);
        let sha256 = assignment.cell.artifact.as_ref().unwrap().sha256.clone();
        bench.coordinator.book().artifacts.insert(sha256.clone(), served.to_vec());
        bench.hint(bench.coordinator.add(assignment)).await;
        match bench.results(1).await.finals.remove(0).outcome {
            Outcome::Failed { error } => (error, sha256),
            done => panic!("{done:?}"),
        }
    };
    // A coordinator that restarts is no failure of the engine's.
    bench.coordinator.book().breaks_off = true;
    let (error, sha256) = fails(1, "broken", b"model", b"model").await;
    assert_eq!(error.code, Code::EngineFailed);
    let path = bench.folder.path().join("home/cache").join(format!("{sha256}.onnx"));
    assert!(error.message.contains(&format!("cannot load {}", path.display())), "{error}");
    assert_eq!(std::fs::read(path).unwrap(), b"model");

    let (error, _) = fails(2, "broken", b"true content", b"evil content").await;
    assert_eq!(error.code, Code::BadResponse, "{error}");
    let (error, _) = fails(3, "broken", b"short", b"longer than it says").await;
    assert_eq!(error.code, Code::BadResponse, "{error}");
    let (error, _) = fails(4, "unheard-of", b"model", b"model").await;
    assert_eq!(error.code, Code::NotInstalled, "{error}");
    let left = std::fs::read_dir(bench.folder.path().join("home/cache")).unwrap().count();
    assert_eq!(left, 1, "only the whole artifact is kept");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_journal_is_published_before_the_next_life_registers() {
    let bench = Bench::new().await;
    let full = Arc::new(NoResults { inner: bench.broker.clone(), refused: AtomicBool::new(false) });
    let worker = start(Options { broker: full.clone(), ..bench.options() }).await.unwrap();
    let task = bench.coordinator.add(assignment(1, "endpoint", 5));
    bench.hint(task).await;
    until("a publish was refused", || full.refused.load(SeqCst)).await;
    worker.stop().await;
    assert_eq!(bench.journals(), 1);
    assert_eq!(bench.broker.depth(RESULTS).await.unwrap(), Some(0));

    let worker = start(bench.options()).await.unwrap();
    assert_eq!(bench.broker.depth(RESULTS).await.unwrap(), Some(3), "two parts and a final, before it registered");
    let registered = bench.coordinator.book().registered.clone();
    assert_ne!(registered[0].incarnation, registered[1].incarnation);
    assert_eq!(registered[0].held, []);
    assert_eq!((registered[1].held[0].task_id.clone(), registered[1].held[0].attempt), (task.to_string(), 1));
    bench.coordinator.set(task, State::Terminal);
    until("the journal is forgotten", || bench.journals() == 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_lost_behind_the_broker_is_published_again() {
    let bench = Bench::new().await;
    bench.coordinator.book().lease_ms = Some(150);
    let worker = start(bench.options()).await.unwrap();
    let task = bench.coordinator.add(assignment(1, "endpoint", 5));
    bench.hint(task).await;
    // Taken off the queue, and never collected: the task stays claimed.
    let lost = bench.results(1).await;
    let again = bench.results(1).await;
    assert_eq!(again.finals, lost.finals);
    assert_eq!(bench.journals(), 1);
    bench.coordinator.set(task, State::Terminal);
    until("the journal is forgotten", || bench.journals() == 0).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_port_stops_a_start_and_later_only_puts_tasks_off() {
    let bench = Bench::new().await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let options = || {
        let mut options = Options { ports: PortPolicy::Default, ..bench.options() };
        options.engines[1].ports.cpu = Some(PortPair { http: port, grpc: 0, metrics: None });
        options
    };
    let problem = start(options()).await.unwrap_err();
    assert!(problem.code == Code::Busy && problem.message.contains(&format!("port {port}")), "{problem}");

    drop(holder);
    let worker = start(options()).await.unwrap();
    let holder = std::net::TcpListener::bind(("127.0.0.1", port)).unwrap();
    let content = b"model";
    let task = bench.coordinator.add(with_artifact(assignment(1, "broken", 5), content));
    let sha256 = modelmeter_common::wire::sha256_hex(content);
    bench.coordinator.book().artifacts.insert(sha256, content.to_vec());
    let started = Instant::now();
    for times in 1..=2 {
        bench.coordinator.set(task, State::Waiting);
        bench.hint(task).await;
        until("it is handed back", || bench.coordinator.book().handed_back.len() == times).await;
    }
    assert!(started.elapsed() >= Duration::from_millis(50), "a busy port is not asked for in a hot loop");
    let handed_back = bench.coordinator.book().handed_back[0].clone();
    assert!(handed_back.reason.contains(&format!("port {port}")), "{handed_back:?}");
    let problem: Problem = serde_json::from_str(&handed_back.problem_json).unwrap();
    assert_eq!(problem.code, Code::Busy);
    assert_eq!(bench.broker.depth(RESULTS).await.unwrap(), Some(0), "no attempt has failed");

    drop(holder);
    bench.coordinator.set(task, State::Waiting);
    bench.hint(task).await;
    let finals = bench.results(1).await.finals;
    assert!(matches!(&finals[0].outcome, Outcome::Failed { error } if error.code == Code::EngineFailed), "{finals:?}");
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_forgotten_registers_again_and_works_on() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    bench.coordinator.book().forgetful = true;
    until("it registers again", || bench.coordinator.book().registered.len() == 2).await;
    let task = bench.coordinator.add(assignment(1, "endpoint", 5));
    bench.hint(task).await;
    assert_eq!(bench.results(1).await.finals[0].task_id, task);
    let registered = bench.coordinator.book().registered.clone();
    assert_eq!(registered[0].incarnation, registered[1].incarnation);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_has_one_worker_until_it_stops() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let second = || Options { name: "w2".into(), ..bench.options() };
    let problem = start(second()).await.unwrap_err();
    assert_eq!(problem.code, Code::Busy);
    assert!(problem.message.contains("'w1'"), "{problem}");
    worker.stop().await;
    start(second()).await.unwrap().stop().await;
}

/// Patience, and what it was told.
fn patient() -> (Patience, Arc<Mutex<Vec<String>>>) {
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    (Patience::Wait(Arc::new(move |problem: &Problem| teller.lock().unwrap().push(problem.message.clone()))), told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_worker_waits_for_its_device() {
    let bench = Bench::new().await;
    let worker = start(bench.options()).await.unwrap();
    let (patience, told) = patient();
    let second = tokio::spawn(start(Options { name: "w2".into(), patience, ..bench.options() }));
    until("it waits", || !told.lock().unwrap().is_empty()).await;
    assert!(told.lock().unwrap()[0].contains("'w1'"), "{told:?}");
    worker.stop().await;
    second.await.unwrap().unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_patient_worker_waits_for_its_coordinator() {
    let bench = Bench::new().await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (patience, told) = patient();
    let coordinators = vec![format!("http://{address}")];
    let worker = tokio::spawn(start(Options { coordinators, patience, ..bench.options() }));
    until("it waits", || !told.lock().unwrap().is_empty()).await;
    assert!(told.lock().unwrap()[0].contains(&address.to_string()), "{told:?}");
    let late = FakeCoordinator::on(tokio::net::TcpListener::bind(address).await.unwrap());
    worker.await.unwrap().unwrap().stop().await;
    assert_eq!(late.book().registered.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_ends_when_its_broker_is_closed() {
    let bench = Bench::new().await;
    let mut worker = start(bench.options()).await.unwrap();
    bench.broker.close().await;
    let why = tokio::time::timeout(Duration::from_secs(10), worker.wait()).await.expect("it ends by itself");
    assert_eq!(why.code, Code::Internal);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_name_another_took_ends_and_says_so() {
    let bench = Bench::new().await;
    let mut worker = start(bench.options()).await.unwrap();
    bench.coordinator.book().replaced = true;
    let why = tokio::time::timeout(Duration::from_secs(10), worker.wait()).await.expect("it ends by itself");
    assert!(why.code == Code::Busy && why.message.contains("'w1'"), "{why}");
    worker.stop().await;
}

/// A broker that takes no results, as one under a memory alarm.
struct NoResults {
    inner: Arc<dyn Broker>,
    refused: AtomicBool,
}

#[async_trait]
impl Broker for NoResults {
    async fn declare(&self, queue: &str) -> Result<(), BrokerError> {
        self.inner.declare(queue).await
    }
    async fn publish(&self, queue: &str, _: &str, _: &[u8]) -> Result<(), BrokerError> {
        assert_eq!(queue, RESULTS);
        self.refused.store(true, SeqCst);
        Err(BrokerError::TimedOut(Duration::from_secs(1)))
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
        self.inner.broadcast(topic, body).await
    }
    async fn subscribe(&self, topic: &str) -> Result<Box<dyn Subscription>, BrokerError> {
        self.inner.subscribe(topic).await
    }
    async fn close(&self) {
        self.inner.close().await;
    }
}
