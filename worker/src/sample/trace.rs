//! Means over time: pure, on samples that were taken elsewhere.

use std::time::Duration;

/// Samples with the driver's time stamps, each the mean of the time since the one before.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    samples: Vec<(u64, f64)>,
}

impl Trace {
    /// Adds a sample; stamps that do not rise are repeats, and zero is a slot never filled.
    pub fn push(&mut self, stamp_us: u64, value: f64) {
        if stamp_us > self.last_us().unwrap_or(0) {
            self.samples.push((stamp_us, value));
        }
    }

    /// The last stamp.
    pub fn last_us(&self) -> Option<u64> {
        self.samples.last().map(|s| s.0)
    }

    /// The mean over an interval, weighted by time, clipped to it; zeros count.
    pub fn mean(&self, begin_us: u64, end_us: u64) -> Option<f64> {
        let (mut sum, mut time) = (0.0, 0u64);
        for pair in self.samples.windows(2) {
            let (from, until) = (pair[0].0.max(begin_us), pair[1].0.min(end_us));
            if until > from {
                sum += pair[1].1 * (until - from) as f64;
                time += until - from;
            }
        }
        (time > 0).then(|| sum / time as f64)
    }
}

/// Values as they were at moments: each holds until the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weighted {
    sum: f64,
    begin: Option<Duration>,
    last: (Duration, f64),
}

impl Weighted {
    /// Adds the value at a moment.
    pub fn push(&mut self, at: Duration, value: f64) {
        if self.begin.is_some() {
            self.sum += self.last.1 * (at - self.last.0).as_secs_f64();
        }
        self.begin.get_or_insert(at);
        self.last = (at, value);
    }

    /// The mean from the first moment to `end`.
    pub fn mean(&self, end: Duration) -> Option<f64> {
        let begin = self.begin?;
        let rest = end.saturating_sub(self.last.0).as_secs_f64();
        let time = end.saturating_sub(begin).as_secs_f64();
        Some(if time > 0.0 { (self.sum + self.last.1 * rest) / time } else { self.last.1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamped_samples_are_weighted_and_clipped_and_keep_zeros() {
        let mut trace = Trace::default();
        for (stamp, value) in [(0, 0.9), (1000, 0.5), (1100, 1.0), (1100, 0.3), (1300, 0.0), (1600, 1.0)] {
            trace.push(stamp, value);
        }
        // 1050 to 1100 at 1, to 1300 at 0, to 1400 at 1.
        assert!((trace.mean(1050, 1400).unwrap() - 150.0 / 350.0).abs() < 1e-12);
        assert_eq!((trace.mean(5000, 6000), trace.last_us()), (None, Some(1600)));
    }

    #[test]
    fn momentary_values_hold_until_the_next() {
        let ms = Duration::from_millis;
        let mut power = Weighted::default();
        assert_eq!(power.mean(ms(1)), None);
        power.push(ms(0), 100.0);
        power.push(ms(100), 300.0);
        assert!((power.mean(ms(400)).unwrap() - 250.0).abs() < 1e-9);
    }
}
