//! The pace of a load: when each call is due. The event loop asks it.

use modelmeter_common::load::{Arrivals, LoadPoint};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// The pace of a load point. Times are nanoseconds of the event loop's clock.
#[derive(Debug)]
pub enum Pacer {
    /// The next call is due as soon as one ends.
    Closed {
        /// Calls in flight.
        concurrency: usize,
    },
    /// Calls are due at times that are fixed beforehand.
    Open(Schedule),
}

impl Pacer {
    /// The pace of this load, with arrivals drawn from the seed.
    pub fn new(load: LoadPoint, seed: u64) -> Self {
        match load {
            LoadPoint::Closed { concurrency } => Self::Closed { concurrency: concurrency as usize },
            LoadPoint::Open { rate_per_s, arrivals } => Self::Open(Schedule::new(rate_per_s, arrivals, seed)),
        }
    }

    /// Begins the schedule now.
    pub fn start(&mut self, now: u64) {
        if let Self::Open(schedule) = self {
            schedule.next_ns += now as f64;
        }
    }

    /// The scheduled time of a call that is due, taken off the schedule.
    pub fn take_due(&mut self, now: u64, in_flight: usize) -> Option<u64> {
        match self {
            Self::Closed { concurrency } => (in_flight < *concurrency).then_some(now),
            Self::Open(schedule) => {
                let due = schedule.next_ns as u64;
                (due <= now).then(|| {
                    schedule.step();
                    due
                })
            }
        }
    }

    /// When the next call is due, where that is known.
    pub fn next_ns(&self) -> Option<u64> {
        match self {
            Self::Closed { .. } => None,
            Self::Open(schedule) => Some(schedule.next_ns as u64),
        }
    }
}

/// Arrivals at a rate.
#[derive(Debug)]
pub struct Schedule {
    gap_ns: f64,
    arrivals: Arrivals,
    rng: SmallRng,
    next_ns: f64,
}

impl Schedule {
    fn new(rate_per_s: f64, arrivals: Arrivals, seed: u64) -> Self {
        let mut new = Self { gap_ns: 1e9 / rate_per_s, arrivals, rng: SmallRng::seed_from_u64(seed), next_ns: 0.0 };
        new.step();
        new
    }

    fn step(&mut self) {
        self.next_ns += match self.arrivals {
            Arrivals::Constant => self.gap_ns,
            // The inverse of the exponential law; 1 − u is never 0.
            Arrivals::Poisson => -(1.0 - self.rng.random::<f64>()).ln() * self.gap_ns,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(arrivals: Arrivals, seed: u64, n: usize) -> Vec<u64> {
        let mut pacer = Pacer::new(LoadPoint::Open { rate_per_s: 1000.0, arrivals }, seed);
        (0..n).map(|_| pacer.take_due(u64::MAX, 0).unwrap()).collect()
    }

    #[test]
    fn arrivals_come_from_the_seed_and_wait_for_nothing() {
        assert_eq!(times(Arrivals::Constant, 1, 3), [1_000_000, 2_000_000, 3_000_000]);
        assert_eq!(times(Arrivals::Poisson, 1, 100), times(Arrivals::Poisson, 1, 100));
        assert_ne!(times(Arrivals::Poisson, 1, 100), times(Arrivals::Poisson, 2, 100));
        let mut pacer = Pacer::new(LoadPoint::Open { rate_per_s: 1000.0, arrivals: Arrivals::Constant }, 0);
        pacer.start(500);
        assert_eq!((pacer.take_due(1_000_499, 0), pacer.take_due(1_000_500, 9999)), (None, Some(1_000_500)));
    }

    /// Kolmogorov and Smirnov: the gaps are exponential.
    #[test]
    fn poisson_gaps_fit_the_exponential_law() {
        let n = 20_000;
        let times = times(Arrivals::Poisson, 7, n + 1);
        let mut gaps: Vec<f64> = times.windows(2).map(|w| (w[1] - w[0]) as f64 / 1e6).collect();
        gaps.sort_by(f64::total_cmp);
        let distance = gaps.iter().enumerate().map(|(i, g)| ((1.0 - (-g).exp()) - i as f64 / n as f64).abs());
        let worst = distance.fold(0.0, f64::max);
        assert!(worst < 1.63 / (n as f64).sqrt(), "{worst}");
    }

    #[test]
    fn a_closed_loop_is_due_while_fewer_are_in_flight() {
        let mut pacer = Pacer::new(LoadPoint::Closed { concurrency: 2 }, 0);
        assert_eq!((pacer.take_due(5, 1), pacer.take_due(5, 2), pacer.next_ns()), (Some(5), None, None));
    }
}
