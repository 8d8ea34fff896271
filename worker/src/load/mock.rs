//! A gRPC server for tests, on a thread of its own, that keeps its own record of each request.

use bytes::Bytes;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// What the server does with one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers well after this long.
    After(Duration),
    /// Answers with a gRPC status.
    Status(u32),
    /// Never answers.
    Never,
    /// Answers with these bytes as the body.
    Body(Vec<u8>),
    /// Resets the stream.
    Reset,
    /// Drops the connection.
    Drop,
}

pub type Behaviour = Arc<dyn Fn(usize) -> Reply + Send + Sync>;

/// One request as the server saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    pub start: Instant,
    pub end: Instant,
}

#[derive(Default)]
struct Record {
    seen: Mutex<Vec<Seen>>,
    nth: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    bodies: Mutex<BTreeSet<usize>>,
}

pub struct Mock {
    pub address: SocketAddr,
    record: Arc<Record>,
    kill: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mock {
    pub fn start(behaviour: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let record = Arc::new(Record::default());
        let kill = CancellationToken::new();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (r, k, behaviour): (_, _, Behaviour) = (Arc::clone(&record), kill.clone(), Arc::new(behaviour));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::from_std(listener).unwrap();
                k.run_until_cancelled(accept(listener, r, behaviour)).await;
            });
        });
        Self { address, record, kill, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Every request that was answered, in the order of the ends.
    pub fn seen(&self) -> Vec<Seen> {
        self.record.seen.lock().unwrap().clone()
    }

    pub fn most_in_flight(&self) -> usize {
        self.record.most_in_flight.load(SeqCst)
    }

    /// The sizes of the requests' bodies.
    pub fn body_sizes(&self) -> BTreeSet<usize> {
        self.record.bodies.lock().unwrap().clone()
    }

    /// Closes the port and every connection.
    pub fn kill(&mut self) {
        self.kill.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn accept(listener: TcpListener, record: Arc<Record>, behaviour: Behaviour) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        socket.set_nodelay(true).unwrap();
        tokio::spawn(serve(socket, Arc::clone(&record), Arc::clone(&behaviour)));
    }
}

async fn serve(socket: TcpStream, record: Arc<Record>, behaviour: Behaviour) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).max_concurrent_streams(10_000);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
    let drop = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = drop.cancelled() => return,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let start = Instant::now();
        let now = record.in_flight.fetch_add(1, SeqCst) + 1;
        record.most_in_flight.fetch_max(now, SeqCst);
        let reply = behaviour(record.nth.fetch_add(1, SeqCst));
        tokio::spawn(answer(request, respond, start, reply, Arc::clone(&record), drop.clone()));
    }
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
    start: Instant,
    reply: Reply,
    record: Arc<Record>,
    drop: CancellationToken,
) {
    let mut body = request.into_body();
    let mut size = 0;
    while let Some(Ok(chunk)) = body.data().await {
        size += chunk.len();
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    record.bodies.lock().unwrap().insert(size);
    let (body, status) = match reply {
        Reply::After(delay) => {
            // Waits with what precision the runtime has; the record says how long it was.
            tokio::time::sleep(delay).await;
            (b"\0\0\0\0\x02ok".to_vec(), 0)
        }
        Reply::Status(status) => (Vec::new(), status),
        Reply::Body(body) => (body, 0),
        Reply::Never => std::future::pending().await,
        Reply::Reset => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Reply::Drop => return drop.cancel(),
    };
    let response = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut stream) = respond.send_response(response, false) else { return };
    if !body.is_empty() {
        let _ = stream.send_data(body.into(), false);
    }
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    if status != 0 {
        trailers.insert("grpc-message", "told%20so".parse().unwrap());
    }
    record.in_flight.fetch_sub(1, SeqCst);
    record.seen.lock().unwrap().push(Seen { start, end: Instant::now() });
    let _ = stream.send_trailers(trailers);
}
