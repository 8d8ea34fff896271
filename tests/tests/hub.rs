//! The MongoDB adapter against a real mongod, alone and as a replica set: the conformance suite, what users
//! find in the collections, and the faults that only a real server has.

use anyhow::{Context, Result};
use futures::TryStreamExt as _;
use modelmeter_common::{Code, Problem, RequestId, SCHEMA_VERSION, request::RequestState};
use modelmeter_coordinator::hub::{self, Hub, HubError, Inserted};
use modelmeter_tests::{
    conformance::hub::{self as conformance, speed::speed},
    documents as docs, eventually,
    mongod::{Mode, Server},
    ports,
};
use mongodb::{
    Database,
    bson::{Bson, Document, doc},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

const DATABASE: &str = "modelmeter-test";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standalone_mongod_conforms() -> Result<()> {
    let server = Server::start(Mode::Standalone).await?;
    conforms(&server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_set_conforms() -> Result<()> {
    let server = Server::start(Mode::ReplicaSet).await?;
    conforms(&server).await
}

/// What version 1 wrote.
const VERSION_1: &str = include_str!("../../coordinator/tests/golden/v1.json");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn documents_of_version_1_still_read() -> Result<()> {
    let server = Server::start(Mode::Standalone).await?;
    let golden: serde_json::Value = serde_json::from_str(VERSION_1)?;
    let database = server.client().await?.database(DATABASE);
    for collection in ["profiles", "requests", "tasks"] {
        for row in golden[collection].as_array().context("rows")? {
            let mut document = mongodb::bson::serialize_to_document(&row["doc"])?;
            // Version 1 kept times as dates, too.
            let times: Vec<String> = document.keys().filter(|key| key.ends_with("_at")).cloned().collect();
            for key in times {
                if let Some(Bson::String(text)) = document.get(&key).cloned() {
                    document.insert(key, mongodb::bson::DateTime::parse_rfc3339_str(text)?);
                }
            }
            database.collection::<Document>(collection).insert_one(document).await?;
        }
    }
    // Opened after that: what profiles are found by is added to them then.
    let hub = hub::open(&server.url(DATABASE)).await?;
    let profile = hub.profiles(&hub::ProfileQuery::default()).await?.items.remove(0);
    assert_eq!(profile.schema_version, 1);
    let latency = &profile.points[0].latency_ms;
    assert!(latency.p50.is_some_and(|p50| p50.ci95.is_some()) && latency.p95.is_none(), "{latency:?}");
    let request = hub.request(profile.request_id).await?.context("its request")?;
    let tasks = hub.tasks(&hub::TaskFilter { request: Some(request.id), ..Default::default() }).await?;
    assert_eq!((request.state, tasks.len()), (RequestState::Done, 1));
    Ok(())
}

async fn conforms(server: &Server) -> Result<()> {
    let hub = hub::open(&server.url(DATABASE)).await?;
    conformance::suite(hub.clone()).await;
    let database = server.client().await?.database(DATABASE);
    no_chunk_without_a_file(&database).await?;
    documents_are_the_public_contract(&*hub, &database).await?;
    the_clock_is_the_servers(&*hub, &database).await?;
    queries_use_the_indexes(&database).await?;
    hub::open(&server.url(DATABASE)).await.context("connecting again, with the indexes there")?;
    answers_queries_as_a_list_does(server).await?;
    // The floor is far below what is usual, since the machine may be busy; the figures are printed.
    for (callers, n) in [(1, 50), (32, 50)] {
        let speed = speed(&hub, callers, n).await;
        eprintln!("{callers} callers: {speed:.0?}");
        assert!(speed.swaps_per_s > 10.0 && speed.parts_per_s > 10.0, "{callers} callers: {speed:.0?}");
    }
    Ok(())
}

async fn answers_queries_as_a_list_does(server: &Server) -> Result<()> {
    let (name, database) = ("queries", server.client().await?.database("queries"));
    conformance::query::suite(hub::open(&server.url(name)).await?, 500).await;
    let profiles = database.collection::<Document>("profiles");
    for part in [doc! { "keys.facets": "engine=onnx state=done" }, doc! { "keys.facets": "all" }] {
        for (by, path) in [("throughput", "keys.throughput"), ("created_at", "created_at")] {
            let filter = doc! { "$and": [part.clone(), { "model.name": "model-2" }] };
            let mut hint = doc! { "keys.facets": 1, path: 1, "_id": 1 };
            if by != "created_at" {
                hint.insert("created_at", 1);
            }
            let find = doc! { "find": "profiles", "filter": filter, "sort": { path: -1, "_id": -1 }, "hint": hint };
            let plan = database.run_command(doc! { "explain": find, "verbosity": "queryPlanner" }).await?;
            let plan = plan.get_document("queryPlanner")?.get_document("winningPlan")?.to_string();
            assert!(!plan.contains("SORT"), "{part} by {by} is in order already: {plan}");
        }
    }
    // Profiles of an earlier build have no keys until a hub is opened.
    profiles.update_many(doc! {}, doc! { "$unset": { "keys": 1 } }).await?;
    let hub = hub::open(&server.url(name)).await?;
    conformance::query::asks(&*hub, 200).await;
    Ok(())
}

/// Uploads that failed, lost a race or were given up leave nothing. The last goes away in the background.
async fn no_chunk_without_a_file(database: &Database) -> Result<()> {
    eventually("chunks of failed uploads are deleted", Duration::from_secs(20), || async {
        let files = distinct(database, "artifacts.files", "_id").await.ok()?;
        let chunks = distinct(database, "artifacts.chunks", "files_id").await.ok()?;
        assert!(files.len() > 5, "the suite has stored artifacts");
        chunks.iter().all(|id| files.contains(id)).then_some(())
    })
    .await?;
    let names = distinct(database, "artifacts.files", "filename").await?;
    let files = database.collection::<Document>("artifacts.files").count_documents(doc! {}).await?;
    assert_eq!(names.len() as u64, files, "one file a sha256");
    Ok(())
}

async fn distinct(database: &Database, collection: &str, field: &str) -> Result<Vec<Bson>> {
    Ok(database.collection::<Document>(collection).distinct(field, doc! {}).await?)
}

/// What a user's own query sees: names, nesting, numbers as numbers, times as dates.
async fn documents_are_the_public_contract(hub: &dyn Hub, database: &Database) -> Result<()> {
    let request = docs::request("contract", RequestState::Running, 0);
    let task = docs::task(request.id, 0);
    let task = task.claim(&"pool".into(), docs::lease(0), docs::at(5))?;
    let profile = docs::profile(request.id, docs::model_ref("contract", "1"), 8, 0);
    hub.insert_request(&request).await?;
    hub.insert_tasks(std::slice::from_ref(&task)).await?;
    hub.insert_part(&docs::part(&task, 1, 3), "5a").await?;
    hub.insert_final(&docs::last(&task, 1)).await?;
    hub.put_profile(&profile, None).await?;
    hub.swap_model(None, &docs::model("contract", "1", 0)).await?;
    let date = |ms: i64| mongodb::bson::DateTime::from_millis(docs::at(ms).0);
    let (request_id, task_id) = (request.id.to_string(), task.id.to_string());
    let wanted = [
        ("requests", doc! { "_id": &request_id, "created_at": date(0), "request.batch_sizes": 8, "ended_at": null }),
        ("tasks", doc! { "_id": &task_id, "lease.expires_at": date(30_000), "cell.engine_settings.whole": 1.0 }),
        (
            "parts",
            doc! { "_id": format!("{task_id}/1/3"), "task_id": &task_id, "request_id": &request_id,
            "attempt": 1, "seq": 3, "sha256": "5a", "point.load.open.rate_per_s": 200.0 },
        ),
        ("finals", doc! { "_id": format!("{task_id}/1"), "started_at": date(1), "device.class": "nvidia-a10" }),
        (
            "profiles",
            doc! { "_id": profile.id.to_string(), "created_at": { "$lte": date(0) }, "model.name": "contract",
            "peak.gpu_memory_used_bytes": { "$gte": 1_i64 << 34 }, "points.load.mode": "closed", "state": "partial" },
        ),
        ("models", doc! { "_id": "contract:1", "name": "contract", "version": "1", "created_at": date(0) }),
    ];
    for (collection, query) in wanted {
        let found = database.collection::<Document>(collection).find_one(query.clone()).await?;
        let found = found.with_context(|| format!("{collection}: nothing fits {query}"))?;
        assert_eq!(found.get("schema_version"), Some(&Bson::Int64(SCHEMA_VERSION.into())), "{collection}: {found}");
    }
    let stored = database.collection::<Document>("profiles").find_one(doc! { "_id": profile.id.to_string() }).await?;
    let stored = stored.context("the profile")?;
    let mean = stored.get_array("points")?[0].as_document().context("a point")?.get_document("latency_ms")?.get("mean");
    assert!(matches!(mean, Some(Bson::Double(1.0))), "a whole float stays one: {mean:?}");
    // A user's label is text, also where it looks like a time of another spelling.
    assert_eq!(stored.get_document("labels")?.get_str("built_at")?, "2026-03-20T14:34:56Z");
    Ok(())
}

async fn the_clock_is_the_servers(hub: &dyn Hub, database: &Database) -> Result<()> {
    let hello = |database: Database| async move { database.run_command(doc! { "hello": 1 }).await };
    let before = hello(database.clone()).await?.get_datetime("localTime")?.timestamp_millis();
    let now = hub.now().await?.0;
    let after = hello(database.clone()).await?.get_datetime("localTime")?.timestamp_millis();
    assert!((before..=after).contains(&now), "{before} {now} {after}");
    Ok(())
}

/// No query of the coordinator's loops reads a whole collection, and the counts read no document.
async fn queries_use_the_indexes(database: &Database) -> Result<()> {
    let id = RequestId::random().to_string();
    let order = doc! { "request_id": 1, "order": 1 };
    let newest = doc! { "created_at": -1, "_id": -1 };
    let finds = [
        ("tasks", doc! { "request_id": &id }, order.clone()),
        ("tasks", doc! { "state": { "$in": ["waiting", "queued"] } }, order.clone()),
        ("tasks", doc! { "state": "waiting", "request_id": &id }, order.clone()),
        ("tasks", doc! { "pool": "p", "state": "queued" }, order.clone()),
        ("tasks", doc! { "deployment_key": "k", "state": "waiting" }, order),
        ("parts", doc! { "task_id": &id, "attempt": 1 }, doc! { "seq": 1 }),
        ("finals", doc! { "task_id": &id }, doc! { "attempt": 1 }),
        ("requests", doc! { "state": "running" }, newest.clone()),
        ("profiles", doc! { "model.name": "m" }, newest.clone()),
        ("profiles", doc! { "request_id": &id }, newest.clone()),
        ("models", doc! { "name": "m" }, newest),
    ];
    let kind = |engine: &str| {
        doc! {
            "state": "waiting", "request_id": &id, "cell.engine": engine, "cell.artifact.format": "onnx",
            "cell.device_class": "cpu", "cell.inspector": "default",
        }
    };
    let hint = doc! {
        "state": 1, "request_id": 1, "cell.engine": 1, "cell.artifact.format": 1, "cell.device_class": 1,
        "cell.inspector": 1, "order": 1,
    };
    let kinds = doc! { "$or": [kind("a"), kind("b")] };
    let next = doc! { "find": "tasks", "filter": kinds, "sort": { "order": 1 }, "limit": 9, "hint": hint };
    let plan = database.run_command(doc! { "explain": next, "verbosity": "queryPlanner" }).await?;
    let plan = plan.get_document("queryPlanner")?.get_document("winningPlan")?.to_string();
    assert!(plan.contains("SORT_MERGE") && !plan.contains("\"SORT\""), "the next tasks are in order already: {plan}");
    for (collection, filter, sort) in finds {
        let find = doc! { "find": collection, "filter": filter.clone(), "sort": sort };
        let plan = database.run_command(doc! { "explain": find, "verbosity": "queryPlanner" }).await?;
        let plan = plan.get_document("queryPlanner")?.get_document("winningPlan")?.to_string();
        assert!(plan.contains("IXSCAN") && !plan.contains("COLLSCAN"), "{collection} {filter}: {plan}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kills() -> Result<()> {
    for mode in [Mode::Standalone, Mode::ReplicaSet] {
        let mut server = Server::start(mode).await?;
        let hub = hub::open(&server.url(DATABASE)).await?;
        let task = docs::task(RequestId::random(), 0);
        let mut acknowledged = 0;
        for round in 1..=3 {
            let writers: Vec<_> = (0..8)
                .map(|writer| tokio::spawn(insert_until_it_fails(hub.clone(), task.clone(), round * 8 + writer)))
                .collect();
            let moved = || async { (hub.parts(task.id, round * 8).await.ok()?.len() > 20).then_some(()) };
            eventually("parts are stored", Duration::from_secs(30), moved).await?;
            server.kill()?;
            let mut stored = Vec::new();
            for writer in writers {
                stored.push(writer.await?);
            }
            server.restart().await?;
            let again = || async { hub.task(task.id).await.ok() };
            eventually("the hub answers again", Duration::from_secs(30), again).await?;
            for (attempt, n) in stored {
                let parts = hub.parts(task.id, attempt).await?;
                assert!(parts.len() >= n as usize, "{mode:?}: {n} acknowledged, {} there", parts.len());
                acknowledged += n;
            }
        }
        eprintln!("{mode:?}: {acknowledged} acknowledged parts over 3 kills, none lost");
    }
    Ok(())
}

/// Gives its attempt and how many of its parts were acknowledged.
async fn insert_until_it_fails(hub: Arc<dyn Hub>, task: modelmeter_common::task::Task, attempt: u32) -> (u32, u32) {
    for seq in 0.. {
        if let Err(error) = hub.insert_part(&docs::part(&task, attempt, seq), "00").await {
            assert!(error.retryable(), "{error}");
            return (attempt, seq);
        }
    }
    unreachable!("the server was killed")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_mongod_is_no_early_acknowledgement_and_no_hang() -> Result<()> {
    let mut server = Server::start(Mode::ReplicaSet).await?;
    let hub = hub::open(&server.url(DATABASE)).await?;
    let (task, other) = (docs::task(RequestId::random(), 0), docs::task(RequestId::random(), 0));
    hub.insert_tasks(std::slice::from_ref(&task)).await?;
    let next = task.queue(&"p".into(), docs::at(1))?;
    server.signal(libc::SIGSTOP)?;
    let started = Instant::now();
    let part = docs::part(&task, 1, 0);
    let (swap, part_in, tasks, clock) = tokio::join!(
        hub.swap_task(&task, &next),
        hub.insert_part(&part, "00"),
        hub.insert_tasks(std::slice::from_ref(&other)),
        hub.now(),
    );
    let waited = started.elapsed();
    for error in [swap.err(), part_in.err(), tasks.err(), clock.err()] {
        let error = error.context("a frozen server acknowledged")?;
        assert!(matches!(error, HubError::TimedOut(_) | HubError::Unreachable { .. }) && error.retryable(), "{error}");
    }
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    server.signal(libc::SIGCONT)?;
    let again = || async { hub.now().await.ok() };
    eventually("the hub answers again", Duration::from_secs(60), again).await?;
    // Whether or not the writes came through meanwhile, repeating them ends the same.
    hub.insert_part(&part, "00").await?;
    hub.insert_tasks(std::slice::from_ref(&other)).await?;
    hub.swap_task(&task, &next).await?;
    assert_eq!(hub.insert_part(&part, "00").await?, Inserted::Existed);
    assert_eq!(hub.parts(task.id, 1).await?, vec![(part, "00".to_owned())]);
    assert_eq!(hub.task(task.id).await?, Some(next));
    assert_eq!(hub.task(other.id).await?, Some(other));
    Ok(())
}

#[tokio::test]
async fn refusals_name_the_server_and_keep_the_password() -> Result<()> {
    let server = Server::start(Mode::Standalone).await?;
    let wrong = format!("mongodb://joe:hunter2@127.0.0.1:{}/db?authSource=admin", server.port());
    let nobody = format!("mongodb://joe:hunter2@127.0.0.1:{}/db", ports::free()?);
    for (url, code) in [(&wrong, Code::Unauthenticated), (&nobody, Code::Unreachable)] {
        let started = Instant::now();
        let problem = Problem::from(hub::open(url).await.err().context("it connected")?);
        let text = format!("{problem:?}");
        eprintln!("{problem}");
        assert_eq!(problem.code, code, "{text}");
        assert!(text.contains("127.0.0.1:") && problem.hint.is_some(), "{text}");
        assert!(!text.contains("joe") && !text.contains("hunter2"), "{text}");
        assert!(started.elapsed() < Duration::from_secs(15));
    }
    Ok(())
}

/// The bucket is plain GridFS: the driver's own reader gets our bytes, and we get what it stored, in chunks of its
/// own size.
#[tokio::test]
async fn artifacts_are_shared_with_any_gridfs_client() -> Result<()> {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
    use modelmeter_common::model::{ArtifactRef, Format};
    let server = Server::start(Mode::Standalone).await?;
    let hub = hub::open(&server.url(DATABASE)).await?;
    let database = server.client().await?.database(DATABASE);
    let options = mongodb::options::GridFsBucketOptions::builder().bucket_name("artifacts".to_owned()).build();
    let bucket = database.gridfs_bucket(options);
    let content = vec![0_u8; 3 * 1024 * 1024 + 7];
    // The sha256 of that many zeros, from sha256sum.
    let sha256 = "f395f662db5cb6d4af68e95e95bf3a780950e8855cd43c7140367d36d6b5d1a3".to_owned();
    let artifact = ArtifactRef { format: Format::Onnx, sha256: sha256.clone(), bytes: content.len() as u64 };
    let bytes = futures::stream::iter([Ok(content.clone().into())]).boxed();
    assert_eq!(hub.put_artifact(&artifact, bytes).await?, Inserted::New);
    let mut read = Vec::new();
    bucket.open_download_stream_by_name(&sha256).await?.read_to_end(&mut read).await?;
    assert!(read == content);

    let theirs: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    for (name, chunk) in [("ab", 1000), ("cd", 2_900_000)] {
        let name = name.repeat(32);
        let mut upload = bucket.open_upload_stream(&name).chunk_size_bytes(chunk).await?;
        upload.write_all(&theirs).await?;
        upload.close().await?;
        let pieces: Vec<_> = hub.artifact(&name).await?.context("the artifact")?.try_collect().await?;
        assert!(pieces.iter().all(|piece| piece.len() <= 1024 * 1024), "pieces of at most 1 MiB");
        assert!(pieces.concat() == theirs, "chunks of {chunk} bytes");
    }

    let chunks = database.collection::<Document>("artifacts.chunks");
    chunks.delete_many(doc! { "n": 1_i32 }).await?;
    let read = hub.artifact(&sha256).await?.context("the artifact")?.try_collect::<Vec<_>>().await;
    assert!(matches!(read, Err(HubError::Corrupt { what: "artifact", .. })), "a lost chunk is told");
    Ok(())
}
