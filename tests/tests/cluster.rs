//! The whole data path with real parts: one coordinator or two, three worker processes, RabbitMQ, MongoDB, 200 cells.

use anyhow::{Context, Result};
use futures::TryStreamExt;
use modelmeter_tests::{Child, cluster::Cluster, eventually};
use mongodb::{
    Database,
    bson::{Document, doc},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

const CELLS: u32 = 200;
/// Calls of each load point: a part that counted twice would show twice as many.
const CALLS: u64 = 20;
/// The longest that a request may take; seconds are usual.
const LIMIT: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cells_are_profiled_once_each_also_when_a_worker_is_killed() -> Result<()> {
    let cluster = Cluster::start("3s").await?;
    let mut workers = Vec::new();
    for name in ["w1", "w2", "w3"] {
        workers.push(cluster.worker(name).await?);
    }
    a_dry_run_plans_and_leaves_nothing(&cluster).await?;
    all_goes_well(&cluster).await?;
    one_worker_is_killed(&cluster, &mut workers).await?;
    stops_cleanly(cluster, workers).await
}

/// The lease of the test that kills a leader.
const LEASE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_cells_are_profiled_once_each_also_when_the_leader_is_killed() -> Result<()> {
    let mut cluster = Cluster::start("3s").await?;
    let hub = cluster.database().await?;
    led_in(&hub, 1).await?;
    let (_second, url) = cluster.coordinator("second", "3s").await?;
    let leader = cluster.url.clone();
    let mut workers = Vec::new();
    for name in ["w1", "w2", "w3"] {
        // They ask the leader first, and have to go over to the other.
        workers.push(cluster.worker_of(name, &[&leader, &url]).await?);
    }
    cluster.url = url;
    let request = request("3");
    let args: Vec<&str> = request.iter().map(String::as_str).collect();
    let mut user = cluster.user("profile", &args)?;
    let tasks = hub.collection::<Document>("tasks");
    eventually("the follower's request is worked on", LIMIT, || async {
        let done = tasks.count_documents(doc! { "state": "done" }).await.ok()?;
        assert!(done < u64::from(CELLS), "the request ended before the leader could be killed");
        (done > 20).then_some(())
    })
    .await?;
    assert_eq!(epoch(&hub).await, Some(1), "the follower leads only once the leader is gone");
    cluster.coordinator.kill()?;
    let took = led_in(&hub, 2).await?;
    eprintln!("the other leads after {took:.1?}");
    assert!(took <= 2 * LEASE, "the other leads only after {took:?}");

    let status = eventually("the profile command ends", LIMIT, || {
        let ended = user.ended();
        async move { ended }
    })
    .await?;
    assert_eq!(status.code(), Some(0), "{}", user.log());
    let profiles = cluster.json(&["results", "--limit", "1000"]).await?;
    let id = each_cell_once(&profiles)?;
    nothing_lost_or_doubled(&hub, &id).await?;
    assert_eq!(epoch(&hub).await, Some(2), "the other leads to the end");
    Ok(())
}

/// The epoch of the hub's leader; none before the first leads.
async fn epoch(hub: &Database) -> Option<i64> {
    number(&hub.collection::<Document>("leader").find_one(doc! {}).await.ok()??, "epoch").ok()
}

/// Waits until the hub has a leader of this epoch; gives how long that took.
async fn led_in(hub: &Database, wanted: i64) -> Result<Duration> {
    let started = Instant::now();
    let is_led = || async { (epoch(hub).await? == wanted).then_some(()) };
    eventually(&format!("a coordinator leads in epoch {wanted}"), LIMIT, is_led).await?;
    Ok(started.elapsed())
}

/// The request of each test: one engine, one load point, as many cells as batch sizes.
fn request(seed: &'static str) -> Vec<String> {
    let batch_sizes = (1..=CELLS).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let calls = CALLS.to_string();
    let flags = ["profile", "mlp", "--engines", "null", "--batch-sizes", &batch_sizes, "--concurrency", "1"];
    let stop = ["--batches", &calls, "--min-duration", "10ms", "--max-duration", "2s", "--seed", seed, "--json"];
    flags.into_iter().chain(stop).map(str::to_owned).collect()
}

/// Three slots share what runs on CPUs; what runs on GPUs says that no worker has one.
async fn a_dry_run_plans_and_leaves_nothing(cluster: &Cluster) -> Result<()> {
    let cells = ["--engines", "null", "--devices", "cpu,gpu", "--batch-sizes", "1,2"];
    let plan = cluster.json(&[&["profile", "mlp", "--dry-run"], &cells[..]].concat()).await?;
    let cells = plan["cells"].as_array().context("cells")?;
    assert_eq!(cells.len(), 4, "{plan}");
    for cell in cells {
        let runs = cell["device"] == "cpu";
        assert_eq!(cell["slots"], if runs { 3 } else { 0 }, "{cell}");
        assert_eq!(cell["reason"].is_null(), runs, "{cell}");
    }
    let hub = cluster.database().await?;
    for collection in ["requests", "tasks", "models"] {
        assert_eq!(hub.collection::<Document>(collection).count_documents(doc! {}).await?, 0, "{collection}");
    }
    Ok(())
}

async fn all_goes_well(cluster: &Cluster) -> Result<()> {
    let request = request("1");
    let args: Vec<&str> = request.iter().map(String::as_str).collect();
    let started = Instant::now();
    let profiles = cluster.run(&args, LIMIT).await?.json()?;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!("{CELLS} cells in {seconds:.1} s: {:.0} cells a second", f64::from(CELLS) / seconds);
    let id = each_cell_once(&profiles)?;
    let hub = cluster.database().await?;
    nothing_lost_or_doubled(&hub, &id).await?;
    let workers = winners(&profiles)?;
    assert_eq!(workers, ["w1", "w2", "w3"].map(str::to_owned).into(), "not all workers took part");
    let tasks = hub.collection::<Document>("tasks");
    let retried = tasks.count_documents(doc! { "request_id": &id, "attempt": { "$gt": 1 } }).await?;
    assert_eq!(retried, 0, "tasks were run more than once though nothing failed");
    Ok(())
}

async fn one_worker_is_killed(cluster: &Cluster, workers: &mut [Child]) -> Result<()> {
    let request = request("2");
    let args: Vec<&str> = request.iter().map(String::as_str).collect();
    let hub = cluster.database().await?;
    let mut user = cluster.user("profile", &args)?;
    let id = eventually("the request is running", Duration::from_secs(30), || async {
        let running = hub.collection::<Document>("requests").find_one(doc! { "state": "running" }).await.ok()??;
        running.get_str("_id").ok().map(str::to_owned)
    })
    .await?;

    let of_w2 = doc! { "request_id": &id, "state": "claimed", "lease.worker": "w2" };
    let done = doc! { "request_id": &id, "state": "done" };
    let tasks = hub.collection::<Document>("tasks");
    eventually("w2 works in the middle of the request", LIMIT, || async {
        let done = tasks.count_documents(done.clone()).await.ok()?;
        assert!(done < u64::from(CELLS), "the request ended before a worker could be killed");
        let claimed = tasks.count_documents(of_w2.clone()).await.ok()?;
        (done > 20 && claimed > 0).then_some(())
    })
    .await?;
    workers[1].kill()?;

    let status = eventually("the profile command ends", LIMIT, || {
        let ended = user.ended();
        async move { ended }
    })
    .await?;
    assert_eq!(status.code(), Some(0), "{}", user.log());
    let profiles = cluster.json(&["results", "--request", &id, "--limit", "1000"]).await?;
    assert_eq!(each_cell_once(&profiles)?, id);
    nothing_lost_or_doubled(&hub, &id).await?;
    let deaths = tasks.count_documents(doc! { "request_id": &id, "deaths": { "$gt": 0 } }).await?;
    eprintln!("tasks taken from the killed worker: {deaths}");
    assert!(deaths >= 1, "no task was lost with the worker: the fault did not fire");
    // What is measured and not yet collected, and what the slot claimed meanwhile.
    assert!(deaths <= 2, "a worker with one slot can lose two tasks, not {deaths}");

    let status = cluster.json(&["status", &id]).await?;
    assert_eq!(status["state"], "done");
    assert_eq!(status["cells"].as_array().map(Vec::len), Some(CELLS as usize));
    Ok(())
}

/// Each batch size has one profile, done, measured with exactly the calls asked for. Gives the request's id.
fn each_cell_once(profiles: &Value) -> Result<String> {
    let profiles = profiles.as_array().context("not an array")?;
    let mut seen = BTreeMap::<u64, u32>::new();
    let mut ids = BTreeSet::new();
    for profile in profiles {
        let batch_size = profile["batch_size"].as_u64().context("batch_size")?;
        *seen.entry(batch_size).or_default() += 1;
        ids.insert(profile["request_id"].as_str().context("request_id")?.to_owned());
        assert_eq!(profile["state"], "done", "batch size {batch_size}: {profile}");
        assert_eq!(profile["repeats"].as_array().map(Vec::len), Some(1));
        let points = profile["points"].as_array().context("points")?;
        assert_eq!(points.len(), 1, "batch size {batch_size}");
        assert_eq!(points[0]["requests"], CALLS, "batch size {batch_size}");
        assert_eq!(points[0]["inferences"], CALLS * batch_size, "batch size {batch_size}");
    }
    let wanted: BTreeMap<u64, u32> = (1..=u64::from(CELLS)).map(|batch_size| (batch_size, 1)).collect();
    assert_eq!(seen, wanted);
    assert_eq!(ids.len(), 1, "profiles of several requests");
    ids.pop_first().context("no profile")
}

fn winners(profiles: &Value) -> Result<BTreeSet<String>> {
    let profiles = profiles.as_array().context("not an array")?;
    profiles.iter().map(|p| Ok(p["repeats"][0]["worker"].as_str().context("worker")?.to_owned())).collect()
}

/// What the hub holds: every task done, with a winner whose parts are complete, and one profile each.
async fn nothing_lost_or_doubled(hub: &Database, id: &str) -> Result<()> {
    let of_request = doc! { "request_id": id };
    let tasks = all(hub, "tasks", &of_request).await?;
    assert_eq!(tasks.len(), CELLS as usize);
    let mut profiles_of_tasks = BTreeSet::new();
    let mut winners = BTreeMap::new();
    for task in &tasks {
        let name = task.get_str("_id")?;
        assert_eq!(task.get_str("state")?, "done", "{task}");
        profiles_of_tasks.insert(task.get_str("profile_id")?.to_owned());
        winners.insert(name.to_owned(), number(task, "winner")?);
    }
    assert_eq!(profiles_of_tasks.len(), CELLS as usize);
    assert_eq!(all(hub, "profiles", &of_request).await?.len(), CELLS as usize);
    let (parts, finals) =
        (per_winner(hub, "parts", id, &winners).await?, per_winner(hub, "finals", id, &winners).await?);
    for task in winners.keys() {
        assert_eq!(parts.get(task), Some(&1), "parts of the winner of {task}");
        assert_eq!(finals.get(task), Some(&1), "finals of the winner of {task}");
    }
    Ok(())
}

/// How many documents of each task's winning attempt there are.
async fn per_winner(
    hub: &Database,
    collection: &str,
    id: &str,
    winners: &BTreeMap<String, i64>,
) -> Result<BTreeMap<String, u32>> {
    let mut counts = BTreeMap::new();
    for document in all(hub, collection, &doc! { "request_id": id }).await? {
        let task = document.get_str("task_id")?;
        if winners.get(task) == Some(&number(&document, "attempt")?) {
            *counts.entry(task.to_owned()).or_default() += 1;
        }
    }
    Ok(counts)
}

async fn all(hub: &Database, collection: &str, filter: &Document) -> Result<Vec<Document>> {
    Ok(hub.collection::<Document>(collection).find(filter.clone()).await?.try_collect().await?)
}

fn number(document: &Document, field: &str) -> Result<i64> {
    let value = document.get(field).with_context(|| format!("no {field} in {document}"))?;
    value.as_i64().or(value.as_i32().map(i64::from)).with_context(|| format!("{field} is {value}"))
}

/// SIGTERM ends each process with code 0 or 130 within seconds, and nothing that it started is left.
async fn stops_cleanly(mut cluster: Cluster, mut workers: Vec<Child>) -> Result<()> {
    for (at, worker) in workers.iter_mut().enumerate().filter(|(at, _)| *at != 1) {
        let status = worker.terminate(Duration::from_secs(10)).await?;
        assert!(status.success(), "worker {}: {status}\n{}", at + 1, worker.log());
    }
    let status = cluster.coordinator.terminate(Duration::from_secs(10)).await?;
    assert!(status.success(), "coordinator: {status}\n{}", cluster.coordinator.log());
    cluster.nothing_left().await
}
