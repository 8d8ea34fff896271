use super::*;
use crate::{
    engine::PortPolicy,
    process::Identity,
    testing::{self, until},
};
use modelmeter_common::model::{Datatype, TensorShape};
use std::collections::BTreeMap;
use tempfile::TempDir;

/// The plug-in's side of the protocol, in little: `read` gives (id, what, body), `reply` writes.
const PROTOCOL: &str = r#"
import os, struct, sys, time
out = sys.stdout.buffer
def read():
    size = sys.stdin.buffer.read(4)
    if len(size) < 4: sys.exit(0)
    body = sys.stdin.buffer.read(struct.unpack(">I", size)[0])
    # Field 1, the id, is below 128 here, so one byte; then the command's field.
    return body[1], body[2] >> 3, body
def frame(body):
    out.write(struct.pack(">I", len(body)) + body); out.flush()
def reply(number, field, payload=b""):
    frame(bytes([8, number, field << 3 | 2, len(payload)]) + payload)
def text(field, value): return bytes([field << 3 | 2, len(value)]) + value
def opened(): reply(read()[0], 2)
def request(method=b"/a.B/C"): reply(read()[0], 3, text(1, method) + text(2, b"hello"))
"#;

struct Setup {
    folder: TempDir,
    place: Arc<Place>,
}

impl Setup {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Arc::new(testing::place(folder.path(), PortPolicy::Auto));
        Self { folder, place }
    }

    async fn start(&self, script: &str, timeout_ms: u64) -> Result<Child, Problem> {
        self.run(script, timeout_ms, false).await
    }

    async fn run(&self, script: &str, timeout_ms: u64, timed: bool) -> Result<Child, Problem> {
        let pid = self.folder.path().join("pid");
        let program = Program {
            program: "python3".into(),
            args: vec!["-c".into(), format!("{PROTOCOL}\n{script}")],
            env: BTreeMap::from([("PID_FILE".into(), pid.display().to_string())]),
            timeout: Duration::from_millis(timeout_ms),
            timed,
        };
        Child::start("mine", &program, subject(), "127.0.0.1:1", &self.place).await
    }
}

fn subject() -> Subject {
    Subject {
        model: "m".into(),
        version: String::new(),
        signature: String::new(),
        inputs: vec![TensorShape::new("x", Datatype::Fp32, vec![2, 3])],
        outputs: Vec::new(),
        batch_size: 2,
        seed: 1,
        data: None,
        output_axes: Default::default(),
    }
}

const PATIENT: u64 = 20_000;

/// What a call of a hook gives, off the runtime's threads as in a session, and what the child's health then is.
async fn hooked<T: Send + 'static>(
    child: Child,
    hook: impl FnOnce(&Child) -> Result<T, Problem> + Send + 'static,
) -> (Result<T, Problem>, Result<(), Problem>) {
    let child = Arc::new(child);
    let inner = child.clone();
    let result = tokio::task::spawn_blocking(move || hook(&inner)).await.unwrap();
    let health = child.health().await;
    (result, health)
}

#[tokio::test]
async fn requests_are_framed_and_responses_checked() {
    let script = "opened(); request(); n, what, body = read(); reply(n, 4); n, what, body = read(); reply(n, 5, text(1, b'class 7, not 9'))";
    let child = Setup::new().start(script, PATIENT).await.unwrap();
    let (result, health) = hooked(child, |child| {
        let call = child.prepare_one()?;
        assert_eq!((call.path.as_str(), call.batch_size), ("/a.B/C", 2));
        assert_eq!(call.frames[0], b"\0\0\0\0\x05hello".as_slice());
        child.check(b"good")?;
        child.check(b"bad")
    })
    .await;
    let problem = result.unwrap_err();
    assert_eq!((problem.code, problem.message.as_str()), (Code::BadResponse, "inspector mine: class 7, not 9"));
    assert_eq!(health, Ok(()), "to say that an answer is wrong is no fault");
}

#[tokio::test]
async fn test_data_is_given_to_who_asks_for_it() {
    let script = "reply(read()[0], 2, bytes([8, 1])); n, _, body = read(); reply(n, 3, text(1, b'/a.B/C') + text(2, str(len(body)).encode()))";
    let child = Setup::new().start(script, PATIENT).await.unwrap();
    let (call, _) = hooked(child, Child::prepare_one).await;
    // 24 bytes of contents, and six of tags and lengths around them.
    assert_eq!(&call.unwrap().frames[0][5..], b"30");
}

#[tokio::test]
async fn each_way_of_going_wrong_has_its_reason() {
    // Before it is open.
    let cases = [
        (
            "sys.stderr.write('no such image\\n'); sys.exit(3)",
            Code::EngineFailed,
            "exited with code 3",
            "no such image",
        ),
        ("os.kill(os.getpid(), 9)", Code::EngineFailed, "was killed by signal 9", ""),
        (
            "sys.stderr.write('thinking\\n'); sys.stderr.flush(); time.sleep(600)",
            Code::DeadlineExceeded,
            "did not answer open within 3 s",
            "thinking",
        ),
        ("print('hello world', flush=True); time.sleep(600)", Code::BadResponse, "hello world", ""),
        ("while True: out.write(b'y' * 65536)", Code::BadResponse, "no frame of the protocol", ""),
        ("while True: frame(b'')", Code::BadResponse, "answered what was not asked", ""),
        ("frame(b'\\xff\\xff\\xff'); time.sleep(600)", Code::BadResponse, "no reply", ""),
        ("while True: reply(77, 2)", Code::BadResponse, "answered what was not asked", ""),
        ("reply(read()[0], 4); time.sleep(600)", Code::BadResponse, "wrong kind of answer to open", ""),
        (
            "n, _, _ = read(); out.write(bytes([0, 0, 0, 9, 8])); out.flush(); time.sleep(600)",
            Code::DeadlineExceeded,
            "did not answer open",
            "",
        ),
        (
            "n, _, _ = read(); out.write(bytes([0, 0, 0, 9, 8])); out.flush()",
            Code::EngineFailed,
            "exited with code 0",
            "",
        ),
        ("reply(read()[0], 5, text(1, b'no labels'))", Code::BadResponse, "inspector mine: no labels", ""),
        ("while True: sys.stderr.write('x' * 1000 + '\\n')", Code::DeadlineExceeded, "did not answer open", "xxxx"),
    ];
    for (script, code, why, lines) in cases {
        let setup = Setup::new();
        let timeout = if code == Code::DeadlineExceeded { 3_000 } else { PATIENT };
        let problem = setup.start(script, timeout).await.map(|_| ()).unwrap_err();
        assert_eq!((problem.code, problem.field.as_deref()), (code, Some("inspector")), "{script}: {problem}");
        assert!(problem.message.contains(why) && problem.message.contains(lines), "{script}: {problem}");
        tokio::time::timeout(Duration::from_secs(10), setup.place.census.none_left()).await.expect("it is left behind");
    }
}

#[tokio::test]
async fn what_goes_wrong_later_is_seen_by_its_health() {
    let cases = [
        (
            "opened(); read(); sys.stderr.write('out of memory\\n'); sys.exit(1)",
            PATIENT,
            "exited with code 1",
            "out of memory",
        ),
        ("opened(); time.sleep(600)", 3_000, "did not answer make_request within 3 s", ""),
        ("opened(); read()\nwhile True: reply(1, 2)", 3_000, "did not answer make_request within 3 s", ""),
        ("opened(); n, _, _ = read(); reply(n + 1, 3)", PATIENT, "answered what was not asked", ""),
    ];
    for (script, timeout, why, lines) in cases {
        let child = Setup::new().start(script, timeout).await.unwrap();
        let (result, health) = hooked(child, |child| {
            let first = child.prepare_one().map(|_| ());
            // Whatever is asked next fails at once, for the same reason.
            let asked = Instant::now();
            assert!(child.check(b"").is_err() && asked.elapsed() < Duration::from_millis(500));
            first
        })
        .await;
        let health = health.unwrap_err();
        assert!(
            result.is_err() && health.message.contains(why) && health.message.contains(lines),
            "{script}: {health}"
        );
    }
}

#[tokio::test]
async fn methods_that_are_none_are_refused() {
    for (method, why) in [("no slash", "no slash"), ("/a\\nb/c", "makes requests for"), ("//x", "makes requests for")] {
        let child = Setup::new().start(&format!("opened(); request(b'{method}')"), PATIENT).await.unwrap();
        let problem = hooked(child, Child::prepare_one).await.0.unwrap_err();
        assert!(problem.message.contains(why) && problem.code == Code::BadResponse, "{problem}");
    }
    let child = Setup::new().start("opened(); request(b'/a.B/C'); request(b'/a.B/D')", PATIENT).await.unwrap();
    let problem = hooked(child, Child::prepare).await.0.unwrap_err();
    assert!(problem.message.contains("/a.B/C and for /a.B/D"), "{problem}");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_named() {
    let setup = Setup::new();
    let program = Program {
        program: "/nowhere/inspector".into(),
        args: Vec::new(),
        env: BTreeMap::new(),
        timeout: Duration::from_secs(1),
        timed: false,
    };
    let started = Child::start("mine", &program, subject(), "127.0.0.1:1", &setup.place).await;
    let problem = started.map(|_| ()).unwrap_err();
    assert_eq!(problem.code, Code::NotInstalled);
    assert!(problem.message.contains("inspector mine: /nowhere/inspector"), "{problem}");
}

#[tokio::test]
async fn dropped_it_ends_with_all_that_it_started() {
    let setup = Setup::new();
    let script = "import subprocess; child = subprocess.Popen(['sleep', '600']); open(os.environ['PID_FILE'], 'w').write(str(child.pid)); opened(); time.sleep(600)";
    let child = setup.start(script, PATIENT).await.unwrap();
    let grandchild: u32 = std::fs::read_to_string(setup.folder.path().join("pid")).unwrap().parse().unwrap();
    let alive = || Identity::of(grandchild).is_some_and(Identity::is_alive);
    assert!(alive());
    drop(child);
    until("the grandchild to end", || !alive()).await;
    setup.place.census.none_left().await;
}

#[tokio::test]
async fn timed_calls_may_end_in_any_order_and_given_up_ones_are_known() {
    let script = "opened(); a, _, _ = read(); b, _, _ = read(); reply(b, 4); reply(a, 5, text(1, b'refused')); n, _, _ = read(); reply(n, 4)";
    let child = Setup::new().run(script, PATIENT, true).await.unwrap();
    let (result, health) = hooked(child, |child| {
        let mut calls = child.caller().expect("it is timed");
        let (first, second) = (calls.begin().unwrap(), calls.begin().unwrap());
        let soon = || Instant::now() + Duration::from_secs(20);
        assert_eq!(calls.next(soon()).unwrap(), Some((second, Ok(()))));
        // The first is given up: its end comes before the answer to what is asked next.
        assert!(first < second);
        child.check(b"x")
    })
    .await;
    assert_eq!((result, health), (Ok(()), Ok(())));
}
