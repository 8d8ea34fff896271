//! The Python package's `results` on the three sources of the same profiles: the SQLite hub of a home, MongoDB, and the
//! HTTP port of a coordinator. The hubs are filled by their own adapters.

use anyhow::{Context, Result, ensure};
use modelmeter_common::{broker::memory::MemoryBroker, profile::Profile};
use modelmeter_coordinator::{Options, hub};
use modelmeter_tests::{
    modelmeter,
    mongod::{Mode, Server},
};
use std::{
    collections::BTreeMap,
    env,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, process::Command};

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_are_the_same_from_every_source() -> Result<()> {
    let home = tempfile::tempdir()?;
    let measured = measure(home.path()).await?;
    let server = Server::start(Mode::Standalone).await?;
    let mongo = hub::open(&server.url("modelmeter")).await?;
    let sqlite = hub::open(&format!("sqlite:{}", home.path().join("hub.sqlite").display())).await?;
    for profile in measured {
        let labelled = labelled(&profile);
        ensure!(sqlite.put_profile(&labelled, Some(profile.revision)).await?, "{} was not there", profile.id);
        ensure!(mongo.put_profile(&labelled, None).await?, "{} was there", profile.id);
    }

    let listen = async || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await;
    let options = Options { read_only: true, ..Options::new(Arc::new(MemoryBroker::new()), mongo) };
    let coordinator = modelmeter_coordinator::start(options, listen().await?, Some(listen().await?)).await?;
    let http = coordinator.http_addr().context("an HTTP port")?;
    let compared = compare(home.path(), &server.url("modelmeter"), &format!("http://{http}")).await;
    coordinator.stop().await;
    compared
}

/// Two models in the SQLite hub of this home, and a cell that fails since its engine refuses the batch size.
async fn measure(home: &Path) -> Result<Vec<Profile>> {
    let mut profiles = Vec::new();
    for (model, timeout) in [("mlp", "10s"), ("mobilenet_v2", "1ms")] {
        let words = ["profile", model, "--json", "--engines", "rten", "--batch-sizes", "1,2", "--batches", "200"];
        let more = ["--concurrency", "1,2", "--ports", "auto", "--sla", "p95=5s", "--timeout", timeout];
        let mut command = modelmeter::command(home, &[&words[..], &more].concat())?;
        // What others measure on this machine meanwhile does not matter.
        command.env("MODELMETER_WORKER_LOCK_DIR", home.join("locks"));
        let output = modelmeter::output(command, LIMIT).await?;
        let read: Vec<Profile> = serde_json::from_str(&output.out).with_context(|| output.err)?;
        profiles.extend(read);
    }
    Ok(profiles)
}

/// With labels of every kind that the hubs keep differently.
fn labelled(profile: &Profile) -> Profile {
    let of_two = [("team", "vision"), ("a.b", "$c")];
    let of_one = [("team", "vision"), ("built_at", "2026-03-20T14:34:56.789Z")];
    let labels: &[(&str, &str)] = if profile.batch_size == 2 { &of_two } else { &of_one };
    let labels: BTreeMap<_, _> = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Profile { labels, revision: profile.revision + 1, ..profile.clone() }
}

async fn compare(home: &Path, mongo: &str, http: &str) -> Result<()> {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let package = env::var_os("MODELMETER_TEST_PACKAGE").map_or(checkout.join(".deps/package"), PathBuf::from);
    let python = package.join("bin/python");
    ensure!(python.exists(), "{} is missing: scripts/setup makes it", python.display());
    let mut command = Command::new(python);
    command.arg(checkout.join("python/tests/sources.py")).arg(home).args([mongo, http]).kill_on_drop(true);
    let output = tokio::time::timeout(LIMIT, command.output()).await.context("it did not end")??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said.contains("the same answers"), "{said}");
    Ok(())
}
