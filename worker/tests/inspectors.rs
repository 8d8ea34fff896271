//! Custom inspectors of a whole worker: a Rust type, and Python programs as its children; what they do wrong fails their
//! cell, and nothing else.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

#[allow(dead_code, unused_imports, reason = "the other tests use the rest")]
mod support;

use modelmeter_common::{
    Code, Problem,
    load::{Arrivals, Load},
    model::{Datatype, Dim, TensorSpec},
    part::{Outcome, Point},
    task::{Assignment, Cell},
    testdata::{Files, Source},
};
use modelmeter_worker::{
    Options,
    inspector::{Custom, Inspector, Program, Subject, kserve_v2::KserveV2},
    start,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use support::{Bench, assignment};

/// A program that runs this class, derived from the package's.
fn python(body: &str, timed: bool) -> Custom {
    let body: String = body.lines().map(|line| format!("    {line}\n")).collect();
    let script = format!(
        "import os, sys, time\nfrom modelmeter import BaseModelInspector, run\nclass Mine(BaseModelInspector):\n{body}\
         run(Mine, repeat_data=bytes(16))\n"
    );
    Custom::Program(Program {
        program: "python3".into(),
        args: vec!["-c".into(), script],
        env: BTreeMap::from([("PYTHONPATH".into(), concat!(env!("CARGO_MANIFEST_DIR"), "/../python").into())]),
        timeout: Duration::from_secs(20),
        timed,
    })
}

fn options(bench: &Bench, inspector: Custom) -> Options {
    Options { inspectors: BTreeMap::from([("mine".to_owned(), inspector)]), ..bench.options() }
}

fn with_inspector(assignment: Assignment, name: &str) -> Assignment {
    Assignment { cell: Cell { inspector: name.into(), ..assignment.cell }, ..assignment }
}

/// What became of a cell with this inspector, and of one with the engine's own after it.
async fn cell(bench: &Bench, inspector: Custom, task: Assignment) -> Result<Vec<Point>, Problem> {
    let worker = start(options(bench, inspector)).await.unwrap();
    let ours = bench.coordinator.add(task);
    bench.hint(ours).await;
    let results = bench.results(1).await;
    let next = bench.coordinator.add(assignment(2, "endpoint", 5));
    bench.hint(next).await;
    let after = bench.results(1).await;
    assert!(matches!(after.finals[0].outcome, Outcome::Done { .. }), "the next cell suffers: {after:?}");
    worker.stop().await;
    match &results.finals[0].outcome {
        Outcome::Done { .. } => Ok(results.parts.into_iter().map(|(part, _)| part.point).collect()),
        Outcome::Failed { error } => Err(error.clone()),
    }
}

async fn mine(inspector: Custom, batches: u64) -> Result<Vec<Point>, Problem> {
    cell(&Bench::new().await, inspector, with_inspector(assignment(1, "endpoint", batches), "mine")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_inspector_makes_the_requests_and_checks_the_answers() {
    let bench = Bench::new().await;
    let checks = bench.folder.path().join("checks");
    let body = format!(
        "def infer(self, request, response=None):\n    super().infer(request, response)\n    open({checks:?}, 'a').write('x')"
    );
    let task = with_inspector(assignment(1, "endpoint", 50), "mine");
    let points = cell(&bench, python(&body, false), task).await.unwrap();
    assert!(points.iter().all(|point| point.requests >= 50 && point.errors == 0), "{points:?}");
    assert!(points.iter().all(|point| point.warnings.iter().all(|w| w.code != "timed_in_child")));
    assert!(std::fs::read(checks).unwrap().len() >= 2, "the first answer and a sample of each point");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_python_inspector_may_be_what_is_timed() {
    let body = "def infer(self, request, response=None):\n    time.sleep(0.002)";
    let bench = Bench::new().await;
    let task = with_inspector(assignment(1, "endpoint", 50), "mine");
    let points = cell(&bench, python(body, true), task).await.unwrap();
    for point in &points {
        assert!(point.requests >= 50 && point.latency.percentile_ns(50.0) >= 2_000_000, "{point:?}");
        assert!(point.warnings.iter().any(|w| w.code == "timed_in_child"), "{point:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_timed_in_a_child_has_no_open_load() {
    let bench = Bench::new().await;
    let mut task = with_inspector(assignment(1, "endpoint", 50), "mine");
    task.plan.load = Load::Open { rates: vec![10.0], arrivals: Arrivals::Poisson };
    let problem = cell(&bench, python("pass", true), task).await.unwrap_err();
    assert_eq!((problem.code, problem.field.as_deref()), (Code::InvalidArgument, Some("load")), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_crashes_while_answers_are_measured_fails_its_cell_with_its_last_words() {
    let body = "checked = 0\ndef infer(self, request, response=None):\n    self.checked += 1\n    if self.checked == 3:\n        \
                sys.stderr.write('lost my labels\\n')\n        sys.stderr.flush()\n        os._exit(7)";
    let problem = mine(python(body, false), 2_000).await.unwrap_err();
    assert_eq!(problem.code, Code::EngineFailed);
    for part in ["inspector mine exited with code 7", "lost my labels"] {
        assert!(problem.message.contains(part), "{part:?} is not in: {problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_its_hooks_raise_is_the_reason() {
    let body = "def data_preprocess(self, x):\n    raise ValueError('not an image')";
    let problem = mine(python(body, false), 5).await.unwrap_err();
    assert_eq!(problem.code, Code::BadResponse);
    assert!(problem.message.contains("inspector mine: ValueError: not an image"), "{problem}");
    let body = "def infer(self, request, response=None):\n    raise ValueError('a cat, not a dog')";
    let problem = mine(python(body, false), 5).await.unwrap_err();
    assert!(problem.message.contains("a cat, not a dog"), "{problem}");
    let body = "def infer(self, request, response=None):\n    raise ValueError('connection refused')";
    let problem = mine(python(body, true), 5).await.unwrap_err();
    assert!(problem.message.contains("connection refused"), "{problem}");
}

/// Of a user's own: sends what the engine's own inspector would, and remembers what it was given.
struct Mine {
    inner: KserveV2,
    given: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Inspector for Mine {
    fn data_preprocess(&self, nth: u64) -> Result<Vec<bytes::Bytes>, Problem> {
        let data = self.inner.data_preprocess(nth)?;
        self.given.lock().unwrap().push(data[0].to_vec());
        Ok(data)
    }
    fn make_request(&self, data: &[bytes::Bytes]) -> Result<bytes::Bytes, Problem> {
        self.inner.make_request(data)
    }
    fn path(&self) -> &str {
        self.inner.path()
    }
    fn batch_size(&self) -> u32 {
        self.inner.batch_size()
    }
    fn check(&self, message: &[u8]) -> Result<(), Problem> {
        self.inner.check(message)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rust_type_is_made_for_its_cell_and_gets_the_users_data() {
    let bench = Bench::new().await;
    let file = bench.folder.path().join("x.bin");
    let raw: Vec<u8> = (0..3 * 4).flat_map(|n| (n as f32).to_le_bytes()).collect();
    std::fs::write(&file, &raw).unwrap();
    let mut task = with_inspector(assignment(1, "endpoint", 5), "mine");
    let spec =
        TensorSpec { name: "x".into(), dtype: Datatype::Fp32, shape: vec![Dim::Dynamic(String::new()), Dim::Fixed(4)] };
    let files = Files::read(&Source::Files([("x".into(), file)].into())).unwrap().unwrap();
    let (artifact, bytes) = files.fit(&[spec], &mut BTreeMap::new(), &BTreeMap::new()).unwrap().encode();
    bench.coordinator.book().artifacts.insert(artifact.sha256.clone(), bytes);
    task.plan.data = Some(artifact);

    let given = Arc::<Mutex<Vec<Vec<u8>>>>::default();
    let seen = given.clone();
    let maker = move |subject: Subject| {
        Ok(Arc::new(Mine { inner: KserveV2::new(subject), given: given.clone() }) as Arc<dyn Inspector>)
    };
    cell(&bench, Custom::Type(Arc::new(maker)), task).await.unwrap();
    let seen = seen.lock().unwrap();
    // Three items in batches of two, in turn.
    assert_eq!((&seen[0][..], &seen[1][..16], &seen[1][16..]), (&raw[..32], &raw[32..], &raw[..16]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_can_only_name_an_inspector_that_the_worker_has() {
    let bench = Bench::new().await;
    let task = with_inspector(assignment(1, "endpoint", 5), "mien");
    let problem = cell(&bench, python("pass", false), task).await.unwrap_err();
    assert_eq!((problem.code, problem.field.as_deref()), (Code::InvalidArgument, Some("inspector")));
    assert!(problem.hint.unwrap().contains("did you mean 'mine'?"));
}
