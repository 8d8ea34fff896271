//! Bad input gets one clear error with a hint and exit code 2, before anything starts: asked of the real binary.

use std::{
    fs,
    net::TcpListener,
    path::Path,
    process::{Command, Output},
};

fn modelmeter(home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelmeter"));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("MODELMETER_HOME", home).current_dir(home).args(args);
    command.output().expect("the binary runs")
}

/// Runs it; it must say this, hint at that, exit with 2 and print no results.
fn refused(home: &Path, args: &[&str], says: &str, hints: &str) {
    let output = modelmeter(home, args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    let shown = format!("{args:?} gave {:?}\n{stderr}", output.status.code());
    assert_eq!(output.status.code(), Some(2), "{shown}");
    assert!(output.stdout.is_empty(), "{shown}");
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "one error, not more: {shown}");
    assert!(errors[0].contains(says), "{says:?} is not said: {shown}");
    let hint = stderr.lines().find(|line| line.starts_with("hint: ")).unwrap_or_else(|| panic!("no hint: {shown}"));
    assert!(hint.contains(hints), "{hints:?} is not hinted: {shown}");
    assert!(!home.join("logs").exists(), "an engine was started: {shown}");
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn unknown_engine_device_and_model() {
    let home = home();
    let home = home.path();
    refused(home, &["profile", "mlp", "--engines", "rtn"], "unknown engine 'rtn'", "did you mean 'rten'");
    refused(home, &["profile", "mlp", "--engines", "onnxruntime"], "'onnxruntime'", "did you mean 'onnx'");
    refused(home, &["profile", "mlp", "--devices", "cuda"], "device 'cuda'", "did you mean 'gpu'");
    refused(home, &["profile", "mlp", "--devices", "cup"], "unknown device 'cup'", "did you mean 'cpu'");
    refused(home, &["profile", "resnet5"], "no model 'resnet5'", "did you mean 'resnet50'");
    refused(home, &["profile", "nowhere/m.onnx"], "nowhere/m.onnx", "path");
    refused(home, &["profile"], "no model", "resnet50");
    refused(home, &["profile", "mlp", "--set", "rten.thread=2"], "thread", "threads");
    let on_cluster = ["profile", "mlp", "--set", "rten.thread=2", "--coordinator", "http://127.0.0.1:1"];
    refused(home, &on_cluster, "thread", "threads");
    refused(home, &["profile", "mlp", "--devices", "gpu"], "device 'gpu'", "hint: ");
    refused(home, &["profile", "mlp", "--load", "open"], "needs a rate", "--rate");
    refused(home, &["check", "mlp", "--tolerance=-1"], "tolerance", "0 or more");
}

#[test]
fn a_file_that_is_no_model() {
    let home = home();
    let home = home.path();
    fs::write(home.join("letter.onnx"), "Dear reader, this is no model.").unwrap();
    refused(home, &["profile", "letter.onnx"], "not an ONNX file", "ONNX");
    fs::write(home.join("empty.onnx"), "").unwrap();
    refused(home, &["profile", "empty.onnx"], "empty.onnx", "ONNX");
    let whole = modelmeter_serving::reference::bytes("mlp").unwrap();
    fs::write(home.join("half.onnx"), &whole[..whole.len() / 2]).unwrap();
    refused(home, &["profile", "half.onnx"], "cut off", "again");
    refused(home, &["model", "add", "m", "--onnx", "half.onnx"], "cut off", "again");
}

#[test]
fn numbers_out_of_range_and_contradictions() {
    let home = home();
    let home = home.path();
    refused(home, &["profile", "mlp", "--batch-sizes", "0"], "batch_sizes: 0", "1 to 4096");
    refused(home, &["profile", "mlp", "--batch-sizes", "1,1000000"], "batch_sizes: 1000000", "1 to 4096");
    refused(home, &["profile", "mlp", "--precision", "90%"], "precision", "at most 0.5");
    refused(
        home,
        &["profile", "mlp", "--rate", "5", "--concurrency", "5"],
        "cannot be used together",
        "calls a second",
    );
    refused(home, &["profile", "mlp", "--shape", "y=1,784"], "no input 'y'", "inputs are");
    fs::write(home.join("request.toml"), "model = 'mlp'\nbatch_size = [1]\n").unwrap();
    refused(home, &["profile", "-f", "request.toml"], "batch_size", "batch_sizes");
}

#[test]
fn usage_errors_exit_with_2_too() {
    let home = home();
    for args in [&["profil"][..], &["profile", "mlp", "--budget", "long"], &["status", "7"], &["status", "x"]] {
        let output = modelmeter(home.path(), args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_home_that_cannot_be_written_to() {
    let dir = home();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("home");
    refused(dir.path(), &["profile", "mlp", "--home", below.to_str().unwrap()], "cannot write", "--home");
}

#[test]
fn ports_in_use() {
    let home = home();
    // Whoever holds the port, this test or another process, it is in use.
    let engine = TcpListener::bind("127.0.0.1:8022");
    refused(home.path(), &["profile", "mlp"], "port 80", "--ports auto");
    drop(engine);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap().to_string();
    let args = ["coordinator", "--broker", "amqp://127.0.0.1:1", "--hub", "x.sqlite", "--listen", &at];
    refused(home.path(), &args, &at, "port 0");
}

#[test]
fn brokers_hubs_coordinators_and_endpoints_that_do_not_answer() {
    let home = home();
    let home = home.path();
    // Port 1 answers nobody.
    let ends = ["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let coordinator = |args: &[&'static str]| [&["coordinator"], &ends[..], args].concat();
    let silent = ["--broker", "amqp://127.0.0.1:1", "--hub", "x.sqlite", "--no-wait"];
    refused(home, &coordinator(&silent), "127.0.0.1:1", "RabbitMQ");
    refused(home, &coordinator(&["--broker", "http://127.0.0.1:1", "--hub", "x.sqlite"]), "http", "amqp://");
    refused(home, &coordinator(&["--hub", "x.sqlite"]), "broker", "--broker");
    let briefly = ["--broker", "amqp://127.0.0.1:1", "--hub", "x.sqlite", "--lease", "0s"];
    refused(home, &coordinator(&briefly), "lease", "1s");
    refused(
        home,
        &["worker", "--broker", "amqp://127.0.0.1:1", "--coordinator", "http://127.0.0.1:1", "--no-wait"],
        "127.0.0.1:1",
        "RabbitMQ",
    );
    refused(home, &["profile", "mlp", "--coordinator", "http://127.0.0.1:1"], "127.0.0.1:1", "coordinator");
    let endpoint =
        |address, more: &[&'static str]| [&["profile", "--model", "m", "--endpoint", address], more].concat();
    refused(home, &endpoint("127.0.0.1:1", &["--no-wait"]), "127.0.0.1:1", "gRPC port");
    refused(home, &endpoint("unix:/nowhere.sock", &["--no-wait"]), "unix:/nowhere.sock", "gRPC port");
    refused(home, &endpoint("ftp://127.0.0.1:1", &[]), "ftp://", "https://host:port");
    refused(home, &endpoint("127.0.0.1:1", &["--insecure"]), "insecure", "https://host:port");
    refused(home, &endpoint("https://127.0.0.1:1", &["--ca", "/nowhere.pem"]), "/nowhere.pem", "CERTIFICATE");
    refused(
        home,
        &["profile", "--endpoint", "127.0.0.1:1", "--model", "m", "--coordinator", "http://127.0.0.1:1"],
        "endpoint",
        "--coordinator",
    );
    refused(home, &["workers"], "coordinator", "--coordinator");
}

#[test]
fn listening_to_strangers_must_be_said_aloud() {
    let home = home();
    let args = ["coordinator", "--broker", "amqp://127.0.0.1:1", "--hub", "x.sqlite", "--listen", "0.0.0.0:0"];
    refused(home.path(), &args, "does not authenticate", "--insecure-listen");
}

#[test]
fn cores_that_cannot_be_had() {
    let home = home();
    let profile = |lists: &[&str], says: &str, hints: &str| {
        let mut args = vec!["profile", "mlp", "--ports", "auto"];
        args.extend(lists);
        refused(home.path(), &args, says, hints);
    };
    profile(&["--client-cpus", "0-"], "'0-' is not a list of logical cores", "0-3,6");
    profile(&["--engine-cpus", "1023"], "core 1023 is not one", "it may run on");
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let core = allowed.split(['-', ',']).next().unwrap();
    profile(&["--client-cpus", core, "--engine-cpus", core], "is the client's too", "leave one of the two lists out");
}

#[test]
fn configuration_mistakes_name_key_and_file() {
    let home = home();
    fs::write(home.path().join("modelmeter.toml"), "[worker]\ncpu_slot = 2\n").unwrap();
    let output = modelmeter(home.path(), &["engines"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cpu_slot") && stderr.contains("modelmeter.toml, line 2"), "{stderr}");
}

#[test]
fn the_effective_configuration_hides_passwords() {
    let home = home();
    let args = ["coordinator", "--broker", "amqp://bob:s3cret@host", "--listen", "127.0.0.1:1234", "--dump-config"];
    let output = modelmeter(home.path(), &args);
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && stdout.contains("127.0.0.1:1234") && stdout.contains("amqp://***@host"),
        "{stdout}"
    );
    assert!(!stdout.contains("s3cret"));
}

#[test]
fn errors_are_json_where_that_was_asked_for() {
    let home = home();
    let output = modelmeter(home.path(), &["profile", "mlp", "--engines", "rtn", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "invalid_argument");
    assert_eq!(error["error"]["field"], "engines");
    assert!(error["error"]["hint"].as_str().unwrap().contains("rten"));
    let output = modelmeter(home.path(), &["profile", "mlp", "--no-such-flag", "--json"]);
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["code"], "invalid_argument");
}

#[test]
fn what_cannot_be_written_is_an_error() {
    let home = home();
    let full = fs::File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelmeter"));
    let output = command.env("MODELMETER_HOME", home.path()).arg("engines").stdout(full).output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("cannot write to standard output"), "{stderr}");
}

#[test]
fn arguments_need_not_be_text() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let home = home();
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelmeter"));
    command.env("MODELMETER_HOME", home.path()).arg("profile").arg(OsStr::from_bytes(b"caf\xe9.onnx"));
    let output = command.output().expect("it runs");
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_built_in_name_means_that_model_whatever_the_hub_calls_so() {
    let home = home();
    let home = home.path();
    let run = |args: &[&str]| {
        let output = modelmeter(home, args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("JSON is text")
    };
    run(&["model", "write", "mlp", "other.onnx"]);
    let model = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("a document")["model"].clone();
    let before = model(&run(&["profile", "resnet18", "--dry-run", "--json"]));
    run(&["model", "add", "resnet18", "--onnx", "other.onnx"]);
    assert_eq!(model(&run(&["profile", "resnet18", "--dry-run", "--json"])), before);
}
