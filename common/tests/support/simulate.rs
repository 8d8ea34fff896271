//! A point measured in simulated time, as the meter does it: warm-up, windows, looks, and the end are the meter's own.

use super::laws::{Call, Calls};
use modelmeter_common::stats::{
    series::{Batch, Series},
    stop::{Look, StopRule},
    warmup::{self, Warmth},
};
use std::time::Duration;

/// What a run came to.
pub struct Run {
    pub series: Series,
    /// Warm-up included.
    pub took_s: f64,
    pub converged: bool,
}

/// The calls of a law with the window that is being filled.
struct Client {
    calls: Calls,
    window: Batch,
    /// The end of the last window, and of the last call.
    cut_s: f64,
    now_s: f64,
}

impl Client {
    /// The next call joins the window. When it ended.
    fn call(&mut self, call: Call) {
        self.window.record((call.latency_s * 1e9) as u64);
        self.now_s = call.end_s;
    }

    fn width_ns(&self) -> u64 {
        ((self.now_s - self.cut_s) * 1e9) as u64
    }

    /// Hands the window over.
    fn cut(&mut self, series: &mut Series) {
        self.window.duration_ns = self.width_ns();
        series.push(&std::mem::take(&mut self.window));
        self.cut_s = self.now_s;
    }

    /// Hands it over if it is wide enough.
    fn cut_wide(&mut self, series: &mut Series) -> bool {
        let is_wide = self.width_ns() >= series.window_ns();
        if is_wide {
            self.cut(series);
        }
        is_wide
    }
}

/// One run, ended by this rule.
pub fn run(calls: Calls, mut rule: StopRule) -> Run {
    let mut client = Client { calls, window: Batch::default(), cut_s: 0.0, now_s: 0.0 };
    let mut warm = Series::default();
    loop {
        let call = (client.calls)();
        client.call(call);
        let elapsed = Duration::from_secs_f64(client.now_s);
        if client.cut_wide(&mut warm) && warmup::judge(&warm, elapsed, rule.max) != Warmth::Warming {
            break;
        }
    }
    let (begin, mut series) = (client.now_s, Series::default());
    let end = loop {
        let call = (client.calls)();
        // A call that takes until after the end is not waited for.
        let elapsed = call.end_s - begin;
        if elapsed >= rule.max.as_secs_f64() {
            let end = rule.look(rule.max, &series);
            if end != Look::Open {
                break end;
            }
        }
        client.call(call);
        if client.cut_wide(&mut series) {
            let look = rule.look(Duration::from_secs_f64(elapsed), &series);
            if look != Look::Open {
                break look;
            }
        }
    };
    client.cut(&mut series);
    Run { series, took_s: client.now_s, converged: end == Look::Converged }
}
