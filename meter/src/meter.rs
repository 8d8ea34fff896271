//! One point: warms up, measures until the stop rule is met, and puts the figures together.

use super::{
    Aim, Rules, Target, caller, client,
    control::{Control, Orders, Report},
    observed::{Kept, Observed, is_hopeless},
    once,
    outcome::Failure,
    recorder::{Sends, Window},
    revisit,
    schedule::Pacer,
    search,
    verdict::{self, LOST},
};
use crate::{
    check::Remark,
    probe::{Probe, Sampling},
};
use futures::future::BoxFuture;
use modelmeter_common::{
    Code, Problem,
    load::LoadPoint,
    part::Point,
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
/// Beyond the time-out of a call.
const SILENCE: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The least duration of a point that is only compared with others: the peak is measured again for its figures.
const PEAK_MIN: Duration = Duration::from_secs(2);
/// About so many stretches a fixed number of calls is cut into,
const STRETCHES: u64 = 32;
/// none narrower than this, as each costs the client some microseconds.
const NARROWEST_NS: u64 = 500_000;

/// What the rules allow of a point of which `done` was measured before, within what is left of its slice.
fn stop_rule(rules: &Rules, done: Duration, now: Instant) -> StopRule {
    let mut rule = StopRule::from(&rules.stop);
    if rules.aim == Aim::Peak {
        rule.min = rule.min.min(PEAK_MIN);
    }
    let until = |end: Instant| end.saturating_duration_since(now);
    let longest = rule.max.saturating_sub(done);
    let (max, last) =
        rules.slice.map_or((longest, longest), |s| (longest.min(until(s.share)), longest.min(until(s.end))));
    // A fixed number of calls is not ended for its precision.
    let min = if rules.batches.is_some() { max } else { max.min(rule.min.saturating_sub(done)) };
    let rule = StopRule::new(min, max, last, rule.precision).after(done);
    if rules.aim == Aim::Percentiles { rule.seeing_percentiles() } else { rule }
}

/// The measuring that a warm-up precedes, which may take a third of it: with a slice they share it.
fn planned(rules: &Rules, rule: &StopRule) -> Duration {
    if rules.slice.is_some() { rule.max.mul_f64(0.75) } else { rule.max }
}

/// The latest end of a warm-up in which the first calls have yet to end.
fn latest_warmup(rules: &Rules, rule: &StopRule) -> Duration {
    let third = Duration::from_millis(rules.stop.max_duration_ms) / 3;
    if rules.slice.is_some() { third.min(rule.last / 2) } else { third }
}

/// How wide the stretches of a run of so many calls may be at the rate of its warm-up.
fn widest_ns(calls: u64, warmup: &Series) -> u64 {
    let call_ns = warmup.total().duration_ns / warmup.requests().max(1);
    (calls.saturating_mul(call_ns) / STRETCHES).max(NARROWEST_NS)
}

/// Measures one load point. Ends within about 100 ms of a cancellation. An error only where no call succeeded. Boxed, so
/// that it is compiled here, once and for speed.
pub fn measure<'a>(
    target: &'a Target,
    load: LoadPoint,
    rules: &'a Rules,
    probe: &'a dyn Probe,
    cancel: &'a CancellationToken,
) -> BoxFuture<'a, Result<Point, Problem>> {
    Box::pin(async move {
        let kept = observe(target, load, rules, probe, cancel, None).await?;
        kept.seen.nothing.clone().map_or_else(|| Ok(verdict::point(target.call.batch_size, rules, &kept)), Err)
    })
}

/// The same before it is judged, also where no call succeeded. Where the load was measured before, it goes on with that: a
/// closed loop's series is continued.
pub(super) async fn observe(
    target: &Target,
    load: LoadPoint,
    rules: &Rules,
    probe: &dyn Probe,
    cancel: &CancellationToken,
    earlier: Option<&Kept>,
) -> Result<Kept, Problem> {
    let timeout = Duration::from_millis(rules.stop.timeout_ms);
    let orders = Orders {
        pacer: Pacer::new(load, rules.seed),
        max_in_flight: rules.stop.max_in_flight as usize,
        cpus: target.client_cpus.clone(),
        ..Orders::new(&target.endpoint, &target.call, timeout).await?
    };
    let started = match target.check.caller() {
        Some(caller) => caller::start(caller, orders),
        None => client::start(orders),
    };
    let (control, reports) =
        started.map_err(|e| Problem::new(Code::Internal, format!("cannot start the client: {e}")))?;
    let mut meter = Meter::new(target, load, rules, control, reports);
    if let Some(earlier) = earlier {
        meter.go_on_with(&earlier.seen);
    }
    let running = meter.run(probe, cancel).await?;
    meter.end();
    let ended = tokio::task::spawn_blocking(|| running.end());
    let samples = ended.await.map_err(|e| Problem::new(Code::Internal, format!("sampling failed: {e}")))?;
    let before_s = earlier.map_or(0.0, |e| e.seen.series.seconds());
    let mut seen = meter.observed().await?;
    let Some(earlier) = earlier else { return Ok(Kept { seen, samples }) };
    let more_s = seen.series.seconds() - before_s;
    let share = more_s / (before_s + more_s).max(1e-9);
    seen.add_earlier(&earlier.seen);
    Ok(Kept { seen, samples: earlier.samples.and(&samples, share) })
}

struct Meter<'a> {
    target: &'a Target,
    load: LoadPoint,
    rules: &'a Rules,
    stop: StopRule,
    /// Measured before this visit.
    earlier: Duration,
    control: Control,
    reports: UnboundedReceiver<Report>,
    warmup: Series,
    warmup_time: Duration,
    drifting: bool,
    measuring: bool,
    /// Of a stretch.
    widest_ns: u64,
    series: Series,
    errors: BTreeMap<Failure, u64>,
    warmup_errors: BTreeMap<Failure, u64>,
    words: BTreeMap<Failure, String>,
    cpu_ns: u64,
    awake_ns: u64,
    starved_ns: u64,
    /// Of the measured phase.
    resent: u64,
    connections_ended: u64,
    sends: Option<Sends>,
    converged: bool,
    gone: Option<String>,
    /// While there is no connection.
    down: Option<Down>,
    last_seen: Instant,
    begun: Instant,
    checks: JoinSet<Result<Vec<Remark>, Problem>>,
}

/// No connection stands.
struct Down {
    since: Instant,
    attempts: u32,
    /// Why.
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
    fn new(
        target: &'a Target,
        load: LoadPoint,
        rules: &'a Rules,
        control: Control,
        reports: UnboundedReceiver<Report>,
    ) -> Self {
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
    fn go_on_with(&mut self, earlier: &Observed) {
        self.series = earlier.series.clone();
        self.errors = earlier.errors.clone();
        self.words = earlier.words.clone();
        self.earlier = Duration::from_nanos(self.series.total().duration_ns);
        let ns = |cores: f64| (cores * self.earlier.as_nanos() as f64) as u64;
        (self.cpu_ns, self.awake_ns) = (ns(earlier.client_cpu_cores), ns(earlier.client_awake_cores));
        self.starved_ns = ns(earlier.client_starved_cores);
        (self.resent, self.connections_ended) = (earlier.resent, earlier.connections_ended);
        self.stop = stop_rule(self.rules, self.earlier, self.begun);
    }

    /// Warm-up, then the measured phase. Sampling begins with the latter.
    async fn run(&mut self, probe: &dyn Probe, cancel: &CancellationToken) -> Result<Box<dyn Sampling>, Problem> {
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

    /// Ends what has gone silent: nothing is answered.
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
            return self.converged || elapsed >= self.stop.min && is_hopeless(&self.series);
        }
        self.converged = self.is_converged();
        look == Look::Late || is_hopeless(&self.series) || self.converged && !self.lacks_percentiles()
    }

    /// What a load is visited again for is more than precision: also the percentiles that it could not carry yet.
    fn lacks_percentiles(&self) -> bool {
        !self.earlier.is_zero() && revisit::lacks_percentiles(&self.series.percentiles())
    }

    /// What is asked of a search's load is whether the SLA is met.
    fn is_converged(&self) -> bool {
        let is_precise = self.stop.is_met(&self.series);
        self.rules.sla.as_ref().map_or(is_precise, |sla| search::is_decided(sla, &self.series, is_precise))
    }

    fn misses_sla(&self) -> bool {
        self.rules.sla.as_ref().is_some_and(|sla| search::is_decided(sla, &self.series, false))
    }

    /// Ends the client; an open loop waits for its calls.
    fn end(&self) {
        match self.load {
            LoadPoint::Open { .. } if self.gone.is_none() => self.control.drain(),
            _ => self.control.stop(),
        }
    }

    /// Takes in what the client still has to tell, and says what was seen.
    async fn observed(mut self) -> Result<Observed, Problem> {
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

    /// Where nothing that was in flight at the end of a closed loop was answered for [`LOST`] times as long as any call took,
    /// the server stood still: that time is part of the run.
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
            (_, _, Some((&failure, _))) => {
                once::failed(endpoint, failure, self.words.get(&failure).map(String::as_str))
            }
            (Some(Down { failure, words, .. }), _, None) => once::unreachable(endpoint, *failure, words),
            (None, Some(words), None) => once::unreachable(endpoint, Failure::Timeout, words),
            (None, None, None) if self.rules.slice.is_some_and(|s| s.end <= Instant::now()) => {
                let message = format!("no call to {endpoint} ended in the time that the budget left for it");
                Problem::new(Code::DeadlineExceeded, message).with_hint("raise --budget")
            }
            (None, None, None) => once::silent(endpoint, Duration::from_millis(self.rules.stop.timeout_ms)),
        }
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
