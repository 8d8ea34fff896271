//! A KServe v2 server on a thread of its own that behaves as it is told and keeps its own record of each request.

use bytes::Bytes;
use modelmeter_meter::unary::grpc_frame;
use modelmeter_proto::kserve::{ModelInferRequest, ModelInferResponse, model_infer_response::InferOutputTensor};
use prost::Message;
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// What the server does with one request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers well after this long.
    After(Duration),
    /// Answers with a gRPC status after this long.
    Status(u32, Duration),
    /// Answers with a gRPC status and nothing else: one header block.
    TrailersOnly(u32),
    /// Answers with an HTTP status that is not gRPC's.
    Http(u16),
    /// Never answers.
    Never,
    /// Answers with these bytes as the body.
    Body(Bytes),
    /// Answers with a page.
    Page(u16, &'static str),
    /// Answers with a message that is compressed, as it says.
    Compressed,
    /// Resets the stream before it is begun.
    Refuse,
    /// Resets the stream.
    Reset,
    /// Drops the connection.
    Drop,
    /// Answers well, and takes no more calls on this connection.
    Leave,
}

/// What it does with the nth request, which came at this time.
pub type Behaviour = Box<dyn FnMut(usize, Instant) -> Reply + Send>;

/// One request as the server saw it.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// The number that the request carries as its id; 0 if none.
    pub id: usize,
    /// When its head had come.
    pub start: Instant,
    /// Just before the answer was written.
    pub end: Instant,
    pub ok: bool,
}

#[derive(Default)]
struct Record {
    seen: Mutex<Vec<Seen>>,
    came: AtomicUsize,
    connections: AtomicUsize,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    bodies: Mutex<BTreeSet<usize>>,
    /// Who writes an answer has it: the next one's end is noted when this one is on its way.
    pen: tokio::sync::Mutex<()>,
}

/// What the server says of itself in its settings.
#[derive(Clone, Copy)]
pub struct Settings {
    pub max_streams: u32,
    pub header_table: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { max_streams: 10_000, header_table: 4096 }
    }
}

/// Where it listens, and whether within TLS.
enum Listener {
    Tcp(TcpListener, Option<TlsAcceptor>),
    Unix(UnixListener),
}

struct Server {
    record: Arc<Record>,
    settings: Settings,
    behaviour: Mutex<Behaviour>,
}

pub struct Mock {
    pub address: SocketAddr,
    record: Arc<Record>,
    kill: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mock {
    pub fn start(behaviour: impl FnMut(usize, Instant) -> Reply + Send + 'static) -> Self {
        Self::with(Settings::default(), behaviour)
    }

    pub fn with(settings: Settings, behaviour: impl FnMut(usize, Instant) -> Reply + Send + 'static) -> Self {
        Self::of(settings, None, behaviour)
    }

    /// Within TLS.
    pub fn tls(acceptor: TlsAcceptor, behaviour: impl FnMut(usize, Instant) -> Reply + Send + 'static) -> Self {
        Self::of(Settings::default(), Some(acceptor), behaviour)
    }

    /// On a Unix socket at this path.
    pub fn unix(path: &Path, behaviour: impl FnMut(usize, Instant) -> Reply + Send + 'static) -> Self {
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = SocketAddr::from(([0, 0, 0, 0], 0));
        Self::run(
            address,
            move || Listener::Unix(UnixListener::from_std(listener).unwrap()),
            Settings::default(),
            behaviour,
        )
    }

    fn of(
        settings: Settings,
        acceptor: Option<TlsAcceptor>,
        behaviour: impl FnMut(usize, Instant) -> Reply + Send + 'static,
    ) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let listen = move || Listener::Tcp(TcpListener::from_std(listener).unwrap(), acceptor);
        Self::run(address, listen, settings, behaviour)
    }

    fn run(
        address: SocketAddr,
        listen: impl FnOnce() -> Listener + Send + 'static,
        settings: Settings,
        behaviour: impl FnMut(usize, Instant) -> Reply + Send + 'static,
    ) -> Self {
        let record = Arc::<Record>::default();
        let kill = CancellationToken::new();
        let server = Server { record: record.clone(), settings, behaviour: Mutex::new(Box::new(behaviour)) };
        let token = kill.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                token.run_until_cancelled(accept(listen(), Arc::new(server))).await;
            });
        });
        Self { address, record, kill, thread: Some(thread) }
    }

    pub fn endpoint(&self) -> String {
        self.address.to_string()
    }

    /// Every request that was answered, in the order of the answers.
    pub fn seen(&self) -> Vec<Seen> {
        self.record.seen.lock().unwrap().clone()
    }

    pub fn connections(&self) -> usize {
        self.record.connections.load(SeqCst)
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

/// The frame of a response with one output of this shape and these values.
pub fn response(shape: &[i64], values: &[f32]) -> Bytes {
    let output = InferOutputTensor {
        name: "y".into(),
        datatype: "FP32".into(),
        shape: shape.to_vec(),
        ..InferOutputTensor::default()
    };
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    grpc_frame(&ModelInferResponse {
        outputs: vec![output],
        raw_output_contents: vec![raw.into()],
        ..ModelInferResponse::default()
    })
    .unwrap()
}

async fn accept(listener: Listener, server: Arc<Server>) {
    loop {
        let server = server.clone();
        match &listener {
            Listener::Unix(listener) => _ = tokio::spawn(serve(listener.accept().await.unwrap().0, server)),
            Listener::Tcp(listener, acceptor) => {
                let (socket, _) = listener.accept().await.unwrap();
                socket.set_nodelay(true).unwrap();
                match acceptor.clone() {
                    None => _ = tokio::spawn(serve(socket, server)),
                    // A client that the handshake ends has no connection.
                    Some(acceptor) => {
                        tokio::spawn(async move {
                            if let Ok(socket) = acceptor.accept(socket).await {
                                serve(socket, server).await;
                            }
                        });
                    }
                }
            }
        }
    }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(socket: S, server: Arc<Server>) {
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(1 << 20).max_concurrent_streams(server.settings.max_streams);
    builder.header_table_size(server.settings.header_table);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(socket).await else { return };
    server.record.connections.fetch_add(1, SeqCst);
    let drop = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            () = drop.cancelled() => return,
        };
        let Some(Ok((request, respond))) = accepted else { return };
        let start = Instant::now();
        let now = server.record.in_flight.fetch_add(1, SeqCst) + 1;
        server.record.most_in_flight.fetch_max(now, SeqCst);
        let nth = server.record.came.fetch_add(1, SeqCst);
        let reply = (server.behaviour.lock().unwrap())(nth, start);
        if matches!(reply, Reply::Leave) {
            connection.graceful_shutdown();
        }
        tokio::spawn(answer(request, respond, start, reply, server.record.clone(), drop.clone()));
    }
}

/// The runtime's timer is good to about a millisecond; the rest is waited for awake.
async fn precisely(due: Instant) {
    tokio::time::sleep_until((due - Duration::from_millis(2)).into()).await;
    while Instant::now() < due {
        tokio::task::yield_now().await;
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
    let mut message = Vec::new();
    while let Some(Ok(chunk)) = body.data().await {
        message.extend_from_slice(&chunk);
        let _ = body.flow_control().release_capacity(chunk.len());
    }
    record.bodies.lock().unwrap().insert(message.len());
    let request = message.get(5..).map(ModelInferRequest::decode);
    let id = request.and_then(Result::ok).and_then(|r| r.id.parse().ok()).unwrap_or(0);
    let mut http = 200;
    let mut kind = "application/grpc";
    let mut encoding = "identity";
    let (body, status) = match reply {
        Reply::After(delay) => {
            precisely(start + delay).await;
            (response(&[1], &[1.0]), Some(0))
        }
        Reply::Status(status, delay) => {
            precisely(start + delay).await;
            (Bytes::new(), Some(status))
        }
        Reply::TrailersOnly(status) => {
            let head = http::Response::builder().header("grpc-status", status).header("grpc-message", "told%20so");
            record.in_flight.fetch_sub(1, SeqCst);
            record.seen.lock().unwrap().push(Seen { id, start, end: Instant::now(), ok: false });
            let _ = respond.send_response(head.body(()).unwrap(), true);
            return;
        }
        Reply::Page(status, page) => {
            (http, kind) = (status, "text/html; charset=utf-8");
            (Bytes::from_static(page.as_bytes()), None)
        }
        Reply::Compressed => {
            encoding = "gzip";
            ([b"\x01", &response(&[1], &[1.0])[1..]].concat().into(), Some(0))
        }
        Reply::Http(status) => {
            http = status;
            (Bytes::from_static(b"<html>"), None)
        }
        Reply::Body(body) => (body, Some(0)),
        Reply::Leave => (response(&[1], &[1.0]), Some(0)),
        Reply::Never => std::future::pending().await,
        Reply::Refuse => {
            record.in_flight.fetch_sub(1, SeqCst);
            return respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
        Reply::Reset => return respond.send_reset(h2::Reason::INTERNAL_ERROR),
        Reply::Drop => return drop.cancel(),
    };
    let head = http::Response::builder().status(http).header("content-type", kind).header("grpc-encoding", encoding);
    let head = head.body(()).unwrap();
    let _pen = record.pen.lock().await;
    record.in_flight.fetch_sub(1, SeqCst);
    record.seen.lock().unwrap().push(Seen { id, start, end: Instant::now(), ok: status == Some(0) });
    let Ok(mut stream) = respond.send_response(head, false) else { return };
    if !body.is_empty() {
        let _ = stream.send_data(body, status.is_none());
    }
    let Some(status) = status else { return };
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    if status != 0 {
        trailers.insert("grpc-message", "told%20so".parse().unwrap());
    }
    let _ = stream.send_trailers(trailers);
    // The connection's own task writes meanwhile.
    tokio::task::yield_now().await;
}
