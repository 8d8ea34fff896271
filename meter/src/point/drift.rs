//! The rule that tells whether latency kept changing while a point was measured.

use modelmeter_common::stats::series::{Batch, Series};

/// Fewer batches show no trend.
const LEAST: usize = 12;
/// A smaller change is none.
const SMALLEST: f64 = 0.05;
/// Threshold of Mann and Whitney's z: about one false alarm in 700 stationary runs of independent batches.
const Z: f64 = 3.2;

/// The change of mean latency from the first half of the run to the second, as a share of the first, where it is
/// more than chance: by the test of Mann and Whitney ("On a test of whether one of two random variables is
/// stochastically larger than the other", 1947) on the batches' means, which no single stall decides.
pub(super) fn drift(series: &Series) -> Option<f64> {
    between_halves(&series.batches().iter().filter_map(Batch::mean_ns).collect::<Vec<_>>())
}

fn between_halves(means: &[f64]) -> Option<f64> {
    if means.len() < LEAST {
        return None;
    }
    let (first, second) = means.split_at(means.len() / 2);
    let change = median(second) / median(first) - 1.0;
    (change.abs() >= SMALLEST && z(first, second).abs() >= z_needed(first.len(), second.len())).then_some(change)
}

/// Small samples never reach [`Z`]: in them, each value of one half must lie beyond each of the other.
fn z_needed(n: usize, m: usize) -> f64 {
    let (n, m) = (n as f64, m as f64);
    Z.min((3.0 * n * m / (n + m + 1.0)).sqrt() - 1e-9)
}

fn z(first: &[f64], second: &[f64]) -> f64 {
    let (n, m) = (first.len() as f64, second.len() as f64);
    let wins =
        |b: &f64| first.iter().map(|a| f64::from(u8::from(b > a)) + 0.5 * f64::from(u8::from(b == a))).sum::<f64>();
    let u: f64 = second.iter().map(wins).sum();
    (u - n * m / 2.0) / (n * m * (n + m + 1.0) / 12.0).sqrt()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    #[test]
    fn a_trend_is_told_with_its_size_and_its_direction() {
        let ramp: Vec<f64> = (0..20).map(|i| 100.0 + f64::from(i)).collect();
        let change = between_halves(&ramp).unwrap();
        assert!((change - 10.0 / 104.5).abs() < 1e-9, "{change}");
        let falling: Vec<f64> = ramp.iter().rev().copied().collect();
        assert!(between_halves(&falling).unwrap() < -0.05);
        // The halves of twelve batches must be apart wholly.
        let mut few = vec![1.0, 1.0, 1.1, 1.0, 1.1, 1.0, 1.3, 1.2, 1.3, 1.4, 1.2, 1.3];
        assert!(between_halves(&few).is_some() && between_halves(&few[1..]).is_none());
        few[2] = 1.25;
        assert_eq!(between_halves(&few), None);
    }

    #[test]
    fn neither_a_stall_nor_a_small_change_nor_noise_is_a_trend() {
        let mut stalled = vec![100.0; 24];
        stalled[20] = 5_000.0;
        assert_eq!(between_halves(&stalled), None);
        let small: Vec<f64> = (0..24).map(|i| 100.0 + 0.2 * f64::from(i)).collect();
        assert_eq!(between_halves(&small), None);
        let mut rng = SmallRng::seed_from_u64(1);
        let alarms = (0..2000).filter(|_| {
            let noise: Vec<f64> = (0..24).map(|_| 100.0 * (1.0 + rng.random::<f64>())).collect();
            between_halves(&noise).is_some()
        });
        let alarms = alarms.count();
        assert!(alarms <= 10, "{alarms} of 2000");
    }
}
