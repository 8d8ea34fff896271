//! Servers that already run, as they are met: behind a real nginx, over TLS, on a Unix socket, still starting, or not there.

use anyhow::{Context, Result};
use modelmeter_tests::{Child, eventually, modelmeter, nginx, nginx::Nginx, ports};
use serde_json::Value;
use std::{net::TcpStream, path::Path, time::Duration};

const LIMIT: Duration = Duration::from_secs(120);
const MODEL: &str = "m";

/// Our own server with the engine that answers at once.
fn start_server(home: &Path, port: u16) -> Result<Child> {
    let (model, port) = (home.join("m.onnx").display().to_string(), port.to_string());
    let args = ["serve", "--engine", "null", "--model", &model, "--model-name", MODEL];
    modelmeter::spawn("server", home, &[&args[..], &["--grpc-port", &port, "--http-port", "0"]].concat())
}

async fn serve(home: &Path, port: u16) -> Result<Child> {
    let server = start_server(home, port)?;
    let listens = || std::future::ready(TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
    eventually("the server listens", LIMIT, listens).await?;
    Ok(server)
}

/// A home with locks of its own, and the model's file.
async fn prepare(home: &Path) -> Result<()> {
    std::fs::create_dir_all(home)?;
    std::fs::write(home.join("modelmeter.toml"), format!("[worker]\nlock_dir = '{}'\n", home.join("locks").display()))?;
    let path = home.join("m.onnx").display().to_string();
    let written = modelmeter::run(home, &["model", "write", "mlp", &path], LIMIT).await?;
    anyhow::ensure!(written.code == Some(0), "{written:?}");
    Ok(())
}

async fn profile(home: &Path, endpoint: &str, more: &[&str]) -> Result<modelmeter::Output> {
    let args = ["profile", "--endpoint", endpoint, "--model", MODEL, "--batch-sizes", "1", "--max-duration", "20s"];
    modelmeter::run(home, &[&args[..], more].concat(), LIMIT).await
}

/// The point of the only cell that was asked for; the reference, with one call at a time, comes before it.
fn point(output: &modelmeter::Output) -> Result<Value> {
    let profiles = output.json()?;
    let cell = profiles.as_array().and_then(|cells| cells.first()).context("no cell")?;
    anyhow::ensure!(cell["state"] == "done", "{cell:#}");
    cell["points"].as_array().and_then(|points| points.last()).cloned().context("no point")
}

#[tokio::test]
async fn a_real_nginx_fails_no_call_plain_or_in_tls() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path();
    prepare(home).await?;
    let upstream = ports::free()?;
    let _server = serve(home, upstream).await?;
    let nginx = Nginx::start(upstream).await?;
    let ca = nginx::ca().display().to_string();
    let plain = (format!("http://127.0.0.1:{}", nginx.plain), &[][..]);
    let tls = (format!("https://localhost:{}", nginx.tls), &["--ca", &ca][..]);
    for (endpoint, flags) in [plain, tls] {
        let load = ["--concurrency", "32", "--batches", "5000", "--json"];
        let point = point(&profile(home, &endpoint, &[&load[..], flags].concat()).await?)?;
        assert_eq!((&point["requests"], &point["errors"]), (&5000.into(), &0.into()), "{endpoint}: {point:#}");
        assert_eq!(point["valid"], true, "{endpoint}: {point:#}");
        // Five connections or more ended, with up to 31 calls on their way.
        assert!(point["resent"].as_u64().is_some_and(|n| n > 0), "{endpoint}: {point:#}");
    }
    let open = ["--rate", "400", "--batches", "2000", "--json"];
    // Where others keep the cores busy, sends are late and the point is invalid: but no call fails.
    let output = profile(home, &format!("127.0.0.1:{}", nginx.plain), &open).await?;
    let cells: Value = serde_json::from_str(&output.out)?;
    let point = &cells[0]["points"][0];
    assert_eq!((&point["requests"], &point["errors"]), (&2000.into(), &0.into()), "{point:#}");
    Ok(())
}

#[tokio::test]
async fn what_a_proxy_says_instead_is_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path();
    prepare(home).await?;
    let nobody = ports::free()?;
    let nginx = Nginx::start(nobody).await?;
    let told = async |endpoint: &str, flags: &[&str], words: &[&str]| -> Result<()> {
        let output = profile(home, endpoint, flags).await?;
        anyhow::ensure!(output.code == Some(2), "{output:?}");
        for word in words {
            assert!(output.err.contains(word), "{word} in {}", output.err);
        }
        Ok(())
    };
    let (plain, tls) = (format!("127.0.0.1:{}", nginx.plain), format!("localhost:{}", nginx.tls));
    told(&plain, &["--no-wait"], &["502", "'502 Bad Gateway", "proxy"]).await?;
    told(&tls, &[], &["speaks TLS", &format!("https://{tls}")]).await?;
    told(&format!("https://{tls}"), &[], &["TLS certificate", "--ca FILE", "--insecure"]).await?;
    told(&format!("https://{plain}"), &["--insecure"], &["TLS", "host:port"]).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_still_starting_is_waited_for_and_told() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path();
    prepare(home).await?;
    let port = ports::free()?;
    let endpoint = format!("127.0.0.1:{port}");
    let load = ["--concurrency", "1", "--batches", "50", "--json"];
    let refused = profile(home, &endpoint, &[&load[..], &["--no-wait"]].concat()).await?;
    assert!(refused.code == Some(2) && refused.err.contains("refused"), "{refused:?}");
    // A log that fills as it goes shows when it waits.
    let words = ["profile", "--endpoint", &endpoint, "--model", MODEL, "--batch-sizes", "1"];
    let mut waiting = modelmeter::spawn("profile", home, &[&words[..], &load].concat())?;
    let said = || std::future::ready(waiting.log().contains("waiting for a gRPC server at").then_some(()));
    eventually("the profile says that it waits", LIMIT, said).await?;
    let _server = serve(home, port).await?;
    let ended = eventually("the profile ends", LIMIT, || std::future::ready(waiting.ended())).await?;
    assert!(ended.success(), "{}", waiting.log());
    Ok(())
}
