//! Messages between meter and client: the meter gives orders and steers, the client reports.

use crate::{
    endpoint::{Endpoint, Route},
    record::{
        Failure,
        recorder::{Sends, Window},
    },
    schedule::Pacer,
};
use modelmeter_common::{Problem, load::LoadPoint};
use std::{
    io::{self, Write},
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::sync::mpsc::UnboundedReceiver;

/// Orders for a client.
pub struct Orders {
    /// The server.
    pub endpoint: Endpoint,
    /// When calls are due.
    pub pacer: Pacer,
    /// How long a call may take.
    pub timeout: Duration,
    /// Open loop: calls in flight beyond which none is sent.
    pub max_in_flight: usize,
    /// Logical cores for the client's thread.
    pub cpus: Option<Arc<[u32]>>,
    /// Starts measuring at once, and ends after this many calls.
    pub at_once: Option<u64>,
    pub(crate) route: Route,
}

impl std::fmt::Debug for Orders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Orders").field("endpoint", &self.endpoint).field("pacer", &self.pacer).finish_non_exhaustive()
    }
}

/// A client that runs. Dropping it stops the client.
#[derive(Debug)]
pub struct Started {
    pub(crate) control: Control,
    pub(crate) reports: UnboundedReceiver<Report>,
}

impl Orders {
    /// One call after another at this endpoint, until told otherwise.
    ///
    /// # Errors
    /// `unreachable` for a name that does not resolve.
    pub(crate) async fn new(endpoint: &Endpoint, timeout: Duration) -> Result<Self, Problem> {
        Ok(Self {
            route: endpoint.route().await?,
            endpoint: endpoint.clone(),
            pacer: Pacer::new(LoadPoint::Closed { concurrency: 1 }, 0),
            timeout,
            max_in_flight: 1,
            cpus: None,
            at_once: None,
        })
    }
}

/// A message from the client.
#[derive(Debug)]
pub(crate) enum Report {
    /// A stretch of the run.
    Window(Box<Window>),
    /// One whole answer.
    Answer(Vec<u8>),
    /// A failure's own words, the first of each kind in a run.
    Words(Failure, String),
    /// No connection stands, and another attempt at one failed.
    Down { failure: Failure, words: String },
    /// A connection stands again, after [`Report::Down`].
    Up,
    /// The last report: the client has ended.
    Ended(Box<Sends>),
}

const RUN: u8 = 0;
pub(crate) const DRAIN: u8 = 1;
pub(crate) const STOP: u8 = 2;

/// State that meter and client share.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub state: AtomicU8,
    pub phase: AtomicU32,
    pub limit: AtomicU64,
    pub width_ns: AtomicU64,
    /// An answer is being kept or checked: no other answer is kept meanwhile.
    pub checking: AtomicBool,
    /// An open loop has no call due or in flight: its silence does not count against the server.
    pub idle: AtomicBool,
}

/// The way to steer a running client. Dropping it stops the client.
#[derive(Debug)]
pub(crate) struct Control {
    pub shared: Arc<Shared>,
    pub waker: UnixStream,
}

impl Control {
    /// Steering, and the end that a waiting client wakes by. With `at_once`, measuring begins at once and ends after so
    /// many calls.
    pub fn new(at_once: Option<u64>) -> io::Result<(Self, UnixStream)> {
        let (waker, woken) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Shared {
            phase: AtomicU32::new(u32::from(at_once.is_some())),
            limit: AtomicU64::new(at_once.unwrap_or(u64::MAX)),
            width_ns: AtomicU64::new(1_000_000),
            ..Shared::default()
        };
        Ok((Self { shared: Arc::new(shared), waker }, woken))
    }

    /// Ends warm-up: what is due (open) or ends (closed) from now on counts; at most `limit` calls.
    pub fn begin_measuring(&self, limit: u64) {
        self.shared.limit.store(limit, Relaxed);
        self.shared.phase.store(1, Relaxed);
        self.wake();
    }

    /// Sets the width that windows should have.
    pub fn set_width_ns(&self, width_ns: u64) {
        self.shared.width_ns.store(width_ns, Relaxed);
    }

    /// No more sends; calls in flight may end, of a closed loop only those that take far longer than any before.
    pub fn drain(&self) {
        let _ = self.shared.state.compare_exchange(RUN, DRAIN, Relaxed, Relaxed);
        self.wake();
    }

    /// Ends the client at once.
    pub fn stop(&self) {
        self.shared.state.store(STOP, Relaxed);
        self.wake();
    }

    fn wake(&self) {
        // A full pipe wakes just as well.
        let _ = (&self.waker).write(&[1]);
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
    }
}
