//! How durations and lists of cores are written.

use crate::Problem;
use std::{collections::BTreeSet, time::Duration};

/// The kernel's sets of cores end here.
const MAX_CPUS: u32 = 1024;

/// Reads a duration: a number with `ms`, `s`, `m`, `h` or `d`, as `2s`, `500ms`, `1.5m`.
pub fn duration(text: &str) -> Result<Duration, Problem> {
    let wrong = || {
        Problem::invalid("duration", format!("'{text}' is not a duration"))
            .with_hint("a number with ms, s, m, h or d, for example 2s")
    };
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..unit_at].parse().map_err(|_| wrong())?;
    let unit = match text[unit_at..].trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(wrong()),
    };
    Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())
}

/// Reads a list of logical cores, as `0-3,6`: the numbers in rising order.
///
/// # Errors
/// Names `field`.
pub fn cpus(field: &str, text: &str) -> Result<Vec<u32>, Problem> {
    let wrong = || {
        Problem::invalid(field, format!("'{text}' is not a list of logical cores"))
            .with_hint("numbers below 1024 and ranges of them, for example 0-3,6; nproc says how many there are")
    };
    let number = |text: &str| text.trim().parse().ok().filter(|&n: &u32| n < MAX_CPUS).ok_or_else(wrong);
    let mut found = BTreeSet::new();
    for item in text.split(',') {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        found.extend(first..=last);
    }
    Ok(found.into_iter().collect())
}
