//! From figures to what they mean for measurements on this machine: pure.

use super::{Closed, Host, Open, SelfCheck, Timer};
use crate::report::number;

/// A latency that is so many times the client's own is little disturbed by it.
const LITTLE: f64 = 10.0;
/// Shares of the CPU beyond which a point is marked, as in the worker.
const MAX_OTHERS: f64 = 0.2;
const MAX_STEAL: f64 = 0.02;
/// Cores that compute so many times as fast at one moment as at another are not this machine's alone.
const MAX_SPREAD: f64 = 1.15;
/// Sleeps that end later than this make a schedule unsound.
const LATE_NS: u64 = 1_000_000;

/// The sentences, most important first.
pub(super) fn findings(check: &SelfCheck) -> Vec<String> {
    let one = check.closed.iter().find(|point| point.concurrency == 1);
    let most = check.closed.iter().max_by(|a, b| a.calls_per_s.total_cmp(&b.calls_per_s));
    let lines = [
        one.and_then(latencies),
        most.map(|point| throughput(point, check.cores)),
        Some(schedules(&check.open)),
        Some(quiet(&check.host)),
        steady(&check.host),
        sleeps(&check.timer),
    ];
    lines.into_iter().flatten().collect()
}

fn latencies(one: &Closed) -> Option<String> {
    let own = one.p50_latency_us?;
    Some(format!(
        "latencies: client, loopback and null engine take {} µs of a call; below {} ms they are more than a tenth of what \
         is measured",
        number(own),
        number(LITTLE * own / 1e3)
    ))
}

fn throughput(most: &Closed, cores: u32) -> String {
    let alone = most.client_calls_per_s();
    let shared = if cores < 3 { "; it and the engine share few cores here, so that they slow each other" } else { "" };
    format!(
        "throughput: {} calls/s were made, with {:.0} % of one core; the client alone could make about {}{shared}",
        number(most.calls_per_s),
        100.0 * most.client_cpu_cores,
        number(alone)
    )
}

/// The rates up to the first that fails: one above it may have been lucky.
fn schedules(open: &[Open]) -> String {
    let on_time = open.iter().take_while(|point| point.valid).last();
    let failed = open.iter().find(|point| !point.valid);
    let why = failed.map(|point| {
        let reason = point.reason.as_deref().unwrap_or("it is not valid");
        format!("; at {} calls/s {reason}", number(point.rate_per_s))
    });
    match on_time {
        Some(point) => {
            format!("open loops: on time up to {} calls/s{}", number(point.rate_per_s), why.unwrap_or_default())
        }
        None => {
            format!("open loops: not to be trusted here, give the client a core of its own{}", why.unwrap_or_default())
        }
    }
}

fn quiet(host: &Host) -> String {
    let (Some(others_ratio), Some(steal_ratio)) = (host.others_cpu_ratio, host.steal_ratio) else {
        return "host: what else takes its CPU is not known, since /proc/stat tells nothing".into();
    };
    let (others, steal) = (100.0 * others_ratio, 100.0 * steal_ratio);
    let figures = format!("other processes took {others:.1} % of the CPU, other virtual machines {steal:.1} %");
    match () {
        () if steal_ratio > MAX_STEAL => format!("host: {figures}; use a dedicated host"),
        () if others_ratio > MAX_OTHERS => format!("host: {figures}; stop what runs beside, then measure"),
        () => format!("host: quiet ({figures})"),
    }
}

fn steady(host: &Host) -> Option<String> {
    let why = if host.others_cpu_ratio.is_some_and(|others| others > MAX_OTHERS) {
        "beside what else runs here"
    } else {
        "with nothing else running here: other virtual machines share them, or their clocks move"
    };
    (host.speed_spread > MAX_SPREAD).then(|| {
        format!(
            "cores: they computed up to {:.2} times as fast at one moment as at another, {why}. Figures will depend on when \
             they are taken; use a dedicated host, or measure long and repeat",
            host.speed_spread
        )
    })
}

fn sleeps(timer: &Timer) -> Option<String> {
    (timer.sleep_late_p99_ns > LATE_NS).then(|| {
        "timer: sleeps end over 1 ms late; a virtual machine without a good timer, or a machine that is overloaded"
            .into()
    })
}

#[cfg(test)]
mod tests {
    use super::{super::Lateness, *};

    fn check() -> SelfCheck {
        let closed = |concurrency, calls_per_s, client_cpu_cores| Closed {
            concurrency,
            calls_per_s,
            p50_latency_us: Some(100.0),
            client_cpu_cores,
        };
        let open = |rate_per_s, reason: Option<&str>| Open {
            rate_per_s,
            send_lateness_us: Lateness::default(),
            valid: reason.is_none(),
            reason: reason.map(Into::into),
        };
        SelfCheck {
            modelmeter_version: "1",
            cpu: "Test CPU".into(),
            cores: 2,
            timer: Timer::default(),
            closed: vec![closed(1, 9_000.0, 0.3), closed(32, 40_000.0, 0.25)],
            open: vec![open(500.0, None), open(2_000.0, Some("3 % were late")), open(5_000.0, None)],
            host: Host { others_cpu_ratio: Some(0.01), steal_ratio: Some(0.0), speed_spread: 1.04 },
            findings: Vec::new(),
        }
    }

    #[test]
    fn limits_are_said_in_words() {
        let found = findings(&check());
        for part in [
            "below 1.00 ms they are more than a tenth",
            "40,000 calls/s were made, with 25 % of one core; the client alone could make about 160,000; it and",
            "on time up to 500.0 calls/s; at 2,000 calls/s 3 % were late",
            "host: quiet",
        ] {
            assert!(found.iter().any(|line| line.contains(part)), "{part:?} is not in {found:#?}");
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn what_is_wrong_says_what_to_do() {
        let mut bad = check();
        bad.open.remove(0);
        bad.host = Host { others_cpu_ratio: Some(0.5), steal_ratio: Some(0.001), speed_spread: 1.8 };
        bad.timer.sleep_late_p99_ns = 4_000_000;
        let found = findings(&bad).join("\n");
        for part in [
            "not to be trusted here, give the client a core",
            "stop what runs beside",
            "sleeps end over 1 ms late",
            "1.80 times",
        ] {
            assert!(found.contains(part), "{part:?} is not in {found}");
        }
        bad.host.steal_ratio = Some(0.1);
        assert!(findings(&bad).join("\n").contains("use a dedicated host"));
    }
}
