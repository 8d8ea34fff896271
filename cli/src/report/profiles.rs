//! Profiles as tables: one a request and model, a row a cell.

use super::{
    footer,
    number::{self, NONE, number, or_none},
    table::{Align, Table},
};
use crate::job::settings_text;
use modelmeter_common::{
    Code, RequestId,
    model::{ModelRef, TensorShape},
    profile::{Profile, ProfileLoad, ProfilePoint, ProfileState, SlaResult},
    stats::Interval,
};
use std::collections::BTreeSet;

/// Tables of these profiles. `points`: each load point too.
pub fn profiles(found: &[Profile], points: bool) -> String {
    let mut groups: Vec<(RequestId, &ModelRef, Vec<&Profile>)> = Vec::new();
    for profile in found {
        match groups.iter_mut().find(|(id, model, _)| *id == profile.request_id && **model == profile.model) {
            Some((.., group)) => group.push(profile),
            None => groups.push((profile.request_id, &profile.model, vec![profile])),
        }
    }
    let one = |(_, _, mut group): (RequestId, &ModelRef, Vec<&Profile>)| {
        group.sort_by_key(|p| {
            (
                p.engine.name.clone(),
                settings_text(&p.engine.settings),
                p.device.class.clone(),
                shapes(&p.inputs),
                p.batch_size,
            )
        });
        let mut text = heading(&group) + "\n" + &cells(&group).to_string();
        if points {
            text += "\n";
            text += &each_point(&group).to_string();
        }
        text + "\n" + &footer::footer(&group)
    };
    groups.into_iter().map(one).collect::<Vec<_>>().join("\n")
}

/// What was measured: the model, its input, the engines' versions, the devices' names.
fn heading(group: &[&Profile]) -> String {
    let first = group[0];
    let mut text = format!("{}  {}\n", first.model, shapes(&first.inputs));
    let engines: BTreeSet<String> =
        group.iter().filter_map(|p| Some(format!("{} {}", p.engine.name, p.engine.version.as_ref()?))).collect();
    let devices: BTreeSet<String> =
        group.iter().filter_map(|p| Some(format!("{}: {}", p.device.class, p.device.name.as_ref()?))).collect();
    let line: Vec<String> = engines.into_iter().chain(devices).collect();
    if !line.is_empty() {
        text += &line.join(" · ");
        text += "\n";
    }
    text
}

/// `x FP32 [N, 3, 224, 224]`, the batch axis left open where it is.
pub(crate) fn shapes(inputs: &[TensorShape]) -> String {
    let one = |input: &TensorShape| {
        let axis =
            |(at, n): (usize, &u64)| if Some(at as u32) == input.batch_axis { "N".into() } else { n.to_string() };
        let axes: Vec<String> = input.shape.iter().enumerate().map(axis).collect();
        format!("{} {} [{}]", input.name, input.dtype, axes.join(", "))
    };
    inputs.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Whether these cells differ in their inputs, besides the batch.
pub(crate) fn shapes_differ<'a>(mut cells: impl Iterator<Item = &'a [TensorShape]>) -> bool {
    let first = cells.next().map(shapes);
    cells.any(|inputs| Some(shapes(inputs)) != first)
}

/// Which columns beyond the usual ones a group needs.
struct Wanted {
    settings: bool,
    shapes: bool,
    sla: bool,
    energy: bool,
}

impl Wanted {
    fn by(group: &[&Profile]) -> Self {
        let many = |of: &dyn Fn(&Profile) -> String| group.iter().map(|p| of(p)).collect::<BTreeSet<_>>().len() > 1;
        Self {
            settings: many(&|p| settings_text(&p.engine.settings)),
            shapes: shapes_differ(group.iter().map(|p| p.inputs.as_slice())),
            sla: group.iter().any(|p| p.sla.is_some()),
            energy: group.iter().any(|p| energy(p).is_some()),
        }
    }

    fn cell_columns(&self) -> Table {
        let mut table = Table::default().column("engine", Align::Left);
        if self.settings {
            table = table.column("settings", Align::Left);
        }
        table = table.column("device", Align::Left);
        if self.shapes {
            table = table.column("input", Align::Left);
        }
        table.column("batch", Align::Right)
    }

    fn cell(&self, p: &Profile) -> Vec<String> {
        let mut cells = vec![p.engine.name.clone()];
        if self.settings {
            cells.push(settings_text(&p.engine.settings));
        }
        cells.push(p.device.class.clone());
        if self.shapes {
            cells.push(shapes(&p.inputs));
        }
        cells.push(p.batch_size.to_string());
        cells
    }
}

fn cells(group: &[&Profile]) -> Table {
    let wanted = Wanted::by(group);
    let mut table = wanted
        .cell_columns()
        .group("best throughput", "inf/s", Align::Right)
        .column("at", Align::Left)
        .group(reference_heading(group), "p50", Align::Right)
        .column("p95", Align::Right)
        .column("p99", Align::Right);
    if wanted.sla {
        table = table.group("SLA", "met", Align::Left);
    }
    table = table.group("GPU", "memory", Align::Right).column("busy", Align::Right);
    if wanted.energy {
        table = table.column("mJ/inf", Align::Right);
    }
    for p in group {
        let mut row = wanted.cell(p);
        row.extend(throughput(p));
        row.extend(latency(p));
        if wanted.sla {
            row.push(sla(p));
        }
        let peak = p.peak.as_ref();
        row.push(or_none(peak.and_then(|peak| peak.gpu_memory_used_bytes), number::bytes));
        row.push(or_none(peak.and_then(|peak| peak.gpu_utilization_ratio), number::percent));
        if wanted.energy {
            row.push(or_none(energy(p), |joules| number(joules * 1e3)));
        }
        table.row(row);
    }
    table
}

fn reference_heading(group: &[&Profile]) -> &'static str {
    let closed = |p: &&Profile| {
        matches!(p.reference.as_ref().map(|r| r.load), None | Some(ProfileLoad::Closed { concurrency: 1 }))
    };
    if group.iter().all(closed) { "latency of a single call, ms" } else { "latency at the lowest load, ms" }
}

fn throughput(p: &Profile) -> [String; 2] {
    if p.state == ProfileState::Failed {
        return [ended(p).into(), NONE.into()];
    }
    let Some(peak) = &p.peak else { return [NONE.into(), NONE.into()] };
    let exact = point_of(p, peak.summary.load).and_then(|point| point.throughput_inferences_per_s);
    let figure = exact.map(number::interval).or_else(|| peak.summary.throughput_inferences_per_s.map(number));
    [figure.unwrap_or_else(|| NONE.into()), load(peak.summary.load)]
}

/// How a cell that was not wholly measured ended.
pub fn ended(p: &Profile) -> &'static str {
    match (p.state, p.error.as_ref().map(|error| error.code)) {
        (_, Some(Code::Cancelled)) => "cancelled",
        (ProfileState::Failed, _) => "failed",
        _ => "partly failed",
    }
}

fn latency(p: &Profile) -> [String; 3] {
    let point = p.reference.as_ref().and_then(|reference| point_of(p, reference.load));
    let value = |interval: Option<Interval>| or_none(interval.map(|i| i.value), number);
    match point.filter(|point| point.valid) {
        Some(point) => {
            let ms = &point.latency_ms;
            [or_none(ms.p50, number::interval), value(ms.p95), value(ms.p99)]
        }
        None => [NONE, NONE, NONE].map(Into::into),
    }
}

/// Joules an inference at the peak.
fn energy(p: &Profile) -> Option<f64> {
    point_of(p, p.peak.as_ref()?.summary.load)?.energy_per_inference_j
}

fn sla(p: &Profile) -> String {
    match &p.sla {
        None | Some(SlaResult { met: None, .. }) => NONE.into(),
        Some(SlaResult { met: Some(false), .. }) => "no".into(),
        Some(sla) => match &sla.best {
            Some(best) => format!("up to {} inf/s", or_none(best.summary.throughput_inferences_per_s, number)),
            None => "yes".into(),
        },
    }
}

fn each_point(group: &[&Profile]) -> Table {
    let wanted = Wanted::by(group);
    let mut table = wanted
        .cell_columns()
        .group("each load point", "load", Align::Left)
        .column("inf/s", Align::Right)
        .group("latency, ms", "p50", Align::Right)
        .column("p95", Align::Right)
        .column("p99", Align::Right)
        .group("calls", "all", Align::Right)
        .column("failed", Align::Right)
        .column("valid", Align::Left);
    for p in group {
        for point in &p.points {
            let mut row = wanted.cell(p);
            let ms = &point.latency_ms;
            row.extend([
                load(point.load),
                or_none(point.throughput_inferences_per_s, number::interval),
                or_none(ms.p50, number::interval),
                or_none(ms.p95, number::interval),
                or_none(ms.p99, number::interval),
                point.requests.to_string(),
                point.errors.to_string(),
                if point.valid { "yes" } else { "no" }.into(),
            ]);
            table.row(row);
        }
    }
    table
}

/// The point of this load.
pub(super) fn point_of(p: &Profile, load: ProfileLoad) -> Option<&ProfilePoint> {
    p.points.iter().find(|point| point.load == load)
}

pub(super) fn load(load: ProfileLoad) -> String {
    match load {
        ProfileLoad::Closed { concurrency } => format!("{concurrency} in flight"),
        ProfileLoad::Open { rate_per_s, .. } => format!("{} calls/s", number(rate_per_s)),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};
    use unicode_width::UnicodeWidthStr;

    #[test]
    fn a_table_reads_without_a_manual_and_fits_a_hundred_columns() {
        let text = profiles(&[samples::cpu(1), samples::starved(8)], false);
        let expected = "\
mlp:0123456789ab  x FP32 [N, 784]
rten 0.27.0 · cpu: Test CPU 3000

                      best throughput              latency of a single call, ms  GPU
engine  device  batch         inf/s  at           p50           p95          p99  memory  busy
rten    cpu         1  1,500 ±20     4 in flight  1.10 ±0.050  1.40         1.90       –     –
";
        // The exact spacing is the table's own test; here the lines and what they say.
        let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let got: Vec<String> = text.lines().map(squeeze).collect();
        for line in expected.lines().map(squeeze).filter(|l| !l.contains('±')) {
            assert!(got.contains(&line), "{line:?} is not in\n{text}");
        }
        assert!(
            got.iter().any(|l| l.starts_with("rten cpu 1 1,500 ±20 4 in flight 1.10 ±0.05 1.40 1.90 – –")),
            "{text}"
        );
        assert!(got.iter().any(|l| l.starts_with("rten cpu 8 20.0 ±1.0 1 in flight 400.0 ±10.0 – – – –")), "{text}");
        let is_long = |line: &&str| line.width() > 100 && !line.starts_with("warning: ");
        assert_eq!(text.lines().find(is_long), None, "{text}");
    }

    #[test]
    fn what_is_missing_says_why_and_what_to_do() {
        let text = profiles(&[samples::cpu(1), samples::starved(8), samples::failed(2)], false);
        for part in [
            "p95 needs 72 requests, had 40",
            "--max-duration",
            "GPU: the device is a CPU",
            "rten cpu batch 2: engine rten exited with status 1",
            "hint: the whole log is /home/logs/rten.log",
            "the client was short of CPU: use another machine (rten cpu batch 1, 1 in flight, and 1 load point more)",
            "modelmeter results --request",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn gpus_settings_agreements_and_points_get_their_columns() {
        let text = profiles(&[samples::gpu(1, 1), samples::gpu(1, 2)], true);
        for part in [
            "threads=1",
            "threads=2",
            "23.5 GiB",
            "87 %",
            "mJ/inf",
            "195.2",
            "cold start: onnx nvidia-h100-80gb-hbm3: ready after 0.20 s, first inference 5.00 ms",
            "up to 2,000 inf/s",
            "each load point",
            "nvidia-h100-80gb-hbm3",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("GPU: "), "nothing is missing on a GPU\n{text}");
    }
}
