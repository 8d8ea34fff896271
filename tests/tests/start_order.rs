//! A cluster whose parts start in the wrong order: each waits for what it needs, says so, and goes on by itself.

use anyhow::Result;
use modelmeter_tests::{
    Child, eventually, modelmeter,
    mongod::{Mode, Server},
    ports,
    rabbitmq::Node,
};
use std::{future::ready, time::Duration};

const LIMIT: Duration = Duration::from_secs(60);

async fn says(child: &Child, words: &str) -> Result<()> {
    eventually(words, LIMIT, || ready(child.log().contains(words).then_some(()))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinator_and_worker_wait_for_broker_hub_and_each_other() -> Result<()> {
    let home = tempfile::tempdir()?;
    let (mut rabbitmq, mut mongod) = tokio::try_join!(Node::start(), Server::start(Mode::Standalone))?;
    let (broker, hub) = (rabbitmq.url(), mongod.url("modelmeter"));
    let silent = format!("cannot reach the broker at 127.0.0.1:{}", rabbitmq.port());
    rabbitmq.kill()?;
    mongod.kill()?;
    let grpc = format!("127.0.0.1:{}", ports::free()?);
    let (url, locks) = (format!("http://{grpc}"), home.path().join("locks").display().to_string());
    let words = ["worker", "--broker", &broker, "--coordinator", &url, "--name", "w1", "--devices", "cpu"];
    let rest = ["--ports", "auto", "--shared-cpu", "--lock-dir", &locks];
    let mut worker = modelmeter::spawn("worker", &home.path().join("worker"), &[&words[..], &rest].concat())?;
    says(&worker, &silent).await?;

    let words = ["coordinator", "--broker", &broker, "--hub", &hub, "--listen", &grpc, "--http", "127.0.0.1:0"];
    let mut coordinator = modelmeter::spawn("coordinator", &home.path().join("coordinator"), &words)?;
    says(&coordinator, &silent).await?;

    rabbitmq.restart().await?;
    says(&coordinator, "waiting: cannot reach the hub").await?;
    says(&worker, "waiting: cannot reach a coordinator").await?;
    mongod.restart().await?;
    says(&coordinator, "coordinator ready").await?;
    says(&worker, "worker w1 ready").await?;
    assert!(worker.terminate(LIMIT).await?.success() && coordinator.terminate(LIMIT).await?.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_end_it_at_once() -> Result<()> {
    let home = tempfile::tempdir()?;
    let rabbitmq = Node::start().await?;
    let broker = format!("amqp://joe:hunter2@127.0.0.1:{}", rabbitmq.port());
    let hub = home.path().join("hub.sqlite").display().to_string();
    let words = ["coordinator", "--broker", &broker, "--hub", &hub, "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let mut coordinator = modelmeter::spawn("coordinator", home.path(), &words)?;
    let status = eventually("it ends", LIMIT, || ready(coordinator.ended())).await?;
    assert_eq!(status.code(), Some(2), "{}", coordinator.log());
    assert!(coordinator.log().contains("check user and password") && !coordinator.log().contains("hunter2"));
    Ok(())
}
