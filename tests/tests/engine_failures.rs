//! Every engine fails in every way that it can: a clear error with the engine's own words, in time, and nothing left
//! running. TensorFlow Serving is the stand-in of `tests/standins`.

#![allow(clippy::unwrap_used)]

use modelmeter_tests::{
    engines::{self, Formats},
    eventually,
    modelmeter::{Output, is_measuring, run, spawn},
};
use serde_json::Value;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const ALL: [&str; 5] = ["onnx", "rten", "torchscript", "triton", "tfs"];
const LIMIT: Duration = Duration::from_secs(200);
/// An engine may fail three times before its cell does.
const ATTEMPTS: u64 = 3;
const ONE_POINT: [&str; 7] = ["--batch-sizes", "1", "--concurrency", "1", "--ports", "auto", "--json"];

/// The processes of a home, by the environment that engines inherit from modelmeter, with their command lines.
fn processes(home: &Path) -> Vec<(i32, String)> {
    let mark = format!("MODELMETER_HOME={}", home.display());
    let of = |pid: i32| {
        let read = |file: &str| {
            fs::read(format!("/proc/{pid}/{file}")).map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        };
        let environment = read("environ").ok()?;
        environment.contains(&mark).then(|| Some((pid, read("cmdline").ok()?)))?
    };
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    // One that has ended and waits to be reaped has no command line.
    pids.filter_map(of).filter(|(_, line)| !line.is_empty()).collect()
}

async fn nothing_left(home: &Path) {
    let gone = || async { processes(home).is_empty().then_some(()) };
    let end = eventually("nothing is left running", Duration::from_secs(5), gone).await;
    assert!(end.is_ok(), "{:?}", processes(home));
}

/// What `--engines E` measures: the engine's own format.
fn model(formats: &Formats, engine: &str) -> Vec<String> {
    let (flag, path) = match engine {
        "torchscript" => ("--torchscript", &formats.torchscript),
        "tfs" => ("--savedmodel", &formats.savedmodel),
        _ => ("--onnx", &formats.onnx),
    };
    let mut words = vec![flag.to_owned(), path.display().to_string()];
    if engine == "torchscript" {
        words.extend(["--input".to_owned(), "x:fp32:784".to_owned()]);
    }
    words
}

async fn profile(home: &Path, engine: &str, flags: &[String], more: &[&str]) -> Output {
    let words = ["profile", "--engines", engine].into_iter().chain(flags.iter().map(String::as_str));
    let args: Vec<&str> = words.chain(more.iter().copied()).collect();
    let output = run(home, &args, LIMIT).await.unwrap();
    nothing_left(home).await;
    output
}

/// Why the only cell failed: code and message.
fn failure(output: &Output) -> (String, String) {
    assert_eq!(output.code, Some(1), "{}{}", output.out, output.err);
    let profiles: Value = serde_json::from_str(&output.out).unwrap();
    let error = &profiles[0]["error"];
    assert_eq!(profiles[0]["state"], "failed");
    let text = |key: &str| error[key].as_str().unwrap_or_else(|| panic!("no {key} in {profiles:#}")).to_owned();
    (text("code"), text("message"))
}

/// What was refused before anything started: code, message and hint together.
fn refusal(output: &Output) -> String {
    assert_eq!(output.code, Some(2), "{}{}", output.out, output.err);
    output.err.clone()
}

struct Bed {
    folder: tempfile::TempDir,
    formats: Formats,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let formats = Formats::make(folder.path(), "mlp").unwrap();
        Self { folder, formats }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A home in which this engine's program is a script. It still says what it is, so that it is taken for installed.
    fn with_program(&self, name: &str, engine: &str, body: &str) -> PathBuf {
        let home = self.home(&format!("{name}-{engine}"));
        fs::create_dir_all(&home).unwrap();
        let python = engines::python().unwrap();
        let answers = match engine {
            "torchscript" => format!("if [ \"$1\" = -c ]; then exec '{}' \"$@\"; fi", python.display()),
            "tfs" => "if [ \"$1\" = --version ]; then echo 'TensorFlow ModelServer: 0'; exit; fi".to_owned(),
            _ => String::new(),
        };
        let program = engines::script(&home.join("program"), &format!("{answers}\n{body}")).unwrap();
        let key = match engine {
            "torchscript" => "torchscript.python",
            "tfs" => "tfs.server",
            _ => "triton.server",
        };
        let backends = home.join("backends");
        fs::create_dir_all(backends.join("python")).unwrap();
        let mut others = vec![(key, program.as_path())];
        if engine == "triton" {
            others.push(("triton.backends", backends.as_path()));
        }
        engines::configure_with(&home, &others).unwrap();
        home
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_is_not_installed_or_gets_another_format_is_refused_before_anything_starts() {
    let bed = Bed::new();
    for (engine, key) in [
        ("onnx", "onnx.library"),
        ("torchscript", "torchscript.python"),
        ("triton", "triton.server"),
        ("tfs", "tfs.server"),
    ] {
        let home = bed.home(&format!("missing-{engine}"));
        engines::configure_with(&home, &[(key, Path::new("/nowhere/engine"))]).unwrap();
        let said = refusal(&profile(&home, engine, &model(&bed.formats, engine), &ONE_POINT).await);
        assert!(said.contains("not_installed") && said.contains("/nowhere/engine") && said.contains("hint"), "{said}");
    }
    let home = bed.home("formats");
    engines::configure(&home).unwrap();
    for (engine, other) in [("onnx", "tfs"), ("rten", "torchscript"), ("torchscript", "onnx"), ("tfs", "onnx")] {
        let said = refusal(&profile(&home, engine, &model(&bed.formats, other), &ONE_POINT).await);
        assert!(said.contains(&format!("engine '{engine}' loads")), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_that_is_taken_is_named_with_its_engine() {
    let bed = Bed::new();
    let home = bed.home("ports");
    engines::configure(&home).unwrap();
    for (engine, port) in [("onnx", 8002), ("rten", 8021), ("torchscript", 8101), ("triton", 8202), ("tfs", 8500)] {
        // Where another process of this machine has the port, it is taken all the same.
        let _holder = std::net::TcpListener::bind(("127.0.0.1", port));
        let said =
            refusal(&profile(&home, engine, &model(&bed.formats, engine), &["--ports", "default", "--json"]).await);
        assert!(said.contains(&format!("port {port}")) && said.contains(engine), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_does_not_load_fails_its_cell_with_the_engines_words() {
    let bed = Bed::new();
    let broken = bed.home("broken");
    fs::create_dir_all(broken.join("variables")).unwrap();
    // An operator that nobody knows, under a name of the same length.
    let onnx = String::from_utf8_lossy(b"Relu").into_owned();
    let bytes = fs::read(&bed.formats.onnx).unwrap();
    let spoiled: Vec<u8> = replace(&bytes, onnx.as_bytes(), b"Rexu");
    assert_ne!(spoiled, bytes);
    fs::write(broken.join("mlp.onnx"), spoiled).unwrap();
    fs::write(broken.join("mlp.pt"), "PK\u{3}\u{4} mlp/constants.pkl").unwrap();
    let savedmodel = broken.join("mlp.savedmodel");
    fs::create_dir(&savedmodel).unwrap();
    fs::copy(bed.formats.savedmodel.join("saved_model.pb"), savedmodel.join("saved_model.pb")).unwrap();
    let formats = Formats {
        onnx: broken.join("mlp.onnx"),
        torchscript: broken.join("mlp.pt"),
        savedmodel,
        triton: bed.formats.triton.clone(),
    };
    let home = bed.home("home");
    engines::configure(&home).unwrap();
    for (engine, words) in [
        ("onnx", "Rexu"),
        ("rten", "Rexu"),
        ("torchscript", "does not load as TorchScript"),
        ("triton", "Rexu"),
        ("tfs", "variables"),
    ] {
        let (code, message) = failure(&profile(&home, engine, &model(&formats, engine), &ONE_POINT).await);
        // Servers of ours say that they would never load it.
        let ours = matches!(engine, "onnx" | "rten" | "torchscript");
        assert_eq!(code, if ours { "engine_refused" } else { "engine_failed" }, "{engine}: {message}");
        assert!(message.contains(words), "{engine} should say {words}: {message}");
    }
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = (0..bytes.len() - from.len()).filter(|&at| bytes[at..].starts_with(from)).collect();
    places.into_iter().for_each(|at| bytes[at..at + to.len()].copy_from_slice(to));
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_at_load_or_is_never_ready_is_told_and_its_children_end() {
    let bed = Bed::new();
    for engine in ["torchscript", "triton", "tfs"] {
        let home = bed.with_program("dies", engine, "sleep 1000 & echo no licence >&2; exit 3");
        let (code, message) = failure(&profile(&home, engine, &model(&bed.formats, engine), &ONE_POINT).await);
        assert_eq!(code, "engine_failed");
        assert!(message.contains("exited with code 3") && message.ends_with("no licence"), "{engine}: {message}");

        let home = bed.with_program("hangs", engine, "(sleep 1000 &) ; echo loading; sleep 1000");
        let text = fs::read_to_string(home.join("modelmeter.toml")).unwrap().replace("'60s'", "'500ms'");
        fs::write(home.join("modelmeter.toml"), text).unwrap();
        let (code, message) = failure(&profile(&home, engine, &model(&bed.formats, engine), &ONE_POINT).await);
        assert_eq!(code, "deadline_exceeded");
        assert!(message.contains("not ready within 0.5 s") && message.ends_with("loading"), "{engine}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_dies_while_it_is_measured_is_told_and_nothing_stays() {
    let bed = Bed::new();
    for engine in ALL {
        let home = bed.home(&format!("killed-{engine}"));
        engines::configure(&home).unwrap();
        let flags = model(&bed.formats, engine);
        let words = ["profile", "--engines", engine, "--min-duration", "60s", "--max-duration", "60s"];
        let args: Vec<&str> = words.into_iter().chain(flags.iter().map(String::as_str)).chain(ONE_POINT).collect();
        let mut profiling = spawn("profile", &home, &args).unwrap();
        for attempt in 1..=ATTEMPTS {
            let measuring = || async { is_measuring(&home, attempt).await.then_some(()) };
            eventually(&format!("{engine} is measured, attempt {attempt}"), LIMIT, measuring).await.unwrap();
            kill_engine(&home, profiling.id());
        }
        let status = eventually("the command ends", LIMIT, || std::future::ready(profiling.ended())).await.unwrap();
        assert_eq!(status.code(), Some(1), "{}", profiling.log());
        nothing_left(&home).await;
        let results = run(&home, &["results", "--json"], LIMIT).await.unwrap().json().unwrap();
        let message = results[0]["error"]["message"].as_str().unwrap();
        assert!(message.contains("was killed by signal 9 while it was measured"), "{engine}: {message}");
    }
}

/// Kills the engine's process: the leader of a session that is not modelmeter's own.
fn kill_engine(home: &Path, modelmeter: u32) {
    // SAFETY: plain system calls that touch no memory.
    let leads = |pid: i32| unsafe { libc::getsid(pid) } == pid;
    let found = processes(home).into_iter().find(|&(pid, _)| leads(pid) && pid.unsigned_abs() != modelmeter);
    let (pid, _) = found.expect("an engine runs while it is measured");
    // SAFETY: as above.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0);
}
