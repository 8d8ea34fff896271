//! The special functions that the intervals stand on: beta, binomial, Student's t.

/// Natural logarithm of the gamma function for x > 0. Source: Lanczos' approximation, g = 7, nine terms.
pub(crate) fn ln_gamma(x: f64) -> f64 {
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_9,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let t = x + 7.5;
    let sum = TERMS[1..].iter().zip(1..).fold(TERMS[0], |sum, (term, i)| sum + term / (x + f64::from(i)));
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

/// The regularised incomplete beta function I_x(a, b), by its continued fraction (modified Lentz).
/// Source: NIST Digital Library of Mathematical Functions, 8.17.22.
pub(crate) fn beta_inc(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges fast below the mean only.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - beta_inc(b, a, 1.0 - x);
    }
    let front = (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp() / a;
    front * beta_fraction(a, b, x)
}

fn beta_fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |v: f64| if v.abs() < TINY { TINY } else { v };
    let (mut c, mut d) = (1.0, 1.0 / away(1.0 - (a + b) * x / (a + 1.0)));
    let mut h = d;
    for i in 1..20_000 {
        let m = f64::from(i);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        d = 1.0 / away(1.0 + even * d);
        c = away(1.0 + even / c);
        h *= d * c;
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        d = 1.0 / away(1.0 + odd * d);
        c = away(1.0 + odd / c);
        h *= d * c;
        if (d * c - 1.0).abs() < 1e-14 {
            break;
        }
    }
    h
}

/// P(X ≤ k) for X binomial with n trials of probability p.
pub(crate) fn binomial_cdf(k: u64, n: u64, p: f64) -> f64 {
    if k >= n {
        return 1.0;
    }
    beta_inc((n - k) as f64, k as f64 + 1.0, 1.0 - p)
}

/// The smallest k with P(X ≤ k) ≥ `at`, for X binomial.
pub(crate) fn binomial_quantile(at: f64, n: u64, p: f64) -> u64 {
    let (mut low, mut high) = (0, n);
    while low < high {
        let mid = low + (high - low) / 2;
        if binomial_cdf(mid, n, p) >= at {
            high = mid;
        } else {
            low = mid + 1;
        }
    }
    low
}

/// The two-sided 95 % quantile of Student's t.
pub(crate) fn t95(df: f64) -> f64 {
    // P(|T| > t) = I_{df/(df+t²)}(df/2, 1/2).
    let beyond = |t: f64| beta_inc(df / 2.0, 0.5, df / (df + t * t));
    let (mut low, mut high) = (1.9, 13.0);
    for _ in 0..40 {
        let mid = (low + high) / 2.0;
        if beyond(mid) > 0.05 { low = mid } else { high = mid }
    }
    (low + high) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_published_tables() {
        for (df, t) in [(1.0, 12.706), (2.0, 4.303), (9.0, 2.262), (30.0, 2.042), (1e6, 1.960)] {
            assert!((t95(df) - t).abs() < 1e-3, "{df}: {}", t95(df));
        }
        assert!((binomial_cdf(3, 10, 0.5) - 0.171_875).abs() < 1e-12);
        assert!((binomial_cdf(0, 459, 0.01) - 0.99f64.powi(459)).abs() < 1e-12);
        assert_eq!(binomial_cdf(10, 10, 0.3), 1.0);
        assert!((ln_gamma(11.0) - 3_628_800f64.ln()).abs() < 1e-10);
    }

    #[test]
    fn large_binomials_agree_with_the_normal_law() {
        let (n, p) = (10_000_000u64, 0.95);
        let sd = (n as f64 * p * (1.0 - p)).sqrt();
        let k = binomial_quantile(0.975, n, p) as f64;
        assert!(((k - n as f64 * p) / sd - 1.96).abs() < 0.01);
    }
}
