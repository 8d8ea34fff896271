//! What a user brings along, through the real binary: test data, inspectors, engines. And what is wrong with it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use serde_json::Value;
use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};
use support::{command, json};

const SHORT: [&str; 4] = ["--batches", "20", "--concurrency", "1"];

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// `profile` with this configuration and these words.
fn profile(home: &Path, config: &str, words: &[&str]) -> Command {
    std::fs::write(home.join("modelmeter.toml"), config).unwrap();
    command(home, &[&["profile", "--json"], words, &SHORT].concat())
}

fn inspector(command: &[&str]) -> String {
    let python = checkout().join("python");
    format!("[inspectors.mine]\ncommand = {command:?}\nenv = {{ PYTHONPATH = {python:?} }}\n")
}

fn done(output: &Output) -> Value {
    let profiles = json(output);
    for profile in profiles.as_array().unwrap() {
        assert_eq!(profile["state"], "done", "{profile}\n{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(profile["points"][0]["errors"], 0, "{profile}");
        assert!(!profile["points"][0]["warnings"].to_string().contains("bad_response"), "{profile}");
    }
    profiles
}

/// The error of a command that must end with bad usage, before any engine was started.
fn refused(home: &Path, mut command: Command) -> Value {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    let logs = std::fs::read_dir(home.join("logs/local")).map_or(0, Iterator::count);
    assert_eq!(logs, 0, "something was started: it has a log");
    let line = stderr.lines().last().unwrap();
    serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {stderr}"))["error"].clone()
}

/// The class that the built-in ResNet-50 sees in the picture of the examples.
const HILL: &str = "824";

#[test]
fn the_python_example_measures_resnet50_with_a_photo() {
    let home = tempfile::tempdir().unwrap();
    let example = checkout().join("examples/python/resnet50_image.py");
    let image = checkout().join("examples/images/hill.ppm");
    let (example, image) = (example.to_str().unwrap(), image.to_str().unwrap());
    let config = |class: &str| inspector(&["python3", example, image, "--expected", class]);
    let words = ["resnet50", "--inspector", "mine", "--batch-sizes", "1,2"];
    let profiles = done(&profile(home.path(), &config(HILL), &words).output().unwrap());
    assert_eq!(profiles.as_array().unwrap().len(), 2);
    assert_eq!(profiles[0]["inspector"], "mine");

    // The check can fail: of another class the image is not.
    let output = profile(home.path(), &config("7"), &words[..3]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = json(&output)[0]["error"].clone();
    assert_eq!(error["code"], "bad_response", "{error}");
    let said = format!("the image is of class 7, the answer says [{HILL}");
    assert!(error["message"].as_str().unwrap().contains(&said), "{error}");
}

#[test]
fn an_engine_is_configuration_alone() {
    let python = checkout().join(".deps/kserve/bin/python");
    assert!(python.exists(), "this test needs KServe's Python server: scripts/setup puts it into .deps/kserve");
    let home = tempfile::tempdir().unwrap();
    let words = ["--config", "examples/kserve/modelmeter.toml", "profile", "--json", "mlp", "--engines", "kserve"];
    let mut command = command(home.path(), &[&words[..], &["--batch-sizes", "1,4"], &SHORT].concat());
    let output = command.current_dir(checkout()).output().unwrap();
    let profiles = done(&output);
    assert_eq!(profiles.as_array().unwrap().len(), 2);
    assert_eq!(
        (&profiles[0]["engine"]["name"], &profiles[0]["engine"]["launch"]),
        (&"kserve".into(), &"process".into())
    );
    // What the server says of itself: a version of kserve.
    assert!(profiles[0]["engine"]["version"].as_str().unwrap().starts_with("0."), "{}", profiles[0]["engine"]);
}

#[test]
fn auto_and_check_know_an_engine_of_the_configuration() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let serve = "'serve', '--engine', 'rten', '--model', '{model}', '--model-name', '{model_name}', \
                 '--grpc-port', '{grpc_port}', '--http-port', '{http_port}'";
    let program = env!("CARGO_BIN_EXE_modelmeter");
    let config = format!("[engines.mine]\ncommand = ['{program}', {serve}]\nformats = ['onnx']");
    std::fs::write(home.join("mlp.onnx"), modelmeter_serving::reference::bytes("mlp").unwrap()).unwrap();
    let profiles = done(&profile(home, &config, &["mlp.onnx", "--batch-sizes", "1"]).output().unwrap());
    let engine = |of: &Value| of["engine"]["name"].as_str().unwrap().to_owned();
    let engines: Vec<String> = profiles.as_array().unwrap().iter().map(engine).collect();
    assert!(engines.contains(&"mine".to_owned()) && engines.contains(&"rten".to_owned()), "{engines:?}");

    let output = command(home, &["check", "mlp", "--engines", "rten,mine", "--json"]).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = json(&output);
    assert_eq!((&answers[1]["engine"], &answers[1]["agrees"]), (&"mine".into(), &true.into()));
}

#[test]
fn test_data_is_read_checked_and_sent() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let header =
        |descr: &str, shape: &str| format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n");
    let npy = |descr: &str, shape: &str, bytes: usize| {
        let header = header(descr, shape);
        let length = (header.len() as u16).to_le_bytes();
        [b"\x93NUMPY\x01\x00", &length[..], header.as_bytes(), &vec![0; bytes]].concat()
    };
    std::fs::write(home.join("good.npy"), npy("<f4", "(3, 784)", 4 * 3 * 784)).unwrap();
    std::fs::write(home.join("double.npy"), npy("<f8", "(1, 784)", 8 * 784)).unwrap();
    std::fs::write(home.join("short.npy"), npy("<f4", "(1, 783)", 4 * 783)).unwrap();

    for (file, why, hint) in [
        ("x=double.npy", "takes FP32 [batch, 784]", "astype(\"float32\")"),
        ("x=short.npy", "the data has shape [1, 783]", "np.stack"),
        ("y=good.npy", "no input 'y'", "its inputs are x"),
        ("x=none.npy", "none.npy", "--data"),
        ("good.npy", "does not say which input", "INPUT=FILE"),
    ] {
        let error = refused(home, profile(home, "", &["mlp", "--data", file]));
        assert_eq!(error["field"], "data", "{error}");
        assert!(error["message"].as_str().unwrap().contains(why), "{file}: {error}");
        assert!(error["hint"].as_str().unwrap().contains(hint), "{file}: {error}");
    }
    done(&profile(home, "", &["mlp", "--data", "x=good.npy", "--batch-sizes", "1,2,8"]).output().unwrap());
}

#[test]
fn an_inspector_that_is_not_there_is_said_before_anything_starts() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let error = refused(home, profile(home, &inspector(&["sh"]), &["mlp", "--inspector", "mien"]));
    assert_eq!(error["field"], "inspector");
    assert!(error["hint"].as_str().unwrap().contains("did you mean 'mine'?"), "{error}");
    let error = refused(home, profile(home, &inspector(&["no-such-program"]), &["mlp", "--inspector", "mine"]));
    assert_eq!(error["field"], "inspectors.mine.command", "{error}");
    let timed = inspector(&["sh"]) + "timed_in = \"child\"\n";
    std::fs::write(home.join("modelmeter.toml"), timed).unwrap();
    let open = command(home, &["profile", "--json", "mlp", "--inspector", "mine", "--rate", "10"]);
    assert_eq!(refused(home, open)["field"], "load");
}

/// Kills modelmeter without a word while its inspector is stuck: the kernel ends the inspector, and what that had
/// started goes at the next start, whose lock finds it.
#[test]
fn an_inspector_does_not_outlive_a_worker_that_is_killed() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let pid_file = home.join("pid");
    let script = format!("sleep 600 & echo $$ $! > {}; wait", pid_file.display());
    let config = inspector(&["sh", "-c", &script]);
    let mut command = profile(home, &config, &["mlp", "--inspector", "mine"]);
    let mut worker = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let pids = || -> Vec<u32> {
        let text = std::fs::read_to_string(&pid_file).unwrap_or_default();
        text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    wait("the inspector to run", || pids().len() == 2);
    let [leader, started] = pids()[..] else { panic!("two pids") };
    // A zombie has no command line.
    let runs = |pid: u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
    assert!(runs(leader) && runs(started));
    worker.kill().unwrap();
    worker.wait().unwrap();
    wait("the inspector to end", || !runs(leader));
    done(&profile(home, &config, &["mlp", "--batch-sizes", "1"]).output().unwrap());
    assert!(!runs(started), "what the inspector had started is left");
}

fn wait(what: &str, until: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !until() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
