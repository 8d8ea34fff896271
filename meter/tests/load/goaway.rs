//! Calls that a server says it never began: sent again on another connection, counted apart, a bounded number of times.

use super::{
    closed,
    laws::ms,
    mock::{Mock, Reply},
    raw::{self, Raw},
    rules, run, run_target, target, target_at, turn,
};
use modelmeter_common::{
    load::{Arrivals, LoadPoint},
    part::Point,
};
use modelmeter_meter::first_inference;
use std::{
    io::Write,
    net::{Shutdown, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};
use tokio_util::sync::CancellationToken;

const REFUSED_STREAM: u32 = 7;

fn goaway(last: u32) -> Vec<u8> {
    raw::frame(raw::GOAWAY, 0, 0, &[last.to_be_bytes(), 0u32.to_be_bytes()].concat())
}

/// Takes so many calls on a connection, as nginx does: names the last in a GOAWAY, answers it, drops those that come after
/// it, and hangs up.
fn limited(mut socket: TcpStream, calls: usize) -> std::io::Result<()> {
    raw::greet(&mut socket)?;
    for nth in 1..=calls {
        let stream = raw::next_call(&mut socket)?;
        if nth == calls {
            socket.write_all(&goaway(stream))?;
        }
        socket.write_all(&raw::answer(stream))?;
    }
    socket.shutdown(Shutdown::Write)?;
    raw::stay_silent(socket)
}

fn counting(calls: usize) -> (Raw, Arc<AtomicUsize>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let server = Raw::start(move |nth, socket| {
        count.fetch_max(nth + 1, SeqCst);
        limited(socket, calls)
    });
    (server, connections)
}

fn warning<'a>(point: &'a Point, code: &str) -> Option<&'a str> {
    point.warnings.iter().find(|w| w.code == code).map(|w| w.message.as_str())
}

/// After how many calls the warning says that a connection ends. Windows cut connections, so that it is about the limit.
fn calls_a_connection(told: &str) -> u32 {
    let (_, after) = told.split_once("every ").unwrap();
    after.split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_proxy_that_ends_connections_costs_no_call() {
    let _turn = turn().await;
    let (server, connections) = counting(100);
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(32), &rules(1000)).await.unwrap();
    assert_eq!((point.errors, point.valid), (0, true), "{:?} {:?}", point.error_kinds, point.warnings);
    assert!(connections.load(SeqCst) > 5 && point.resent > 0, "{} resent", point.resent);
    assert_eq!(point.latency.len(), point.requests);
    // Up to 31 of 100: told, with what to raise.
    let told = warning(&point, "resent").expect("more than one in a hundred");
    assert!(told.contains("keepalive_requests") && (80..=125).contains(&calls_a_connection(told)), "{told}");
}

#[tokio::test]
async fn a_call_at_a_time_is_never_refused_and_nothing_is_told() {
    let _turn = turn().await;
    let (server, connections) = counting(100);
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(1), &rules(500)).await.unwrap();
    assert_eq!((point.errors, point.resent, warning(&point, "resent")), (0, 0, None), "{:?}", point.error_kinds);
    assert!(connections.load(SeqCst) > 2);
}

#[tokio::test]
async fn an_open_loop_waits_for_the_next_connection() {
    let _turn = turn().await;
    let (server, connections) = counting(40);
    let load = LoadPoint::Open { rate_per_s: 1000.0, arrivals: Arrivals::Poisson };
    let point = run_target(&target_at(server.endpoint.clone(), 1), load, &rules(1500)).await.unwrap();
    assert_eq!(point.errors, 0, "{:?} {:?}", point.error_kinds, point.warnings);
    assert!(connections.load(SeqCst) > 16 && point.requests > 1000, "{}", point.requests);
}

#[tokio::test]
async fn calls_that_were_begun_and_lost_still_fail() {
    let _turn = turn().await;
    // A GOAWAY that names a later call than the last that was answered: it may have been begun.
    let server = Raw::start(|_, mut socket| {
        raw::greet(&mut socket)?;
        for _ in 0..50 {
            let stream = raw::next_call(&mut socket)?;
            std::thread::sleep(ms(1));
            socket.write_all(&raw::answer(stream))?;
        }
        let taken = raw::next_call(&mut socket)?;
        socket.write_all(&goaway(taken))?;
        socket.shutdown(Shutdown::Both)
    });
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(4), &rules(1000)).await.unwrap();
    assert!(point.error_kinds["reset"] > 0 && point.error_kinds.len() == 1, "{:?}", point.error_kinds);
    assert!(point.resent > 0, "those after it were not");
}

#[tokio::test]
async fn refused_streams_are_sent_again_until_it_is_enough() {
    let _turn = turn().await;
    let mock = Mock::start(|nth, _| if nth % 20 == 7 { Reply::Refuse } else { Reply::After(ms(1)) });
    let point = run(&mock, closed(4), &rules(600)).await.unwrap();
    assert_eq!((point.errors, point.valid), (0, true), "{:?}", point.error_kinds);
    assert!(point.resent as f64 > 0.03 * point.requests as f64, "{} of {}", point.resent, point.requests);
    assert!(warning(&point, "resent").is_some_and(|told| told.contains("REFUSED_STREAM")), "{:?}", point.warnings);
    // A call that is always refused fails, and says so.
    let came = Arc::new(AtomicUsize::new(0));
    let count = came.clone();
    let never = Mock::start(move |_, _| {
        count.fetch_add(1, SeqCst);
        Reply::Refuse
    });
    let problem =
        first_inference(&target(&never), Duration::from_secs(5), &CancellationToken::new()).await.unwrap_err();
    assert!(problem.message.contains("refused_stream"), "{problem}");
    assert_eq!(came.load(SeqCst), 6, "sent once and five times again");
}

#[tokio::test]
async fn the_first_call_is_sent_again_too() {
    let _turn = turn().await;
    let server = Raw::start(|nth, mut socket| {
        raw::greet(&mut socket)?;
        let stream = raw::next_call(&mut socket)?;
        if nth == 0 {
            socket.write_all(&goaway(0))?;
        } else {
            socket.write_all(&raw::answer(stream))?;
        }
        raw::stay_silent(socket)
    });
    let target = target_at(server.endpoint.clone(), 1);
    let first = first_inference(&target, Duration::from_secs(5), &CancellationToken::new()).await.unwrap();
    assert!(first.latency_ms > 0.0);
}

#[tokio::test]
async fn a_reset_with_refused_stream_alone_is_no_failure() {
    let _turn = turn().await;
    let server = Raw::start(|_, mut socket| {
        raw::greet(&mut socket)?;
        for nth in 0.. {
            let stream = raw::next_call(&mut socket)?;
            let reset = raw::frame(raw::RST_STREAM, 0, stream, &REFUSED_STREAM.to_be_bytes());
            socket.write_all(&if nth % 3 == 0 { reset } else { raw::answer(stream) })?;
        }
        Ok(())
    });
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(1), &rules(300)).await.unwrap();
    assert!(point.errors == 0 && point.resent > 10, "{:?}", point.error_kinds);
}
