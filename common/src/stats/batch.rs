//! The variance of a sum of autocorrelated observations, from consecutive batches of them.
//!
//! Batch sums are taken for a first-order autoregressive process whose correlation is not known, as in A. Zellner and
//! G. C. Tiao, "Bayesian analysis of the regression model with autocorrelated errors", JASA 59 (1964): the variance
//! is its posterior mean over the correlations from 0 up, under Jeffreys' prior (1 − ρ²)^−½ (G. E. P. Box and G. M.
//! Jenkins, "Time Series Analysis", A7.4). So a handful of batches, which cannot tell their correlation, get a wide
//! interval, and many that are independent lose little.
//!
//! How many degrees of freedom that variance has is a matter of how many batches it comes from: those of a sum of
//! squares whose terms vary as these do (F. E. Satterthwaite, "An approximate distribution of estimates of variance
//! components", Biometrics Bulletin 2, 1946). Where two stalls make up all of it, they are about two, not the number
//! of batches.

use super::special::t95;

/// Correlations of neighbours that are thought possible: multiples of this...
const STEP: f64 = 0.05;
/// ...up to this many. What is correlated more strongly has hardly been seen twice.
const STEPS: u32 = 17;

/// Of the degrees of freedom by the kurtosis of a few batches, which is mostly lower than that of many.
const SEEN: f64 = 0.7;

/// How uncertain a sum is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Variance of the sum of all residuals.
    pub variance: f64,
    /// Degrees of freedom of that variance.
    pub df: f64,
}

impl Spread {
    /// Half the width of the sum's 95 % interval, by Student's t.
    pub fn half_width(&self) -> f64 {
        t95(self.df) * self.variance.sqrt()
    }
}

/// The spread of the sum of these residuals (each batch's deviation from what the mean predicts, so that
/// they sum to about 0). None with fewer than two batches.
pub fn spread(residuals: &[f64]) -> Option<Spread> {
    let n = residuals.len() as f64;
    if n < 2.0 {
        return None;
    }
    let squares: f64 = residuals.iter().map(|r| r * r).sum();
    if squares == 0.0 {
        return Some(Spread { variance: 0.0, df: n - 1.0 });
    }
    // Scaled, so that no power of a quadratic form leaves the range of a float.
    let scaled: Vec<f64> = residuals.iter().map(|r| r * (n / squares).sqrt()).collect();
    let given: Vec<(f64, f64)> = (0..=STEPS).map(|i| posterior(&scaled, f64::from(i) * STEP)).collect();
    let most = given.iter().map(|(log_weight, _)| *log_weight).fold(f64::NEG_INFINITY, f64::max);
    let weights = || given.iter().map(|(log_weight, variance)| ((log_weight - most).exp(), variance));
    let mean: f64 =
        weights().map(|(weight, variance)| weight * variance).sum::<f64>() / weights().map(|(w, _)| w).sum::<f64>();
    let kurtosis: f64 = scaled.iter().map(|r| r.powi(4)).sum::<f64>() / n;
    let df = (SEEN * 2.0 * n / (kurtosis - 1.0).max(1e-9)).clamp(1.0, n - 1.0);
    Some(Spread { variance: mean * squares / n, df })
}

/// The logarithm of the posterior weight of this correlation, and the variance of the sum if it is the true one.
fn posterior(residuals: &[f64], rho: f64) -> (f64, f64) {
    let (n, free) = (residuals.len() as f64, 1.0 - rho * rho);
    // Quadratic forms in the inverse of the correlation matrix, times 1 − ρ²: of one with one, one with r, r with r.
    let steps = || residuals.windows(2).map(|pair| pair[1] - rho * pair[0]);
    let ones = free + (n - 1.0) * (1.0 - rho).powi(2);
    let mixed = free * residuals[0] + (1.0 - rho) * steps().sum::<f64>();
    let squares = free * residuals[0].powi(2) + steps().map(|e| e * e).sum::<f64>();
    // Residuals that differ by rounding alone would leave nothing of it.
    let quadratic = ((squares - mixed * mixed / ones) / free).max(1e-12);
    // Prior, determinant, and the mean and the scale integrated out.
    let log_weight = -0.5 * (free.ln() + (n - 1.0) * free.ln() + (ones / free).ln() + (n - 1.0) * quadratic.ln());
    // The sum of all elements of the correlation matrix.
    let sum = (n * free - 2.0 * rho * (1.0 - rho.powf(n))) / (1.0 - rho).powi(2);
    (log_weight, quadratic / (n - 1.0) * sum)
}

/// How many times a sum's variance exceeds that of independent batches, from the correlation of neighbours
/// where there is one beyond chance, one-sided at about 10 %: that of a first-order autoregressive process.
pub fn inflation(residuals: &[f64]) -> f64 {
    let lag1 = lag1(residuals);
    let left = if lag1 > 1.28 / (residuals.len() as f64).sqrt() { lag1.min(0.8) } else { 0.0 };
    (1.0 + left) / (1.0 - left)
}

/// Correlation of neighbours above which they are joined.
const JOIN: f64 = 0.2;
/// Joined batches that are left at least.
const LEAST: usize = 6;

/// These residuals with neighbours added up in pairs while they are correlated and enough are left, so that each is of a
/// stretch longer than what slowly changes. A last one without a neighbour belongs to the pair before it.
pub fn joined(residuals: &[f64]) -> Vec<f64> {
    let mut joined = residuals.to_vec();
    while joined.len() / 2 >= LEAST && lag1(&joined) > JOIN {
        let odd = if joined.len() % 2 == 1 { joined.pop() } else { None };
        joined = joined.chunks_exact(2).map(|pair| pair[0] + pair[1]).collect();
        if let (Some(odd), Some(last)) = (odd, joined.last_mut()) {
            *last += odd;
        }
    }
    joined
}

/// The correlation of neighbours among residuals.
fn lag1(residuals: &[f64]) -> f64 {
    let squares: f64 = residuals.iter().map(|r| r * r).sum();
    let products: f64 = residuals.windows(2).map(|pair| pair[0] * pair[1]).sum();
    if squares > 0.0 { products / squares } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs_of(length: usize) -> Vec<f64> {
        (0..32usize).map(|i| if (i / length).is_multiple_of(2) { 1.0 } else { -1.0 }).collect()
    }

    #[test]
    fn correlated_batches_have_a_sum_of_greater_variance() {
        let [alternating, pairs, fours] = [1, 2, 4].map(|length| spread(&runs_of(length)).unwrap().variance);
        assert!(alternating < 1.2 * 32.0 && alternating < pairs && pairs < fours, "{alternating} {pairs} {fours}");
        assert!(fours > 3.0 * 32.0, "{fours}");
        assert_eq!(spread(&[0.0]), None);
        assert_eq!(spread(&[0.0; 8]), Some(Spread { variance: 0.0, df: 7.0 }));
    }

    #[test]
    fn units_do_not_matter() {
        let [small, large] = [1e-9, 1e9].map(|unit| {
            let spread = spread(&runs_of(2).iter().map(|r| r * unit).collect::<Vec<_>>()).unwrap();
            (spread.variance / (unit * unit), spread.df)
        });
        assert!((small.0 / large.0 - 1.0).abs() < 1e-9 && (small.1 - large.1).abs() < 1e-6);
    }

    #[test]
    fn a_variance_that_two_batches_make_up_has_few_degrees_of_freedom() {
        let mut stalls = vec![-2.0 / 30.0; 32];
        (stalls[5], stalls[20]) = (1.0, 1.0);
        assert!(spread(&stalls).unwrap().df < 5.0);
        assert_eq!(spread(&runs_of(1)).unwrap().df, 31.0);
    }

    #[test]
    fn correlated_neighbours_are_joined_and_nothing_is_lost() {
        assert_eq!(joined(&runs_of(1)), runs_of(1), "these are not correlated");
        let slow = joined(&runs_of(8));
        assert_eq!(slow.len(), 8, "two of each stretch of eight are left, since fewer than six may not be");
        let odd: Vec<f64> = (0..25).map(|i| if i < 12 { 1.0 } else { -12.0 / 13.0 }).collect();
        let left = joined(&odd);
        assert_eq!(left.len(), 6);
        assert!(left.iter().sum::<f64>().abs() < 1e-9 && (left[5] + 5.0 * 12.0 / 13.0).abs() < 1e-9, "{left:?}");
    }

    #[test]
    fn residuals_that_rounding_leaves_have_a_variance_that_is_a_number() {
        for n in [2, 12, 63] {
            let spread = spread(&vec![1e-17; n]).unwrap();
            assert!(spread.variance.is_finite() && spread.variance < 1e-12, "{n}: {spread:?}");
        }
    }
}
