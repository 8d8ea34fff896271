//! What stands below a table: what failed or is invalid, what to do for better figures, the gravest warnings, where it is
//! kept. A handful of lines, the most useful first; `--detail` has the rest.

use super::{
    View, advice,
    cell::{Cell, Group, load, state},
    number::counted,
    text::wrap,
};
use modelmeter_common::{
    part::Warning,
    profile::{ProfilePoint, ProfileState},
    warning::WarningCode,
};
use std::collections::BTreeMap;

/// Lines below a table, the legend of its marks among them.
const MAX_LINES: usize = 8;
/// Kinds of warnings that are told.
const MAX_WARNINGS: usize = 2;

/// The lines, where so many are taken by what stands above them.
pub fn lines(group: &Group, view: View, taken: usize) -> Vec<String> {
    let last = kept(group);
    let mut room = MAX_LINES.saturating_sub(taken + 1);
    let sentences = failures(group)
        .into_iter()
        .chain(invalid(group))
        .chain(advice::better(group))
        .chain(warnings(group).into_iter().take(MAX_WARNINGS));
    let mut lines = Vec::new();
    for sentence in sentences {
        // Half a sentence helps nobody: what does not fit is left to `--detail`. But why there are no figures is always said.
        let mut wrapped = wrap(&sentence, view.width);
        if lines.is_empty() && wrapped.len() > room {
            shorten(&mut wrapped, room);
        }
        if wrapped.len() <= room {
            room -= wrapped.len();
            wrapped[0] = view.paint().line(&wrapped[0]);
            lines.append(&mut wrapped);
        }
    }
    lines.push(last);
    lines
}

/// Takes lines out of the middle: what it is about stands at the beginning, the reason often at the end.
fn shorten(lines: &mut Vec<String>, room: usize) {
    let (first, cut) = (room / 2, lines.len() - room);
    if first > 0 {
        lines.drain(first..first + cut);
        lines[first - 1] += " …";
    }
}

/// How to see it again, with all that is known. Never broken, so that it can be copied.
fn kept(group: &Group) -> String {
    format!("more: modelmeter results --request {} --detail", group.cells[0].profile.request_id)
}

/// Cells without figures or without all of them, by what stood in the way.
fn failures(group: &Group) -> Vec<String> {
    let mut reasons: Vec<(&Cell, String, u64)> = Vec::new();
    for cell in
        group.cells.iter().filter(|cell| !matches!(cell.profile.state, ProfileState::Done | ProfileState::Invalid))
    {
        let Some(error) = &cell.profile.error else { continue };
        // Further lines are the engine's last words.
        let mut message = error.to_string().lines().next().unwrap_or_default().to_owned();
        if let Some(hint) = &error.hint {
            message += &format!("; {hint}");
        }
        let same = |(first, other, _): &&mut (&Cell, String, u64)| *other == message && first.state() == cell.state();
        match reasons.iter_mut().find(same) {
            Some((.., more)) => *more += 1,
            None => reasons.push((cell, message, 0)),
        }
    }
    let line = |(cell, message, more): (&Cell, String, u64)| {
        let more = if more > 0 { format!(" and {}", counted(more, "cell") + " more") } else { String::new() };
        format!("{}: {}{more}: {message}", state(cell.profile), cell.name)
    };
    reasons.into_iter().map(line).collect()
}

/// One kind of warning: where it was met first, and how often more.
struct Met<'a> {
    warning: &'a Warning,
    cell: &'a Cell<'a>,
    point: &'a ProfilePoint,
    more: u64,
}

/// Each kind of warning of some points, the gravest first, then the most frequent. Messages of one kind differ in their
/// figures only, so that the first stands for all.
fn kinds<'g>(group: &'g Group<'g>, spoiling: bool) -> Vec<Met<'g>> {
    let mut met: BTreeMap<(WarningCode, &str), Met> = BTreeMap::new();
    for cell in &group.cells {
        for point in &cell.profile.points {
            for warning in point.warnings.iter().filter(|warning| warning.spoils() == spoiling) {
                let key = (warning.kind(), warning.code.as_str());
                met.entry(key).and_modify(|met| met.more += 1).or_insert(Met { warning, cell, point, more: 0 });
            }
        }
    }
    let mut met: Vec<Met> = met.into_values().collect();
    met.sort_by_key(|met| std::cmp::Reverse((met.warning.kind().severity(), met.more)));
    met
}

fn invalid(group: &Group) -> Vec<String> {
    let line = |Met { warning, cell, point, more }: Met| {
        let more = if more > 0 { format!(" and {} more", counted(more, "load point")) } else { String::new() };
        format!("invalid: {}, {}{more}: {}", cell.name, load(point.load), warning.message)
    };
    kinds(group, true).into_iter().map(line).collect()
}

fn warnings(group: &Group) -> Vec<String> {
    let line = |Met { warning, cell, point, more }: Met| {
        let more = if more > 0 { format!(", and {} more", counted(more, "load point")) } else { String::new() };
        format!("warning: {} ({}, {}{more})", warning.message, cell.name, load(point.load))
    };
    kinds(group, false).into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::samples, *};

    #[test]
    fn the_footer_is_short_whatever_happened_and_says_where_the_rest_is() {
        let cells = samples::streams_of_warnings();
        for width in [60, 80, 120] {
            let view = View { width, ..View::plain() };
            let lines = lines(&Group::new(cells.iter().collect()), view, 1);
            assert!(lines.len() < MAX_LINES, "{lines:#?}");
            assert!(lines.last().unwrap().ends_with("--detail"), "{lines:#?}");
        }
    }

    #[test]
    fn what_disturbed_the_figures_is_told_before_what_made_them_wide() {
        let cells = samples::streams_of_warnings();
        let group = Group::new(cells.iter().collect());
        let severities: Vec<_> = kinds(&group, false).iter().map(|met| met.warning.kind().severity()).collect();
        assert!(severities.len() > 3 && severities.is_sorted_by(|a, b| a >= b), "{severities:?}");
    }

    #[test]
    fn a_long_reason_is_shortened_in_its_middle_and_never_left_out() {
        let mut lines: Vec<String> = (0..9).map(|i| format!("line {i}")).collect();
        shorten(&mut lines, 4);
        assert_eq!(lines, ["line 0", "line 1 …", "line 7", "line 8"]);
    }
}
