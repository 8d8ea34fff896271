//! Two coordinators that tell each other over a real RabbitMQ what happens: how soon a follower's watcher is told, and that it
//! is told again after the broker was killed.

use anyhow::{Context, Result};
use modelmeter_common::{
    RequestId, SCHEMA_VERSION, TaskId, Timestamp,
    broker::{Broker, amqp},
    device::Device,
    event::RequestEvent,
    model::{ArtifactRef, Datatype, Dim, Format, Model, ModelRef, TensorSpec},
    request::Request,
    status::Status,
    wire::{self, Hint},
};
use modelmeter_coordinator::{
    Handle, Options,
    core::Leadership,
    hub::{self, Hub},
};
use modelmeter_proto::control::{
    AttemptRef, ClaimRequest, RegisterRequest, RenewRequest, Slot, SubmitRequest, WatchReply, WatchRequest,
    control_client::ControlClient, work_client::WorkClient,
};
use modelmeter_tests::{eventually, rabbitmq::Node};
use std::{
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, time::timeout};
use tonic::{Streaming, transport::Channel};

const LIMIT: Duration = Duration::from_secs(60);
/// Far below the second after which a watcher that hears nothing looks.
const AT_ONCE: Duration = Duration::from_millis(250);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followers_watcher_is_told_at_once_also_after_the_broker_was_killed() -> Result<()> {
    let (mut node, home) = (Node::start().await?, tempfile::tempdir()?);
    let hub = hub::open(&home.path().join("hub.sqlite").display().to_string()).await?;
    anyhow::ensure!(hub.swap_model(None, &model()).await?);
    let broker: Arc<dyn Broker> = Arc::new(amqp::connect(&node.url()).await?);
    let leader = coordinator(&broker, &hub).await?;
    let leads = || ready((leader.leadership() != Leadership::Follower).then_some(()));
    eventually("the first leads", LIMIT, leads).await?;
    let others: Arc<dyn Broker> = Arc::new(amqp::connect(&node.url()).await?);
    let follower = coordinator(&others, &hub).await?;
    let mut control = ControlClient::new(channel(&follower).await?);
    let mut work = WorkClient::new(channel(&leader).await?);

    let queue = work.register(registration()?).await?.into_inner().queues.remove(0);
    let mut hints = broker.consume(&queue, 1).await?;
    let id = RequestId::random();
    let request =
        Request { model: "m".into(), engines: vec!["rten".into()], batch_sizes: vec![1], ..Request::default() };
    let asked = Instant::now();
    control
        .submit(SubmitRequest { request_id: id.to_string(), request_json: serde_json::to_string(&request)? })
        .await?;
    let hint = timeout(LIMIT, hints.next()).await.context("no hint")??;
    eprintln!("the leader queues {:.1?} after the follower was asked", asked.elapsed());
    let Hint { task_id } = wire::decode(&hint.body)?;
    hint.ack().await?;
    let (worker, incarnation, claim_id) = ("w".to_owned(), "one".to_owned(), "claim".to_owned());
    work.claim(ClaimRequest { task_id: task_id.to_string(), worker, incarnation, slot: 0, claim_id }).await?;

    let mut watcher = Watcher::begin(&mut control, id).await?;
    let told = watcher.delay(&mut work, task_id, "before", 20).await?;
    node.restart().await?;
    eventually("the coordinators hear each other again", LIMIT, || async {
        let queues = node.ctl(&["list_queues", "name"]).await.ok()?;
        (queues.matches("modelmeter.subscription").count() == 2).then_some(())
    })
    .await?;
    // The first may come with a look at the hub, while the bulletins begin to pass.
    watcher.delay(&mut work, task_id, "between", 1).await?;
    let again = watcher.delay(&mut work, task_id, "after", 20).await?;
    eprintln!("a follower shows the leader's change after {told:.1?}, and {again:.1?} after a restart of the broker");
    assert!(told < AT_ONCE && again < AT_ONCE, "{told:?}, {again:?}");
    follower.stop().await;
    leader.stop().await;
    tokio::join!(broker.close(), others.close());
    node.stop().await
}

struct Watcher {
    replies: Streaming<WatchReply>,
    status: Option<Status>,
}

impl Watcher {
    async fn begin(control: &mut ControlClient<Channel>, id: RequestId) -> Result<Self> {
        let replies =
            control.watch(WatchRequest { request_id: id.to_string(), ..Default::default() }).await?.into_inner();
        Ok(Self { replies, status: None })
    }

    /// The worker says something new so many times; gives the median of how long each takes to be shown.
    async fn delay(
        &mut self,
        work: &mut WorkClient<Channel>,
        task: TaskId,
        word: &str,
        times: u32,
    ) -> Result<Duration> {
        let mut delays = Vec::new();
        for time in 0..times {
            let progress = format!("{word} {time}");
            let attempt = AttemptRef { task_id: task.to_string(), attempt: 1, progress: progress.clone() };
            let began = Instant::now();
            work.renew(RenewRequest { worker: "w".into(), incarnation: "one".into(), attempts: vec![attempt] }).await?;
            while !self.says(&progress) {
                let reply = timeout(LIMIT, self.replies.message()).await.context("not told")??;
                self.take(reply.context("it ended")?)?;
            }
            delays.push(began.elapsed());
        }
        delays.sort();
        Ok(delays[delays.len() / 2])
    }

    fn says(&self, words: &str) -> bool {
        let says = |status: &Status| status.cells.iter().any(|cell| cell.reason.as_deref() == Some(words));
        self.status.as_ref().is_some_and(says)
    }

    fn take(&mut self, reply: WatchReply) -> Result<()> {
        if !reply.status_json.is_empty() {
            self.status = Some(serde_json::from_str(&reply.status_json)?);
        }
        let status = self.status.as_mut().context("the whole comes first")?;
        for event in &reply.events_json {
            status.apply(&serde_json::from_str::<RequestEvent>(event)?);
        }
        Ok(())
    }
}

async fn coordinator(broker: &Arc<dyn Broker>, hub: &Arc<dyn Hub>) -> Result<Handle> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let options = Options::new(broker.clone(), hub.clone());
    Ok(modelmeter_coordinator::start(options, listener, None).await?)
}

async fn channel(coordinator: &Handle) -> Result<Channel> {
    Ok(Channel::from_shared(format!("http://{}", coordinator.grpc_addr()))?.connect().await?)
}

fn registration() -> Result<RegisterRequest> {
    let slot = Slot {
        device_json: serde_json::to_string(&Device::cpu("test", Some(1), Some(2)))?,
        engines: vec!["rten".into()],
        ..Slot::default()
    };
    let (worker, incarnation, wire_version) = ("w".to_owned(), "one".to_owned(), wire::VERSION.into());
    Ok(RegisterRequest { worker, incarnation, slots: vec![slot], wire_version, ..RegisterRequest::default() })
}

fn model() -> Model {
    let shape = vec![Dim::Dynamic("batch".into()), Dim::Fixed(4)];
    Model {
        schema_version: SCHEMA_VERSION,
        id: ModelRef { name: "m".into(), version: "1".into() },
        created_at: Timestamp::now(),
        artifacts: vec![ArtifactRef { format: Format::Onnx, sha256: "ab".repeat(32), bytes: 1 }],
        inputs: vec![TensorSpec { name: "x".into(), dtype: Datatype::Fp32, shape }],
        outputs: Vec::new(),
        weights: Default::default(),
    }
}
