//! A transport of its own, outside the crate: calls that are answered in pieces. What the meter makes of the pieces is what
//! the transport's metrics say.

use super::{closed, rules, run_target, turn};
use async_trait::async_trait;
use modelmeter_common::{
    Problem,
    fold::fold_points,
    load::{Arrivals, LoadPoint},
    stats::series::Batch,
};
use modelmeter_meter::{
    CallRecord, Called, Connection, Done, Failure, Lost, Metric, Orders, Protocol, Seen, Started, Target, Transport,
    call_once,
    endpoint::{Endpoint, Socket},
    start,
};
use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, ErrorKind, Read, Write},
    net::{SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const FIRST: Duration = Duration::from_millis(6);
const GAP: Duration = Duration::from_millis(2);
const PIECES: u32 = 3;

static METRICS: [Metric; 2] = [
    Metric { name: "first_ms", unit: "ms", record: first },
    Metric { name: "gap_ms", unit: "ms a piece", record: gaps },
];

fn first(call: &CallRecord<'_>, batch: &mut Batch) {
    if let Some(first) = call.events.first() {
        batch.record(first.at_ns - call.scheduled_ns);
    }
}

fn gaps(call: &CallRecord<'_>, batch: &mut Batch) {
    call.events.windows(2).for_each(|pair| batch.record(pair[1].at_ns - pair[0].at_ns));
}

/// A byte asks; a byte is a piece of the answer, a line feed its end.
struct Pieces;

#[async_trait]
impl Transport for Pieces {
    fn batch_size(&self) -> u32 {
        1
    }
    fn metrics(&self) -> &'static [Metric] {
        &METRICS
    }
    fn start(&self, orders: Orders) -> io::Result<Started> {
        start(Self, orders, self.metrics())
    }
    async fn once(&self, server: &Endpoint, timeout: Duration, cancel: &CancellationToken) -> Result<Called, Problem> {
        Ok((call_once(server, self, timeout, cancel).await?.latency, None))
    }
}

impl Protocol for Pieces {
    type Connection = Line;
    fn connection(&self, socket: Socket) -> Line {
        Line { socket, out: Vec::new(), calls: VecDeque::new(), sent: 0 }
    }
    fn send(&mut self, line: &mut Line, token: usize, _: bool) -> u32 {
        line.out.extend_from_slice(b"?\n");
        line.calls.push_back(token);
        line.sent += 1;
        line.sent
    }
}

/// One call at a time.
struct Line {
    socket: Socket,
    out: Vec<u8>,
    calls: VecDeque<usize>,
    sent: u32,
}

fn done(token: usize, result: Result<(), Failure>) -> Done {
    Done { token, result, words: None, message: None }
}

impl Connection for Line {
    fn socket(&self) -> &Socket {
        &self.socket
    }
    fn active(&self) -> usize {
        self.calls.len()
    }
    fn has_room(&self) -> bool {
        self.calls.is_empty()
    }
    fn is_settled(&self) -> bool {
        true
    }
    fn is_unused(&self) -> bool {
        self.sent == 0
    }
    fn is_going_away(&self) -> bool {
        false
    }
    fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }
    fn has_begun_any(&self) -> bool {
        true
    }
    fn cancel(&mut self, _: u32) {
        self.calls.clear();
    }
    fn fail_all(&mut self, failure: Failure, all: &mut Vec<Done>) {
        all.extend(self.calls.drain(..).map(|token| done(token, Err(failure))));
    }
    fn write(&mut self) -> io::Result<()> {
        let n = self.socket.write(&self.out)?;
        self.out.drain(..n);
        Ok(())
    }
    fn read(&mut self, buffer: &mut [u8], seen: &mut Seen) -> Result<bool, Lost> {
        let n = match self.socket.read(buffer) {
            Ok(0) => return Err(Failure::Reset.into()),
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err((&e).into()),
        };
        seen.arrived();
        for &byte in &buffer[..n] {
            match (byte, self.calls.front()) {
                (b'\n', Some(_)) => seen.done.extend(self.calls.pop_front().map(|token| done(token, Ok(())))),
                (b'!', Some(_)) => {
                    seen.done.extend(self.calls.pop_front().map(|token| done(token, Err(Failure::Reset))))
                }
                (kind, Some(&token)) => seen.event(token, kind.into(), 1),
                (_, None) => {}
            }
        }
        Ok(false)
    }
}

/// Answers each question in pieces; one in so many fails in the end.
fn serve(fails: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // Ends with the test's process.
    thread::spawn(move || {
        for socket in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                socket.set_nodelay(true).unwrap();
                let mut to = socket.try_clone().unwrap();
                for (nth, _) in BufReader::new(socket).lines().map_while(Result::ok).enumerate() {
                    thread::sleep(FIRST);
                    for piece in 0..PIECES {
                        thread::sleep(if piece > 0 { GAP } else { Duration::ZERO });
                        let _ = to.write_all(b"x");
                    }
                    let _ = to.write_all(if (nth + 1) % fails == 0 { b"!" } else { b"\n" });
                }
            });
        }
    });
    address
}

fn target(address: SocketAddr) -> Target {
    Target::new(address.to_string().parse().unwrap(), Arc::new(Pieces), Arc::new(()))
}

#[tokio::test]
async fn metrics_are_measured_as_latency_is() {
    let _turn = turn().await;
    let open = LoadPoint::Open { rate_per_s: 50.0, arrivals: Arrivals::Constant };
    for load in [closed(2), open] {
        let point = run_target(&target(serve(usize::MAX)), load, &rules(1200)).await.unwrap();
        assert!(point.errors == 0 && point.requests > 30, "{load}: {point:?}");
        let [first, gap] = point.metrics.as_slice() else { panic!("{:?}", point.metrics) };
        assert_eq!((first.name.as_str(), gap.unit.as_str()), ("first_ms", "ms a piece"));
        assert_eq!(first.values.len(), point.requests, "{load}");
        assert_eq!(gap.values.len(), point.requests * u64::from(PIECES - 1), "{load}");
        let p50 = |metric: &modelmeter_common::part::Metric| metric.percentiles[0].ms.unwrap();
        let (first_ms, gap_ms, whole_ms) = (p50(first), p50(gap), point.percentiles[0].ms.unwrap().value);
        assert!(first_ms.value >= 6.0 && gap_ms.value >= 1.0 && first_ms.ci95.is_some(), "{first_ms:?} {gap_ms:?}");
        assert!(first_ms.value + gap_ms.value < whole_ms, "{load}: {first_ms:?}, {gap_ms:?} of {whole_ms}");
        let folded = fold_points(&[&point, &point]).unwrap();
        assert_eq!(folded.metrics[0].values.len(), 2 * point.requests);
    }
}

#[tokio::test]
async fn calls_that_fail_rank_after_every_value_of_a_metric() {
    let _turn = turn().await;
    let point = run_target(&target(serve(5)), closed(1), &rules(1000)).await.unwrap();
    assert!(point.errors > 10 && !point.valid, "{point:?}");
    let first = &point.metrics[0];
    assert_eq!((first.failures, first.values.len()), (point.errors, point.requests - point.errors));
    assert!(first.percentiles.iter().filter(|p| p.q >= 90.0).all(|p| p.ms.is_none()), "{:?}", first.percentiles);
}
