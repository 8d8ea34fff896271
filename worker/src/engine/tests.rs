//! Deployments of real processes that never serve: each must end in a clear problem and leave nothing.

use super::*;
use crate::{
    lock::Claim,
    process::{self, Identity},
    testing::{self, until},
};
use modelmeter_common::{device::DeviceKind, model::ModelRef};
use std::{collections::BTreeMap, fs, process::Stdio, time::Instant};

/// Set in the process that plays the worker which is killed: where it works.
const ROLE: &str = "MODELMETER_TEST_KILLED_WORKER";

fn cell() -> Cell {
    Cell {
        model: ModelRef { name: "m".into(), version: "1".into() },
        artifact: None,
        engine: "test".into(),
        engine_settings: BTreeMap::new(),
        device_class: "cpu".into(),
        batch_size: 1,
        inputs: Vec::new(),
        inspector: "default".into(),
    }
}

async fn deployed(
    spec: &EngineSpec,
    cell: &Cell,
    artifact: Option<&Path>,
    place: &Arc<Place>,
) -> Result<Deployment, Problem> {
    Deployment::new(spec, cell, artifact, place, Duration::from_secs(5), &|_| ()).await
}

fn record(folder: &Path) -> String {
    fs::read_to_string(folder.join("locks/cpu-core-0")).unwrap()
}

#[tokio::test]
async fn an_engine_that_dies_fails_at_once_with_its_last_lines() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(testing::place(folder.path(), PortPolicy::Auto));
    let spec = testing::engine("sh", &["-c", "echo model {model_name} is broken; exit 3"]);
    let started = Instant::now();
    let problem = deployed(&spec, &cell(), None, &place).await.unwrap_err();
    assert_eq!(problem.code, Code::EngineFailed);
    assert!(
        problem.message.contains("exited with code 3") && problem.message.ends_with("model m is broken"),
        "{problem}"
    );
    assert!(problem.hint.unwrap().contains("slot0-0-test.log"));
    assert!(started.elapsed() < spec.ready_timeout / 2);
}

#[tokio::test]
async fn engines_on_their_way_out_are_waited_for_to_a_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let places = [Arc::new(testing::place(folder.path(), PortPolicy::Auto))];
    let (leaving, within) = (places[0].census.count(), |ms| tokio::time::Instant::now() + Duration::from_millis(ms));
    let waited = tokio::time::Instant::now();
    none_left(&places, within(20)).await;
    assert!(waited.elapsed() >= Duration::from_millis(20), "one is left");
    let deadline = within(10_000);
    // It is waited for first.
    tokio::join!(biased; none_left(&places, deadline), async { drop(leaving) });
    assert!(tokio::time::Instant::now() < deadline, "none is left, and still it was waited");
}

#[tokio::test]
async fn an_engine_that_never_gets_ready_is_stopped_at_the_deadline() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(testing::place(folder.path(), PortPolicy::Auto));
    let pid_file = folder.path().join("pid");
    let script = format!("echo $$ > {}; echo loading; sleep 1000 & sleep 1000", pid_file.display());
    let spec = EngineSpec { ready_timeout: Duration::from_millis(300), ..testing::engine("sh", &["-c", &script]) };
    let problem = deployed(&spec, &cell(), None, &place).await.unwrap_err();
    assert_eq!(problem.code, Code::DeadlineExceeded);
    assert!(problem.message.contains("nothing listens") && problem.message.ends_with("loading"), "{problem}");
    let pid: u32 = fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    assert!(process::session_members(pid).is_empty());
    assert!(record(folder.path()).contains(r#""engines":[]"#), "{}", record(folder.path()));
}

#[tokio::test]
async fn placeholders_reach_a_process_as_single_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(testing::place(folder.path(), PortPolicy::Auto));
    let script = r#"echo "$# [$1] [$2] $SETTINGS"; exit 1"#;
    let mut spec = testing::engine("sh", &["-c", script, "sh", "{model}", "{settings}"]);
    if let Launch::Process { env, .. } = &mut spec.launch {
        env.insert("SETTINGS".into(), "{settings}".into());
    }
    let cell = Cell { engine_settings: BTreeMap::from([("a".into(), "$(id) ; b".into())]), ..cell() };
    let problem = deployed(&spec, &cell, Some(Path::new("/tmp/a b.onnx")), &place).await.unwrap_err();
    let said = r#"2 [/tmp/a b.onnx] [{"a":"$(id) ; b"}] {"a":"$(id) ; b"}"#;
    assert!(problem.message.ends_with(said), "{problem}");
}

#[tokio::test]
async fn a_process_sees_its_slots_gpu_alone_by_uuid() {
    let folder = tempfile::tempdir().unwrap();
    let mut place = testing::place(folder.path(), PortPolicy::Auto);
    place.device = Device { kind: DeviceKind::Gpu, index: Some(1), uuid: Some("GPU-b".into()), ..testing::cpu() };
    let spec = testing::engine("sh", &["-c", "echo {device} sees $CUDA_VISIBLE_DEVICES; exit 1"]);
    let spec = EngineSpec { ports: Ports { gpu: spec.ports.cpu, cpu: None }, ..spec };
    let problem = deployed(&spec, &cell(), None, &Arc::new(place)).await.unwrap_err();
    assert!(problem.message.ends_with("cuda:0 sees GPU-b"), "{problem}");
}

#[tokio::test]
async fn a_process_on_a_cpus_slot_sees_no_gpu() {
    let folder = tempfile::tempdir().unwrap();
    let place = testing::place(folder.path(), PortPolicy::Auto);
    let spec = testing::engine("sh", &["-c", "echo sees ${CUDA_VISIBLE_DEVICES-all}.; exit 1"]);
    let problem = deployed(&spec, &cell(), None, &Arc::new(place)).await.unwrap_err();
    assert!(problem.message.ends_with("sees ."), "{problem}");
}

/// Not a test of its own: the body of the worker that the next test kills.
#[tokio::test]
async fn role_of_a_worker_that_is_killed() {
    let Some(folder) = std::env::var_os(ROLE) else { return };
    let folder = Path::new(&folder);
    let place = Arc::new(testing::place(folder, PortPolicy::Auto));
    // The shell dies with the worker; its children would stay: one in the session, one that left it.
    let script = format!(
        "sleep 1000 & echo $! > {0}/child; setsid sleep 1000 & echo $! > {0}/escaped; touch {0}/up; wait",
        folder.display()
    );
    let spec = EngineSpec { ready_timeout: Duration::from_secs(60), ..testing::engine("sh", &["-c", &script]) };
    let _ = deployed(&spec, &cell(), None, &place).await;
}

#[tokio::test]
async fn a_killed_workers_engine_keeps_its_device_locked_until_the_next_ends_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap());
    worker.args(["--exact", "engine::tests::role_of_a_worker_that_is_killed"]).env(ROLE, folder.path());
    let mut worker = worker.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the engine is up", || folder.path().join("up").exists() && record(folder.path()).contains("start_time\":"))
        .await;
    until("the engine is noted", || !record(folder.path()).contains(r#""engines":[]"#)).await;

    let take = || DeviceLock::take(&folder.path().join("locks"), &Claim::new(None, &[0], false), "next", 0);
    let busy = take().unwrap_err();
    assert_eq!(busy.code, Code::Busy);
    assert!(busy.message.contains(&format!("worker 'w', pid {}", worker.id())), "{busy}");

    worker.kill().unwrap();
    worker.wait().unwrap();
    let pid = |name: &str| -> u32 { fs::read_to_string(folder.path().join(name)).unwrap().trim().parse().unwrap() };
    let alive = |name: &str| Identity::of(pid(name)).is_some_and(Identity::is_alive);
    assert!(alive("child") && alive("escaped"), "the orphans are what this is about");
    let _lock = take().unwrap();
    assert!(!alive("child") && !alive("escaped"));
}

#[tokio::test]
async fn an_engine_that_does_not_take_its_model_says_so_in_one_line_and_is_not_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(testing::place(folder.path(), PortPolicy::Auto));
    let words = "echo starting; echo 'error: the opset is too new'; echo 'hint: export it again'; exit 65";
    let spec = testing::engine("sh", &["-c", words]);
    let problem = Deployment::new(&spec, &cell(), None, &place, Duration::from_secs(5), &|_| ()).await.unwrap_err();
    assert_eq!(problem.code, Code::EngineRefused);
    assert!(!problem.code.retryable());
    assert_eq!(problem.message, "engine test does not take the model: the opset is too new");
    let hint = problem.hint.unwrap();
    assert!(hint.starts_with("export it again; the whole log is "), "{hint}");
}

#[tokio::test]
async fn each_deployment_has_a_log_of_its_own_and_the_oldest_of_many_goes() {
    let folder = tempfile::tempdir().unwrap();
    let place = Arc::new(testing::place(folder.path(), PortPolicy::Auto));
    for word in ["first", "second"] {
        let spec = testing::engine("sh", &["-c", &format!("echo {word}; exit 3")]);
        Deployment::new(&spec, &cell(), None, &place, Duration::from_secs(5), &|_| ()).await.unwrap_err();
    }
    let log = |number: u64| fs::read_to_string(folder.path().join(format!("logs/slot0-{number}-test.log")));
    assert_eq!((log(0).unwrap().trim(), log(1).unwrap().trim()), ("first", "second"));
    place.launched.store(LOGS, Ordering::Relaxed);
    place.log("test");
    assert!(log(0).is_err() && log(1).is_ok());
}
