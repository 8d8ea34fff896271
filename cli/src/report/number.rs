//! Figures as people read them: as many digits as mean something, thousands set apart.

use modelmeter_common::stats::Figure;

/// What stands where there is no figure.
pub const NONE: &str = "–";
/// The mark of a figure that was observed but that no interval supports.
pub const OBSERVED: char = '~';
/// The mark of a figure of an invalid load point.
pub const INVALID: char = '!';
/// An interval with a half width of more than the figure itself: that it is so wide is all that a reader can use of it.
const WIDEST: f64 = 1.0;

/// A figure: `0.123`, `4.56`, `123.4`, `12,345`.
pub fn number(value: f64) -> String {
    fixed(value, decimals(value))
}

/// A figure of a load point, as a reader sees it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shown {
    figure: Figure,
    valid: bool,
}

impl Shown {
    /// A figure of a point that is valid or not.
    pub fn new(figure: Figure, valid: bool) -> Self {
        Self { figure, valid }
    }

    /// The value that was observed.
    pub fn value(self) -> f64 {
        self.figure.value
    }

    /// Whether its load point is valid.
    pub fn is_valid(self) -> bool {
        self.valid
    }

    /// Whether its interval is wider than the figure is useful for.
    pub fn is_wide(self) -> bool {
        self.support().is_some() && self.narrow().is_none()
    }

    /// The ends of its interval, where its load point is valid.
    pub fn support(self) -> Option<[f64; 2]> {
        self.figure.ci95.filter(|_| self.valid)
    }

    /// The same, where it is narrow enough to be printed.
    fn narrow(self) -> Option<[f64; 2]> {
        self.support().filter(|[low, high]| (high - low) / 2.0 <= WIDEST * self.figure.value.abs())
    }

    /// `!` of an invalid point, `~` without support, else nothing.
    pub fn mark(self) -> String {
        match self.support() {
            _ if !self.valid => INVALID.into(),
            None => OBSERVED.into(),
            Some(_) => String::new(),
        }
    }

    /// The figure with its mark: `61.2`, `~61.2`, `!61.2`.
    pub fn text(self) -> String {
        self.mark() + &number(self.figure.value)
    }

    /// Half of its interval: `±2.1`, or `±>100 %`; nothing without support.
    pub fn half(self) -> String {
        match (self.narrow(), self.support()) {
            (Some([low, high]), _) => format!("±{}", fixed((high - low) / 2.0, decimals(self.figure.value))),
            (None, Some(_)) => format!("±>{:.0} %", 100.0 * WIDEST),
            (None, None) => String::new(),
        }
    }

    /// Its interval, `[5.4, 6.1]`, or the bound that is known from below, `(≥ 5.4)`.
    pub fn ends(self) -> String {
        let digits = decimals(self.figure.value);
        let low = self.support().map(|[low, _]| low).or(self.figure.lower95.filter(|_| self.valid));
        match (self.narrow(), low) {
            (Some([low, high]), _) => format!("[{}, {}]", fixed(low, digits), fixed(high, digits)),
            (None, Some(low)) => format!("(≥ {})", fixed(low, digits)),
            (None, None) => String::new(),
        }
    }
}

/// A figure that may be missing.
pub fn shown(figure: Option<Figure>, valid: bool) -> Option<Shown> {
    figure.map(|figure| Shown::new(figure, valid))
}

/// What may be missing.
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

/// A count: `12,345`.
pub fn whole(count: u64) -> String {
    fixed(count as f64, 0)
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
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(25_232_932_864), "23.5 GiB");
        assert_eq!(percent(0.874), "87 %");
    }

    #[test]
    fn a_figure_says_what_it_stands_on() {
        let figure = |value, ci95, lower95| Figure { value, ci95, lower95 };
        let told = |figure, valid| {
            let shown = Shown::new(figure, valid);
            [shown.text(), shown.half(), shown.ends()]
        };
        assert_eq!(told(figure(123.4, Some([121.3, 125.5]), None), true), ["123.4", "±2.1", "[121.3, 125.5]"]);
        assert_eq!(told(figure(12_345.0, Some([12_000.0, 12_800.0]), None), true)[1], "±400");
        assert_eq!(told(figure(6.7, None, Some(6.1)), true), ["~6.70", "", "(≥ 6.10)"]);
        assert_eq!(told(figure(1.05, Some([0.01, 59.0]), None), true), ["1.05", "±>100 %", "(≥ 0.01)"]);
        assert_eq!(told(figure(6.7, Some([6.0, 7.0]), None), false), ["!6.70", "", ""]);
    }
}
