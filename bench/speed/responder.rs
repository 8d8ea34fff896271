//! A KServe v2 server that costs next to nothing: raw HTTP/2 frames, one thread, any model name, 16 floats in and out.
//! It keeps its own record, against which clients are checked.
//!
//! `bench-responder null|stalls|log-normal [record]` prints its port. Each line on standard input is a path: it prints
//! what it saw since the line before as JSON, and with `record` writes each request's times there. It ends with its
//! standard input. `bench/speed.py` runs it.

mod conn;
mod headers;
#[path = "../../meter/src/transports/unary/hpack.rs"]
#[allow(dead_code)]
mod hpack;
mod kserve;
mod law;
mod record;

use anyhow::{Context, Result};
use conn::Conn;
use kserve::Method;
use law::Law;
use record::{Record, Seen};
use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    io::{self, BufRead, Write},
    net::{Ipv4Addr, TcpListener},
    os::fd::{AsRawFd, RawFd},
    path::Path,
    time::Instant,
};

const READ_BUFFER: usize = 256 << 10;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let law = Law::named(args.first().context("name a law: null, stalls or log-normal")?)?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    listener.set_nonblocking(true)?;
    println!("{}", listener.local_addr()?.port());
    let record = if args.iter().any(|a| a == "record") { Record::in_full() } else { Record::default() };
    // Without it a wait ends up to 50 µs after it should.
    // SAFETY: changes nothing but this thread's timer slack.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
    Responder { law, record, listener, conns: Vec::new(), waiting: BinaryHeap::new(), begun: Instant::now() }.run()
}

/// A call that is answered at its time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due_ns: u64,
    came_ns: u64,
    conn: RawFd,
    stream: u32,
    answer: Vec<u8>,
}

struct Responder {
    law: Law,
    record: Record,
    listener: TcpListener,
    conns: Vec<Conn>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    begun: Instant,
}

impl Responder {
    fn run(mut self) -> Result<()> {
        let mut buffer = vec![0; READ_BUFFER];
        loop {
            let ready = self.wait()?;
            if ready[0] && !self.mark()? {
                return Ok(());
            }
            let now = self.now_ns();
            for (conn, _) in self.conns.iter_mut().zip(&ready[2..]).filter(|(_, ready)| **ready) {
                conn.closed |= !conn.read(&mut buffer)?;
                for call in std::mem::take(&mut conn.calls) {
                    let answer = Method::ModelInfer.answer(&call.request);
                    let due_ns = self.law.due_ns(now);
                    if due_ns <= now {
                        conn.answer(call.stream, answer);
                        self.record.add(Seen { came_ns: now, answered_ns: now });
                    } else {
                        let (conn, stream) = (conn.socket.as_raw_fd(), call.stream);
                        self.waiting.push(Reverse(Waiting { due_ns, came_ns: now, conn, stream, answer }));
                    }
                }
            }
            self.answer_due();
            for conn in self.conns.iter_mut().filter(|c| c.wants_write()) {
                conn.closed |= !conn.write()?;
            }
            self.conns.retain(|c| !c.closed);
            if ready[1] {
                self.conns.push(Conn::new(self.listener.accept()?.0)?);
            }
        }
    }

    /// Waits for what comes first: a line, a client, bytes, or an answer's time. Says what is ready, in this order.
    fn wait(&self) -> Result<Vec<bool>> {
        let watch = |fd: RawFd, events| libc::pollfd { fd, events, revents: 0 };
        let mut watches = vec![watch(0, libc::POLLIN), watch(self.listener.as_raw_fd(), libc::POLLIN)];
        watches.extend(self.conns.iter().map(|c| {
            let write = if c.wants_write() { libc::POLLOUT } else { 0 };
            watch(c.socket.as_raw_fd(), libc::POLLIN | write)
        }));
        let spec = self.waiting.peek().map(|Reverse(next)| {
            let left = next.due_ns.saturating_sub(self.now_ns());
            libc::timespec { tv_sec: (left / 1_000_000_000) as i64, tv_nsec: (left % 1_000_000_000) as i64 }
        });
        let timeout = spec.as_ref().map_or(std::ptr::null(), |s| s as *const _);
        // SAFETY: the descriptors and the timespec outlive the call.
        let n = unsafe { libc::ppoll(watches.as_mut_ptr(), watches.len() as u64, timeout, std::ptr::null()) };
        if n < 0 {
            return Err(io::Error::last_os_error().into());
        }
        Ok(watches.iter().map(|w| w.revents != 0).collect())
    }

    fn answer_due(&mut self) {
        let mut now = self.now_ns();
        while self.waiting.peek().is_some_and(|Reverse(next)| next.due_ns <= now) {
            let Some(Reverse(due)) = self.waiting.pop() else { return };
            now = self.now_ns();
            if let Some(conn) = self.conns.iter_mut().find(|c| c.socket.as_raw_fd() == due.conn) {
                conn.answer(due.stream, due.answer);
                self.record.add(Seen { came_ns: due.came_ns, answered_ns: now });
            }
        }
    }

    /// Takes a line and prints what was seen. False at the end of the input.
    fn mark(&mut self) -> Result<bool> {
        let mut path = String::new();
        if io::stdin().lock().read_line(&mut path)? == 0 {
            return Ok(false);
        }
        println!("{}", self.record.mark(Path::new(path.trim()))?);
        io::stdout().flush()?;
        Ok(true)
    }

    fn now_ns(&self) -> u64 {
        self.begun.elapsed().as_nanos() as u64
    }
}
