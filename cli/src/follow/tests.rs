#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use super::*;
use modelmeter_common::{
    SCHEMA_VERSION, TaskId, Timestamp,
    broker::{Broker, memory::MemoryBroker},
    device::Device,
    event::What,
    model::{ArtifactRef, Datatype, Dim, Format, Model, ModelRef, TensorSpec},
    request::Request,
    wire::{self, Hint},
};
use modelmeter_coordinator::{
    Handle, Options,
    hub::{self, Hub},
};
use modelmeter_proto::control::{
    AttemptRef, ClaimRequest, RegisterRequest, RenewRequest, Slot, attempt_fate::Fate, work_client::WorkClient,
};
use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::AbortHandle,
    time::timeout,
};
use tonic::transport::Channel;

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn what_broke_off_is_submitted_again_under_its_id() {
    let mut calls = 0;
    let answered = submit(RequestId::random(), async || {
        calls += 1;
        if calls < 2 { Err(Problem::new(Code::Unreachable, "the connection broke")) } else { Ok(4) }
    });
    assert_eq!(answered.await.unwrap(), 4);
    let refused = submit(RequestId::random(), async || Err(Problem::invalid("engines", "unknown engine 'x'"))).await;
    assert_eq!(refused.unwrap_err().exit_code(), 2);
}

/// Two coordinators on one hub, and a worker of one slot that is played here.
struct Bench {
    broker: Arc<dyn Broker>,
    first: Handle,
    second: Handle,
    work: WorkClient<Channel>,
    task: TaskId,
    _home: tempfile::TempDir,
}

impl Bench {
    async fn start() -> Self {
        let home = tempfile::tempdir().unwrap();
        let broker: Arc<dyn Broker> = Arc::new(MemoryBroker::new());
        let hub = hub::open(&home.path().join("hub.sqlite").display().to_string()).await.unwrap();
        assert!(hub.swap_model(None, &model()).await.unwrap());
        let (first, second) = (coordinator(&broker, &hub).await, coordinator(&broker, &hub).await);
        let channel = Channel::from_shared(format!("http://{}", first.grpc_addr())).unwrap().connect().await.unwrap();
        let (work, task) = (WorkClient::new(channel), TaskId(uuid::Uuid::nil()));
        Self { broker, first, second, work, task, _home: home }
    }

    /// Registers the worker, and claims the first task that it is given.
    async fn claim(&mut self) {
        let slot = Slot {
            device_json: serde_json::to_string(&Device::cpu("test", Some(1), Some(2))).unwrap(),
            engines: vec!["rten".into()],
            ..Slot::default()
        };
        let wire_version = wire::VERSION.into();
        let (worker, incarnation) = (String::from("w"), String::from("one"));
        let registration = RegisterRequest {
            worker: worker.clone(),
            incarnation: incarnation.clone(),
            slots: vec![slot],
            wire_version,
            ..RegisterRequest::default()
        };
        let queue = self.work.register(registration).await.unwrap().into_inner().queues.remove(0);
        let mut hints = self.broker.consume(&queue, 1).await.unwrap();
        let hint = timeout(LIMIT, hints.next()).await.expect("a hint").unwrap();
        let Hint { task_id } = wire::decode(&hint.body).unwrap();
        hint.ack().await.unwrap();
        self.task = task_id;
        let claim =
            ClaimRequest { task_id: task_id.to_string(), worker, incarnation, slot: 0, claim_id: "claim".into() };
        self.work.claim(claim).await.unwrap();
    }

    async fn says(&mut self, progress: &str) {
        let attempt = AttemptRef { task_id: self.task.to_string(), attempt: 1, progress: progress.into() };
        let renewal = RenewRequest { worker: "w".into(), incarnation: "one".into(), attempts: vec![attempt] };
        let reply = self.work.renew(renewal).await.unwrap().into_inner();
        assert_eq!(reply.fates[0].fate(), Fate::Renewed);
    }
}

async fn coordinator(broker: &Arc<dyn Broker>, hub: &Arc<dyn Hub>) -> Handle {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    modelmeter_coordinator::start(Options::new(broker.clone(), hub.clone()), listener, None).await.unwrap()
}

fn model() -> Model {
    let batch = vec![Dim::Dynamic("batch".into()), Dim::Fixed(4)];
    Model {
        schema_version: SCHEMA_VERSION,
        id: ModelRef { name: "m".into(), version: "1".into() },
        created_at: Timestamp::now(),
        artifacts: vec![ArtifactRef { format: Format::Onnx, sha256: "ab".repeat(32), bytes: 1 }],
        inputs: vec![TensorSpec { name: "x".into(), dtype: Datatype::Fp32, shape: batch }],
        outputs: Vec::new(),
        weights: Default::default(),
    }
}

/// Passes connections on, until they are cut.
struct Proxy {
    address: SocketAddr,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
    accepting: AbortHandle,
}

impl Proxy {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<AbortHandle>>>::default());
        let accepted = connections.clone();
        let accepting = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut server = TcpStream::connect(to).await.unwrap();
                let passing =
                    tokio::spawn(
                        async move { tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop) },
                    );
                accepted.lock().unwrap().push(passing.abort_handle());
            }
        });
        Self { address, connections, accepting: accepting.abort_handle() }
    }

    fn cut(&self) {
        self.connections.lock().unwrap().iter().for_each(AbortHandle::abort);
    }

    fn end(&self) {
        self.accepting.abort();
        self.cut();
    }
}

/// Takes news until the first cell says this; gives the numbers of the events and how often the whole status came.
async fn until(follower: &mut Follower<'_>, words: &str) -> (Vec<u64>, u32) {
    let (mut events, mut wholes) = (Vec::new(), 0);
    let says = |follower: &Follower<'_>| {
        follower.status.as_ref().is_some_and(|status| status.cells.iter().any(|c| c.reason.as_deref() == Some(words)))
    };
    while !says(follower) {
        let news = timeout(LIMIT, follower.next()).await.expect("it is told").unwrap();
        wholes += u32::from(news.status.is_some());
        let is_progress = |what: &What| matches!(what, What::Progress { .. });
        events.extend(news.events.iter().filter(|event| is_progress(&event.what)).map(|event| event.seq));
    }
    (events, wholes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_watch_is_resumed_and_each_event_comes_once() {
    let mut bench = Bench::start().await;
    let proxy = Proxy::start(bench.first.grpc_addr()).await;
    let addresses = [proxy.address.to_string(), bench.second.grpc_addr().to_string()];
    let mut client = Client::connect(&addresses).await.unwrap();
    let (id, engines) = (RequestId::random(), vec!["rten".to_owned()]);
    let request = Request { model: "m".into(), engines, batch_sizes: vec![1, 2], ..Request::default() };
    client.submit(id, &request).await.unwrap();
    bench.claim().await;
    let mut follower = Follower::new(&mut client, id);
    bench.says("ready").await;
    until(&mut follower, "ready").await;

    let (mut events, mut wholes, mut last) = (Vec::new(), 0, String::new());
    for time in 0..30 {
        if time % 10 == 5 {
            proxy.cut();
        }
        last = format!("{time} calls");
        bench.says(&last).await;
        let told = until(&mut follower, &last).await;
        events.extend(told.0);
        wholes += told.1;
    }
    assert_eq!(proxy.connections.lock().unwrap().len(), 4, "each cut needs a new connection");
    assert_eq!((events.len(), wholes), (30, 0), "{last}: {events:?}");
    assert!(events.windows(2).all(|pair| pair[1] == pair[0] + 1), "{events:?}");

    // The other coordinator does not know the place: the whole anew, and then its own events.
    proxy.end();
    bench.says("at the other").await;
    let (_, wholes) = until(&mut follower, "at the other").await;
    assert_eq!(wholes, 1);
    bench.says("and on").await;
    let (events, wholes) = until(&mut follower, "and on").await;
    assert_eq!((events.len(), wholes), (1, 0));
    bench.first.stop().await;
    bench.second.stop().await;
}
