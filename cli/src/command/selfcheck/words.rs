//! What a self-check found, in words.

use crate::report::number;
use modelmeter_worker::selfcheck::{Finding, Quiet};

/// One finding as a sentence.
pub(super) fn sentence(finding: &Finding) -> String {
    match finding {
        Finding::Latencies { own_us, disturbed_below_ms } => format!(
            "latencies: client, loopback and null engine take {} µs of a call; below {} ms they are more than a tenth of what \
             is measured",
            number(*own_us),
            number(*disturbed_below_ms)
        ),
        Finding::Throughput { most, few_cores } => {
            let shared = match few_cores {
                true => "; it and the engine share few cores here, so that they slow each other",
                false => "",
            };
            format!(
                "throughput: {} calls/s were made, with {:.0} % of one core; the client alone could make about {}{shared}",
                number(most.calls_per_s),
                100.0 * most.client_cpu_cores,
                number(most.client_calls_per_s())
            )
        }
        Finding::OpenLoops { on_time_per_s, failed } => {
            let why = failed.as_ref().map_or_else(String::new, |point| {
                let reason = point.reason.as_deref().unwrap_or("it is not valid");
                format!("; at {} calls/s {reason}", number(point.rate_per_s))
            });
            match on_time_per_s {
                Some(rate) => format!("open loops: on time up to {} calls/s{why}", number(*rate)),
                None => format!("open loops: not to be trusted here, give the client a core of its own{why}"),
            }
        }
        Finding::Host(quiet) => host(*quiet),
        Finding::Unsteady { spread, is_busy } => {
            let why = match is_busy {
                true => "beside what else runs here",
                false => "with nothing else running here: other virtual machines share them, or their clocks move",
            };
            format!(
                "cores: they computed up to {spread:.2} times as fast at one moment as at another, {why}. Figures will depend \
                 on when they are taken; use a dedicated host, or measure long and repeat"
            )
        }
        Finding::LateSleeps => {
            "timer: sleeps end over 1 ms late; a virtual machine without a good timer, or a machine that is overloaded"
                .into()
        }
    }
}

fn host(quiet: Quiet) -> String {
    let figures = |others: f64, steal: f64| {
        let (others, steal) = (100.0 * others, 100.0 * steal);
        format!("other processes took {others:.1} % of the CPU, other virtual machines {steal:.1} %")
    };
    match quiet {
        Quiet::Unknown => "host: what else takes its CPU is not known, since /proc/stat tells nothing".into(),
        Quiet::Stolen { others, steal } => format!("host: {}; use a dedicated host", figures(others, steal)),
        Quiet::Busy { others, steal } => {
            format!("host: {}; stop what runs beside, then measure", figures(others, steal))
        }
        Quiet::Yes { others, steal } => format!("host: quiet ({})", figures(others, steal)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_worker::selfcheck::{Closed, Host, Lateness, Open, SelfCheck, Timer, findings};

    fn said(check: &SelfCheck) -> Vec<String> {
        findings(check).iter().map(sentence).collect()
    }

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
        }
    }

    #[test]
    fn limits_are_said_in_words() {
        let found = said(&check());
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
        let found = said(&bad).join("\n");
        for part in [
            "not to be trusted here, give the client a core",
            "stop what runs beside",
            "sleeps end over 1 ms late",
            "1.80 times",
        ] {
            assert!(found.contains(part), "{part:?} is not in {found}");
        }
        bad.host.steal_ratio = Some(0.1);
        assert!(said(&bad).join("\n").contains("use a dedicated host"));
    }
}
