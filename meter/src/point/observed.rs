//! Observations of a point, before its validity is decided.

use crate::{
    check::Remark,
    probe::Samples,
    record::{Failure, Metric, recorder::Sends},
};
use modelmeter_common::{
    Problem,
    load::LoadPoint,
    part,
    stats::{Figure, percentile::Percentile, series::Series},
};
use std::{collections::BTreeMap, time::Duration};

/// With a greater share of failures, measuring longer does not make a run valid.
const MOST_ERRORS: f64 = 0.1;

/// A measured point, with all that a later visit needs to go on with it.
#[derive(Clone)]
pub(crate) struct Kept {
    pub seen: Observed,
    pub samples: Samples,
}

/// Everything that the meter saw of a point.
#[derive(Clone)]
pub(crate) struct Observed {
    pub load: LoadPoint,
    pub warmup: Duration,
    pub drifting: bool,
    pub series: Series,
    pub metrics: Vec<MetricSeen>,
    pub throughput: Option<Figure>,
    pub percentiles: Vec<Percentile>,
    pub errors: BTreeMap<Failure, u64>,
    pub words: BTreeMap<Failure, String>,
    /// Calls that were sent again, because the server had not begun them.
    pub resent: u64,
    /// Connections that the server ended gracefully.
    pub connections_ended: u64,
    pub sends: Sends,
    pub client_cpu_cores: f64,
    /// Part of the CPU time that went into busy waiting.
    pub client_awake_cores: f64,
    /// Time in which the client was ready to run and had no core.
    pub client_starved_cores: f64,
    pub converged: bool,
    pub gone: Option<String>,
    /// Why no call succeeded, where none did, not even in warm-up.
    pub nothing: Option<Problem>,
    pub checked: u64,
    pub bad_answers: Vec<Problem>,
    /// How answers differ from what was declared, each kind of an output once.
    pub remarks: Vec<Remark>,
}

/// One of the transport's metrics, as it was seen.
#[derive(Clone)]
pub(crate) struct MetricSeen {
    pub metric: &'static Metric,
    pub series: Series,
}

impl MetricSeen {
    /// Each metric with its series.
    pub fn all(metrics: &'static [Metric], series: Vec<Series>) -> Vec<Self> {
        metrics.iter().zip(series).map(|(metric, series)| Self { metric, series }).collect()
    }

    /// The metric as a part has it.
    pub fn figures(&self) -> part::Metric {
        let total = self.series.total();
        part::Metric {
            name: self.metric.name.to_owned(),
            unit: self.metric.unit.to_owned(),
            values: total.latency.clone(),
            failures: total.failures,
            percentiles: self.series.percentiles(),
        }
    }
}

impl Observed {
    /// Adds the figures that a series does not keep from visit to visit.
    pub fn add_earlier(&mut self, earlier: &Self) {
        self.warmup += earlier.warmup;
        self.drifting |= earlier.drifting;
        self.checked += earlier.checked;
        self.sends.unanswered_ns.extend(&earlier.sends.unanswered_ns);
        self.sends.most_in_flight = self.sends.most_in_flight.min(earlier.sends.most_in_flight);
        self.bad_answers.splice(0..0, earlier.bad_answers.iter().cloned());
        earlier.remarks.iter().for_each(|remark| remark.add_to(&mut self.remarks));
        self.gone = self.gone.take().or_else(|| earlier.gone.clone());
    }

    /// An observation that tests build theirs on.
    #[cfg(test)]
    pub fn blank(load: LoadPoint) -> Self {
        Self {
            load,
            warmup: Duration::ZERO,
            drifting: false,
            series: Series::default(),
            metrics: Vec::new(),
            throughput: None,
            percentiles: Vec::new(),
            errors: BTreeMap::new(),
            words: BTreeMap::new(),
            resent: 0,
            connections_ended: 0,
            sends: Sends::default(),
            client_cpu_cores: 0.0,
            client_awake_cores: 0.0,
            client_starved_cores: 0.0,
            converged: false,
            gone: None,
            nothing: None,
            checked: 0,
            bad_answers: Vec::new(),
            remarks: Vec::new(),
        }
    }
}

/// Whether so many calls failed that the run ends early.
pub(super) fn has_failed(series: &Series) -> bool {
    series.total().failures as f64 > MOST_ERRORS * series.requests() as f64
}
