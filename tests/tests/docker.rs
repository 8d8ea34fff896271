//! Engines in containers, through the stand-in for the Docker daemon of `modelmeter_tests::docker`: each call, a whole
//! profile, and what goes wrong.

use anyhow::{Context, Result};
use modelmeter_tests::{
    Child,
    docker::{self, Call, Docker},
    eventually,
    modelmeter::{self, Output},
};
use serde_json::{Value, json};
use std::{env, fs, path::Path, process::Command, time::Duration};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(20);
const IMAGE: &str = "modelmeter/serve:1";

struct Bench {
    home: TempDir,
    docker: Docker,
}

impl Bench {
    /// A home that configures rten to be served from an image.
    fn new(image: &str, more: &str) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let locks = home.path().join("locks");
        let config = format!(
            "[worker]\nlock_dir = '{}'\nports = 'auto'\n[engine.rten.docker]\nimage = '{image}'\n{more}\n",
            locks.display()
        );
        fs::write(home.path().join("modelmeter.toml"), config)?;
        let docker = Docker::start(home.path())?;
        Ok(Self { home, docker })
    }

    fn command(&self, args: &[&str]) -> Result<Command> {
        let mut command = modelmeter::command(self.home.path(), args)?;
        command.env("DOCKER_HOST", self.docker.host());
        Ok(command)
    }

    async fn profile(&self) -> Result<Output> {
        let mut command = self.command(&PROFILE)?;
        command.arg("--json");
        modelmeter::output(command, LIMIT).await
    }

    /// Profiles in the background.
    fn begin(&self, name: &str) -> Result<Child> {
        Child::spawn(name, self.command(&PROFILE)?, &self.home.path().join(format!("{name}.log")))
    }

    /// Runs the shell instead of a server.
    fn add_script(&self, script: &str) {
        self.docker.add(IMAGE, "/bin/sh", &["-c", script, "sh"]);
    }

    /// The one container and its process, once it runs.
    async fn running(&self) -> Result<(String, u32)> {
        eventually("a container runs", SOON, || async {
            let id = self.docker.containers().pop()?;
            Some((id.clone(), self.docker.pid(&id)?))
        })
        .await
    }

    fn call(&self, what: &str) -> Result<Call> {
        let calls = self.docker.calls();
        calls.iter().find(|call| call.what == what).cloned().with_context(|| format!("no {what} in {calls:#?}"))
    }
}

const PROFILE: [&str; 12] = [
    "profile",
    "mlp",
    "--engines",
    "rten",
    "--batch-sizes",
    "1,2",
    "--concurrency",
    "1",
    "--batches",
    "20",
    "--max-duration",
    "5s",
];

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn a_whole_profile_is_served_from_a_container() -> Result<()> {
    let bench = Bench::new(IMAGE, "shm_mib = 256\nulimits = { memlock = -1 }")?;
    bench.docker.publish(IMAGE, modelmeter::binary()?, &[]);
    let profiles = bench.profile().await?.json()?;

    let cells = profiles.as_array().context("not an array")?;
    assert_eq!(cells.len(), 2);
    for cell in cells {
        assert_eq!(cell["state"], "done", "{cell:#}");
        assert_eq!(
            (&cell["engine"]["launch"], &cell["engine"]["image_digest"]),
            (&json!("docker"), &json!(docker::digest_of(IMAGE)))
        );
        assert!(cell["deploy_ms"].as_f64().is_some_and(|ms| ms > 0.0), "{cell:#}");
        assert!(cell["points"][0]["engine_cpu"]["rss_bytes"].as_f64().is_some_and(|bytes| bytes > 1e6), "{cell:#}");
    }

    // One deployment for both batch sizes, from the id of the image that was pulled.
    let calls = bench.docker.calls();
    let made = calls.iter().filter(|call| call.what == "POST /containers/create").count();
    assert_eq!(made, 1, "{calls:#?}");
    assert_eq!(bench.call("POST /images/create")?.query["fromImage"], IMAGE);
    check_created(&bench.call("POST /containers/create")?.body)?;
    let id = "container1";
    assert_eq!(bench.call(&format!("POST /containers/{id}/stop"))?.query["t"], "3");
    let removed = bench.call(&format!("DELETE /containers/{id}"))?;
    assert_eq!((removed.query["force"].as_str(), removed.query["v"].as_str()), ("true", "true"));
    for what in ["POST /containers/container1/start", "POST /containers/container1/wait"] {
        bench.call(what)?;
    }
    let logs = bench.call("GET /containers/container1/logs")?.query;
    assert!(["follow", "stdout", "stderr"].iter().all(|flag| logs[*flag] == "true"), "{logs:?}");
    let listed = bench.call("GET /containers/json")?.query;
    let filters: Value = serde_json::from_str(&listed["filters"])?;
    assert_eq!((listed["all"].as_str(), filters), ("true", json!({"label": ["modelmeter.owner"]})));
    assert_eq!(bench.docker.containers(), [""; 0]);
    Ok(())
}

fn check_created(body: &Value) -> Result<()> {
    assert_eq!(body["Image"], docker::id_of(IMAGE));
    let cmd: Vec<&str> = body["Cmd"].as_array().context("no command")?.iter().filter_map(Value::as_str).collect();
    assert_eq!(cmd[..3], ["serve", "--engine", "rten"]);
    let host = &body["HostConfig"];
    let mount = &host["Mounts"][0];
    let model = mount["Target"].as_str().context("no mount")?;
    assert!(model.starts_with("/model/") && model.ends_with(".onnx") && cmd.contains(&model), "{body:#}");
    assert!(Path::new(mount["Source"].as_str().unwrap_or_default()).is_absolute());
    assert_eq!((&mount["Type"], &mount["ReadOnly"]), (&json!("bind"), &json!(true)));
    let bindings = host["PortBindings"].as_object().context("no ports")?;
    assert_eq!(bindings.len(), 2);
    assert!(bindings.values().all(|binding| binding[0]["HostIp"] == "127.0.0.1"), "{body:#}");
    assert_eq!(host["ShmSize"], 256 << 20);
    assert_eq!(host["Ulimits"], json!([{"Name": "memlock", "Soft": -1, "Hard": -1}]));
    assert!(body["Labels"]["modelmeter.owner"].is_string() && host["DeviceRequests"].is_null(), "{body:#}");
    Ok(())
}

#[tokio::test]
async fn an_image_is_pulled_as_its_policy_says() -> Result<()> {
    for (more, is_here, is_pulled) in [
        ("pull = 'always'", true, true),
        ("pull = 'if-missing'", false, true),
        ("pull = 'if-missing'", true, false),
        ("", true, false),
        ("pull = 'never'", true, false),
    ] {
        let bench = Bench::new(IMAGE, more)?;
        bench.docker.publish(IMAGE, modelmeter::binary()?, &[]);
        if is_here {
            bench.docker.add(IMAGE, modelmeter::binary()?, &[]);
        }
        let output = bench.profile().await?;
        assert_eq!(output.code, Some(0), "{more}: {output:?}");
        let calls = bench.docker.calls();
        let pulled = calls.iter().any(|call| call.what == "POST /images/create");
        assert_eq!(pulled, is_pulled, "{more}, here: {is_here}: {calls:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn one_gpu_is_handed_over_by_its_uuid() -> Result<()> {
    let boxed = format!(
        "[engines.boxed]\nformats = ['onnx']\ndevices = ['gpu']\ncommand = [{SERVE}]\n[engines.boxed.docker]\nimage = '{IMAGE}'"
    );
    let bench = Bench::new(IMAGE, &boxed)?;
    bench.docker.add(IMAGE, modelmeter::binary()?, &[]);
    let driver = modelmeter_nvml_stub::install(bench.home.path(), "driver", TWO_GPUS)?;
    let profile = |device: &str| -> Result<Command> {
        let engine = |word: &'static str| if word == "rten" { "boxed" } else { word };
        let args: Vec<&str> = PROFILE.into_iter().map(engine).chain(["--json", "--devices", device]).collect();
        let mut command = bench.command(&args)?;
        command.env("MODELMETER_NVML", &driver);
        Ok(command)
    };
    for device in ["gpu:1", "GPU-b"] {
        let cells = modelmeter::output(profile(device)?, LIMIT).await?.json()?;
        let cell = &cells[0];
        assert_eq!((&cell["state"], &cell["device"]["class"]), (&json!("done"), &json!("nvidia-a10")), "{cell:#}");
        assert_eq!(cell["repeats"][0]["device_uuid"], "GPU-b", "{cell:#}");
    }
    let calls = bench.docker.calls();
    let made: Vec<_> = calls.iter().filter(|call| call.what == "POST /containers/create").collect();
    assert_eq!(made.len(), 2);
    for call in made {
        let asked = json!([{"DeviceIDs": ["GPU-b"], "Capabilities": [["gpu"]]}]);
        assert_eq!(call.body["HostConfig"]["DeviceRequests"], asked);
    }
    for device in ["gpu:2", "cpu"] {
        let refused = modelmeter::output(profile(device)?, LIMIT).await?;
        let said = format!("none here that --devices {device} means");
        assert!(refused.code == Some(2) && refused.err.contains(&said), "{refused:?}");
    }
    Ok(())
}

/// The built-in server as a user's own engine, which may be said to run on a GPU.
const SERVE: &str = "'serve', '--engine', 'rten', '--model', '{model}', '--model-name', '{model_name}', \
                     '--grpc-port', '{grpc_port}', '--http-port', '{http_port}'";

/// A driver of two GPUs of one class.
const TWO_GPUS: &str = r#"
driver = "570.86.15"
cuda = 12080
[[gpu]]
name = "NVIDIA A10"
uuid = "GPU-a"
memory_total_mib = 23028
timeline = [{ ms = 0, busy = 0.25, power_w = 90.0, memory_mib = 1000, sm_mhz = 1695, celsius = 50 }]
[[gpu]]
name = "NVIDIA A10"
uuid = "GPU-b"
memory_total_mib = 23028
timeline = [{ ms = 0, busy = 0.75, power_w = 100.0, memory_mib = 2000, sm_mhz = 1695, celsius = 60 }]
"#;

#[tokio::test]
async fn what_goes_wrong_is_said_with_what_to_do() -> Result<()> {
    let dies = "echo loading; echo no such operator >&2; exit 3";
    for (image, more, script, said) in [
        (IMAGE, "pull = 'never'", None, ["its pull policy is never", "docker pull"]),
        ("modelmeter/serve:gone", "", None, ["manifest unknown", "docker login"]),
        ("private/serve:1", "pull = 'always'", None, ["pull access denied", "docker login"]),
        (IMAGE, "pull = 'never'", Some(dies), ["exited with code 3 before it was ready", "no such operator"]),
    ] {
        let bench = Bench::new(image, more)?;
        if let Some(script) = script {
            bench.add_script(script);
        }
        let output = bench.profile().await?;
        assert_eq!(output.code, Some(1), "{output:?}");
        assert!(said.iter().all(|word| output.out.contains(word)), "{said:?} in {output:?}");
        assert_eq!(bench.docker.containers(), [""; 0]);
    }
    Ok(())
}

#[tokio::test]
async fn a_container_that_is_killed_while_it_is_measured_is_told_and_nothing_stays() -> Result<()> {
    let bench = Bench::new(IMAGE, "")?;
    bench.docker.add(IMAGE, modelmeter::binary()?, &[]);
    let home = bench.home.path();
    let point = ["--batch-sizes", "1", "--concurrency", "1", "--min-duration", "60s", "--max-duration", "60s"];
    let args: Vec<&str> = ["profile", "mlp", "--engines", "rten"].into_iter().chain(point).collect();
    let mut profile = Child::spawn("measured", bench.command(&args)?, &home.join("measured.log"))?;
    // An engine may fail three times before its cell does.
    for attempt in 1..=3 {
        let measured = || async { modelmeter::is_measuring(home, attempt).await.then_some(()) };
        eventually(&format!("it is measured, attempt {attempt}"), LIMIT, measured).await?;
        let (_, pid) = bench.running().await?;
        // SAFETY: a plain system call that touches no memory.
        assert_eq!(unsafe { libc::kill(i32::try_from(pid)?, libc::SIGKILL) }, 0);
    }
    let status = eventually("it exits", SOON, || std::future::ready(profile.ended())).await?;
    assert_eq!(status.code(), Some(1), "{}", profile.log());
    let results = modelmeter::run(home, &["results", "--json"], LIMIT).await?.json()?;
    let message = results[0]["error"]["message"].as_str().context("no message")?;
    for said in ["exited with code 137 while it was measured", "serving mlp with rten"] {
        assert!(message.contains(said), "{message}");
    }
    assert_eq!(bench.docker.containers(), [""; 0]);
    Ok(())
}

#[tokio::test]
async fn without_a_daemon_nothing_starts_and_the_reason_is_said() -> Result<()> {
    let bench = Bench::new(IMAGE, "")?;
    for (host, said) in [
        ("unix:///nowhere/docker.sock", "no Docker daemon answers at /nowhere/docker.sock"),
        ("tcp://h:1", "not a socket of this machine"),
    ] {
        let mut command = bench.command(&PROFILE)?;
        command.env("DOCKER_HOST", host);
        let output = modelmeter::output(command, LIMIT).await?;
        assert_eq!(output.code, Some(2), "{output:?}");
        assert!(output.err.contains(said) && output.err.contains("hint"), "{output:?}");
    }
    let mut engines = bench.command(&["engines"])?;
    engines.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
    let listed = modelmeter::output(engines, LIMIT).await?;
    assert!(listed.out.contains("no containers: no Docker daemon answers"), "{}", listed.out);
    let listed = modelmeter::output(bench.command(&["engines"])?, LIMIT).await?;
    assert!(listed.out.contains("in a container") && listed.out.contains("Docker stand-in"), "{}", listed.out);
    Ok(())
}

#[tokio::test]
async fn an_interruption_while_it_loads_leaves_no_container() -> Result<()> {
    let bench = Bench::new(IMAGE, "")?;
    bench.add_script("trap '' TERM; while :; do sleep 0.1; done");
    let mut profile = bench.begin("interrupted")?;
    let (_, pid) = bench.running().await?;
    profile.signal(libc::SIGINT)?;
    let ended = eventually("modelmeter ends", SOON, || async { bench.docker.containers().is_empty().then_some(()) });
    ended.await?;
    assert!(!is_alive(pid));
    let status = eventually("it exits", SOON, || std::future::ready(profile.ended())).await?;
    assert_eq!(status.code(), Some(130), "{}", profile.log());
    Ok(())
}

#[tokio::test]
async fn an_interruption_while_the_daemon_starts_it_leaves_no_container() -> Result<()> {
    let check = ["check", "mlp", "--engines", "rten"];
    for args in [&PROFILE[..], &check] {
        let bench = Bench::new(IMAGE, "")?;
        bench.add_script("sleep 1000");
        bench.docker.slow_down_starts(Duration::from_secs(2));
        let log = bench.home.path().join("interrupted.log");
        let mut interrupted = Child::spawn("interrupted", bench.command(args)?, &log)?;
        let start = "POST /containers/container1/start";
        eventually("a container is being started", SOON, || async { bench.call(start).ok() }).await?;
        assert_eq!(bench.docker.pid("container1"), None, "it runs already");
        interrupted.signal(libc::SIGINT)?;
        let status = eventually("it exits", SOON, || std::future::ready(interrupted.ended())).await?;
        assert_eq!(status.code(), Some(130), "{args:?}: {}", interrupted.log());
        assert_eq!(bench.docker.containers(), [""; 0], "{args:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_a_killed_worker_left_is_removed_by_the_next_one_alone() -> Result<()> {
    let bench = Bench::new(IMAGE, "")?;
    bench.add_script("sleep 1000");
    let others = [
        bench.docker.leave(json!({"modelmeter.owner": "of a version that is not known"})),
        bench.docker.leave(json!({"somebody.else": "1"})),
    ];
    let mut killed = bench.begin("killed")?;
    let orphan = eventually("a container runs", SOON, || async {
        let ids = bench.docker.containers();
        let id = ids.into_iter().find(|id| !others.contains(id))?;
        bench.docker.pid(&id).map(|pid| (id, pid))
    });
    let (orphan, pid) = orphan.await?;
    killed.kill()?;
    assert!(bench.docker.containers().contains(&orphan) && is_alive(pid), "the orphan is what this is about");

    bench.docker.add(IMAGE, modelmeter::binary()?, &[]);
    let output = bench.profile().await?;
    assert_eq!(output.code, Some(0), "{output:?}");
    assert!(bench.call(&format!("DELETE /containers/{orphan}")).is_ok() && !is_alive(pid));
    assert_eq!(bench.docker.containers(), others);
    Ok(())
}

/// With Docker and this project's image: `docker build -t modelmeter:local .`, then
/// `MODELMETER_TEST_IMAGE=modelmeter:local cargo test --release -p modelmeter-tests --test docker -- --ignored`.
#[tokio::test]
#[ignore = "needs a Docker daemon and an image with modelmeter in it; the command is above this test"]
async fn a_real_daemon_serves_a_profile_too() -> Result<()> {
    let bench = Bench::new(&env::var("MODELMETER_TEST_IMAGE")?, "pull = 'never'")?;
    let mut command = modelmeter::command(bench.home.path(), &PROFILE)?;
    command.arg("--json");
    let profiles = modelmeter::output(command, LIMIT).await?.json()?;
    let (state, engine) = (&profiles[0]["state"], &profiles[0]["engine"]);
    assert_eq!((state, &engine["launch"]), (&json!("done"), &json!("docker")), "{profiles:#}");
    assert!(engine["image_digest"].as_str().is_some_and(|digest| digest.contains("sha256:")), "{engine}");
    Ok(())
}
