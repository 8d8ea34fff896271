//! The embedded mode, walked through with the real binary and the real engine process: measure, look again, interrupt.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use std::{
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Stdio},
    time::{Duration, Instant},
};
use support::{command, json};

const SHORT: [&str; 8] =
    ["--min-duration", "100ms", "--max-duration", "500ms", "--concurrency", "1,2", "--precision", "50%"];

#[test]
fn a_built_in_model_is_measured_and_can_be_seen_again() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let args = [&["profile", "mlp", "--batch-sizes", "1,4", "--labels", "team=a", "--json"], &SHORT[..]].concat();
    let output = command(home, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let profiles = json(&output);
    assert_eq!(profiles.as_array().unwrap().len(), 2);
    for profile in profiles.as_array().unwrap() {
        assert_eq!(
            (&profile["state"], &profile["engine"]["name"], &profile["labels"]["team"]),
            (&"done".into(), &"rten".into(), &"a".into())
        );
        // A busy machine may make points invalid or percentiles null: that calls were made and answered holds anyway.
        assert!(profile["points"][0]["requests"].as_u64().unwrap() > 0, "{profile}");
        assert!(profile["points"][0]["latency_ms"]["mean"].as_f64().unwrap() > 0.0, "{profile}");
        assert_eq!(profile["points"].as_array().unwrap().len(), 2);
    }

    let id = profiles[0]["request_id"].as_str().unwrap();
    let mut again = json(&command(home, &["results", "--request", id, "--json"]).output().unwrap());
    let mut first = profiles.clone();
    let by_batch = |p: &Value| p["batch_size"].as_u64();
    first.as_array_mut().unwrap().sort_by_key(by_batch);
    again.as_array_mut().unwrap().sort_by_key(by_batch);
    assert_eq!(first, again, "the hub gives what was printed");

    let table = command(home, &["results", "--model", "mlp", "--points"]).output().unwrap();
    let table = String::from_utf8_lossy(&table.stdout);
    for part in ["rten", "best throughput", "each load point", "2 in flight", "engine uses", "more: modelmeter results"]
    {
        assert!(table.contains(part), "{part:?} is not in\n{table}");
    }
    let classic = command(home, &["results", "--format", "classic"]).output().unwrap();
    assert!(String::from_utf8_lossy(&classic.stdout).contains("all_batch_throughput"));
    let requests = json(&command(home, &["requests", "--json"]).output().unwrap());
    assert_eq!((requests[0]["_id"].as_str(), requests[0]["state"].as_str()), (Some(id), Some("done")));
    for word in [&[id][..], &[&id[..6]], &["latest"], &[]] {
        let status = json(&command(home, &[&["status", "--json"], word].concat()).output().unwrap());
        assert_eq!((&status["request_id"], status["cells"].as_array().unwrap().len()), (&id.into(), 2), "{word:?}");
        let results = json(&command(home, &[&["results", "--json"], word].concat()).output().unwrap());
        assert_eq!(results.as_array().unwrap().len(), 2, "{word:?}");
    }
    let wrong = command(home, &["results", "0000"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2), "{}", String::from_utf8_lossy(&wrong.stderr));
    for list in ["list", "ls"] {
        let models = json(&command(home, &["model", list, "--json"]).output().unwrap());
        assert_eq!(models[0]["name"], "mlp");
    }
}

#[test]
fn the_highest_rate_that_meets_an_sla_is_searched_for() {
    let home = tempfile::tempdir().unwrap();
    let args =
        ["profile", "mlp", "--engines", "null", "--batch-sizes", "1", "--load", "sla-search", "--sla", "p95=100ms"];
    let short = ["--min-duration", "100ms", "--max-duration", "3s", "--json"];
    let profile = &json(&command(home.path(), &[&args[..], &short].concat()).output().unwrap())[0];
    let (sla, points) = (&profile["sla"], profile["points"].as_array().unwrap());
    let rate = |load: &Value| load["rate_per_s"].as_f64().unwrap();
    assert!(points.len() > 2, "{profile}");
    let highest = points.iter().map(|p| rate(&p["load"])).fold(0.0, f64::max);
    if sla["met"] == true {
        let best = rate(&sla["best"]["load"]);
        assert!(best > 0.0 && best < highest, "it ends at a rate that is too much: {best} of {highest}");
    } else {
        // Where something else keeps the cores busy, sends are late: then no rate is claimed, and each point says why.
        assert_eq!(profile["unavailable"]["sla.met"]["code"], "not_shown", "{profile}");
        let is_told = |p: &Value| p["valid"] == true || p["warnings"].as_array().is_some_and(|all| !all.is_empty());
        assert!(points.iter().all(is_told) && points.iter().any(|p| p["valid"] == false), "{profile}");
    }
}

#[test]
fn a_dry_run_starts_no_engine() {
    let home = tempfile::tempdir().unwrap();
    let output =
        command(home.path(), &["profile", "mlp", "--dry-run", "--json", "--batch-sizes", "1,2,3"]).output().unwrap();
    let plan = json(&output);
    assert_eq!(plan["cells"].as_array().unwrap().len(), 3);
    assert!(plan["estimated_seconds"]["high"].as_f64().unwrap() > 0.0);
    let logs = std::fs::read_dir(home.path().join("logs/local")).map_or(0, Iterator::count);
    assert_eq!(logs, 0, "an engine was started: it has a log");
}

#[test]
fn a_dry_run_needs_nothing_that_another_process_holds() {
    let home = tempfile::tempdir().unwrap();
    let lock = std::fs::File::create(home.path().join("lock")).unwrap();
    // SAFETY: the descriptor is open.
    assert_eq!(unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX) }, 0);
    let args = ["profile", "mlp", "--json", "--batch-sizes", "1"];
    let busy = command(home.path(), &[&args[..], &["--no-wait"]].concat()).output().unwrap();
    assert_eq!(busy.status.code(), Some(2), "{}", String::from_utf8_lossy(&busy.stderr));
    let plan = json(&command(home.path(), &[&args[..], &["--dry-run"]].concat()).output().unwrap());
    assert_eq!((&plan["cells"][0]["engine"], &plan["cells"][0]["slots"]), (&"rten".into(), &1.into()));
    let models = json(&command(home.path(), &["model", "list", "--json"]).output().unwrap());
    assert_eq!(models.as_array().unwrap().len(), 0, "it keeps nothing");
}

#[test]
fn cells_that_cannot_run_here_say_what_is_lacking() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    std::fs::write(home.join("modelmeter.toml"), "[engine.onnx]\nlibrary = '/nowhere/libonnxruntime.so'").unwrap();
    let args = [
        "profile",
        "mlp",
        "--engines",
        "onnx,rten",
        "--batch-sizes",
        "1",
        "--batches",
        "5",
        "--concurrency",
        "1",
        "--json",
    ];
    let output = command(home, &args).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
    let profiles = json(&output);
    let error = &profiles.as_array().unwrap().iter().find(|p| p["engine"]["name"] == "onnx").unwrap()["error"];
    assert_eq!(error["code"], "no_worker");
    assert!(error["message"].as_str().unwrap().contains("/nowhere/libonnxruntime.so"), "{error}");
    assert!(!error.to_string().contains("modelmeter workers"), "there is no cluster to ask: {error}");

    // rten runs on CPUs alone, so that this holds on a machine with a GPU too: nothing can run, and nothing starts.
    let output =
        command(home, &["profile", "mlp", "--devices", "gpu", "--batch-sizes", "1", "--json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(output.stdout.is_empty() && said.contains("no slot has device 'gpu': "), "{said}");
}

#[test]
fn ctrl_c_stops_everything_and_keeps_what_is_measured() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    // A model that takes its time, and far more of it than this test.
    let args = ["profile", "mlp", "--batch-sizes", "1,2,4,8", "--min-duration", "100s", "--max-duration", "100s"];
    let mut child = command(home, &args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait(&mut child, "the engine to be up", || !engines_under(home).is_empty());
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(asked.elapsed() < Duration::from_secs(10), "took {:?}", asked.elapsed());
    assert!(engines_under(home).is_empty(), "an engine was left behind");
    let requests = json(&command(home, &["requests", "--json"]).output().unwrap());
    assert_eq!(requests[0]["state"], "cancelled");
}

fn wait(child: &mut Child, what: &str, until: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !until() {
        let ended = child.try_wait().unwrap();
        if ended.is_some() || Instant::now() > deadline {
            let mut text = String::new();
            let _ = child.kill();
            let _ = std::io::Read::read_to_string(child.stderr.as_mut().unwrap(), &mut text);
            panic!("waited for {what}, {ended:?}\n{text}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Processes that serve an artifact of this home.
fn engines_under(home: &Path) -> Vec<u32> {
    let pids =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let serves = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(" serve ") && line.contains(home.to_str().unwrap())
    };
    pids.filter(serves).collect()
}
