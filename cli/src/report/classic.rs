//! The classic block of six indicators, one a cell: single calls, one after another, as the classic profiler makes them.

use super::{
    footer::{why_invalid, why_missing},
    number::{NONE, bytes, number, or_none, percent},
    profiles::point_of,
};
use modelmeter_common::profile::{Profile, ProfilePoint};

/// The blocks of these profiles.
pub fn classic(found: &[Profile]) -> String {
    found.iter().map(block).collect::<Vec<_>>().join("\n")
}

fn block(p: &Profile) -> String {
    // A reference that does not stand is none: then it is the first point that says why.
    let measured = p.reference.as_ref().map_or(p.points.first(), |reference| point_of(p, reference.load));
    // As in the table: what does not stand is not shown as a figure.
    let point = measured.filter(|point| point.valid);
    let ms = |of: fn(&ProfilePoint) -> Option<f64>| or_none(point.and_then(of), |v| format!("{} ms", number(v)));
    let gpu = point.and_then(|point| point.gpu.as_ref());
    let fields = [
        ("batch size", p.batch_size.to_string()),
        ("tested device", device(p)),
        ("model", p.model.to_string()),
        ("serving engine", p.engine.name.clone()),
        (
            "all_batch_latency",
            or_none(point, |point| format!("{} s for {} batches", number(point.duration_s), point.requests)),
        ),
        (
            "all_batch_throughput",
            or_none(point.and_then(|point| point.throughput_inferences_per_s), |t| {
                format!("{} inferences/s", number(t.value))
            }),
        ),
        ("latency 50th percentile", ms(|point| point.latency_ms.p50.map(|i| i.value))),
        ("latency 95th percentile", ms(|point| point.latency_ms.p95.map(|i| i.value))),
        ("latency 99th percentile", ms(|point| point.latency_ms.p99.map(|i| i.value))),
        ("total GPU memory", or_none(p.device.memory_total_bytes.filter(|_| gpu.is_some()), bytes)),
        ("average GPU memory usage", or_none(gpu.and_then(|gpu| gpu.memory_used_ratio), percent)),
        ("average GPU memory used", or_none(gpu.and_then(|gpu| gpu.memory_used_bytes), bytes)),
        ("average GPU utilization", or_none(gpu.and_then(|gpu| gpu.utilization_ratio), percent)),
    ];
    let mut text: String = fields.iter().map(|(field, value)| format!("{field:<26}{value}\n")).collect();
    if let Some(error) = &p.error {
        text += &format!("{:<26}{error}\n", "failed");
    }
    match (measured, point) {
        (Some(measured), None) => text += &format!("{:<26}{}\n", "invalid", why_invalid(measured)),
        (_, Some(point)) => {
            if let Some(why) = why_missing(point) {
                text += &format!("({NONE}: {why})\n");
            }
            if gpu.is_none() {
                text += &format!("({NONE} of the GPU: not measured; --json says why)\n");
            }
        }
        (None, None) => {}
    }
    text
}

fn device(p: &Profile) -> String {
    match &p.device.name {
        None if p.unavailable.contains_key("device.name") => "not known: the server was not launched here".into(),
        name => name.clone().unwrap_or_else(|| p.device.class.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};
    use modelmeter_common::part::Warning;

    #[test]
    fn a_block_has_the_six_indicators() {
        let text = classic(&[samples::gpu(4, 1)]);
        for line in [
            "batch size                4",
            "serving engine            onnx",
            "latency 50th percentile   1.10 ms",
            "total GPU memory          80.0 GiB",
            "average GPU utilization   87 %",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
        let text = classic(&[samples::starved(8)]);
        assert!(text.contains("needs ") && text.contains("latency 99th percentile   –"), "{text}");
        let text = classic(&[samples::failed(2)]);
        assert!(text.contains("engine rten exited") && text.contains("all_batch_throughput      –"), "{text}");
    }

    #[test]
    fn what_does_not_stand_is_no_figure() {
        let mut profile = samples::cpu(1);
        let point =
            profile.points.iter_mut().find(|point| Some(point.load) == profile.reference.as_ref().map(|r| r.load));
        let point = point.unwrap();
        point.valid = false;
        point.warnings = vec![Warning { code: "errors".into(), message: "3 calls of 40 failed".into() }];
        profile.reference = None;
        let text = classic(&[profile]);
        for line in [
            "all_batch_throughput      –",
            "latency 50th percentile   –",
            "invalid                   3 calls of 40 failed",
        ] {
            assert!(text.lines().any(|l| l == line), "{line:?} is not in\n{text}");
        }
    }
}
