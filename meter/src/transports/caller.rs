//! A closed loop of calls that the meter's user makes, such as a custom inspector: paced and recorded as the client's own
//! calls are.

use crate::{
    drive::{Called, Control, Orders, Report, STOP, Shared, Started, Transport, blocking},
    endpoint::Endpoint,
    record::{CallRecord, Failure, Times, recorder::Recorder},
    schedule::Pacer,
    sys::Clock,
    threads::pin_this_thread,
};
use async_trait::async_trait;
use modelmeter_common::{Code, Problem};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio_util::sync::CancellationToken;

/// The loop looks at its orders at least this often.
const MAX_WAIT: Duration = Duration::from_millis(50);

/// A call that ended: its number, and how; in words where it failed.
pub type Ended = (u64, Result<(), String>);

/// Makes calls, several at once, when the meter says so.
pub trait Caller: Send {
    /// Begins a call; gives its number, higher than any before.
    ///
    /// # Errors
    /// A description, after which the caller makes no more calls.
    fn begin(&mut self) -> Result<u64, String>;

    /// The next call that ended, and how; none if none does until then. Calls that were given up may be among them.
    ///
    /// # Errors
    /// A description, after which the caller makes no more calls.
    fn next(&mut self, until: Instant) -> Result<Option<Ended>, String>;
}

/// Calls that a [`Caller`] makes, paced and timed by the meter.
pub struct Callers<F> {
    batch_size: u32,
    make: F,
}

impl<F> std::fmt::Debug for Callers<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Callers").field("batch_size", &self.batch_size).finish_non_exhaustive()
    }
}

impl<F: Fn() -> Option<Box<dyn Caller>> + Send + Sync> Callers<F> {
    /// Calls of so many items, by a caller that is made for each load point.
    pub fn new(batch_size: u32, make: F) -> Self {
        Self { batch_size, make }
    }
}

#[async_trait]
impl<F: Fn() -> Option<Box<dyn Caller>> + Send + Sync> Transport for Callers<F> {
    fn batch_size(&self) -> u32 {
        self.batch_size
    }

    fn start(&self, orders: Orders) -> io::Result<Started> {
        start((self.make)().ok_or_else(no_caller)?, orders)
    }

    async fn once(&self, _: &Endpoint, timeout: Duration, _: &CancellationToken) -> Result<Called, Problem> {
        let caller = (self.make)().ok_or_else(|| Problem::new(Code::Internal, no_caller().to_string()))?;
        let latency = blocking(move || once(caller, timeout)).await?;
        Ok((latency, None))
    }
}

fn no_caller() -> io::Error {
    io::Error::other("there is nobody to make the calls")
}

/// Makes one call and waits for its end.
fn once(mut caller: Box<dyn Caller>, timeout: Duration) -> Result<Duration, Problem> {
    let failed = |words: String| Problem::new(Code::EngineFailed, words).with_field("inspector");
    let begun = Instant::now();
    let number = caller.begin().map_err(failed)?;
    loop {
        match caller.next(begun + timeout).map_err(failed)? {
            Some((ended, result)) if ended == number => return result.map(|()| begun.elapsed()).map_err(failed),
            Some(_) => {}
            None => {
                let message = format!("the inspector's first call did not end within {} s", timeout.as_secs_f64());
                return Err(Problem::new(Code::DeadlineExceeded, message).with_field("inspector"));
            }
        }
    }
}

/// Starts the loop on a thread of its own.
fn start(caller: Box<dyn Caller>, orders: Orders) -> io::Result<Started> {
    let Pacer::Closed { concurrency } = orders.pacer else {
        return Err(io::Error::other("an open loop of calls that an inspector makes itself"));
    };
    // Nothing waits on the waker: the loop looks at its orders often enough.
    let (control, _) = Control::new(orders.at_once)?;
    let (reports, receiver) = unbounded_channel();
    let calls = Calls {
        caller,
        concurrency,
        cpus: orders.cpus,
        timeout: orders.timeout,
        shared: control.shared.clone(),
        reports,
        recorder: Recorder::new(false, &[]),
        clock: Clock::default(),
        in_flight: BTreeMap::new(),
        told: false,
        is_full: false,
        is_over: false,
    };
    std::thread::Builder::new().name("modelmeter-calls".into()).spawn(move || calls.run())?;
    Ok(Started { control, reports: receiver })
}

struct Calls {
    caller: Box<dyn Caller>,
    concurrency: usize,
    cpus: Option<Arc<[u32]>>,
    timeout: Duration,
    shared: Arc<Shared>,
    reports: UnboundedSender<Report>,
    recorder: Recorder,
    clock: Clock,
    /// By number, which is also their order: when each was begun.
    in_flight: BTreeMap<u64, u64>,
    told: bool,
    /// The calls asked for have ended; the burst that they ended with may go on.
    is_full: bool,
    is_over: bool,
}

impl Calls {
    fn run(mut self) {
        if let Some(cpus) = &self.cpus {
            pin_this_thread(cpus);
        }
        self.recorder.start(self.shared.phase.load(Relaxed), self.clock.now_ns());
        while !self.is_over {
            let (phase, width_ns) = (self.shared.phase.load(Relaxed), self.shared.width_ns.load(Relaxed));
            if let Some(window) = self.recorder.cut_between(phase, width_ns, self.clock.now_ns()) {
                let _ = self.reports.send(Report::Window(Box::new(window)));
            }
            if let Err(words) = self.turn() {
                let now = self.clock.now_ns();
                for (_, begun) in std::mem::take(&mut self.in_flight) {
                    self.record(begun, Err(Failure::Inspector), now);
                }
                self.tell(words);
                break;
            }
        }
        let now = self.clock.now_ns();
        let (window, sends) = self.recorder.end(self.in_flight.into_values().map(|begun| now - begun).collect());
        let _ = self.reports.send(Report::Window(Box::new(window)));
        let _ = self.reports.send(Report::Ended(Box::new(sends)));
    }

    fn turn(&mut self) -> Result<(), String> {
        while !self.is_full && self.in_flight.len() < self.concurrency {
            let begun = self.clock.now_ns();
            self.in_flight.insert(self.caller.begin()?, begun);
        }
        let ended = self.caller.next(Instant::now() + MAX_WAIT.min(self.timeout))?;
        let now = self.clock.now_ns();
        let ends = self.is_full || self.shared.state.load(Relaxed) == STOP;
        // Not in the middle of a burst, nor with the first of the next.
        if ends && self.recorder.is_between(now) {
            self.is_over = true;
            return Ok(());
        }
        if let Some((number, result)) = ended
            && let Some(begun) = self.in_flight.remove(&number)
        {
            let result = result.map_err(|words| {
                self.tell(words);
                Failure::Inspector
            });
            self.record(begun, result, now);
        }
        let timeout = self.timeout.as_nanos() as u64;
        while let Some(oldest) = self.in_flight.first_entry().filter(|call| now.saturating_sub(*call.get()) >= timeout)
        {
            let begun = oldest.remove();
            self.record(begun, Err(Failure::Timeout), now);
        }
        self.is_over = self.is_full && self.in_flight.is_empty();
        Ok(())
    }

    fn tell(&mut self, words: String) {
        if !std::mem::replace(&mut self.told, true) {
            let _ = self.reports.send(Report::Words(Failure::Inspector, words));
        }
    }

    fn record(&mut self, begun: u64, result: Result<(), Failure>, now: u64) {
        if self.is_full {
            return self.recorder.ended_beyond(result, now);
        }
        self.recorder.ended(&CallRecord::unary(Times { scheduled_ns: begun, sent_ns: begun }, result, now));
        self.is_full = self.recorder.is_full(self.shared.limit.load(Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Bench, Budget, Rules, Target, measure, run_plan};
    use modelmeter_common::{
        load::{Load, LoadPoint, Stop},
        part::Point,
    };
    use std::{
        collections::VecDeque,
        sync::atomic::{AtomicUsize, Ordering::Relaxed},
        thread,
    };

    /// Calls of a known length; each one numbered a multiple of `fails` fails.
    struct Fake {
        last: u64,
        ends: VecDeque<(u64, Instant)>,
        fails: u64,
    }

    const LENGTH: Duration = Duration::from_millis(2);

    impl Caller for Fake {
        fn begin(&mut self) -> Result<u64, String> {
            self.last += 1;
            self.ends.push_back((self.last, Instant::now() + LENGTH));
            Ok(self.last)
        }

        fn next(&mut self, until: Instant) -> Result<Option<Ended>, String> {
            let Some((number, end)) = self.ends.pop_front() else { return Err("it has died".into()) };
            thread::sleep(end.min(until).saturating_duration_since(Instant::now()));
            let result = if number % self.fails == 0 { Err("no such thing".into()) } else { Ok(()) };
            Ok(Some((number, result)))
        }
    }

    /// A target whose callers in turn fail so often, the last for all that follow.
    fn target(fails: &[u64]) -> Target {
        let (fails, made) = (fails.to_vec(), AtomicUsize::new(0));
        let caller = move || -> Option<Box<dyn Caller>> {
            let nth = made.fetch_add(1, Relaxed).min(fails.len() - 1);
            Some(Box::new(Fake { last: 0, ends: VecDeque::new(), fails: fails[nth] }))
        };
        Target::new("127.0.0.1:1".parse().unwrap(), Arc::new(Callers::new(1, caller)), Arc::new(()))
    }

    fn rules(calls: u64, max_duration_ms: u64) -> Rules {
        let stop = Stop { min_duration_ms: 100, max_duration_ms, ..Stop::default() };
        Rules { stop, batches: Some(calls), seed: 0, slice: None, sla: None, aim: Default::default() }
    }

    async fn point(fails: u64) -> Point {
        calls(fails, 100, 5_000).await
    }

    async fn calls(fails: u64, calls: u64, max_duration_ms: u64) -> Point {
        let rules = rules(calls, max_duration_ms);
        let load = LoadPoint::Closed { concurrency: 4 };
        measure(&target(&[fails]), load, &rules, &(), &Default::default()).await.unwrap()
    }

    #[tokio::test]
    async fn calls_made_elsewhere_are_timed_as_our_own_are() {
        let point = point(u64::MAX).await;
        assert_eq!((point.requests, point.errors), (100, 0));
        let median_ms = point.latency.percentile_ns(50.0) as f64 / 1e6;
        assert!((2.0..20.0).contains(&median_ms), "{median_ms}");
    }

    /// Of 2 ms each, four at a time.
    #[tokio::test]
    async fn a_few_fast_calls_still_have_a_rate_with_its_interval() {
        let point = calls(u64::MAX, 20, 5_000).await;
        assert_eq!(point.requests, 20);
        let rate = point.requests_per_s.expect("several stretches");
        assert!((200.0..2500.0).contains(&rate.value), "{rate:?}");
    }

    #[tokio::test]
    async fn fewer_calls_than_asked_for_have_not_converged_however_precise() {
        let point = calls(u64::MAX, 1_000_000, 700).await;
        let cut = point.warnings.iter().find(|w| w.code == "cut_short").expect("a warning of its own");
        assert!(!point.converged && cut.message.contains(&format!("{} of 1000000", point.requests)), "{cut:?}");
    }

    #[tokio::test]
    async fn calls_that_fail_are_counted_with_their_words() {
        let point = point(10).await;
        assert!(point.errors >= 9 && !point.valid, "{point:?}");
        assert_eq!(point.error_kinds["inspector"], point.errors);
        assert!(point.warnings.iter().any(|w| w.message.contains("no such thing")), "{:?}", point.warnings);
    }

    #[tokio::test]
    async fn a_load_of_which_no_call_succeeds_is_an_error_at_first_and_a_point_later() {
        let load = Load::Closed { concurrencies: vec![1, 2, 4] };
        let run = async |fails: &[u64]| {
            let mut bench = Bench::new(target(fails), rules(20, 600), Box::new(()), Default::default());
            run_plan(&load, None, Budget::default(), &mut bench).await
        };
        let points = run(&[u64::MAX, 1, u64::MAX]).await.unwrap();
        assert_eq!(points.iter().map(|p| p.valid).collect::<Vec<_>>(), [true, false, true]);
        let failed = &points[1];
        assert!(failed.latency.is_empty() && failed.requests == failed.errors && failed.errors > 0, "{failed:?}");
        assert_eq!(failed.error_kinds["inspector"], failed.errors);
        let why = failed.warnings.iter().find(|w| w.code == "nothing_measured").expect("a warning that says why");
        assert!(why.spoils() && why.message.contains("no such thing"), "{why:?}");
        assert!(run(&[1]).await.unwrap_err().message.contains("no such thing"));
    }

    #[test]
    fn the_first_call_says_how_it_ended() {
        let caller = |fails| Box::new(Fake { last: 0, ends: VecDeque::new(), fails });
        assert!(once(caller(u64::MAX), Duration::from_secs(5)).unwrap() >= LENGTH);
        assert!(once(caller(1), Duration::from_secs(5)).unwrap_err().message.contains("no such thing"));
    }
}
