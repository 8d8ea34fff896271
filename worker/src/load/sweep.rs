//! Which concurrency to try next to find the peak of a closed loop: a pure rule.
//!
//! It doubles from one in flight until two doublings in a row bring nothing beyond the best so far's interval
//! (a server with two plateaus passes the first), then halves the gaps on both sides of the best.

use modelmeter_common::{request::MAX_CONCURRENCY, stats::Interval};

/// Doublings that bring nothing before it stops.
const FLAT: usize = 2;
/// Points of refinement.
const REFINEMENTS: usize = 4;
/// Gaps of less than this share of the best are not worth another point.
const GAP: f64 = 0.15;

/// A point that was measured.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// Calls in flight.
    pub concurrency: u32,
    /// Successes a second.
    pub rate: Option<Interval>,
    /// Invalid points end the doubling and are never the best.
    pub valid: bool,
}

impl Tried {
    fn value(&self) -> f64 {
        if self.valid { self.rate.map_or(0.0, |r| r.value) } else { 0.0 }
    }
}

/// The state of a sweep.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    tried: Vec<Tried>,
    refined: usize,
}

impl Sweep {
    /// The next concurrency; none when the peak is found.
    pub fn propose(&mut self) -> Option<u32> {
        let Some(last) = self.tried.last() else { return Some(1) };
        if self.refined == 0 && last.valid && self.flat() < FLAT && last.concurrency * 2 <= MAX_CONCURRENCY {
            return Some(last.concurrency * 2);
        }
        let next = if self.refined < REFINEMENTS { self.gap() } else { None };
        self.refined += 1;
        next
    }

    /// Notes a result.
    pub fn tried(&mut self, result: Tried) {
        self.tried.push(result);
    }

    /// About how many points are still to come, the next included.
    pub fn expected_left(&self) -> usize {
        match self.refined {
            0 => (FLAT - self.flat().min(FLAT) + REFINEMENTS / 2).max(6usize.saturating_sub(self.tried.len())),
            refined => REFINEMENTS.saturating_sub(refined) / 2 + 1,
        }
    }

    /// How many doublings in a row, up to the last, brought nothing.
    fn flat(&self) -> usize {
        let mut best: Option<Tried> = None;
        let mut flat = 0;
        for &point in &self.tried {
            let bar = best.map_or(0.0, |b| b.rate.map_or(0.0, |r| r.ci95[1].max(r.value)));
            flat = if point.value() > bar { 0 } else { flat + 1 };
            if best.is_none_or(|b| point.value() > b.value()) {
                best = Some(point);
            }
        }
        flat
    }

    /// The middle of the wider gap beside the best.
    fn gap(&self) -> Option<u32> {
        let best = self.tried.iter().max_by(|a, b| a.value().total_cmp(&b.value()))?.concurrency;
        let others = || self.tried.iter().map(|t| t.concurrency);
        let below = others().filter(|&c| c < best).max();
        let above = others().filter(|&c| c > best).min();
        let least = (f64::from(best) * GAP).max(1.5) as u32;
        let gaps = [below.map(|b| (best - b, b + (best - b) / 2)), above.map(|a| (a - best, best + (a - best) / 2))];
        gaps.into_iter().flatten().filter(|(gap, _)| *gap > least).max().map(|(_, middle)| middle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    /// Sweeps a server whose true rate is a function of the concurrency; measures with 2 % of noise.
    fn peak(truth: impl Fn(f64) -> f64, seed: u64) -> (f64, usize) {
        let (mut sweep, mut rng) = (Sweep::default(), SmallRng::seed_from_u64(seed));
        let (mut best, mut points) = ((0.0, 0.0), 0);
        while let Some(c) = sweep.propose() {
            let real = truth(f64::from(c));
            let value = real * (1.0 + 0.02 * (rng.random::<f64>() - 0.5));
            let rate = Some(Interval { value, ci95: [value * 0.98, value * 1.02] });
            sweep.tried(Tried { concurrency: c, rate, valid: true });
            if value > best.0 {
                best = (value, real);
            }
            points += 1;
            assert!(points < 30 && sweep.expected_left() >= 1);
        }
        (best.1, points)
    }

    #[test]
    fn finds_the_peaks_of_saturating_thrashing_and_two_step_servers() {
        type Law = (fn(f64) -> f64, f64);
        let laws: [Law; 4] = [
            (|c| 100.0 * c.min(6.0), 600.0),
            (|c| if c <= 6.0 { 100.0 * c } else { 600.0 * (6.0 / c).powf(0.7) }, 600.0),
            (|c| if c < 8.0 { 100.0 * c.min(3.0) } else { 100.0 * (c - 5.0).min(10.0) }, 1000.0),
            (|_| 50.0, 50.0),
        ];
        for (i, (law, most)) in laws.into_iter().enumerate() {
            for seed in 0..50 {
                let (found, points) = peak(law, seed);
                assert!(found > 0.97 * most, "law {i}, seed {seed}: {found} of {most} in {points}");
                assert!(points <= 14, "{points}");
            }
        }
    }

    #[test]
    fn an_invalid_point_ends_the_doubling() {
        let mut sweep = Sweep::default();
        let rate = |value| Some(Interval { value, ci95: [value, value] });
        assert_eq!(sweep.propose(), Some(1));
        sweep.tried(Tried { concurrency: 1, rate: rate(10.0), valid: true });
        assert_eq!(sweep.propose(), Some(2));
        sweep.tried(Tried { concurrency: 2, rate: rate(20.0), valid: false });
        assert_eq!(sweep.propose(), None);
    }
}
