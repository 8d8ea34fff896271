//! Latency against throughput, a letter a cell: what more calls in flight buy, and what they cost. Letters tell the cells
//! apart where there is no colour.

use super::{
    View,
    cell::{Cell, Group},
    number::number,
    text::wrap,
};
use modelmeter_common::profile::ProfilePoint;

/// Rows of the plot.
const HEIGHT: usize = 10;
/// Columns of the plot at most: wider ones read no better.
const MAX_WIDTH: usize = 72;
/// Fewer points than this are better read in the table.
const MIN_POINTS: usize = 3;
/// More cells than this are told apart by engine and device only.
const MAX_SERIES: usize = 12;
/// An axis over a greater range than this is logarithmic.
const LOG_FROM: f64 = 10.0;
/// Where two cells fall on one place.
const SEVERAL: char = '*';

/// One axis: what it spans and how.
struct Axis {
    low: f64,
    high: f64,
    places: usize,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64> + Clone, places: usize) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        Self { low, high: values.fold(0.0, f64::max), places }
    }

    /// The place of a value, from 0.
    fn place(&self, value: f64) -> usize {
        let is_log = self.high / self.low > LOG_FROM;
        let at = |v: f64| if is_log { v.ln() } else { v };
        let share = (at(value) - at(self.low)) / (at(self.high) - at(self.low));
        // Both ends are the same value: everything stands at the start.
        if share.is_finite() { (share * (self.places - 1) as f64).round() as usize } else { 0 }
    }
}

/// The plot; nothing where there is too little to see.
pub fn lines(group: &Group, view: View) -> Vec<String> {
    let series = series(group);
    let all: Vec<&ProfilePoint> = series.iter().flat_map(|(_, points)| points.iter().copied()).collect();
    if all.len() < MIN_POINTS || series.len() > MAX_SERIES {
        return Vec::new();
    }
    let has_tails = all.iter().all(|point| point.latency_ms.p95.is_some());
    let latency = |point: &ProfilePoint| {
        let ms = &point.latency_ms;
        if has_tails { ms.p95 } else { ms.p50 }.map_or(0.0, |figure| figure.value)
    };
    let rate = |point: &ProfilePoint| point.throughput_inferences_per_s.map_or(0.0, |figure| figure.value);
    let (top, bottom) = {
        let ms = Axis::over(all.iter().map(|point| latency(point)), HEIGHT);
        (number(ms.high), number(ms.low))
    };
    let margin = top.len().max(bottom.len());
    let width = view.width.saturating_sub(margin + 3).min(MAX_WIDTH);
    let x = Axis::over(all.iter().map(|point| rate(point)), width);
    let y = Axis::over(all.iter().map(|point| latency(point)), HEIGHT);
    let mut grid = vec![vec![' '; width]; HEIGHT];
    for ((_, points), letter) in series.iter().zip('a'..) {
        for point in points {
            let place = &mut grid[HEIGHT - 1 - y.place(latency(point))][x.place(rate(point))];
            *place = if *place == ' ' || *place == letter { letter } else { SEVERAL };
        }
    }
    let mut lines =
        vec![format!("{} of a call in ms, against inf/s, at each load", if has_tails { "p95" } else { "p50" })];
    for (i, row) in grid.iter().enumerate() {
        let label = if i == 0 {
            &top
        } else if i == HEIGHT - 1 {
            &bottom
        } else {
            ""
        };
        lines.push(format!("{label:>margin$} │{}", row.iter().collect::<String>()).trim_end().to_owned());
    }
    let (low, high) = (number(x.low), number(x.high));
    lines.push(format!("{:>margin$} └{}", "", "─".repeat(width)));
    let gap = width.saturating_sub(low.len() + high.len());
    lines.push(format!("{:>margin$}  {low}{}{high}", "", " ".repeat(gap)));
    let names: Vec<String> = series.iter().zip('a'..).map(|((name, _), letter)| format!("{letter} {name}")).collect();
    let several = grid.iter().flatten().any(|place| *place == SEVERAL).then(|| format!("{SEVERAL} several"));
    lines.extend(wrap(&names.into_iter().chain(several).collect::<Vec<_>>().join(" · "), view.width));
    lines
}

/// What is plotted of a point: valid, with both figures.
fn is_plotted(point: &&ProfilePoint) -> bool {
    point.valid && point.throughput_inferences_per_s.is_some() && point.latency_ms.p50.is_some()
}

/// The points of each cell, or of each deployment where there are many cells.
fn series<'a>(group: &Group<'a>) -> Vec<(String, Vec<&'a ProfilePoint>)> {
    let points = |cell: &Cell<'a>| cell.profile.points.iter().filter(is_plotted).collect::<Vec<_>>();
    let one_each = group.cells.iter().map(|cell| (cell.name.clone(), points(cell)));
    let one_each: Vec<_> = one_each.filter(|(_, points)| !points.is_empty()).collect();
    if one_each.len() <= MAX_SERIES {
        return one_each;
    }
    let mut found: Vec<(&Cell<'a>, Vec<&'a ProfilePoint>)> = Vec::new();
    for cell in &group.cells {
        match found.last_mut() {
            Some((first, all)) if first.is_deployed_as(cell) => all.extend(points(cell)),
            _ => found.push((cell, points(cell))),
        }
    }
    let name = |cell: &Cell| cell.name.rsplit_once(" batch ").map_or(cell.name.clone(), |(name, _)| name.to_owned());
    found.into_iter().filter(|(_, points)| !points.is_empty()).map(|(cell, points)| (name(cell), points)).collect()
}
