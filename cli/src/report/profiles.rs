//! Profiles as tables: one a request and model, a row a cell, with what they mean below.

use super::{
    View,
    cell::{Cell, Group, load},
    detail, footer,
    number::{self, INVALID, NONE, OBSERVED, number, or_none},
    plot,
    shapes::{settings_text, shapes},
    table::{Align, Table},
    text::wrap,
    words,
};
use modelmeter_common::{
    RequestId,
    model::ModelRef,
    profile::{Latency, Profile, ProfileLoad, ProfilePoint},
    stats::Figure,
};
use std::collections::BTreeSet;

/// Tables of these profiles.
pub fn profiles(found: &[Profile], view: View) -> String {
    let mut groups: Vec<(RequestId, &ModelRef, Vec<&Profile>)> = Vec::new();
    for profile in found {
        match groups.iter_mut().find(|(id, model, _)| *id == profile.request_id && **model == profile.model) {
            Some((.., group)) => group.push(profile),
            None => groups.push((profile.request_id, &profile.model, vec![profile])),
        }
    }
    groups.into_iter().map(|(.., group)| screen(&Group::new(group), view)).collect::<Vec<_>>().join("\n")
}

/// Heading, table, what its marks mean, the answer in words, what to know and to do.
fn screen(group: &Group, view: View) -> String {
    let paint = view.paint();
    let table = cells(group).fit(view.width, paint);
    let points = view.points.then(|| each_point(group).fit(view.width, paint));
    let mut text = format!("{}\n{table}", heading(group, view));
    if let Some(table) = &points {
        text += &format!("\n{table}");
    }
    let shown: Vec<&Table> = std::iter::once(&table).chain(&points).collect();
    let legend = legend(&shown);
    if let Some(line) = &legend {
        text += &format!("{}\n", paint.dim(line));
    }
    for part in [words::lines(group, view), if view.plot { plot::lines(group, view) } else { Vec::new() }] {
        if !part.is_empty() {
            text += &format!("\n{}\n", part.join("\n"));
        }
    }
    let below = if view.detail {
        detail::lines(group, view)
    } else {
        footer::lines(group, view, usize::from(legend.is_some()))
    };
    text + &format!("\n{}\n", below.join("\n"))
}

/// What was measured: the model, its input, the engines' versions, the devices' names.
fn heading(group: &Group, view: View) -> String {
    let first = group.cells[0].profile;
    let inputs = if group.inputs { String::new() } else { format!("  {}", shapes(&first.inputs)) };
    let mut lines = wrap(&format!("{}{inputs}", first.model), view.width);
    let profiles = || group.cells.iter().map(|cell| cell.profile);
    let engines: BTreeSet<String> =
        profiles().filter_map(|p| Some(format!("{} {}", p.engine.name, p.engine.version.as_ref()?))).collect();
    let devices: BTreeSet<String> = profiles()
        .map(|p| match &p.device.name {
            Some(name) => format!("{}: {name}", p.device.class),
            None => p.device.class.clone(),
        })
        .collect();
    lines.extend(wrap(&engines.into_iter().chain(devices).collect::<Vec<_>>().join(" · "), view.width));
    lines.join("\n") + "\n"
}

fn identity(group: &Group) -> Table {
    let mut table = Table::default().column("engine", Align::Left).column("settings", Align::Left);
    table = table.column("device", Align::Left);
    if !group.devices {
        table = table.rank(20);
    }
    table.column("input", Align::Left).column("batch", Align::Right)
}

fn identify(group: &Group, p: &Profile) -> Vec<String> {
    let only = |wanted: bool, text: String| if wanted { text } else { String::new() };
    vec![
        p.engine.name.clone(),
        only(group.settings, settings_text(&p.engine.settings)),
        p.device.class.clone(),
        only(group.inputs, group.input(p)),
        p.batch_size.to_string(),
    ]
}

/// A row a cell. The ranks say in which order columns are dropped on a narrow screen.
fn cells(group: &Group) -> Table {
    let mut table = identity(group)
        .group("best throughput", "inf/s", Align::Right)
        .tight()
        .rank(40)
        .column("at", Align::Left)
        .rank(28)
        .group(reference_heading(group), "p50", Align::Right)
        .tight()
        .rank(30)
        .column("p90", Align::Right)
        .rank(12)
        .column("p95", Align::Right)
        .tight()
        .rank(6)
        .column("p99", Align::Right)
        .rank(80)
        .tight()
        .rank(5)
        .column("p99.9", Align::Right)
        .rank(8)
        .column("calls", Align::Right)
        .rank(7)
        .group("", "SLA", Align::Left)
        .group("engine uses", "memory", Align::Right)
        .rank(24)
        .column("cores", Align::Right)
        .rank(25)
        .group("GPU", "memory", Align::Right)
        .rank(34)
        .column("busy", Align::Right)
        .rank(33)
        .column("mJ/inf", Align::Right)
        .rank(22)
        .group("", "state", Align::Left);
    // A column that no cell has a figure for is left empty, and so not shown.
    let measured = |of: fn(&ProfilePoint) -> bool| group.cells.iter().any(|cell| cell.peak().is_some_and(of));
    let has_cpu = measured(|point| point.engine_cpu.is_some());
    let has_gpu = measured(|point| point.gpu.is_some());
    let has_energy = measured(|point| point.energy_per_inference_j.is_some());
    let has_tail = group.cells.iter().any(|cell| cell.latency(|ms| ms.p99_9).is_some());
    let has_sla = group.cells.iter().any(|cell| cell.profile.sla.is_some());
    for cell in &group.cells {
        let only = |wanted: bool, text: String| if wanted { text } else { String::new() };
        let point = cell.peak();
        let gpu = point.and_then(|point| point.gpu.as_ref());
        let cpu = point.and_then(|point| point.engine_cpu);
        let latency = |of| figure(cell.latency(of));
        let [p50, half, _] = latency(|ms| ms.p50);
        let [p90, ..] = latency(|ms| ms.p90);
        let [p95, _, ends95] = latency(|ms| ms.p95);
        let [p99, _, ends99] = latency(|ms| ms.p99);
        let [tail, ..] = latency(|ms| ms.p99_9);
        let [rate, spread, _] = figure(cell.throughput());
        let mut row = identify(group, cell.profile);
        row.extend([rate, spread, or_none(point, |point| load(point.load))]);
        row.extend([p50, half, p90, p95, ends95, p99, ends99, only(has_tail, tail)]);
        row.push(or_none(cell.reference(), |point| number::whole(point.requests)));
        row.push(only(has_sla, words::met(cell).into()));
        row.push(only(has_cpu, or_none(cpu, |cpu| number::bytes(cpu.rss_bytes))));
        row.push(only(has_cpu, or_none(cpu, |cpu| number(cpu.cores))));
        row.push(only(has_gpu, or_none(gpu.and_then(|gpu| gpu.memory_used_bytes), number::bytes)));
        row.push(only(has_gpu, or_none(gpu.and_then(|gpu| gpu.utilization_ratio), number::percent)));
        let joules = point.and_then(|point| point.energy_per_inference_j);
        row.push(only(has_energy, or_none(joules, |joules| number(joules * 1e3))));
        row.push(cell.state().into());
        table.row(row);
    }
    table
}

/// A figure, half of its interval, and the interval.
fn figure(shown: Option<number::Shown>) -> [String; 3] {
    shown.map_or([NONE.into(), String::new(), String::new()], |shown| [shown.text(), shown.half(), shown.ends()])
}

fn reference_heading(group: &Group) -> &'static str {
    let closed = |cell: &Cell| {
        matches!(cell.reference().map(|point| point.load), None | Some(ProfileLoad::Closed { concurrency: 1 }))
    };
    if group.cells.iter().all(closed) { "latency of a single call, ms" } else { "latency at the lowest load, ms" }
}

/// A row a load point.
fn each_point(group: &Group) -> Table {
    let mut table = identity(group)
        .group("each load point", "load", Align::Left)
        .column("inf/s", Align::Right)
        .tight()
        .rank(40)
        .group("latency, ms", "p50", Align::Right)
        .tight()
        .rank(30)
        .column("p90", Align::Right)
        .rank(12)
        .column("p95", Align::Right)
        .column("p99", Align::Right)
        .rank(80)
        .group("calls", "all", Align::Right)
        .rank(14)
        .column("failed", Align::Right)
        .rank(15)
        .group("", "state", Align::Left);
    for cell in &group.cells {
        for point in &cell.profile.points {
            let ms = |of: fn(&Latency) -> Option<Figure>| figure(number::shown(of(&point.latency_ms), point.valid));
            let [rate, spread, _] = figure(number::shown(point.throughput_inferences_per_s, point.valid));
            let [p50, half, _] = ms(|ms| ms.p50);
            let mut row = identify(group, cell.profile);
            row.extend([load(point.load), rate, spread, p50, half]);
            row.extend([ms(|ms| ms.p90), ms(|ms| ms.p95), ms(|ms| ms.p99)].map(|[text, ..]| text));
            row.extend([number::whole(point.requests), number::whole(point.errors)]);
            row.push(if point.valid { "" } else { "invalid" }.into());
            table.row(row);
        }
    }
    table
}

/// What the marks that are on the screen mean, in one line.
fn legend(tables: &[&Table]) -> Option<String> {
    let is_shown = |mark: char| tables.iter().any(|table| table.shows(mark));
    let seen = if is_shown('±') { "seen, not supported by one" } else { "seen, not supported by a 95 % interval" };
    let marks = [
        ('±', "± half of the 95 % interval".to_owned()),
        (OBSERVED, format!("{OBSERVED} {seen}")),
        (INVALID, format!("{INVALID} of an invalid load point")),
    ];
    let parts: Vec<String> = marks.into_iter().filter(|(mark, _)| is_shown(*mark)).map(|(_, text)| text).collect();
    (!parts.is_empty()).then(|| parts.join(" · "))
}
