//! What a user asks for.

use crate::{
    Problem, RequestId, Timestamp,
    batch::{Batch, Stated},
    load::{Load, Sla, Stop},
    model::{Format, Model, ModelRef},
    testdata::Source,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The most cells that one request may expand to.
pub const MAX_CELLS: usize = 20_000;
/// The most tasks, repeats of cells, that one request may expand to.
pub const MAX_TASKS: usize = 100_000;
/// The most load points that one request may name.
pub const MAX_POINTS: usize = 1000;
/// The largest batch size.
pub const MAX_BATCH_SIZE: u32 = 4096;
/// The most calls in flight.
pub const MAX_CONCURRENCY: u32 = 4096;
/// The largest call: gRPC counts a message's bytes in 32 bits, and a worker holds a few of them.
pub const MAX_CALL_BYTES: u64 = 1 << 30;
/// Certified: a point is measured at least this long, as in MLPerf Inference (its rules, minimum duration: 600 s).
pub const CERTIFIED_MIN_MS: u64 = 600_000;
/// Certified: a point that has not converged may go on this long.
pub const CERTIFIED_MAX_MS: u64 = 1_800_000;
/// The longest budget: a week.
const MOST_BUDGET_MS: u64 = 7 * 24 * 3_600_000;
/// Certified: half width of the 95 % intervals, as a share of the value.
pub const CERTIFIED_PRECISION: f64 = 0.01;
/// Certified: from three repeats on, their spread is part of the interval.
pub const CERTIFIED_REPEATS: u32 = 3;

/// A request: model × engines × devices × batch sizes × load. Validated whole before anything runs.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Request {
    /// `name[:version]` in the hub.
    pub model: String,
    /// Engine names, or `auto` alone: each engine with a fitting artifact that some worker has.
    pub engines: Vec<String>,
    /// Per engine, per setting: one value or a list; each combination is a cell.
    pub engine_settings: BTreeMap<String, BTreeMap<String, Value>>,
    /// Per input, the whole shapes (batch axis included: 1 or a batch size, by which it is replaced); per named open axis,
    /// its lengths.
    pub shapes: BTreeMap<String, Vec<Vec<u64>>>,
    /// Per input, the axis that counts the items of a call, or `none`; by default as the model's axes are named.
    pub batch_axes: BTreeMap<String, Stated>,
    /// `cpu`, `gpu`, `all` or device classes.
    pub devices: Vec<String>,
    /// Items in a call; empty: 1, 2, 4 and 8, or the only number that the model takes.
    pub batch_sizes: Vec<u32>,
    /// The load.
    pub load: Load,
    /// A fixed number of calls a point instead of the stop rule (the classic `batch_num`).
    pub batches: Option<u64>,
    /// When a point ends.
    pub stop: Stop,
    /// Wall time for the whole request, shared out over its cells.
    pub budget_ms: Option<u64>,
    /// Wall time beyond the budget, shared out alike, for cells that lack calls with which p95 or p99 are seen.
    pub grace_ms: u64,
    /// The latency to stay under.
    pub sla: Option<Sla>,
    /// Independent repetitions of each cell.
    pub repeats: u32,
    /// A custom inspector's name; by default the engine's own.
    pub inspector: Option<String>,
    /// Test data of the user's own; inputs that it leaves out get random values.
    pub data: Option<Source>,
    /// Of test data, order and arrivals.
    pub seed: u64,
    /// Weight in the choice of the next task among requests, 1 to 100.
    pub priority: u32,
    /// After this, cells that no slot can run fail.
    pub deadline_ms: u64,
    /// Fail such cells at once.
    pub no_wait: bool,
    /// Free words to find it by.
    pub labels: BTreeMap<String, String>,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            model: String::new(),
            engines: vec!["auto".into()],
            engine_settings: BTreeMap::new(),
            shapes: BTreeMap::new(),
            batch_axes: BTreeMap::new(),
            devices: vec!["cpu".into()],
            batch_sizes: Vec::new(),
            load: Load::default(),
            batches: None,
            stop: Stop::default(),
            budget_ms: None,
            grace_ms: 0,
            sla: None,
            repeats: 1,
            inspector: None,
            data: None,
            seed: 0,
            priority: 10,
            deadline_ms: 24 * 3_600_000,
            no_wait: false,
            labels: BTreeMap::new(),
        }
    }
}

impl Request {
    /// A certified request asks for at least what certified mode stands for; any other stays as it is.
    #[must_use]
    pub fn certified(mut self) -> Self {
        if self.stop.certified {
            let stop = &mut self.stop;
            stop.min_duration_ms = stop.min_duration_ms.max(CERTIFIED_MIN_MS);
            stop.max_duration_ms = stop.max_duration_ms.max(CERTIFIED_MAX_MS).max(stop.min_duration_ms);
            stop.precision = stop.precision.min(CERTIFIED_PRECISION);
            self.repeats = self.repeats.max(CERTIFIED_REPEATS);
        }
        self
    }

    /// Checks what can be checked without the hub: every error names the field, what it got, what is allowed.
    pub fn validate(&self) -> Result<(), Problem> {
        not_empty("model", self.model.is_empty())?;
        not_empty("engines", self.engines.is_empty())?;
        not_empty("devices", self.devices.is_empty())?;
        for &batch in &self.batch_sizes {
            within("batch_sizes", u64::from(batch), 1, u64::from(MAX_BATCH_SIZE))?;
        }
        within("repeats", u64::from(self.repeats), 1, 100)?;
        within("priority", u64::from(self.priority), 1, 100)?;
        if self.engines.len() > 1 && self.engines.iter().any(|e| e == "auto") {
            return Err(Problem::invalid("engines", "'auto' stands alone, without other engines"));
        }
        for engine in self.engine_settings.keys() {
            if !self.engines.iter().any(|e| e == engine || e == "auto") {
                return Err(Problem::invalid(
                    "engine_settings",
                    format!("settings for '{engine}', which is not among the engines"),
                )
                .with_hint(format!("engines are {}", self.engines.join(", "))));
            }
        }
        for (engine, settings) in &self.engine_settings {
            for (name, value) in settings {
                let empty = value.as_array().is_some_and(Vec::is_empty);
                not_empty(&format!("engine_settings.{engine}.{name}"), empty)?;
            }
        }
        for (input, shapes) in &self.shapes {
            if shapes.is_empty() {
                return Err(Problem::invalid("shapes", format!("'{input}' needs at least one shape")));
            }
        }
        self.validate_load()?;
        self.validate_stop()
    }

    fn validate_load(&self) -> Result<(), Problem> {
        match &self.load {
            Load::Closed { concurrencies } => {
                at_most("load.concurrencies", concurrencies.len(), MAX_POINTS)?;
                for &c in concurrencies {
                    within("load.concurrencies", u64::from(c), 1, u64::from(MAX_CONCURRENCY))?;
                }
            }
            Load::Open { rates, .. } => {
                if rates.is_empty() {
                    return Err(
                        Problem::invalid("load", "an open loop needs a rate").with_hint("for example --rate 100")
                    );
                }
                at_most("load.rates", rates.len(), MAX_POINTS)?;
                for &rate in rates {
                    if !(rate > 0.0 && rate <= 1e6) {
                        return Err(Problem::invalid("load.rates", format!("{rate} calls a second"))
                            .with_hint("above 0, at most 1000000"));
                    }
                }
            }
            Load::SlaSearch { .. } if self.sla.is_none() => {
                return Err(
                    Problem::invalid("load", "an SLA search needs an SLA").with_hint("for example --sla p95=50ms")
                );
            }
            Load::SlaSearch { .. } => {}
        }
        match &self.sla {
            Some(sla) if !(50.0..=99.9).contains(&sla.percentile) => {
                Err(Problem::invalid("sla.percentile", format!("{}", sla.percentile)).with_hint("50 to 99.9"))
            }
            Some(sla) if !(sla.latency_ms > 0.0 && sla.latency_ms.is_finite()) => {
                Err(Problem::invalid("sla.latency_ms", format!("{}", sla.latency_ms)).with_hint("above 0"))
            }
            _ => Ok(()),
        }
    }

    fn validate_stop(&self) -> Result<(), Problem> {
        let stop = &self.stop;
        if !(stop.precision > 0.0 && stop.precision <= 0.5) {
            return Err(Problem::invalid("stop.precision", format!("{}", stop.precision))
                .with_hint("a share above 0, at most 0.5: 5 % is 5% or 0.05"));
        }
        within("stop.max_duration_ms", stop.max_duration_ms, 10, 3_600_000)?;
        within("stop.timeout_ms", stop.timeout_ms, 1, 600_000)?;
        within("stop.max_in_flight", u64::from(stop.max_in_flight), 1, 65_536)?;
        if stop.min_duration_ms > stop.max_duration_ms {
            return Err(Problem::invalid(
                "stop.min_duration_ms",
                format!("{} ms is longer than max_duration_ms, {} ms", stop.min_duration_ms, stop.max_duration_ms),
            ));
        }
        let cut_short = [("batches", self.batches.is_some()), ("budget_ms", self.budget_ms.is_some())];
        if let Some((field, _)) = cut_short.into_iter().find(|(_, is_set)| stop.certified && *is_set) {
            return Err(Problem::invalid(field, "certified points are measured until they are precise")
                .with_hint("leave it out, or do without certified mode"));
        }
        if let Some(batches) = self.batches {
            within("batches", batches, 1, 1_000_000_000)?;
        }
        if let (Load::Open { rates, .. }, None) = (&self.load, self.batches) {
            let calls = |rate: &f64| rate * stop.max_duration_ms as f64 / 1e3;
            if let Some(rate) = rates.iter().find(|rate| calls(rate) < 1.0) {
                let within = stop.max_duration_ms as f64 / 1e3;
                return Err(Problem::invalid(
                    "load.rates",
                    format!("no call may be due within {within} s at {rate} calls/s"),
                )
                .with_hint("raise the rate or --max-duration"));
            }
        }
        if let Some(budget) = self.budget_ms {
            within("budget_ms", budget, 1_000, MOST_BUDGET_MS)?;
        }
        within("grace_ms", self.grace_ms, 0, MOST_BUDGET_MS)
    }

    /// The batch of the model that it is about, with its sizes, once shapes and axes are found to fit.
    ///
    /// # Errors
    /// `invalid_argument` for what the model does not have, and what is still open.
    pub fn batch<'a>(&self, model: &'a Model) -> Result<(Batch<'a>, Vec<u32>), Problem> {
        if model.inputs.is_empty() && self.inspector.is_none() {
            let message = format!("nothing tells what model {} takes", model.id.name);
            return Err(Problem::invalid("input", message)
                .with_hint("state it without its batch axis, for example --input x:fp32:3,224,224"));
        }
        let batch = Batch::of(&model.inputs, &self.batch_axes)?;
        let sizes = batch.sizes(&self.batch_sizes);
        batch.check_shapes(&self.shapes, &sizes)?;
        Ok((batch, sizes))
    }
}

fn not_empty(field: &str, empty: bool) -> Result<(), Problem> {
    if empty { Err(Problem::invalid(field, "is empty, needs at least one")) } else { Ok(()) }
}

fn at_most(field: &str, given: usize, most: usize) -> Result<(), Problem> {
    if given <= most {
        return Ok(());
    }
    Err(Problem::invalid(field, format!("{given} values")).with_hint(format!("at most {most}")))
}

fn within(field: &str, value: u64, low: u64, high: u64) -> Result<(), Problem> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(Problem::invalid(field, format!("{value} is out of range")).with_hint(format!("{low} to {high}")))
}

/// Where a request stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestState {
    /// Stored; its tasks are being inserted or run.
    Running,
    /// Every cell is profiled.
    Done,
    /// Some cells are profiled, some failed.
    Partial,
    /// No cell could be profiled.
    Failed,
    /// The user stopped it.
    Cancelled,
}

impl RequestState {
    /// Whether it never changes again.
    pub fn is_terminal(self) -> bool {
        self != Self::Running
    }
}

/// A request as the hub keeps it.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct RequestDoc {
    /// The client's idempotency key.
    #[serde(rename = "_id")]
    pub id: RequestId,
    /// Version of this document.
    pub schema_version: u32,
    /// When it was submitted, by the hub's clock.
    pub created_at: Timestamp,
    /// When its last task ended.
    pub ended_at: Option<Timestamp>,
    /// Where it stands.
    pub state: RequestState,
    /// Whether every task has been inserted; until then expansion is repeated after a crash.
    pub expanded: bool,
    /// Number of its tasks.
    pub tasks: u64,
    /// Number of its cells.
    pub cells: u64,
    /// The model, resolved.
    pub model: ModelRef,
    /// What was asked, with `auto`, `gpu` and `all` resolved.
    pub request: Request,
    /// The artifact format that each engine was found to load.
    #[serde(default)]
    pub formats: BTreeMap<String, Format>,
    /// The device classes that each engine is measured on.
    #[serde(default)]
    pub devices_of: BTreeMap<String, BTreeSet<String>>,
    /// The axis that counts items in each output of which that is known; none: its rows are its own.
    #[serde(default)]
    pub output_axes: BTreeMap<String, Option<u32>>,
    /// Why it could not be expanded, where that is what ended it.
    #[serde(default)]
    pub error: Option<Problem>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certified_asks_for_at_least_what_it_stands_for() {
        let plain = Request::default();
        assert_eq!(plain.clone().certified(), plain);
        let mut asked = Request { model: "m".into(), ..Request::default() };
        asked.stop = Stop { certified: true, precision: 0.002, ..Stop::default() };
        let certified = asked.clone().certified();
        assert_eq!((certified.stop.min_duration_ms, certified.stop.max_duration_ms), (600_000, 1_800_000));
        assert_eq!((certified.stop.precision, certified.repeats), (0.002, 3));
        assert!(certified.validate().is_ok());
        assert_eq!(certified.clone().certified(), certified);
        let longer = Stop { min_duration_ms: 2_000_000, ..asked.stop.clone() };
        let longer = Request { stop: longer, repeats: 5, ..asked.clone() }.certified();
        assert_eq!((longer.stop.max_duration_ms, longer.repeats), (2_000_000, 5));
        asked.budget_ms = Some(60_000);
        assert_eq!(asked.validate().unwrap_err().field.as_deref(), Some("budget_ms"));
    }

    #[test]
    fn a_rate_at_which_no_call_may_be_due_is_refused() {
        let asked = |rate, batches| Request {
            model: "m".into(),
            load: Load::Open { rates: vec![rate], arrivals: crate::load::Arrivals::Poisson },
            stop: Stop { min_duration_ms: 3_000, max_duration_ms: 3_000, ..Stop::default() },
            batches,
            ..Request::default()
        };
        assert_eq!(asked(0.3, None).validate().unwrap_err().field.as_deref(), Some("load.rates"));
        assert!(asked(0.34, None).validate().is_ok());
    }
}
