//! The classic block of six indicators, one a cell, in the labels and units of MLModelCI's profiler: single calls, one after
//! another, as that profiler makes them.

use super::{
    View,
    cell::Cell,
    detail::why_invalid,
    number::{INVALID, NONE, OBSERVED, Shown, or_none, shown},
    text::wrap,
};
use modelmeter_common::{
    profile::{Latency, Profile},
    stats::Figure,
};

/// The blocks of these profiles.
pub fn classic(found: &[Profile], view: View) -> String {
    found.iter().map(|profile| block(profile, view)).collect::<Vec<_>>().join("\n")
}

fn block(p: &Profile, view: View) -> String {
    let cell = Cell { profile: p, name: String::new() };
    let point = cell.reference();
    let figures = point.map(|point| {
        [
            number_of(shown(Some(Figure::observed(point.duration_s)), point.valid), 1.0, "sec", false),
            number_of(shown(point.throughput_inferences_per_s, point.valid), 1.0, "req/sec", true),
        ]
    });
    let [duration, rate] = figures.unwrap_or([NONE.into(), NONE.into()]);
    let seconds = |of: fn(&Latency) -> Option<Figure>| number_of(cell.latency(of), 1e-3, "s", true);
    let mut fields = vec![
        ("batch size", p.batch_size.to_string()),
        ("tested device", device(p)),
        ("model", p.model.to_string()),
        ("serving engine", p.engine.name.clone()),
        ("total batches", or_none(point, |point| point.requests.to_string())),
        ("all_batch_latency", duration),
        ("all_batch_throughput", rate),
        ("overall 50th-percentile latency", seconds(|ms| ms.p50)),
        ("overall 95th-percentile latency", seconds(|ms| ms.p95)),
        ("overall 99th-percentile latency", seconds(|ms| ms.p99)),
    ];
    if let Some(gpu) = point.and_then(|point| point.gpu.as_ref()) {
        let bytes = |count: Option<u64>| or_none(count, |n| format!("{n} bytes"));
        fields.extend([
            ("total GPU memory", bytes(p.device.memory_total_bytes)),
            ("average GPU memory usage percentile", or_none(gpu.memory_used_ratio, |ratio| format!("{ratio:.4}"))),
            ("average GPU memory used", bytes(gpu.memory_used_bytes)),
            ("average GPU utilization", or_none(gpu.utilization_ratio, |ratio| format!("{:.4}%", ratio * 100.0))),
        ]);
    }
    let mut lines: Vec<String> = Vec::new();
    for (label, value) in &fields {
        lines.push(format!("{label}: {}", view.paint().cell(value)));
    }
    if let Some(error) = &p.error {
        lines.extend(wrap(&format!("failed: {error}").replace('\n', " "), view.width));
    }
    if let Some(point) = point.filter(|point| !point.valid) {
        lines.extend(wrap(&format!("invalid: {}", why_invalid(point)), view.width));
    }
    lines.extend(legend(&fields));
    lines.join("\n") + "\n"
}

/// A figure in a classic unit, with its mark where it can have one.
fn number_of(figure: Option<Shown>, factor: f64, unit: &str, is_marked: bool) -> String {
    or_none(figure, |shown| {
        let mark = if is_marked || !shown.is_valid() { shown.mark() } else { String::new() };
        format!("{mark}{} {unit}", five_digits(shown.value() * factor))
    })
}

/// At least five digits that mean something, and no sign between thousands: programs read this block.
fn five_digits(value: f64) -> String {
    let whole = value.abs().max(1e-12).log10().floor() as i32;
    let decimals = usize::try_from(4 - whole).unwrap_or(0).min(12);
    format!("{value:.decimals$}")
}

fn legend(fields: &[(&str, String)]) -> Option<String> {
    let is_marked = |mark: char| fields.iter().any(|(_, value)| value.starts_with(mark));
    let marks =
        [(OBSERVED, "seen in this run, not supported by a 95 % interval"), (INVALID, "of an invalid load point")];
    let told: Vec<String> =
        marks.into_iter().filter(|(mark, _)| is_marked(*mark)).map(|(mark, text)| format!("{mark} {text}")).collect();
    (!told.is_empty()).then(|| format!("({})", told.join(" · ")))
}

fn device(p: &Profile) -> String {
    match &p.device.name {
        None if p.unavailable.contains_key("device.name") => {
            format!("{} (not known: the server was not launched here)", p.device.class)
        }
        name => name.clone().unwrap_or_else(|| p.device.class.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};

    fn text(profile: Profile) -> String {
        classic(&[profile], View::plain())
    }

    fn has(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_block_has_the_six_indicators_in_the_classic_units() {
        let text = text(samples::gpu(4, 1));
        has(
            &text,
            &[
                "batch size: 4",
                "serving engine: onnx",
                "all_batch_latency: 2.0000 sec",
                "all_batch_throughput: 2000.0 req/sec",
                "overall 50th-percentile latency: 0.0011000 s",
                "total GPU memory: 85899345920 bytes",
                "average GPU memory usage percentile: 0.2900",
                "average GPU utilization: 87.0000%",
            ],
        );
    }

    #[test]
    fn figures_are_shown_with_what_they_stand_on_and_gpu_lines_only_with_a_gpu() {
        let observed = text(samples::observed(8));
        has(&observed, &["overall 50th-percentile latency: ~1.4000 s", "overall 95th-percentile latency: –"]);
        assert!(!observed.contains("GPU"), "{observed}");
        let invalid = text(samples::invalid(1));
        has(&invalid, &["overall 95th-percentile latency: !0.0014000 s", "(! of an invalid load point)"]);
        let failed = text(samples::failed(2));
        assert!(failed.contains("engine rten exited") && failed.contains("all_batch_throughput: –"), "{failed}");
    }
}
