//! The hub as it grows: dispatch with up to 100,000 waiting tasks, and questions to 100,000 profiles, on SQLite and on a real
//! MongoDB (a one-node replica set).
//!
//! `cargo run --release -p modelmeter-tests --example bench-hub [PROFILES]`. What it printed last is in `bench/hub.txt`. The
//! targets: a task costs at most 1.5 × as much with 100,000 waiting as with 100, and the coordinator's memory does not grow
//! with them; a page of 50 profiles of 100,000 takes at most 10 ms (p99), whatever is asked.

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use modelmeter_common::{
    broker::{Broker, memory::MemoryBroker},
    device::Device,
    model::Format,
    profile::Profile,
    request::{RequestDoc, RequestState},
    task::{Cell, Task},
    wire::{self, Hint},
};
use modelmeter_coordinator::{
    Options,
    hub::{self, Hub, ProfileFilter, ProfileQuery, TaskKind},
};
use modelmeter_proto::control::{ClaimRequest, RegisterRequest, Slot, claim_reply::Outcome, work_client::WorkClient};
use modelmeter_tests::{
    conformance::hub::query::{Part, Random, profile, question, sorts},
    documents as docs,
    mongod::{Mode, Server},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;
use tonic::transport::Channel;

const WAITING: [u32; 3] = [100, 10_000, 100_000];
/// One pool each.
const ENGINES: [&str; 3] = ["onnx", "rten", "my"];
const SLOTS: u32 = 16;
/// Tasks that are claimed of each number of waiting ones.
const CLAIMS: u32 = 900;
const MODELS: u64 = 200;
const PAGE: u32 = 50;
/// Questions of each kind and order.
const ASKED: usize = 100;
const MIXED: usize = 3000;
const SEED: u64 = 2026;
const WRITERS: usize = 200;

#[tokio::main]
async fn main() -> Result<()> {
    let profiles = std::env::args().nth(1).map_or(Ok(100_000), |n| n.parse())?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{cores} cores, memory broker, coordinator in this process\n");
    for n in WAITING {
        let folder = tempfile::tempdir()?;
        dispatch("SQLite ", hub::open(&folder.path().join("hub.db").display().to_string()).await?, n).await?;
    }
    let server = Server::start(Mode::ReplicaSet).await?;
    for n in WAITING {
        dispatch("MongoDB", hub::open(&server.url(&format!("waiting-{n}"))).await?, n).await?;
    }
    let folder = tempfile::tempdir()?;
    let sqlite = hub::open(&folder.path().join("hub.db").display().to_string()).await?;
    questions("SQLite", sqlite, profiles).await?;
    questions("MongoDB", hub::open(&server.url("profiles")).await?, profiles).await
}

/// Claims [`CLAIMS`] tasks of `n` that wait, in turn from three pools, and says what one took from the dispatcher's first
/// look to the claim.
async fn dispatch(name: &str, hub: Arc<dyn Hub>, n: u32) -> Result<()> {
    let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let coordinator = modelmeter_coordinator::start(Options::new(broker.clone(), hub.clone()), listener, None).await;
    let coordinator = coordinator.map_err(|problem| anyhow::anyhow!("{problem}"))?;
    let channel = Channel::from_shared(format!("http://{}", coordinator.grpc_addr()))?.connect().await?;
    let mut work = WorkClient::new(channel);
    let mut consumers = Vec::new();
    for engine in ENGINES {
        let queue = work.register(registration(engine)?).await?.into_inner().queues.remove(0);
        consumers.push(broker.consume(&queue, 1).await?);
    }
    let (mut took, mut claims, mut peak_kib, mut request) = (Duration::ZERO, 0, 0, None);
    while claims < CLAIMS {
        // So many wait at the start of each round; of a hundred each round claims all.
        if claims == 0 || n < CLAIMS {
            if let Some(old) = request.take() {
                end(&*hub, old).await?;
            }
            request = Some(store(&*hub, n).await?);
        }
        let doc = request.as_ref().context("a request")?;
        let of_round = n.min(CLAIMS - claims) / ENGINES.len() as u32;
        let before = reset_peak()?;
        let begun = Instant::now();
        hub.insert_request(doc).await?;
        work.register(registration(ENGINES[0])?).await?;
        for _ in 0..of_round {
            for (engine, hints) in ENGINES.iter().zip(&mut consumers) {
                let hint = tokio::time::timeout(Duration::from_secs(30), hints.next()).await.context("no hint")??;
                let Hint { task_id } = wire::decode(&hint.body)?;
                hint.ack().await?;
                let claim = ClaimRequest {
                    task_id: task_id.to_string(),
                    worker: (*engine).to_owned(),
                    incarnation: "i".to_owned(),
                    slot: 0,
                    claim_id: task_id.to_string(),
                };
                let outcome = work.claim(claim).await?.into_inner().outcome;
                anyhow::ensure!(matches!(outcome, Some(Outcome::Granted(_))), "not granted: {outcome:?}");
            }
        }
        took += begun.elapsed();
        claims += of_round * ENGINES.len() as u32;
        peak_kib = peak_kib.max(peak()?.saturating_sub(before));
        if of_round == 0 {
            break;
        }
    }
    let next = next_task(&*hub, &request.context("a request")?).await?;
    println!(
        "{name}  {n:7} waiting: {:5.2} ms a task, {:6.0} µs for the next tasks of a pool alone, memory grew by {:.1} MB",
        took.as_secs_f64() * 1e3 / f64::from(claims),
        next.as_secs_f64() * 1e6,
        peak_kib as f64 / 1024.0,
    );
    coordinator.stop().await;
    Ok(())
}

fn registration(engine: &str) -> Result<RegisterRequest> {
    let device_json = serde_json::to_string(&Device::cpu("a cpu", None, Some(1)))?;
    let slot = |index| Slot {
        index,
        device_json: device_json.clone(),
        engines: vec![engine.to_owned()],
        ..Default::default()
    };
    Ok(RegisterRequest {
        worker: engine.to_owned(),
        incarnation: "i".to_owned(),
        slots: (0..SLOTS).map(slot).collect(),
        wire_version: wire::VERSION.into(),
        ..Default::default()
    })
}

fn kind(engine: &str) -> TaskKind {
    let (engine, inspector) = (engine.to_owned(), "default".to_owned());
    TaskKind { engine, format: Some(Format::Onnx), device_class: "cpu".to_owned(), inspector }
}

/// Stores so many waiting tasks, a third for each pool, one pool's after another's; the request is for the caller to insert.
async fn store(hub: &dyn Hub, n: u32) -> Result<RequestDoc> {
    let mut doc = docs::request("waiting", RequestState::Running, 0);
    doc.request.engines = ENGINES.map(str::to_owned).into();
    doc.request.devices = vec!["cpu".to_owned()];
    doc.formats = ENGINES.map(|engine| (engine.to_owned(), Format::Onnx)).into();
    doc.devices_of = ENGINES.map(|engine| (engine.to_owned(), ["cpu".to_owned()].into())).into();
    (doc.expanded, doc.tasks, doc.cells) = (true, n.into(), n.into());
    doc.created_at = hub.now().await?;
    let now = doc.created_at;
    let numbers: Vec<u32> = (0..n).collect();
    for some in numbers.chunks(1000) {
        let tasks = some.iter().map(|&order| {
            let engine = ENGINES[(order as usize * ENGINES.len() / n as usize).min(ENGINES.len() - 1)];
            let cell = Cell { engine: engine.to_owned(), ..docs::cell(order + 1) };
            Task { order, ..Task::new(doc.id, cell, 0, now) }
        });
        hub.insert_tasks(&tasks.collect::<Vec<_>>()).await?;
    }
    Ok(doc)
}

async fn end(hub: &dyn Hub, doc: RequestDoc) -> Result<()> {
    let ended = RequestDoc { state: RequestState::Cancelled, ended_at: Some(hub.now().await?), ..doc.clone() };
    anyhow::ensure!(hub.update_request(&doc, &ended).await?, "the request changed");
    Ok(())
}

/// What the hub takes for as many of the next tasks of the last pool as its queue holds.
async fn next_task(hub: &dyn Hub, doc: &RequestDoc) -> Result<Duration> {
    let begun = Instant::now();
    for _ in 0..ASKED {
        hub.waiting_tasks(doc.id, &[kind(ENGINES[2])], 1).await?;
    }
    Ok(begun.elapsed() / ASKED as u32)
}

/// The resident memory in KiB, from which the peak is counted anew.
fn reset_peak() -> Result<u64> {
    std::fs::write("/proc/self/clear_refs", "5")?;
    memory("VmRSS:")
}

fn peak() -> Result<u64> {
    memory("VmHWM:")
}

fn memory(field: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no memory in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Asks each thing in each order, then random questions of up to five things.
async fn questions(name: &str, hub: Arc<dyn Hub>, n: u64) -> Result<()> {
    let mut random = Random::new(SEED);
    let mut sample: Vec<Profile> = Vec::new();
    let begun = Instant::now();
    let generated = (0..n).map(|i| {
        let made = profile(&mut random, i, MODELS);
        if i % 100 == 0 {
            sample.push(made.clone());
        }
        made
    });
    let write = |made: Profile| {
        let hub = hub.clone();
        async move { hub.put_profile(&made, None).await }
    };
    stream::iter(generated).map(write).buffer_unordered(WRITERS).try_for_each(|_| async { Ok(()) }).await?;
    println!(
        "\n{name}: {n} profiles of {MODELS} models, stored in {:.0} s; a page of {PAGE}, in ms",
        begun.elapsed().as_secs_f64()
    );
    println!("{:28} {:>8} {:>8} {:>8}", "asked", "p50", "p99", "slowest");
    let mut worst = 0.0_f64;
    for part in [None].into_iter().chain(Part::ALL.map(Some)) {
        for sort in sorts() {
            let mut times = Vec::new();
            for _ in 0..ASKED {
                let mut filter = ProfileFilter::default();
                let like = &sample[random.below(sample.len() as u64) as usize];
                part.into_iter().for_each(|part| part.ask(&mut filter, like));
                ask(&*hub, ProfileQuery { filter, sort, after: None, limit: Some(PAGE) }, &mut times).await?;
            }
            let what = part.map_or("all".to_owned(), |part| format!("{part:?}").to_lowercase());
            let direction = if sort.descending { "desc" } else { "asc" };
            worst = worst.max(print(&format!("{what} by {} {direction}", sort.by.as_str()), times));
        }
    }
    let mut times = Vec::new();
    for _ in 0..MIXED {
        let query = ProfileQuery { limit: Some(PAGE), ..question(&mut random, &sample) };
        ask(&*hub, query, &mut times).await?;
    }
    let mixed = print("up to five of these, mixed", times);
    println!("the greatest p99 of one thing asked: {worst:.2} ms; of mixed questions: {mixed:.2} ms (target 10)");
    Ok(())
}

/// Times two pages that follow each other.
async fn ask(hub: &dyn Hub, mut query: ProfileQuery, times: &mut Vec<f64>) -> Result<()> {
    for _ in 0..2 {
        let begun = Instant::now();
        let page = hub.profiles(&query).await?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
        let Some(next) = page.next else { break };
        query.after = Some(next);
    }
    Ok(())
}

/// Prints a line; gives the p99.
fn print(what: &str, mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1];
    println!("{what:28} {:8.2} {:8.2} {:8.2}", at(0.5), at(0.99), at(1.0));
    at(0.99)
}
