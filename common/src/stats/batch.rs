//! Batch means: the variance of a sum of autocorrelated observations, from consecutive batches of them.
//!
//! Batches that are still correlated with their neighbours are joined in pairs until they are not, as in
//! A. M. Law and J. S. Carson, "A sequential procedure for determining the length of a steady-state
//! simulation", Operations Research 27 (1979); what correlation is left at the fewest batches is
//! accounted for as that of a first-order autoregressive process.

use super::special::t95;

/// Fewer batches than this are never joined.
const FEWEST: usize = 10;

/// How uncertain a sum is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Variance of the sum of all residuals.
    pub variance: f64,
    /// Half the width of its 95 % interval, in standard deviations: Student's t for the batches used.
    pub t: f64,
}

/// The spread of the sum of these residuals (each batch's deviation from what the mean predicts, so that
/// they sum to about 0). None with fewer than two batches.
pub fn spread(residuals: &[f64]) -> Option<Spread> {
    let mut batches = residuals.to_vec();
    while batches.len() >= 2 * FEWEST && correlated(&batches) {
        batches = join(&batches);
    }
    let b = batches.len() as f64;
    if batches.len() < 2 {
        return None;
    }
    let squares: f64 = batches.iter().map(|r| r * r).sum();
    let variance = squares * b / (b - 1.0) * inflation(&batches);
    Some(Spread { variance, t: t95(b - 1.0) })
}

/// How many times a sum's variance exceeds that of independent batches, from the correlation of neighbours
/// where there is one: that of a first-order autoregressive process.
pub fn inflation(residuals: &[f64]) -> f64 {
    let left = if correlated(residuals) { lag1(residuals).min(0.8) } else { 0.0 };
    (1.0 + left) / (1.0 - left)
}

/// Joins neighbours; an odd one at the end goes into the last pair.
fn join(batches: &[f64]) -> Vec<f64> {
    let mut joined: Vec<f64> = batches.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
    if let ([odd], Some(last)) = (batches.chunks_exact(2).remainder(), joined.last_mut()) {
        *last += odd;
    }
    joined
}

/// Lag-1 correlation of what sums to about 0.
fn lag1(batches: &[f64]) -> f64 {
    let squares: f64 = batches.iter().map(|r| r * r).sum();
    if squares == 0.0 {
        return 0.0;
    }
    batches.windows(2).map(|pair| pair[0] * pair[1]).sum::<f64>() / squares
}

/// Whether neighbours are correlated beyond chance, one-sided at about 10 %.
fn correlated(batches: &[f64]) -> bool {
    lag1(batches) > 1.28 / (batches.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternating_batches_are_not_joined_and_trends_are() {
        let alternating: Vec<f64> = (0..32).map(|i| if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert!((spread(&alternating).unwrap().variance - 32.0 * 32.0 / 31.0).abs() < 1e-9);
        let runs: Vec<f64> = (0..32).map(|i| if i / 4 % 2 == 0 { 1.0 } else { -1.0 }).collect();
        assert!(spread(&runs).unwrap().variance > 2.0 * 33.0);
        assert_eq!(spread(&[0.0]), None);
        assert_eq!(spread(&[0.0; 8]).unwrap().variance, 0.0);
    }
}
