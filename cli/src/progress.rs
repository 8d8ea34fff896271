//! How a request goes on, on standard error: a bar on a terminal, else a line for each change.

use crate::report;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use modelmeter_common::{
    status::{CellStatus, Status},
    task::TaskState,
};
use std::{
    io::{IsTerminal, Write},
    time::{Duration, Instant},
};

/// Shows the statuses of one request.
pub struct Progress {
    shown: Shown,
    started: Instant,
    /// When the time is up that the request may take.
    limit: Option<Duration>,
    last: Option<Status>,
}

#[derive(Clone)]
enum Shown {
    Bar(ProgressBar),
    Lines,
    Nothing,
}

impl Shown {
    fn say(&self, line: &str) {
        match self {
            Self::Bar(bar) => bar.suspend(|| eprintln!("{line}")),
            Self::Lines => print_line(line),
            Self::Nothing => {}
        }
    }
}

impl Progress {
    /// A bar on a terminal, else lines; nothing when `quiet`.
    pub fn new(quiet: bool) -> Self {
        let shown = match () {
            () if quiet => Shown::Nothing,
            () if std::io::stderr().is_terminal() => Shown::Bar(bar()),
            () => Shown::Lines,
        };
        Self { shown, started: Instant::now(), limit: None, last: None }
    }

    /// Says what begins; a bar counts down from `limit`.
    pub fn begin(&mut self, line: &str, limit: Option<Duration>) {
        self.say(line);
        (self.started, self.limit) = (Instant::now(), limit);
        if let Shown::Bar(bar) = &self.shown {
            bar.reset_elapsed();
        }
    }

    /// Says something once, above what is shown.
    pub fn say(&self, line: &str) {
        self.shown.say(line);
    }

    /// The same for whoever outlives this borrow.
    pub fn sayer(&self) -> impl Fn(&str) + Send + Sync + 'static {
        let shown = self.shown.clone();
        move |line: &str| shown.say(line)
    }

    /// The request's newest status.
    pub fn update(&mut self, status: Status) {
        match &self.shown {
            Shown::Bar(bar) => {
                if self.last.is_none() {
                    bar.set_style(self.limit.map_or_else(counting_up, counting_down));
                }
                bar.set_length(status.cells.len() as u64);
                bar.set_position(ended(&status) as u64);
                bar.set_message(message(&status, self.started.elapsed(), self.limit.is_some()));
            }
            Shown::Lines => changes(self.last.as_ref(), &status).iter().for_each(|line| print_line(line)),
            Shown::Nothing => {}
        }
        self.last = Some(status);
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Shown::Bar(bar) = &self.shown {
            bar.finish_and_clear();
        }
    }
}

/// A closed standard error must not end a measurement.
fn print_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// A spinner, until it is known how many cells there are.
fn bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} [{elapsed}] {wide_msg}").expect("the template is sound");
    let bar = ProgressBar::new(0).with_style(style).with_message("preparing");
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

/// A bar that says the time that has passed.
fn counting_up() -> ProgressStyle {
    let style = ProgressStyle::with_template("{spinner} [{elapsed}] {bar:12} {pos}/{len} cells  {wide_msg}");
    style.expect("the template is sound")
}

/// A bar that says the time that is left.
fn counting_down(limit: Duration) -> ProgressStyle {
    let style = ProgressStyle::with_template("{spinner} {left:>11} {bar:12} {pos}/{len} cells  {wide_msg}");
    let style = style.expect("the template is sound");
    style.with_key("left", move |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A bar that cannot be written is no reason to end.
        let _ = out.write_str(&time_left(limit, state.elapsed()));
    })
}

fn time_left(limit: Duration, elapsed: Duration) -> String {
    match limit.saturating_sub(elapsed).as_secs() {
        0 => "finishing".into(),
        left => format!("{}:{:02} left", left / 60, left % 60),
    }
}

fn ended(status: &Status) -> usize {
    status.cells.iter().filter(|cell| cell.state.is_terminal()).count()
}

/// What is under way, and where there is no limit how long the rest will take at the pace so far.
fn message(status: &Status, elapsed: Duration, is_limited: bool) -> String {
    let (done, all) = (ended(status), status.cells.len());
    let mut parts = Vec::new();
    if !is_limited && done > 0 && done < all {
        let left = elapsed.as_secs_f64() / done as f64 * (all - done) as f64;
        parts.push(format!("about {} left", report::time(left)));
    }
    let mut running = status.cells.iter().filter(|cell| cell.state == TaskState::Claimed);
    if let Some(cell) = running.next() {
        parts.push(describe(cell, inputs_differ(status)));
        parts.extend(cell.reason.clone());
        let others = running.count();
        if others > 0 {
            parts.push(format!("and {others} more"));
        }
    } else if let Some(cell) = status.cells.iter().find(|cell| !cell.state.is_terminal()) {
        parts.extend(cell.reason.clone());
    }
    parts.join(" · ")
}

fn inputs_differ(status: &Status) -> bool {
    report::shapes_differ(status.cells.iter().map(|cell| cell.inputs.as_slice()))
}

/// `inputs`: say them too, since other cells have others.
fn describe(cell: &CellStatus, inputs: bool) -> String {
    let settings = crate::report::settings_text(&cell.engine_settings);
    let settings = if settings.is_empty() { settings } else { format!(" ({settings})") };
    let repeat = if cell.repeat == 0 { String::new() } else { format!(" repeat {}", cell.repeat) };
    let inputs = if inputs { format!(" {}", report::shapes(&cell.inputs)) } else { String::new() };
    format!("{}{settings} {}{inputs} batch {}{repeat}", cell.engine, cell.device, cell.batch_size)
}

/// A line for each cell whose state changed in a way that a reader of a log cares for: begun, ended, stuck; of many
/// that got stuck at once, one for all. Cells keep their places from status to status.
fn changes(before: Option<&Status>, now: &Status) -> Vec<String> {
    let old = |place: usize| before.and_then(|status| status.cells.get(place));
    let (done, all, inputs) = (ended(now), now.cells.len(), inputs_differ(now));
    let (mut lines, mut stuck) = (Vec::new(), Vec::new());
    for (place, cell) in now.cells.iter().enumerate() {
        let reason = cell.reason.as_deref().and_then(|reason| reason.lines().next()).unwrap_or_default();
        if cell.blocked && !old(place).is_some_and(|old| old.blocked) {
            stuck.push((cell, reason));
        }
        if old(place).map(|old| old.state) == Some(cell.state) {
            continue;
        }
        let what = match cell.state {
            TaskState::Claimed => "measuring".to_owned(),
            TaskState::Done => "done".to_owned(),
            TaskState::Invalid => "invalid: no load point is valid".to_owned(),
            TaskState::Cancelled => "cancelled".to_owned(),
            TaskState::Failed => format!("failed: {}", shortened(reason)),
            TaskState::Waiting | TaskState::Queued => continue,
        };
        lines.push(format!("[{done}/{all}] {}: {what}", describe(cell, inputs)));
    }
    match stuck[..] {
        [(_, reason), _, _, _, ..] => lines.push(format!("[{done}/{all}] {} cells wait: {reason}", stuck.len())),
        _ => {
            let line = |(cell, reason)| format!("[{done}/{all}] {}: waits: {reason}", describe(cell, inputs));
            lines.extend(stuck.into_iter().map(line));
        }
    }
    lines
}

/// The beginning of a reason, which is told whole below the table.
fn shortened(reason: &str) -> String {
    const MOST: usize = 100;
    match reason.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &reason[..end]),
        None => reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::{
        RequestId, Timestamp,
        model::{Datatype, ModelRef, TensorShape},
        request::RequestState,
    };
    use std::collections::BTreeMap;

    fn cell(batch_size: u32, state: TaskState, reason: Option<&str>) -> CellStatus {
        CellStatus {
            engine: "rten".into(),
            engine_settings: BTreeMap::new(),
            device: "cpu".into(),
            batch_size,
            inputs: Vec::new(),
            repeat: 0,
            state,
            attempts: 1,
            worker: None,
            reason: reason.map(Into::into),
            blocked: false,
        }
    }

    fn status(cells: Vec<CellStatus>) -> Status {
        Status {
            request_id: RequestId::random(),
            state: RequestState::Running,
            model: ModelRef { name: "m".into(), version: "1".into() },
            created_at: Timestamp(0),
            ended_at: None,
            error: None,
            cells,
        }
    }

    #[test]
    fn a_log_has_one_line_a_change() {
        use TaskState::{Claimed, Done, Failed, Queued, Waiting};
        let stuck =
            |batch_size| CellStatus { blocked: true, ..cell(batch_size, Waiting, Some("no worker is connected")) };
        let first = status(vec![cell(1, Queued, None), stuck(2)]);
        assert_eq!(changes(None, &first), ["[0/2] rten cpu batch 2: waits: no worker is connected"]);
        let second = status(vec![cell(1, Claimed, Some("warming up")), first.cells[1].clone()]);
        assert_eq!(changes(Some(&first), &second), ["[0/2] rten cpu batch 1: measuring"]);
        let moving = status(vec![cell(1, Claimed, Some("200 requests")), first.cells[1].clone()]);
        assert!(changes(Some(&second), &moving).is_empty());
        let third = status(vec![cell(1, Done, None), cell(2, Failed, Some("it died\nlast lines"))]);
        assert_eq!(
            changes(Some(&second), &third),
            ["[2/2] rten cpu batch 1: done", "[2/2] rten cpu batch 2: failed: it died"]
        );
        let long = status(vec![cell(1, Failed, Some(&"why ".repeat(100)))]);
        let [line] = changes(None, &long).try_into().unwrap();
        assert!(line.ends_with("why …") && line.len() < 150, "{line}");
        let turn = status((1..5).map(|n| cell(n, Waiting, Some("waits for its turn"))).collect());
        assert!(changes(None, &turn).is_empty());
        let gone = status((1..5).map(stuck).collect());
        assert_eq!(changes(Some(&turn), &gone), ["[0/4] 4 cells wait: no worker is connected"]);
        assert!(changes(Some(&gone), &gone).is_empty());
    }

    #[test]
    fn cells_that_differ_in_shape_alone_have_lines_of_their_own() {
        let of = |length, state| CellStatus {
            inputs: vec![TensorShape::new("x", Datatype::Int64, vec![1, length])],
            ..cell(1, state, None)
        };
        let before = status(vec![of(128, TaskState::Claimed), of(512, TaskState::Queued)]);
        let now = status(vec![of(128, TaskState::Done), of(512, TaskState::Claimed)]);
        assert_eq!(
            changes(Some(&before), &now),
            ["[1/2] rten cpu x INT64 [N, 128] batch 1: done", "[1/2] rten cpu x INT64 [N, 512] batch 1: measuring"]
        );
    }

    #[test]
    fn a_bar_says_what_runs_and_what_is_left() {
        let now = status(vec![cell(1, TaskState::Done, None), cell(2, TaskState::Claimed, Some("12,034 requests"))]);
        let elapsed = Duration::from_secs(20);
        assert_eq!(message(&now, elapsed, false), "about 20 s left · rten cpu batch 2 · 12,034 requests");
        assert_eq!(message(&now, elapsed, true), "rten cpu batch 2 · 12,034 requests", "the bar counts down");
        assert_eq!(time_left(Duration::from_secs(120), elapsed), "1:40 left");
        assert_eq!(time_left(elapsed, elapsed), "finishing");
    }
}
