//! Laws by which simulated servers answer. Time is simulated: a law yields the ends and latencies of its calls.

/// SplitMix64: small, seeded, good enough for a simulation.
#[derive(Clone)]
pub struct Rng {
    state: u64,
    spare: Option<f64>,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0xd134_2543_de82_ef95), spare: None }
    }

    /// Uniform on (0, 1].
    pub fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ z >> 31) >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub fn exponential(&mut self) -> f64 {
        -self.uniform().ln()
    }

    /// Standard normal, by Box and Muller's method.
    pub fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let (radius, angle) = ((2.0 * self.exponential()).sqrt(), std::f64::consts::TAU * self.uniform());
        let (sin, cos) = angle.sin_cos();
        self.spare = Some(radius * sin);
        radius * cos
    }

    /// Log-normal: median and standard deviation of the logarithm.
    pub fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }
}

/// A call that ended: when, and how long it took, in seconds.
#[derive(Clone, Copy)]
pub struct Call {
    pub end_s: f64,
    pub latency_s: f64,
}

/// The calls of one run in the order of their ends.
pub type Calls = Box<dyn FnMut() -> Call>;

/// A kind of server under a kind of load.
pub struct Law {
    pub name: &'static str,
    /// A run of it; stationary from the start or nearly so.
    pub calls: fn(Rng) -> Calls,
}

/// One in flight: each call begins where the last ended.
fn closed(mut rng: Rng, mut latency_s: impl FnMut(&mut Rng) -> f64 + 'static) -> Calls {
    let mut end_s = 0.0;
    Box::new(move || {
        let latency_s = latency_s(&mut rng);
        end_s += latency_s;
        Call { end_s, latency_s }
    })
}

/// One in flight; the logarithms of the latencies are a first-order autoregressive process.
fn correlated(mut rng: Rng, median_s: f64, sigma: f64, rho: f64) -> Calls {
    let mut state = rng.normal();
    closed(rng, move |rng| {
        state = rho * state + (1.0 - rho * rho).sqrt() * rng.normal();
        median_s * (sigma * state).exp()
    })
}

/// One in flight; the server is fast, then slow, for a geometric number of calls each.
fn switching(rng: Rng, medians_s: [f64; 2], calls: [f64; 2]) -> Calls {
    let mut slow = 0;
    closed(rng, move |rng| {
        if rng.uniform() < 1.0 / calls[slow] {
            slow = 1 - slow;
        }
        rng.log_normal(medians_s[slow], 0.1)
    })
}

/// Work is done but for a stall at the end of each period.
struct Stalls {
    phase_s: f64,
    period_s: f64,
    stall_s: f64,
}

impl Stalls {
    fn new(rng: &mut Rng, period_s: f64, stall_s: f64) -> Self {
        Self { phase_s: rng.uniform() * period_s, period_s, stall_s }
    }

    /// When work begun at `start_s` is done.
    fn end(&self, start_s: f64, mut work_s: f64) -> f64 {
        let mut now = start_s + self.phase_s;
        let mut period = (now / self.period_s).floor();
        loop {
            period += 1.0;
            let next = period * self.period_s;
            let free = (next - self.stall_s - now).max(0.0);
            if work_s <= free {
                return now + work_s - self.phase_s;
            }
            work_s -= free;
            now = next;
        }
    }
}

/// One in flight at a shared machine: log-normal work, slowed by a factor that `next` draws with how long it lasts, in seconds.
fn shared(mut rng: Rng, median_s: f64, mut next: impl FnMut(&mut Rng) -> (f64, f64) + 'static) -> Calls {
    const SIGMA: f64 = 0.1;
    // Begun somewhere in the middle of it.
    let skipped_s = 1.0 + 5.0 * rng.uniform();
    let (mut now, mut until, mut slower) = (0.0, 0.0, 1.0);
    let mut call = move || {
        let (begin, mut work_s) = (now, rng.log_normal(median_s, SIGMA));
        loop {
            while now >= until {
                let (lasts_s, factor) = next(&mut rng);
                (until, slower) = (until + lasts_s, factor);
            }
            let left_s = (until - now) / slower;
            if work_s <= left_s {
                now += work_s * slower;
                return Call { end_s: now, latency_s: now - begin };
            }
            (work_s, now) = (work_s - left_s, until);
        }
    };
    let mut begin = 0.0;
    while begin < skipped_s {
        begin = call().end_s;
    }
    Box::new(move || {
        let one = call();
        Call { end_s: one.end_s - begin, ..one }
    })
}

fn phase_s(rng: &mut Rng) -> f64 {
    0.5 + 2.5 * rng.uniform()
}

/// Phases of 0.5 to 3 s, each slower by a factor of 1 to 2.
fn phases(rng: Rng, median_s: f64) -> Calls {
    shared(rng, median_s, |rng| (phase_s(rng), 1.0 + rng.uniform()))
}

/// Phases of 0.5 to 3 s, fast and half as fast by turns.
fn two_levels(mut rng: Rng) -> Calls {
    let mut is_slow = rng.uniform() < 0.5;
    shared(rng, 3e-3, move |rng| {
        is_slow = !is_slow;
        (phase_s(rng), if is_slow { 2.0 } else { 1.0 })
    })
}

/// The logarithm of the factor walks between those of 1 and 2, and is reflected there.
fn walk(mut rng: Rng) -> Calls {
    let top = 2f64.ln();
    let mut place = 2.0 * top * rng.uniform();
    shared(rng, 3e-3, move |rng| {
        place = (place + 0.035 * rng.normal()).rem_euclid(2.0 * top);
        (0.01, (place - top).abs().exp())
    })
}

/// One in flight against a server that stalls.
fn stalling(mut rng: Rng, period_s: f64, stall_s: f64) -> Calls {
    let stalls = Stalls::new(&mut rng, period_s, stall_s);
    let mut now = 0.0;
    closed(rng, move |rng| {
        let begin = now;
        now = stalls.end(begin, rng.log_normal(1e-3, 0.1));
        now - begin
    })
}

/// Poisson arrivals at a server of 5 ms a call, as many at once as come, that stalls.
fn stalling_open(mut rng: Rng, rate_per_s: f64, period_s: f64, stall_s: f64) -> Calls {
    let stalls = Stalls::new(&mut rng, period_s, stall_s);
    let mut sent = 0.0;
    Box::new(move || {
        sent += rng.exponential() / rate_per_s;
        let end_s = stalls.end(sent, 5e-3);
        Call { end_s, latency_s: end_s - sent }
    })
}

/// Several in flight against a server that works on all of them at once.
fn parallel(mut rng: Rng, in_flight: usize, median_s: f64, sigma: f64) -> Calls {
    let mut ends: Vec<(f64, f64)> = Vec::new();
    for _ in 0..in_flight {
        let latency_s = rng.log_normal(median_s, sigma);
        ends.push((latency_s, latency_s));
    }
    Box::new(move || {
        let next = ends.iter_mut().min_by(|a, b| a.0.total_cmp(&b.0)).expect("some are in flight");
        let (end_s, latency_s) = *next;
        let following = rng.log_normal(median_s, sigma);
        *next = (end_s + following, following);
        Call { end_s, latency_s }
    })
}

/// Several in flight against a server that works on one at a time.
fn serial(mut rng: Rng, in_flight: usize, median_s: f64, sigma: f64) -> Calls {
    let mut begins = std::collections::VecDeque::from(vec![0.0; in_flight]);
    let mut end_s = 0.0;
    Box::new(move || {
        end_s += rng.log_normal(median_s, sigma);
        let begin = begins.pop_front().expect("some are in flight");
        begins.push_back(end_s);
        Call { end_s, latency_s: end_s - begin }
    })
}

/// Poisson arrivals at a server of one call at a time, 1 ms each on average.
fn queue(mut rng: Rng, load: f64, service_s: fn(&mut Rng) -> f64) -> Calls {
    let (mut arrival, mut end_s) = (0.0f64, 0.0f64);
    let mut next = move || {
        arrival += 1e-3 / load * rng.exponential();
        end_s = arrival.max(end_s) + service_s(&mut rng);
        Call { end_s, latency_s: end_s - arrival }
    };
    // Begun empty: many relaxation times later that is forgotten.
    (0..10_000).for_each(|_| _ = next());
    let Call { end_s: begin, .. } = next();
    Box::new(move || {
        let call = next();
        Call { end_s: call.end_s - begin, ..call }
    })
}

fn constant(_: &mut Rng) -> f64 {
    1e-3
}

fn exponential(rng: &mut Rng) -> f64 {
    1e-3 * rng.exponential()
}

/// All of them.
pub const LAWS: &[Law] = &[
    Law { name: "narrow: log-normal 1 ms, sigma 0.1", calls: |rng| correlated(rng, 1e-3, 0.1, 0.0) },
    Law { name: "wide: log-normal 5 ms, sigma 0.6", calls: |rng| correlated(rng, 5e-3, 0.6, 0.0) },
    Law { name: "very wide: log-normal 1 ms, sigma 1", calls: |rng| correlated(rng, 1e-3, 1.0, 0.0) },
    Law {
        name: "bimodal: 70 % 1 ms, 30 % 4 ms",
        calls: |rng| {
            closed(rng, |rng| {
                let median_s = if rng.uniform() < 0.7 { 1e-3 } else { 4e-3 };
                rng.log_normal(median_s, 0.05)
            })
        },
    },
    Law {
        name: "heavy tail: Pareto, exponent 3",
        calls: |rng| closed(rng, |rng| 1e-3 * rng.uniform().powf(-1.0 / 3.0)),
    },
    Law {
        name: "gamma: shape 2, mean 2 ms",
        calls: |rng| closed(rng, |rng| 1e-3 * (rng.exponential() + rng.exponential())),
    },
    Law { name: "correlated: rho 0.5", calls: |rng| correlated(rng, 1e-3, 0.3, 0.5) },
    Law { name: "correlated: rho 0.9", calls: |rng| correlated(rng, 1e-3, 0.3, 0.9) },
    Law { name: "correlated: rho 0.98", calls: |rng| correlated(rng, 1e-3, 0.2, 0.98) },
    Law { name: "correlated: rho 0.995", calls: |rng| correlated(rng, 1e-3, 0.2, 0.995) },
    Law { name: "phases: 1 ms for 50 calls, 2 ms for 20", calls: |rng| switching(rng, [1e-3, 2e-3], [50.0, 20.0]) },
    Law { name: "phases: 1 ms for 400 calls, 3 ms for 20", calls: |rng| switching(rng, [1e-3, 3e-3], [400.0, 20.0]) },
    Law { name: "phases: 1 ms for 300 calls, 3 ms for 40", calls: |rng| switching(rng, [1e-3, 3e-3], [300.0, 40.0]) },
    Law { name: "stalls of 20 ms each 200 ms", calls: |rng| stalling(rng, 0.2, 0.02) },
    Law { name: "stalls of 100 ms each second", calls: |rng| stalling(rng, 1.0, 0.1) },
    Law { name: "stalls of 100 ms each second, 100/s", calls: |rng| stalling_open(rng, 100.0, 1.0, 0.1) },
    Law { name: "stalls of 1 s each 10 s, 100/s", calls: |rng| stalling_open(rng, 100.0, 10.0, 1.0) },
    Law { name: "shared machine, phases", calls: |rng| phases(rng, 3e-3) },
    Law { name: "shared machine, phases, 0.1 s a call", calls: |rng| phases(rng, 0.1) },
    Law { name: "shared machine, two levels", calls: two_levels },
    Law { name: "shared machine, walk", calls: walk },
    Law { name: "slow: 0.3 s", calls: |rng| correlated(rng, 0.3, 0.15, 0.0) },
    Law { name: "slow: 0.3 s, rho 0.5", calls: |rng| correlated(rng, 0.3, 0.15, 0.5) },
    Law { name: "slow: 3 s", calls: |rng| correlated(rng, 3.0, 0.15, 0.0) },
    Law { name: "slow: 3 s, rho 0.5", calls: |rng| correlated(rng, 3.0, 0.15, 0.5) },
    Law { name: "8 in flight, all at once", calls: |rng| parallel(rng, 8, 8e-3, 0.3) },
    Law { name: "8 in flight, one at a time", calls: |rng| serial(rng, 8, 1e-3, 0.5) },
    Law { name: "4 in flight, one at a time, 0.3 s", calls: |rng| serial(rng, 4, 0.3, 0.15) },
    Law { name: "open loop M/D/1, load 0.5", calls: |rng| queue(rng, 0.5, constant) },
    Law { name: "open loop M/D/1, load 0.9", calls: |rng| queue(rng, 0.9, constant) },
    Law { name: "open loop M/M/1, load 0.5", calls: |rng| queue(rng, 0.5, exponential) },
    Law { name: "open loop M/M/1, load 0.9", calls: |rng| queue(rng, 0.9, exponential) },
];
