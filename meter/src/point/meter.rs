//! The life of one point: the meter warms up, measures until the stop rule is met, and collects the client's reports.

use super::{
    limits::{is_decided, lacks_percentiles, latest_warmup, planned, stop_rule, widest_ns},
    observed::{MetricSeen, Observed, has_failed},
};
use crate::{
    check::Remark,
    drive::{Control, Report, Started, failed, silent, unreachable},
    probe::{Probe, Sampling},
    record::{
        Failure,
        recorder::{LOST, Sends, Window},
    },
    rules::Rules,
    target::Target,
};
use modelmeter_common::{
    Code, Problem,
    load::LoadPoint,
    stats::{
        series::{Batch, Series},
        stop::{Look, StopRule},
        warmup::{self, Warmth},
    },
};
use std::{
    collections::BTreeMap,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinSet};
use tokio_util::sync::CancellationToken;

/// Without a connection for this long, and after this many attempts at one, a server is gone.
const GONE_AFTER: Duration = Duration::from_secs(2);
const GONE_ATTEMPTS: u32 = 5;
/// Time beyond a call's time-out after which a server counts as silent.
const SILENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);

pub(super) struct Meter<'a> {
    target: &'a Target,
    load: LoadPoint,
    rules: &'a Rules,
    stop: StopRule,
    /// Time that was measured before this visit.
    earlier: Duration,
    control: Control,
    reports: UnboundedReceiver<Report>,
    warmup: Series,
    warmup_time: Duration,
    drifting: bool,
    measuring: bool,
    /// Widest stretch of the run.
    widest_ns: u64,
    series: Series,
    /// One series for each metric of the transport, in its order.
    metrics: Vec<Series>,
    errors: BTreeMap<Failure, u64>,
    warmup_errors: BTreeMap<Failure, u64>,
    words: BTreeMap<Failure, String>,
    cpu_ns: u64,
    awake_ns: u64,
    starved_ns: u64,
    /// Calls that were sent again in the measured phase.
    resent: u64,
    connections_ended: u64,
    sends: Option<Sends>,
    converged: bool,
    gone: Option<String>,
    /// Set while there is no connection.
    down: Option<Down>,
    last_seen: Instant,
    begun: Instant,
    checks: JoinSet<Result<Vec<Remark>, Problem>>,
}

/// A time without a connection.
struct Down {
    since: Instant,
    attempts: u32,
    /// Kind of the last failure.
    failure: Failure,
    words: String,
}

/// What the next report means for the run.
#[derive(PartialEq)]
enum Next {
    Go,
    End,
}

impl<'a> Meter<'a> {
    pub fn new(target: &'a Target, load: LoadPoint, rules: &'a Rules, Started { control, reports }: Started) -> Self {
        let now = Instant::now();
        Self {
            target,
            load,
            rules,
            stop: stop_rule(rules, Duration::ZERO, now),
            earlier: Duration::ZERO,
            control,
            reports,
            warmup: Series::default(),
            warmup_time: Duration::ZERO,
            drifting: false,
            measuring: false,
            widest_ns: u64::MAX,
            series: Series::default(),
            metrics: vec![Series::default(); target.transport.metrics().len()],
            errors: BTreeMap::new(),
            warmup_errors: BTreeMap::new(),
            words: BTreeMap::new(),
            cpu_ns: 0,
            awake_ns: 0,
            starved_ns: 0,
            resent: 0,
            connections_ended: 0,
            sends: None,
            converged: false,
            gone: None,
            down: None,
            last_seen: now,
            begun: now,
            checks: JoinSet::new(),
        }
    }

    /// Continues what was measured of this load before.
    pub fn go_on_with(&mut self, earlier: &Observed) {
        self.series = earlier.series.clone();
        self.metrics = earlier.metrics.iter().map(|metric| metric.series.clone()).collect();
        self.errors = earlier.errors.clone();
        self.words = earlier.words.clone();
        self.earlier = Duration::from_nanos(self.series.total().duration_ns);
        let ns = |cores: f64| (cores * self.earlier.as_nanos() as f64) as u64;
        (self.cpu_ns, self.awake_ns) = (ns(earlier.client_cpu_cores), ns(earlier.client_awake_cores));
        self.starved_ns = ns(earlier.client_starved_cores);
        (self.resent, self.connections_ended) = (earlier.resent, earlier.connections_ended);
        self.stop = stop_rule(self.rules, self.earlier, self.begun);
    }

    /// Runs the warm-up, then the measured phase. Sampling begins with the latter.
    pub async fn run(&mut self, probe: &dyn Probe, cancel: &CancellationToken) -> Result<Box<dyn Sampling>, Problem> {
        while self.next(cancel).await? == Next::Go && !self.is_warm() {}
        self.warmup_time = self.begun.elapsed();
        self.widest_ns = self.rules.batches.map_or(u64::MAX, |calls| widest_ns(calls, &self.warmup));
        self.control.set_width_ns(self.series.window_ns().min(self.widest_ns));
        let running = probe.begin();
        self.control.begin_measuring(self.rules.batches.unwrap_or(u64::MAX));
        self.measuring = true;
        self.begun = Instant::now();
        self.last_seen = self.begun;
        self.stop = stop_rule(self.rules, self.earlier, self.begun);
        if self.gone.is_none() {
            while self.next(cancel).await? == Next::Go && !self.is_enough() {}
        }
        Ok(running)
    }

    /// Takes in one report, or looks at the time.
    async fn next(&mut self, cancel: &CancellationToken) -> Result<Next, Problem> {
        let report = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(Problem::new(Code::Cancelled, "cancelled while measuring")),
            report = tokio::time::timeout(LOOK_EVERY, self.reports.recv()) => report,
        };
        match report {
            Ok(Some(report)) => Ok(self.take(report)),
            Ok(None) => Err(Problem::new(Code::Internal, "the client's thread died")),
            Err(_) => Ok(self.look()),
        }
    }

    fn take(&mut self, report: Report) -> Next {
        match report {
            Report::Window(window) => self.take_window(*window),
            Report::Answer(message) => {
                let (check, shared) = (self.target.check.clone(), self.control.shared.clone());
                self.checks.spawn_blocking(move || {
                    let checked = check.examine(&message);
                    shared.checking.store(false, Relaxed);
                    checked
                });
            }
            Report::Words(failure, words) => {
                self.words.entry(failure).or_insert(words);
            }
            Report::Down { failure, words } => {
                let (since, before) =
                    self.down.as_ref().map_or((Instant::now(), 0), |down| (down.since, down.attempts));
                let down = Down { since, attempts: before + 1, failure, words };
                let is_gone = down.attempts >= GONE_ATTEMPTS && down.since.elapsed() >= GONE_AFTER;
                if is_gone {
                    self.gone = Some(down.words.clone());
                }
                self.down = Some(down);
                if is_gone {
                    return Next::End;
                }
            }
            Report::Up => self.down = None,
            Report::Ended(sends) => {
                self.sends = Some(*sends);
                return Next::End;
            }
        }
        self.look()
    }

    fn take_window(&mut self, window: Window) {
        let succeeded = !window.batch.latency.is_empty() || window.batch.carried > 0;
        if succeeded || window.errors.keys().any(|failure| failure.is_answer()) {
            self.last_seen = Instant::now();
            self.down = None;
        }
        let (series, errors) = if self.measuring && window.phase > 0 {
            (&mut self.series, &mut self.errors)
        } else {
            (&mut self.warmup, &mut self.warmup_errors)
        };
        series.push(&window.batch);
        if self.measuring && window.phase > 0 {
            self.metrics.iter_mut().zip(&window.metrics).for_each(|(series, batch)| series.push(batch));
        }
        if window.phase > 0 {
            self.cpu_ns += window.cpu_ns;
            self.awake_ns += window.awake_ns;
            self.starved_ns += window.starved_ns;
            self.resent += window.resent;
            self.connections_ended += window.connections_ended;
        }
        for (failure, n) in window.errors {
            *errors.entry(failure).or_insert(0) += n;
        }
        self.control.set_width_ns(series.window_ns().min(self.widest_ns));
    }

    /// Ends the run when the server has gone silent.
    fn look(&mut self) -> Next {
        if self.control.shared.idle.load(Relaxed) {
            self.last_seen = Instant::now();
        }
        let patience = Duration::from_millis(self.rules.stop.timeout_ms) + SILENCE;
        if self.last_seen.elapsed() > patience {
            let silent = || format!("nothing was answered for {} s", patience.as_secs_f64());
            self.gone = Some(self.down.as_ref().map_or_else(silent, |down| down.words.clone()));
            return Next::End;
        }
        Next::Go
    }

    fn is_warm(&mut self) -> bool {
        let elapsed = self.begun.elapsed();
        // The first call of each in flight meets a cold engine, or one still busy with what an earlier point left.
        let first = match self.load {
            LoadPoint::Closed { concurrency } => u64::from(concurrency),
            LoadPoint::Open { .. } => 1,
        };
        if self.warmup.requests() < first && elapsed < latest_warmup(self.rules, &self.stop) {
            return false;
        }
        match warmup::judge(&self.warmup, elapsed, planned(self.rules, &self.stop)) {
            Warmth::Warming => false,
            Warmth::Warm => true,
            Warmth::Drifting => {
                self.drifting = true;
                true
            }
        }
    }

    /// Whether the stop rule, the SLA and the failures so far let it end.
    fn is_enough(&mut self) -> bool {
        let elapsed = self.begun.elapsed();
        let look = self.stop.look(elapsed, &self.series);
        if look == Look::Open {
            self.converged = elapsed >= self.stop.min && self.misses_sla();
            return self.converged || elapsed >= self.stop.min && has_failed(&self.series);
        }
        self.converged = self.is_converged();
        look == Look::Late || has_failed(&self.series) || self.converged && !self.lacks_percentiles()
    }

    /// Whether percentiles still lack an interval on a later visit, which is made for these too.
    fn lacks_percentiles(&self) -> bool {
        !self.earlier.is_zero() && lacks_percentiles(&self.series.percentiles())
    }

    /// Whether the figures are precise enough; for a load of a search, whether the SLA is decided.
    fn is_converged(&self) -> bool {
        let is_precise = self.stop.is_met(&self.series);
        self.rules.sla.as_ref().map_or(is_precise, |sla| is_decided(sla, &self.series, is_precise))
    }

    fn misses_sla(&self) -> bool {
        self.rules.sla.as_ref().is_some_and(|sla| is_decided(sla, &self.series, false))
    }

    /// Ends the client: an open loop waits for its calls, a closed one for those that take far longer than any before.
    pub fn end(&self) {
        match self.gone {
            None => self.control.drain(),
            Some(_) => self.control.stop(),
        }
    }

    /// Takes in what the client still has to tell, and says what was seen.
    pub async fn observed(mut self) -> Result<Observed, Problem> {
        let patience = Duration::from_millis(self.rules.stop.timeout_ms) + SILENCE;
        let end = Instant::now() + patience;
        while self.sends.is_none() {
            match tokio::time::timeout_at(end.into(), self.reports.recv()).await {
                Ok(Some(report)) => drop(self.take(report)),
                Ok(None) => return Err(Problem::new(Code::Internal, "the client's thread died")),
                Err(_) => break,
            }
        }
        let is_nothing = self.series.total().latency.is_empty() && self.warmup.total().latency.is_empty();
        let nothing = is_nothing.then(|| self.nothing_succeeded());
        if is_nothing && self.series.requests() == 0 {
            // It never came to measuring: what failed in its warm-up is what there is to count.
            (self.series, self.errors) = (std::mem::take(&mut self.warmup), std::mem::take(&mut self.warmup_errors));
            self.warmup_time = Duration::ZERO;
        }
        self.take_silence();
        let (checked, bad_answers, remarks) = self.checked().await;
        let (throughput, percentiles) = (self.series.rate(), self.series.percentiles());
        let converged = self.rules.batches.map_or(self.converged, |calls| self.series.requests() >= calls);
        Ok(Observed {
            load: self.load,
            warmup: self.warmup_time,
            drifting: self.drifting && !is_nothing,
            client_awake_cores: self.cores(self.awake_ns),
            client_cpu_cores: self.cores(self.cpu_ns),
            client_starved_cores: self.cores(self.starved_ns),
            metrics: MetricSeen::all(self.target.transport.metrics(), self.metrics),
            series: self.series,
            throughput,
            percentiles,
            errors: self.errors,
            words: self.words,
            resent: self.resent,
            connections_ended: self.connections_ended,
            sends: self.sends.unwrap_or_default(),
            converged,
            gone: self.gone,
            nothing,
            checked,
            bad_answers,
            remarks,
        })
    }

    /// Adds the time for which a server stood still at the end of a closed loop to the run: every call in flight had been
    /// waited for [`LOST`] times as long as any call took. The client has lingered before, so that a call which is answered
    /// within a second counts with its latency; only a longer silence comes here, where there is no call to count.
    fn take_silence(&mut self) {
        let is_closed = matches!(self.load, LoadPoint::Closed { .. });
        let longest_ns = self.series.total().latency.max_ns();
        let waited_ns = self.sends.iter().flat_map(|sends| &sends.unanswered_ns).min();
        let is_silence = |&&ns: &&u64| is_closed && longest_ns > 0 && ns > LOST * longest_ns;
        let Some(&silent_ns) = waited_ns.filter(is_silence) else { return };
        self.series.push(&Batch { duration_ns: silent_ns, ..Batch::default() });
        self.converged = self.converged && self.is_converged();
    }

    /// CPU time as a mean over the measured time; 0 where that is.
    fn cores(&self, ns: u64) -> f64 {
        let measured_ns = self.series.total().duration_ns;
        if measured_ns == 0 { 0.0 } else { ns as f64 / measured_ns as f64 }
    }

    async fn checked(&mut self) -> (u64, Vec<Problem>, Vec<Remark>) {
        let (mut checked, mut bad, mut remarks) = (0, Vec::new(), Vec::new());
        while let Some(result) = self.checks.join_next().await {
            checked += 1;
            match result {
                Ok(Ok(found)) => found.iter().for_each(|remark| remark.add_to(&mut remarks)),
                Ok(Err(problem)) => bad.push(problem),
                Err(_) => bad.push(Problem::new(Code::Internal, "the inspector panicked on an answer")),
            }
        }
        (checked, bad, remarks)
    }

    fn nothing_succeeded(&self) -> Problem {
        let endpoint = &self.target.endpoint;
        let worst = self.errors.iter().chain(&self.warmup_errors).max_by_key(|(_, n)| **n);
        match (&self.down, &self.gone, worst) {
            (_, _, Some((&failure, _))) => failed(endpoint, failure, self.words.get(&failure).map(String::as_str)),
            (Some(Down { failure, words, .. }), _, None) => unreachable(endpoint, *failure, words),
            (None, Some(words), None) => unreachable(endpoint, Failure::Timeout, words),
            (None, None, None) if self.rules.slice.is_some_and(|s| s.end <= Instant::now()) => {
                let message = format!("no call to {endpoint} ended in the time that the budget left for it");
                Problem::new(Code::DeadlineExceeded, message).with_hint("raise --budget")
            }
            (None, None, None) => silent(endpoint, Duration::from_millis(self.rules.stop.timeout_ms)),
        }
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
