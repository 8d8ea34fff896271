//! Bad ends: each is counted, named and over soon; nothing hangs, nothing is dropped silently.

use super::{
    batched, closed,
    laws::{constant, ms},
    mock::{Mock, Reply, Settings, response},
    raw::{self, Raw},
    rules, run, run_target, target, target_at, turn,
};
use modelmeter_common::{
    Code, Problem,
    load::{Arrivals, LoadPoint},
    part::Point,
};
use modelmeter_meter::{Rules, first_inference};
use std::{
    io::Write,
    net::{Shutdown, TcpListener},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// With time-outs so short that a hang would show.
fn impatient(run_ms: u64) -> Rules {
    let mut rules = rules(run_ms);
    rules.stop.timeout_ms = 200;
    rules
}

fn warned(point: &Point, code: &str) -> bool {
    point.warnings.iter().any(|w| w.code == code)
}

/// Every call is in the document: as a latency or as an error of a kind.
fn all_counted(point: &Point) {
    assert_eq!(point.latency.len() + point.errors, point.requests, "{point:?}");
    assert_eq!(point.error_kinds.values().sum::<u64>(), point.errors, "{point:?}");
}

#[tokio::test]
async fn failures_are_counted_by_kind() {
    let _turn = turn().await;
    let ok = response(&[1], &[1.0]);
    let mock = Mock::start(move |nth, _| match nth % 20 {
        3 => Reply::Status(13, Duration::ZERO),
        5 => Reply::TrailersOnly(8),
        // Compressed, cut off, and not gRPC at all.
        7 => Reply::Compressed,
        9 => Reply::Body(ok.slice(..ok.len() - 1)),
        11 => Reply::Reset,
        13 => Reply::Http(503),
        _ => Reply::After(ms(1)),
    });
    let point = run(&mock, closed(4), &rules(600)).await.unwrap();
    let kinds: Vec<_> = point.error_kinds.keys().map(String::as_str).collect();
    assert_eq!(kinds, ["bad_response", "compressed", "grpc_internal", "grpc_resource_exhausted", "http_503", "reset"]);
    all_counted(&point);
    assert!(!point.valid && point.warnings.iter().any(|w| w.code == "errors" && w.message.contains("told so")));
    // Three in ten failed: p90 and up fall among them.
    assert!(point.percentiles.iter().filter(|p| p.q >= 90.0).all(|p| p.ms.is_none()));
}

#[tokio::test]
async fn time_outs_and_lost_connections_are_counted_and_the_rest_goes_on() {
    let _turn = turn().await;
    let mock = Mock::start(|nth, _| match nth % 600 {
        100 => Reply::Never,
        500 => Reply::Drop,
        _ => Reply::After(ms(1)),
    });
    // Shorter than the time from the one to the other.
    let mut impatient = impatient(1500);
    impatient.stop.timeout_ms = 30;
    let point = run(&mock, closed(4), &impatient).await.unwrap();
    assert!(point.error_kinds["timeout"] > 0 && point.error_kinds["reset"] > 0, "{:?}", point.error_kinds);
    assert!(point.requests > 500, "{}", point.requests);
    all_counted(&point);
}

#[tokio::test]
async fn a_server_that_dies_ends_the_point_soon() {
    let _turn = turn().await;
    let mut mock = Mock::start(constant(ms(1)));
    let target = target(&mock);
    let begun = Instant::now();
    let measuring = tokio::spawn(async move { run_target(&target, closed(2), &rules(20_000)).await });
    while begun.elapsed() < Duration::from_secs(60)
        && (begun.elapsed() < Duration::from_secs(1) || mock.seen().len() < 100)
    {
        tokio::time::sleep(ms(5)).await;
    }
    mock.kill();
    let point = measuring.await.unwrap().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(!point.valid && !point.converged && point.error_kinds["refused"] > 0);
    assert!(warned(&point, "server_gone"));
    all_counted(&point);
}

#[tokio::test]
async fn calls_that_never_come_back_are_told() {
    let _turn = turn().await;
    let mut patient = rules(600);
    patient.stop.timeout_ms = 10_000;
    let mock = Mock::start(|nth, _| if nth == 300 { Reply::Never } else { Reply::After(ms(2)) });
    let point = run(&mock, closed(8), &patient).await.unwrap();
    assert!(point.valid && warned(&point, "unanswered") && point.requests > 600, "{:?}", point.warnings);
    // One in twenty is too many.
    let mock = Mock::start(|nth, _| if nth % 20 == 19 { Reply::Never } else { Reply::After(ms(2)) });
    let point = run(&mock, closed(64), &patient).await.unwrap();
    let errors = point.warnings.iter().find(|w| w.code == "errors").map(|w| w.message.as_str());
    assert!(!point.valid && errors.is_some_and(|e| e.contains("unanswered")), "{:?}", point.warnings);
}

#[tokio::test]
async fn a_server_that_stands_still_at_the_end_is_waited_for() {
    let _turn = turn().await;
    let first = OnceLock::new();
    // A run of at most 800 ms, warm-up included, ends in the middle of this.
    let mock = Mock::start(move |_, now| {
        let at = now - *first.get_or_init(|| now);
        Reply::After(if at > ms(500) { ms(1400).saturating_sub(at) } else { ms(2) })
    });
    let mut patient = rules(600);
    patient.stop.timeout_ms = 10_000;
    let point = run(&mock, closed(8), &patient).await.unwrap();
    assert!(point.errors == 0 && !warned(&point, "errors") && !warned(&point, "unanswered"), "{:?}", point.warnings);
    assert!(point.latency.max_ns() > 500_000_000, "the silence is in the latencies");
    all_counted(&point);
}

#[tokio::test]
async fn a_connection_that_is_left_in_the_queue_does_not_hold_up_the_others() {
    let _turn = turn().await;
    let server = Raw::start(|nth, mut socket| {
        if nth > 0 {
            return raw::stay_silent(socket);
        }
        raw::greet(&mut socket)?;
        loop {
            let stream = raw::next_call(&mut socket)?;
            socket.write_all(&raw::answer(stream))?;
        }
    });
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(64), &rules(3000)).await.unwrap();
    assert!(point.valid && point.errors == 0 && point.requests > 300, "{point:?}");
}

/// Answers so many calls, then hears and says nothing more, on any connection.
fn falls_silent(after: usize) -> Raw {
    let answered = Arc::new(AtomicUsize::new(0));
    Raw::start(move |_, mut socket| {
        if answered.load(SeqCst) < after {
            raw::greet(&mut socket)?;
        }
        loop {
            let stream = raw::next_call(&mut socket)?;
            if answered.fetch_add(1, SeqCst) < after {
                std::thread::sleep(ms(1));
                socket.write_all(&raw::answer(stream))?;
            }
        }
    })
}

#[tokio::test]
async fn a_half_open_connection_ends_the_point_with_time_outs() {
    let _turn = turn().await;
    let open = LoadPoint::Open { rate_per_s: 300.0, arrivals: Arrivals::Poisson };
    for load in [closed(2), open] {
        let server = falls_silent(1000);
        let begun = Instant::now();
        let point = run_target(&target_at(server.endpoint.clone(), 1), load, &impatient(30_000)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(12), "{load}: {:?}", begun.elapsed());
        assert!(point.error_kinds["timeout"] > 0 && !point.valid && warned(&point, "server_gone"), "{point:?}");
        all_counted(&point);
    }
}

#[tokio::test]
async fn a_server_that_leaves_gracefully_costs_no_call() {
    let _turn = turn().await;
    let mock = Mock::start(|nth, _| if nth % 300 == 299 { Reply::Leave } else { Reply::After(ms(1)) });
    let point = run(&mock, closed(8), &rules(1000)).await.unwrap();
    assert!(mock.connections() > 3 && point.requests > 500, "{} connections", mock.connections());
    assert_eq!((point.errors, point.valid), (0, true), "{:?}", point.error_kinds);
}

#[tokio::test]
async fn a_response_that_is_too_large_is_refused_by_what_it_announces() {
    let _turn = turn().await;
    let server = Raw::start(|_, mut socket| {
        raw::greet(&mut socket)?;
        for nth in 0.. {
            let stream = raw::next_call(&mut socket)?;
            std::thread::sleep(ms(1));
            let announced = [raw::head(stream), raw::data(stream, b"\0\xff\xff\xff\xff")].concat();
            socket.write_all(&if nth % 10 == 3 { announced } else { raw::answer(stream) })?;
        }
        Ok(())
    });
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(2), &rules(500)).await.unwrap();
    assert!(point.error_kinds["response_too_large"] > 5 && point.error_kinds.len() == 1, "{:?}", point.error_kinds);
    all_counted(&point);
}

#[tokio::test]
async fn more_connections_are_opened_where_one_takes_too_few_calls() {
    let _turn = turn().await;
    let few = Settings { max_streams: 4, ..Settings::default() };
    let mock = Mock::with(few, constant(ms(10)));
    let point = run(&mock, closed(32), &rules(500)).await.unwrap();
    assert_eq!((point.errors, point.valid, mock.most_in_flight()), (0, true, 32), "{:?}", point.warnings);
    assert!(mock.connections() >= 8, "{}", mock.connections());
    // What even the most connections cannot hold must be said.
    let open = LoadPoint::Open { rate_per_s: 1000.0, arrivals: Arrivals::Constant };
    let slow = Mock::with(Settings { max_streams: 1, ..few }, constant(ms(300)));
    let point = run(&slow, open, &rules(500)).await.unwrap();
    assert!(!point.valid && warned(&point, "streams_limit"), "{:?}", point.warnings);
    assert!(!point.error_kinds.contains_key("in_flight_limit"), "{:?}", point.error_kinds);
    let mock = Mock::with(Settings { max_streams: 1, ..few }, constant(ms(10)));
    let point = run(&mock, closed(300), &rules(500)).await.unwrap();
    assert!(!point.valid && warned(&point, "too_few_in_flight"), "{:?}", point.warnings);
    let mock = Mock::with(Settings { max_streams: 0, ..few }, constant(ms(10)));
    let problem = run(&mock, closed(1), &impatient(500)).await.unwrap_err();
    assert_eq!(problem.code, Code::DeadlineExceeded, "{problem}");
}

#[tokio::test]
async fn servers_with_small_header_tables_understand_every_call() {
    let _turn = turn().await;
    for header_table in [0, 64, 200, 4095, 65_536] {
        let mock = Mock::with(Settings { header_table, ..Settings::default() }, constant(ms(1)));
        let point = run(&mock, closed(4), &rules(200)).await.unwrap();
        assert!(point.errors == 0 && point.requests > 50, "{header_table}: {:?}", point.error_kinds);
    }
}

#[tokio::test]
async fn wrong_answers_are_counted_among_those_that_were_checked() {
    let _turn = turn().await;
    // To four items: two, four of which one is no number, four.
    let answers = [response(&[2], &[1.0, 2.0]), response(&[4], &[1.0, f32::NAN, 1.0, 1.0]), response(&[4], &[1.0; 4])];
    let mock = Mock::start(move |nth, _| Reply::Body(answers[nth % 3].clone()));
    let point = run_target(&batched(mock.endpoint().parse().unwrap(), 4, 4), closed(1), &rules(1500)).await.unwrap();
    let message = &point.warnings.iter().find(|w| w.code == "bad_response").unwrap().message;
    assert!(!point.valid && point.errors == 0, "{message}");
    let answers = &point.answers;
    assert!(answers.wrong["shape"] > 0 && answers.wrong.len() == 1, "{answers:?}");
    assert!(warned(&point, "output_not_finite"), "infinities are no fault of the speed: {:?}", point.warnings);
    assert!(answers.checked > answers.wrong.values().sum::<u64>() && answers.checked <= 100, "{answers:?}");
}

async fn nothing_said(server: Raw) -> (Problem, Duration) {
    let begun = Instant::now();
    let problem = run_target(&target_at(server.endpoint.clone(), 1), closed(2), &impatient(20_000)).await.unwrap_err();
    (problem, begun.elapsed())
}

#[tokio::test]
async fn what_is_no_grpc_server_is_named() {
    let _turn = turn().await;
    let says: [(&'static [u8], &str); 4] = [
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", "not HTTP/2"),
        (&[0xa5; 4096], "not HTTP/2"),
        // A TLS server's alert.
        (&[0x15, 3, 1, 0, 2, 2, 0x46], "speaks TLS"),
        (b"", "closed"),
    ];
    for (bytes, named) in says {
        let server = Raw::start(move |_, mut socket| {
            std::io::Read::read_exact(&mut socket, &mut [0; 24])?;
            socket.write_all(bytes)?;
            socket.shutdown(Shutdown::Write)?;
            raw::stay_silent(socket)
        });
        let (problem, took) = nothing_said(server).await;
        assert_eq!(problem.code, Code::Unreachable, "{problem}");
        assert!(problem.message.contains(named) && took < Duration::from_secs(6), "{took:?}: {problem}");
    }
    // One that waits for more.
    let server = Raw::start(|_, mut socket| {
        socket.write_all(b"220 hi")?;
        raw::stay_silent(socket)
    });
    let (problem, took) = nothing_said(server).await;
    assert!(problem.message.contains("nothing was answered") && took < Duration::from_secs(6), "{took:?}: {problem}");
}

#[tokio::test]
async fn pages_and_compressed_answers_are_called_what_they_are() {
    let _turn = turn().await;
    let page = "<html><head><style>p { x: y }</style></head><body><h1>502 Bad Gateway</h1>try later</body></html>";
    let said = async |reply: Reply| {
        let mock = Mock::start(move |_, _| reply.clone());
        let first = first_inference(&target(&mock), Duration::from_secs(5), &CancellationToken::new()).await;
        let (first, point) = (first.unwrap_err(), run(&mock, closed(1), &rules(300)).await.unwrap_err());
        assert_eq!(first.message, point.message);
        first
    };
    let gateway = said(Reply::Page(502, page)).await;
    assert!(
        gateway.message.contains("http_502") && gateway.message.contains("'502 Bad Gateway try later'"),
        "{gateway}"
    );
    let login = said(Reply::Page(200, "<p>Sign in</p>")).await;
    for word in ["HTTP status 200", "text/html", "'Sign in'", "not gRPC"] {
        assert!(login.message.contains(word), "{word}: {login}");
    }
    assert_eq!((login.code, gateway.hint.is_some_and(|h| h.contains("proxy"))), (Code::BadResponse, true));
    let gzip = said(Reply::Compressed).await;
    assert!(gzip.message.contains("compressed with gzip") && gzip.code == Code::BadResponse, "{gzip}");
}

#[tokio::test]
async fn garbage_in_the_middle_is_counted_and_the_rest_goes_on() {
    let _turn = turn().await;
    let server = Raw::start(|_, mut socket| {
        raw::greet(&mut socket)?;
        for _ in 0..100 {
            let stream = raw::next_call(&mut socket)?;
            std::thread::sleep(ms(1));
            socket.write_all(&raw::answer(stream))?;
        }
        raw::next_call(&mut socket)?;
        socket.write_all(&[0xa5; 100])?;
        raw::stay_silent(socket)
    });
    let point = run_target(&target_at(server.endpoint.clone(), 1), closed(2), &rules(1000)).await.unwrap();
    assert!(point.error_kinds["protocol"] > 1 && point.error_kinds.len() == 1, "{:?}", point.error_kinds);
    assert!(point.latency.len() > 200, "{}", point.latency.len());
    all_counted(&point);
}

#[tokio::test]
async fn nothing_there_and_nothing_said_are_errors_not_hangs() {
    let _turn = turn().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = target_at(listener.local_addr().unwrap().to_string(), 1);
    let problem = run_target(&target, closed(1), &impatient(1000)).await.unwrap_err();
    assert_eq!(problem.code, Code::DeadlineExceeded, "{problem}");
    drop(listener);
    let problem = run_target(&target, closed(1), &impatient(1000)).await.unwrap_err();
    assert_eq!(problem.code, Code::Unreachable, "{problem}");
    let problem = first_inference(&target, ms(200), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(problem.code, Code::Unreachable, "{problem}");
    let failing = Mock::start(|_, _| Reply::Status(5, Duration::ZERO));
    let problem = run(&failing, closed(1), &rules(300)).await.unwrap_err();
    assert!(problem.message.contains("grpc_not_found") && problem.message.contains("told so"), "{problem}");
}
