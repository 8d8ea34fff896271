//! Statistics: the one histogram, and intervals that say how far a figure can be trusted.

pub mod batch;
mod histogram;
pub mod percentile;
pub mod sample;
pub mod series;
pub mod sla;
pub(crate) mod special;
pub mod stop;
mod stretches;
pub mod warmup;

pub use histogram::{Histogram, HistogramError};

use serde::{Deserialize, Serialize};

/// A value with its 95 % confidence interval.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Interval {
    /// The estimate.
    pub value: f64,
    /// Lower and upper end.
    pub ci95: [f64; 2],
}

impl Interval {
    /// The greater distance of an end from the value, as a share of the value.
    pub fn relative_half_width(&self) -> f64 {
        let [low, high] = self.ci95;
        (high - self.value).max(self.value - low) / self.value
    }
}

/// A figure as it was observed, with its 95 % interval where the run supports one. Only supported figures decide anything.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// The run's own value.
    pub value: f64,
    /// Lower and upper end of the 95 % interval; null where the run supports none.
    pub ci95: Option<[f64; 2]>,
    /// Where there is no interval: the value that the true one exceeds with 97.5 %, if the run supports that much.
    #[serde(default)]
    pub lower95: Option<f64>,
}

impl Figure {
    /// A value that was seen and nothing more.
    pub fn observed(value: f64) -> Self {
        Self { value, ci95: None, lower95: None }
    }

    /// Value and interval; none where the figure is only observed.
    pub fn interval(&self) -> Option<Interval> {
        Some(Interval { value: self.value, ci95: self.ci95? })
    }

    /// The same figure in another unit.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            value: self.value * factor,
            ci95: self.ci95.map(|ends| ends.map(|end| end * factor)),
            lower95: self.lower95.map(|low| low * factor),
        }
    }
}

impl From<Interval> for Figure {
    fn from(Interval { value, ci95 }: Interval) -> Self {
        Self { value, ci95: Some(ci95), lower95: None }
    }
}
