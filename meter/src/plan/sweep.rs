//! The sweep: a pure rule for the next concurrency to try, to find the peak of a closed loop.
//!
//! The sweep doubles from one call in flight until two doublings in a row stay within the interval of the best point so far
//! (so it passes the first of two plateaus). Then it halves the gaps beside the best point, as long as the rise before a
//! gap, continued through the gap, promises enough.

use modelmeter_common::{request::MAX_CONCURRENCY, stats::Figure};

/// Doublings in a row without a gain after which the sweep stops doubling.
const FLAT: usize = 2;
/// Most points of the refinement.
const REFINEMENTS: usize = 10;
/// Gain over the best point, as a share, that a gap must promise to be measured.
const GAIN: f64 = 0.025;

/// A point that was measured.
#[derive(Clone, Copy, Debug)]
pub struct Tried {
    /// Calls in flight.
    pub concurrency: u32,
    /// Successes a second.
    pub rate: Option<Figure>,
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
            0 => (FLAT - self.flat().min(FLAT) + REFINEMENTS / 3).max(6usize.saturating_sub(self.tried.len())),
            refined => REFINEMENTS.saturating_sub(refined) / 3 + 1,
        }
    }

    /// Number of doublings in a row, up to the last, without a gain.
    fn flat(&self) -> usize {
        let mut best: Option<Tried> = None;
        let mut flat = 0;
        for &point in &self.tried {
            let bar =
                best.map_or(0.0, |b| b.rate.map_or(0.0, |r| r.ci95.map_or(r.value, |[_, high]| high.max(r.value))));
            flat = if point.value() > bar { 0 } else { flat + 1 };
            if best.is_none_or(|b| point.value() > b.value()) {
                best = Some(point);
            }
        }
        flat
    }

    /// The middle of the gap beside the best that promises more, if either promises enough.
    fn gap(&self) -> Option<u32> {
        let mut tried = self.tried.clone();
        tried.sort_by_key(|t| t.concurrency);
        let best = (0..tried.len()).max_by(|&a, &b| tried[a].value().total_cmp(&tried[b].value()))?;
        let above = tried.get(best + 1).and_then(|next| promise(&tried[..=best], next));
        let below = best.checked_sub(1).and_then(|last| promise(&tried[..=last], &tried[best]));
        let enough = tried[best].value() * (1.0 + GAIN);
        let worth = [below, above].into_iter().flatten().filter(|(_, rate)| *rate > enough);
        worth.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(middle, _)| middle)
    }
}

/// The middle between the last of these points and the next one, and the rate just before the next if it rose on as it did
/// before the last: a server that gets ever less out of another call in flight does not exceed that.
fn promise(rising: &[Tried], next: &Tried) -> Option<(u32, f64)> {
    let last = rising.last()?;
    let (middle, end) = (last.concurrency.midpoint(next.concurrency), next.concurrency - 1);
    // Zero calls in flight have a rate of zero.
    let (from, rate) = rising.iter().rev().nth(1).map_or((0, 0.0), |t| (t.concurrency, t.value()));
    let slope = (last.value() - rate) / f64::from(last.concurrency - from);
    let more = f64::from(end - last.concurrency);
    (middle > last.concurrency).then(|| (middle, last.value() + slope.max(0.0) * more))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(value: f64) -> Option<Figure> {
        Some(Figure { value, ci95: Some([value * 0.99, value * 1.01]), lower95: None })
    }

    /// A server whose rate falls past its peak, wherever that is.
    #[test]
    fn each_concurrency_is_tried_once_and_one_of_them_is_near_the_peak() {
        for peak in 1..=200 {
            let truth = |c: u32| if c <= peak { f64::from(c) } else { f64::from(peak * peak) / f64::from(c) };
            let mut sweep = Sweep::default();
            while let Some(concurrency) = sweep.propose() {
                assert!(sweep.tried.iter().all(|t| t.concurrency != concurrency) && sweep.expected_left() >= 1);
                sweep.tried(Tried { concurrency, rate: rate(truth(concurrency)), valid: true });
            }
            let best = sweep.tried.iter().map(|t| truth(t.concurrency)).fold(0.0, f64::max);
            assert!(best >= 0.97 * f64::from(peak), "{best} of {peak}");
        }
    }

    #[test]
    fn an_invalid_point_ends_the_doubling() {
        let mut sweep = Sweep::default();
        assert_eq!(sweep.propose(), Some(1));
        sweep.tried(Tried { concurrency: 1, rate: rate(10.0), valid: true });
        assert_eq!(sweep.propose(), Some(2));
        sweep.tried(Tried { concurrency: 2, rate: rate(20.0), valid: false });
        assert_eq!(sweep.propose(), None);
    }
}
