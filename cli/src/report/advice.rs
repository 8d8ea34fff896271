//! What to do for better figures: how long a measurement must be for the percentile that lacks the most.

use super::{
    cell::{Cell, Group},
    number::{Shown, number},
};
use modelmeter_common::{profile::Latency, stats::Figure};

/// Seconds of a cell below which its other load points are not measured well.
const LEAST_CELL_S: f64 = 30.0;
/// Of a cell's time, one part in so many goes to the load point that the latencies are of.
const PARTS: f64 = 2.0;
/// Nobody waits for longer than this because of a hint.
const LONGEST_S: f64 = 2.0 * 3_600.0;

/// A figure that a reader misses, and the calls that it takes.
struct Aim {
    what: &'static str,
    of: fn(&Latency) -> Option<Figure>,
    calls: u64,
    /// Whether an interval is missed, not the figure itself.
    interval: bool,
}

/// The most useful first.
const AIMS: [Aim; 4] = [
    Aim { what: "p95", of: |ms| ms.p95, calls: 20, interval: false },
    Aim { what: "an interval for p95", of: |ms| ms.p95, calls: 100, interval: true },
    Aim { what: "p99", of: |ms| ms.p99, calls: 100, interval: false },
    Aim { what: "an interval for p99", of: |ms| ms.p99, calls: 500, interval: true },
];

/// Intervals narrow with the root of the time: so many times as long gives half of their width.
const LONGER: f64 = 4.0;

/// One sentence; none where every figure is supported, or more time would not support it.
pub fn better(group: &Group) -> Option<String> {
    more_calls(group).or_else(|| more_time(group))
}

/// Where too few calls were made.
fn more_calls(group: &Group) -> Option<String> {
    AIMS.iter().find_map(|aim| {
        let lacking = group.cells.iter().filter_map(|cell| Some((cell, seconds_a_call(cell, aim)?)));
        let (slowest, call_s) = lacking.max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let cell_s = (PARTS * aim.calls as f64 * call_s).max(LEAST_CELL_S);
        let runs: usize = group.cells.iter().map(|cell| cell.profile.repeats.len().max(1)).sum();
        let all_s = cell_s * runs as f64;
        let call = if call_s < 1.0 { format!("{} ms", number(call_s * 1e3)) } else { format!("{} s", number(call_s)) };
        let wants = format!("{} of {} takes {} calls of {call}", aim.what, slowest.name, aim.calls);
        (all_s <= LONGEST_S)
            .then(|| format!("sharper: {wants}: --budget {} ({} a cell)", budget(all_s), budget(cell_s)))
    })
}

/// Where calls were enough and latency varied so much that the interval is wider than the figure.
fn more_time(group: &Group) -> Option<String> {
    type Of = fn(&Latency) -> Option<Figure>;
    let figures: [(&str, Of); 2] = [("p50", |ms| ms.p50), ("p95", |ms| ms.p95)];
    figures.into_iter().find_map(|(what, of)| {
        let cell = group.cells.iter().find(|cell| cell.latency(of).is_some_and(Shown::is_wide))?;
        let points = group.cells.iter().flat_map(|cell| &cell.profile.points);
        let all_s = LONGER * points.map(|point| point.duration_s).sum::<f64>();
        let wants = format!("latency varied too much for {what} of {}", cell.name);
        (all_s <= LONGEST_S).then(|| format!("sharper: {wants}: a steadier machine, or --budget {}", budget(all_s)))
    })
}

/// How long a call of the cell takes, if more of them would bring what is aimed at.
fn seconds_a_call(cell: &Cell, aim: &Aim) -> Option<f64> {
    let point = cell.reference().filter(|point| point.valid && point.requests > 0)?;
    let figure = (aim.of)(&point.latency_ms);
    let is_lacking = if aim.interval { figure.is_some_and(|f| f.ci95.is_none()) } else { figure.is_none() };
    (is_lacking && point.requests < aim.calls).then(|| point.duration_s / point.requests as f64)
}

/// A duration as `--budget` takes it, rounded up: `40s`, `5m`.
pub fn budget(seconds: f64) -> String {
    if seconds <= 100.0 {
        format!("{:.0}s", (seconds / 10.0).ceil() * 10.0)
    } else {
        format!("{:.0}m", (seconds / 60.0).ceil())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};

    #[test]
    fn the_figure_that_lacks_most_is_told_with_the_time_that_it_takes() {
        let slow = samples::observed(8);
        let said = better(&Group::new(vec![&slow])).unwrap();
        assert_eq!(said, "sharper: p95 of rten batch 8 takes 20 calls of 1.40 s: --budget 60s (60s a cell)");
        let fine = samples::cpu(1);
        assert_eq!(better(&Group::new(vec![&fine])), None);
    }

    #[test]
    fn where_calls_were_enough_and_latency_varied_time_or_a_steadier_machine_is_the_remedy() {
        let mut unsteady = samples::cpu(1);
        let p95 = &mut unsteady.points[0].latency_ms.p95;
        *p95 = p95.map(|figure| Figure { ci95: Some([figure.value, 5.0 * figure.value]), ..figure });
        let said = better(&Group::new(vec![&unsteady])).unwrap();
        let expected = "sharper: latency varied too much for p95 of rten batch 1: a steadier machine, or --budget 20s";
        assert_eq!(said, expected);
    }

    #[test]
    fn durations_are_ones_that_the_flag_takes() {
        assert_eq!([budget(31.0), budget(150.0)], ["40s", "3m"]);
    }
}
