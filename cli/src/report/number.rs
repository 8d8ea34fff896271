//! Figures as people read them: as many digits as mean something, thousands set apart.

use modelmeter_common::stats::Interval;

/// What stands where there is no figure.
pub const NONE: &str = "–";

/// A figure: `0.123`, `4.56`, `123.4`, `12,345`.
pub fn number(value: f64) -> String {
    fixed(value, decimals(value))
}

/// A figure with the half width of its interval: `123.4 ±2.1`.
pub fn interval(interval: Interval) -> String {
    let [low, high] = interval.ci95;
    let half = (high - low) / 2.0;
    let decimals = decimals(interval.value);
    format!("{} ±{}", fixed(interval.value, decimals), fixed(half, decimals))
}

/// A figure that may be missing.
pub fn or_none<T>(value: Option<T>, show: impl Fn(T) -> String) -> String {
    value.map_or_else(|| NONE.to_owned(), show)
}

/// A size: `512 B`, `3.4 MiB`, `23.1 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = count as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{size:.1} {}", UNITS[unit]) }
}

/// A ratio as a percentage.
pub fn percent(ratio: f64) -> String {
    format!("{:.0} %", ratio * 100.0)
}

/// So many of something: `1 task`, `12 tasks`.
pub fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn decimals(value: f64) -> usize {
    match value.abs() {
        v if v < 1.0 => 3,
        v if v < 10.0 => 2,
        v if v < 1_000.0 => 1,
        _ => 0,
    }
}

fn fixed(value: f64, decimals: usize) -> String {
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').map_or((text.as_str(), None), |(w, f)| (w, Some(f)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut grouped = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    match fraction {
        Some(fraction) => format!("{sign}{grouped}.{fraction}"),
        None => format!("{sign}{grouped}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_the_digits_that_mean_something() {
        for (value, text) in [
            (0.0456, "0.046"),
            (4.567, "4.57"),
            (123.44, "123.4"),
            (1234.5, "1,234"),
            (1_234_567.0, "1,234,567"),
            (-1234.0, "-1,234"),
        ] {
            assert_eq!(number(value), text);
        }
        assert_eq!(interval(Interval { value: 123.4, ci95: [121.3, 125.5] }), "123.4 ±2.1");
        assert_eq!(interval(Interval { value: 12_345.0, ci95: [12_000.0, 12_800.0] }), "12,345 ±400");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(25_232_932_864), "23.5 GiB");
        assert_eq!(percent(0.874), "87 %");
    }
}
