//! A server that is never late: one thread, raw frames, awake before each answer is due. What it costs stays below what
//! the tests of truth tolerate, which an async runtime's timers and tasks do not.

use super::{
    mock::{Reply, Seen},
    raw,
};
use modelmeter_proto::kserve::ModelInferRequest;
use prost::Message;
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// An answer nearer than this is waited for awake.
const AWAKE: Duration = Duration::from_micros(100);
/// It looks whether it shall end at least this often.
const LOOK: Duration = Duration::from_millis(20);
const PREFACE: usize = 24;
const HEADER: usize = 9;
/// No frame of the client's is longer, and all of a run's together are not.
const WINDOW: u32 = 1 << 30;

pub struct Prompt {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Prompt {
    /// Answers by this law, of whose replies it knows `After` and `Status`.
    pub fn start(law: impl FnMut(usize, Instant) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, ends) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicBool>::default());
        let server =
            Server { listener, law, seen: seen.clone(), conns: Vec::new(), waiting: BinaryHeap::new(), came: 0 };
        let end = ends.clone();
        let thread = std::thread::spawn(move || server.run(&end));
        Self { address, seen, ends, thread: Some(thread) }
    }

    /// Every request that was answered, in the order of the answers.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        self.ends.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the server panicked");
        }
    }
}

struct Conn {
    socket: TcpStream,
    /// The client has hung up.
    gone: bool,
    inbox: Vec<u8>,
    greeted: bool,
}

/// A call that is answered when it is due; they are due in this order.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    start: Instant,
    id: usize,
    conn: usize,
    stream: u32,
    status: u32,
}

struct Server<L> {
    listener: TcpListener,
    law: L,
    seen: Arc<Mutex<Vec<Seen>>>,
    conns: Vec<Conn>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    came: usize,
}

impl<L: FnMut(usize, Instant) -> Reply> Server<L> {
    fn run(mut self, ends: &AtomicBool) {
        let mut buffer = vec![0; 64 << 10];
        while !ends.load(Relaxed) {
            let ready = self.wait();
            for (conn, _) in ready[1..].iter().enumerate().filter(|(_, ready)| **ready) {
                self.read(conn, &mut buffer);
            }
            self.answer_due();
            if ready[0] {
                let (socket, _) = self.listener.accept().unwrap();
                self.greet(socket);
            }
        }
    }

    /// Until bytes or a client come, or an answer is nearly due. What is ready: the listener, then each connection.
    fn wait(&self) -> Vec<bool> {
        let watch = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let conns = self.conns.iter().map(|c| watch(if c.gone { -1 } else { c.socket.as_raw_fd() }));
        let mut watches: Vec<_> = std::iter::once(watch(self.listener.as_raw_fd())).chain(conns).collect();
        let due = self.waiting.peek().map(|Reverse(next)| next.due.saturating_duration_since(Instant::now()));
        let left = due.map_or(LOOK, |left| left.saturating_sub(AWAKE).min(LOOK));
        let spec = libc::timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) };
        // SAFETY: the descriptors and the timespec outlive the call.
        unsafe { libc::ppoll(watches.as_mut_ptr(), watches.len() as u64, &raw const spec, std::ptr::null()) };
        watches.iter().map(|w| w.revents != 0).collect()
    }

    /// With windows that never fill.
    fn greet(&mut self, mut socket: TcpStream) {
        socket.set_nodelay(true).unwrap();
        let settings = raw::frame(raw::SETTINGS, 0, 0, &[&[0, 4], &WINDOW.to_be_bytes()[..]].concat());
        let window = raw::frame(raw::WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
        socket.write_all(&[settings, window].concat()).unwrap();
        socket.set_nonblocking(true).unwrap();
        self.conns.push(Conn { socket, gone: false, inbox: Vec::new(), greeted: false });
    }

    fn read(&mut self, conn: usize, buffer: &mut [u8]) {
        let n = match self.conns[conn].socket.read(buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(_) => 0,
        };
        let start = Instant::now();
        if n == 0 {
            // Nobody waits for its answers.
            self.conns[conn].gone = true;
            return self.waiting.retain(|Reverse(waiting)| waiting.conn != conn);
        }
        self.conns[conn].inbox.extend_from_slice(&buffer[..n]);
        while let Some((stream, message)) = self.conns[conn].next_message() {
            let (delay, status) = match (self.law)(self.came, start) {
                Reply::After(delay) => (delay, 0),
                Reply::Status(status, delay) => (delay, status),
                other => panic!("a reply that this server has not: {other:?}"),
            };
            self.came += 1;
            let id = ModelInferRequest::decode(&message[5..]).unwrap().id.parse().unwrap_or(0);
            self.waiting.push(Reverse(Waiting { due: start + delay, start, id, conn, stream, status }));
        }
    }

    fn answer_due(&mut self) {
        while self.waiting.peek().is_some_and(|Reverse(next)| next.due <= Instant::now()) {
            let Some(Reverse(due)) = self.waiting.pop() else { return };
            let answer = if due.status == 0 { raw::answer(due.stream) } else { raw::failure(due.stream, due.status) };
            let seen = Seen { id: due.id, start: due.start, end: Instant::now(), ok: due.status == 0 };
            // A client that has gone does not want it.
            if self.conns[due.conn].socket.write_all(&answer).is_ok() {
                self.seen.lock().unwrap().push(seen);
            }
        }
    }
}

impl Conn {
    /// The stream and the data of the next call that is whole, which comes in one frame.
    fn next_message(&mut self) -> Option<(u32, Vec<u8>)> {
        if !self.greeted {
            self.greeted = self.inbox.len() >= PREFACE;
            self.inbox.drain(..if self.greeted { PREFACE } else { return None });
        }
        loop {
            let &[a, b, c, kind, _, d, e, f, g] = self.inbox.first_chunk::<HEADER>()?;
            let end = HEADER + u32::from_be_bytes([0, a, b, c]) as usize;
            if self.inbox.len() < end {
                return None;
            }
            let payload = self.inbox.drain(..end).skip(HEADER).collect();
            if kind == raw::DATA {
                return Some((u32::from_be_bytes([d, e, f, g]), payload));
            }
        }
    }
}
