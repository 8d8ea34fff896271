//! The answer in words: which cell is fastest, which is quickest, by how much and how surely, and where the SLA holds.

use super::{
    View,
    cell::{Cell, Group, load},
    number::{NONE, Shown, number},
    text::wrap,
};
use modelmeter_common::{
    profile::{Latency, SlaResult},
    stats::Figure,
};

/// More lines about the SLA than this are summed up.
const MAX_SLA_LINES: usize = 12;

/// The answers, in lines of the screen's width.
pub fn lines(group: &Group, view: View) -> Vec<String> {
    let mut sentences: Vec<String> = fastest(group).into_iter().chain(quickest(group)).collect();
    let mut sla: Vec<String> = group.cells.iter().filter_map(agreement).collect();
    let hidden = if view.detail { 0 } else { sla.len().saturating_sub(MAX_SLA_LINES) };
    sla.truncate(sla.len() - hidden);
    sentences.extend(sla);
    if hidden > 0 {
        sentences.push(format!("and {hidden} cells more (--detail has all)"));
    }
    let paint = view.paint();
    let painted = |lines: Vec<String>| {
        lines.into_iter().enumerate().map(move |(i, line)| if i == 0 { paint.line(&line) } else { line })
    };
    sentences.iter().flat_map(|sentence| painted(wrap(sentence, view.width))).collect()
}

/// The cells whose figure stands, best first.
fn ranked<'g, 'a>(
    group: &'g Group<'a>,
    figure: impl Fn(&Cell<'a>) -> Option<Shown>,
    order: impl Fn(f64, f64) -> std::cmp::Ordering,
) -> Vec<(&'g Cell<'a>, Shown)> {
    let with_figure = |cell: &'g Cell<'a>| figure(cell).filter(|shown| shown.is_valid()).map(|shown| (cell, shown));
    let mut cells: Vec<_> = group.cells.iter().filter_map(with_figure).collect();
    cells.sort_by(|(_, a), (_, b)| order(a.value(), b.value()));
    cells
}

/// The most inferences a second: over the next cell, and over the next way to deploy the model.
fn fastest(group: &Group) -> Option<String> {
    let cells = ranked(group, Cell::throughput, |a, b| b.total_cmp(&a));
    let (&(best, rate), rest) = cells.split_first()?;
    let next = rest.first()?;
    let elsewhere =
        rest.iter().find(|(cell, _)| !cell.is_deployed_as(best)).filter(|(cell, _)| cell.name != next.0.name);
    let over = |(cell, other): &(&Cell, Shown)| {
        format!("{} × {} ({})", times(rate.value() / other.value()), cell.name, support(rate, *other))
    };
    let margins: Vec<String> = std::iter::once(next).chain(elsewhere).map(over).collect();
    let at = best.peak().map(|point| format!(" at {}", load(point.load))).unwrap_or_default();
    Some(format!("fastest: {}, {} inf/s{at}: {}", best.name, rate.text(), margins.join(", ")))
}

/// The shortest median of a call. A larger batch of the same deployment takes longer anyway: another one is the rival.
fn quickest(group: &Group) -> Option<String> {
    let cells = ranked(group, |cell| cell.latency(|ms| ms.p50), |a, b| a.total_cmp(&b));
    let (&(best, p50), rest) = cells.split_first()?;
    let (rival, other) = rest.iter().find(|(cell, _)| !cell.is_deployed_as(best)).or(rest.first())?;
    let tail = best.latency(|ms| ms.p95).map(|p95| format!(", p95 {} ms", p95.text())).unwrap_or_default();
    let longer = times(other.value() / p50.value());
    let support = support(p50, *other);
    Some(format!(
        "quickest: {}, p50 {} ms{tail}: {} takes {longer} × as long ({support})",
        best.name,
        p50.text(),
        rival.name
    ))
}

/// Whether the difference of two figures is more than their intervals leave open.
fn support(one: Shown, other: Shown) -> &'static str {
    match (one.support(), other.support()) {
        (Some([low, high]), Some([other_low, other_high])) if low > other_high || high < other_low => "supported",
        (Some(_), Some(_)) => "not told apart: their intervals overlap",
        _ => "not supported: observed only",
    }
}

/// `1.02`, `1.3`, `12`.
fn times(ratio: f64) -> String {
    match ratio {
        r if r < 1.095 => format!("{r:.2}"),
        r if r < 9.95 => format!("{r:.1}"),
        r => number(r.round()).trim_end_matches(".0").to_owned(),
    }
}

/// `✓`, `✗` or `?` of the cell's SLA.
pub fn met(cell: &Cell) -> &'static str {
    match &cell.profile.sla {
        None => NONE,
        Some(_) if cell.profile.points.is_empty() => NONE,
        Some(SlaResult { met: Some(true), .. }) => "✓",
        Some(SlaResult { met: Some(false), .. }) => "✗",
        Some(SlaResult { met: None, .. }) => "?",
    }
}

/// Up to which load a cell keeps its SLA. A cell that was not measured is told of elsewhere.
fn agreement(cell: &Cell) -> Option<String> {
    let sla = cell.profile.sla.as_ref()?;
    let sign = met(cell);
    if sign == NONE {
        return None;
    }
    let (name, wanted) = (&cell.name, format!("p{} ≤ {} ms", sla.percentile, sla.latency_ms));
    let seen = || {
        let point = cell.reference()?;
        let text = cell.latency(percentile(sla.percentile)?)?.text();
        Some(format!(" ({text} ms at {})", load(point.load)))
    };
    let seen = || seen().unwrap_or_default();
    Some(match (sla.met, &sla.best) {
        (Some(true), Some(best)) => {
            let rate = best.summary.throughput_inferences_per_s.map(number).unwrap_or_else(|| NONE.into());
            format!("{sign} {name}: {wanted} holds up to {rate} inf/s ({})", load(best.summary.load))
        }
        (Some(true), None) => format!("{sign} {name}: {wanted} holds"),
        (Some(false), _) => format!("{sign} {name}: {wanted} is missed at every load{}", seen()),
        (None, _) if cell.profile.points.iter().any(|point| point.valid) => {
            format!("{sign} {name}: whether {wanted} holds is open at 99 % confidence{}; measure longer", seen())
        }
        (None, _) => format!("{sign} {name}: whether {wanted} holds is open: no load point is valid"),
    })
}

fn percentile(q: f64) -> Option<fn(&Latency) -> Option<Figure>> {
    type Of = fn(&Latency) -> Option<Figure>;
    let known: [(f64, Of); 5] =
        [(50.0, |ms| ms.p50), (90.0, |ms| ms.p90), (95.0, |ms| ms.p95), (99.0, |ms| ms.p99), (99.9, |ms| ms.p99_9)];
    known.into_iter().find(|(known, _)| *known == q).map(|(_, of)| of)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(value: f64, ci95: Option<[f64; 2]>) -> Shown {
        Shown::new(Figure { value, ci95, lower95: None }, true)
    }

    #[test]
    fn a_difference_is_supported_only_by_intervals_that_lie_apart() {
        let fast = shown(34.9, Some([33.0, 36.0]));
        assert_eq!(support(fast, shown(26.8, Some([25.0, 28.0]))), "supported");
        assert_eq!(support(fast, shown(32.0, Some([30.0, 34.0]))), "not told apart: their intervals overlap");
        assert_eq!(support(fast, shown(12.0, None)), "not supported: observed only");
        assert_eq!([times(1.018), times(1.3), times(12.4)], ["1.02", "1.3", "12"]);
    }
}
