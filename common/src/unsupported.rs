//! Why a figure or its interval is null, in words for a reader: what counts is calls beyond a percentile and time, never an
//! effective number.

use crate::{
    part::{Metric, Reason},
    stats::{
        Figure,
        percentile::Percentile,
        sample::{MEDIAN, observable},
    },
};

/// Prefix of the paths of percentiles in a profile's point.
pub const LATENCY: &str = "latency_ms.";
/// Prefix of the paths of all metrics.
pub const METRICS: &str = "metrics.";
/// The path of a point's throughput.
pub const THROUGHPUT: &str = "throughput_inferences_per_s";

/// Calls beyond a percentile below which it has no interval.
const BEYOND: u64 = 5;
/// Calls below which the median has none.
const MEDIAN_CALLS: u64 = 8;

/// The path of a percentile in a profile's point: `latency_ms.p99_9`.
fn path(prefix: &str, q: f64) -> String {
    format!("{prefix}p{}", q.to_string().replace('.', "_"))
}

/// What a percentile of so many calls lacks: its path under this prefix, or that of its interval, and why. None where it
/// has both.
pub fn percentile(prefix: &str, p: &Percentile, requests: u64) -> Option<(String, Reason)> {
    let path = |q: f64| path(prefix, q);
    let Percentile { q, beyond, .. } = *p;
    let least = observable(q);
    let because = |path: String, code: &str, message: String| Some((path, Reason { code: code.into(), message }));
    match p.ms {
        None if requests < least => because(
            path(q),
            "too_few_requests",
            format!("p{q} is seen from {} on, there {}", calls(least), were(requests)),
        ),
        None => because(path(q), "among_failures", format!("p{q} falls among the calls that failed")),
        Some(Figure { ci95: Some(_), .. }) => None,
        Some(_) => {
            let path = path(q) + ".ci95";
            if q == MEDIAN && requests < MEDIAN_CALLS {
                let message = format!("an interval takes {MEDIAN_CALLS} calls, there {}", were(requests));
                because(path, "too_few_requests", message)
            } else if q != MEDIAN && beyond < BEYOND {
                let message = format!(
                    "{BEYOND} calls beyond p{q} are needed, there {}: only a lower bound is sure",
                    were(beyond)
                );
                because(path, "too_few_requests", message)
            } else if p.had == 0 {
                because(path, "one_stretch", "the calls end in one stretch of the run; measure longer".into())
            } else {
                let message = format!(
                    "the upper end of p{q} is not known: calls depend on each other or fail too much; measure longer or on a \
                     steadier machine"
                );
                because(path, "not_bounded", message)
            }
        }
    }
}

/// What the percentiles of a metric lack, as [`percentile`] says.
pub fn metric(metric: &Metric) -> impl Iterator<Item = (String, Reason)> {
    let (prefix, calls) = (format!("{METRICS}{}.", metric.name), metric.values.len() + metric.failures);
    metric.percentiles.iter().filter_map(move |p| percentile(&prefix, p, calls))
}

/// The part that a throughput lacks: its path, and why.
pub fn throughput(rate: Option<Figure>) -> Option<(String, Reason)> {
    let (path, code, message) = match rate {
        None => (THROUGHPUT.to_owned(), "no_success", "no call succeeded in the measured time"),
        Some(Figure { ci95: None, .. }) => (
            format!("{THROUGHPUT}.ci95"),
            "one_stretch",
            "an interval takes calls that end in two stretches of the run or more",
        ),
        Some(_) => return None,
    };
    Some((path, Reason { code: code.into(), message: message.into() }))
}

fn calls(n: u64) -> String {
    if n == 1 { "1 call".into() } else { format!("{n} calls") }
}

fn were(n: u64) -> String {
    match n {
        0 => "were none".into(),
        1 => "was 1".into(),
        n => format!("were {n}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::percentile::Basis;

    fn lacking(q: f64, ms: Option<Figure>, requests: u64, beyond: u64) -> (String, Reason) {
        let p = Percentile { q, ms, basis: Basis::None, beyond, needs: 72, had: 7, sure: 7, sure_unjoined: 7 };
        percentile(LATENCY, &p, requests).unwrap()
    }

    #[test]
    fn a_reader_is_told_of_calls_beyond_and_of_time_and_never_of_effective_samples() {
        let seen = Some(Figure::observed(5.0));
        let (path, reason) = lacking(99.0, seen, 2206, 1);
        assert_eq!(path, "latency_ms.p99.ci95");
        assert_eq!(reason.message, "5 calls beyond p99 are needed, there was 1: only a lower bound is sure");
        assert_eq!(lacking(95.0, None, 13, 0).1.message, "p95 is seen from 20 calls on, there were 13");
        assert_eq!(lacking(95.0, None, 200, 0).1.code, "among_failures");
        assert_eq!(lacking(50.0, seen, 5, 2).1.message, "an interval takes 8 calls, there were 5");
        assert_eq!(lacking(99.9, seen, 20_000, 20).1.code, "not_bounded");
        assert_eq!(self::path(LATENCY, 99.9), "latency_ms.p99_9");
        assert_eq!(throughput(None).unwrap().1.code, "no_success");
    }
}
