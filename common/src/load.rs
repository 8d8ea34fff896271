//! What load is put on an engine, and when a point of it ends.

use serde::{Deserialize, Serialize};
use std::fmt;

/// How an open loop spaces its sends.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// Exponential gaps: independent users.
    #[default]
    Poisson,
    /// Equal gaps.
    Constant,
}

/// The load that a request asks for.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Load {
    /// A fixed number of calls in flight; without numbers, a sweep that finds the peak.
    Closed {
        /// The points; empty: sweep. One in flight is always measured first.
        #[serde(default)]
        concurrencies: Vec<u32>,
    },
    /// Calls on a schedule that never waits for a response.
    Open {
        /// Calls a second, each a point.
        rates: Vec<f64>,
        /// How they are spaced.
        #[serde(default)]
        arrivals: Arrivals,
    },
    /// The highest rate of calls that still meets the SLA.
    SlaSearch {
        /// How they are spaced.
        #[serde(default)]
        arrivals: Arrivals,
    },
}

impl Default for Load {
    fn default() -> Self {
        Self::Closed { concurrencies: Vec::new() }
    }
}

/// One load inside a task. Also its identity: repeats fold by equal load.
///
/// Plain tags, because bincode (which carries it in a part) cannot read a self-describing form.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadPoint {
    /// This many calls in flight.
    Closed {
        /// Calls in flight.
        concurrency: u32,
    },
    /// This many calls a second.
    Open {
        /// Calls a second.
        rate_per_s: f64,
        /// How they are spaced.
        arrivals: Arrivals,
    },
}

impl fmt::Display for LoadPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { concurrency } => write!(f, "{concurrency} in flight"),
            Self::Open { rate_per_s, .. } => write!(f, "{rate_per_s}/s"),
        }
    }
}

/// When a point ends.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Stop {
    /// Half width of the 95 % intervals to reach, as a share of the value.
    pub precision: f64,
    /// Not before this much measuring.
    pub min_duration_ms: u64,
    /// At the latest after this much measuring.
    pub max_duration_ms: u64,
    /// A call that takes longer failed.
    pub timeout_ms: u64,
    /// The same for an engine's first call, in which it may compile and allocate. Null: [`Self::timeout_ms`] where that is
    /// not the default, else a minute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_timeout_ms: Option<u64>,
    /// Open loop: more calls than this in flight make the point invalid.
    pub max_in_flight: u32,
    /// Figures to publish: at least what [`Request::certified`](crate::request::Request::certified) says, and a point
    /// that anything disturbed is invalid.
    pub certified: bool,
}

const TIMEOUT_MS: u64 = 10_000;
/// Of the first call, where nobody said how long any may take.
const FIRST_TIMEOUT_MS: u64 = 60_000;

impl Stop {
    /// How long an engine's first call may take.
    pub fn first_timeout_ms(&self) -> u64 {
        let usual = if self.timeout_ms == TIMEOUT_MS { FIRST_TIMEOUT_MS } else { self.timeout_ms };
        self.first_timeout_ms.unwrap_or(usual)
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self {
            precision: 0.05,
            min_duration_ms: 5_000,
            max_duration_ms: 30_000,
            timeout_ms: TIMEOUT_MS,
            first_timeout_ms: None,
            max_in_flight: 4096,
            certified: false,
        }
    }
}

/// A service-level agreement: `p95=50ms`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sla {
    /// 50 to 99.9.
    pub percentile: f64,
    /// The latency that this percentile must stay under.
    pub latency_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_that_was_asked_for_holds_for_the_first_call_too() {
        let first = |json: &str| serde_json::from_str::<Stop>(json).unwrap().first_timeout_ms();
        assert_eq!((first("{}"), first(r#"{"timeout_ms":2000}"#)), (60_000, 2_000));
        assert_eq!(first(r#"{"timeout_ms":2000,"first_timeout_ms":90000}"#), 90_000);
        assert_eq!(first(r#"{"first_timeout_ms":10000}"#), 10_000);
    }

    #[test]
    fn a_load_reads_as_the_documented_json() {
        let load: Load = serde_json::from_str(r#"{"mode":"closed"}"#).unwrap();
        assert_eq!(load, Load::default());
        let load: Load = serde_json::from_str(r#"{"mode":"open","rates":[200.0]}"#).unwrap();
        assert_eq!(load, Load::Open { rates: vec![200.0], arrivals: Arrivals::Poisson });
        assert!(serde_json::from_str::<Load>(r#"{"mode":"closed","rates":[1.0]}"#).is_err());
    }
}
