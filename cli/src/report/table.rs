//! Text in aligned columns, with an optional line of headings over groups of them. A table that is too wide for its screen
//! loses its least useful columns.

use super::paint::Paint;
use std::fmt;
use unicode_width::UnicodeWidthStr;

/// The gap between columns.
const GAP: &str = "  ";
/// The gap before what belongs to the figure on its left.
const TIGHT_GAP: &str = " ";
/// The rank of a column that is never dropped.
const KEEP: u8 = u8::MAX;

/// Which side a column's text keeps to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    /// Words.
    Left,
    /// Figures.
    Right,
}

struct Column {
    title: String,
    align: Align,
    /// The heading over this and the following columns without one of their own.
    group: Option<String>,
    /// Columns of the lowest rank are dropped first.
    rank: u8,
    /// It follows its left neighbour closely, as an interval follows its figure, and goes with it.
    tight: bool,
}

impl Column {
    fn gap(&self) -> &'static str {
        if self.tight { TIGHT_GAP } else { GAP }
    }
}

/// A table under construction.
#[derive(Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    paint: Paint,
}

impl Table {
    /// Adds a column on the right.
    #[must_use]
    pub fn column(mut self, title: &str, align: Align) -> Self {
        self.columns.push(Column { title: title.into(), align, group: None, rank: KEEP, tight: false });
        self
    }

    /// Adds a column that begins a group with this heading; an empty heading ends the group before.
    #[must_use]
    pub fn group(mut self, heading: &str, title: &str, align: Align) -> Self {
        self = self.column(title, align);
        if let Some(column) = self.columns.last_mut() {
            column.group = Some(heading.into());
        }
        self
    }

    /// Adds a column without a title that follows its left neighbour closely.
    #[must_use]
    pub fn tight(mut self) -> Self {
        self = self.column("", Align::Left);
        if let Some(column) = self.columns.last_mut() {
            column.tight = true;
        }
        self
    }

    /// Lets the last column be dropped, before all of a higher rank.
    #[must_use]
    pub fn rank(mut self, rank: u8) -> Self {
        if let Some(column) = self.columns.last_mut() {
            column.rank = rank;
        }
        self
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    /// Drops columns that are empty in every row, then the least useful ones until it is at most so wide.
    #[must_use]
    pub fn fit(mut self, width: usize, paint: Paint) -> Self {
        self.paint = paint;
        let is_empty = |i: usize| self.rows.iter().all(|row| row.get(i).is_none_or(String::is_empty));
        let empty: Vec<usize> = (0..self.columns.len()).filter(|&i| is_empty(i)).collect();
        empty.into_iter().rev().for_each(|i| self.remove(i));
        while self.width() > width {
            let droppable = self.columns.iter().enumerate().filter(|(_, column)| column.rank < KEEP);
            let Some((i, _)) = droppable.min_by_key(|(_, column)| column.rank) else { break };
            if self.columns.get(i + 1).is_some_and(|next| next.tight) {
                self.remove(i + 1);
            }
            self.remove(i);
        }
        self
    }

    /// Whether some cell begins with this mark.
    pub fn shows(&self, mark: char) -> bool {
        self.rows.iter().flatten().any(|text| text.starts_with(mark))
    }

    fn remove(&mut self, i: usize) {
        let gone = self.columns.remove(i);
        if let (Some(heading), Some(next)) = (gone.group, self.columns.get_mut(i)) {
            next.group = next.group.take().or(Some(heading));
        }
        self.rows.iter_mut().for_each(|row| drop(row.remove(i)));
    }

    /// How wide it is on screen.
    fn width(&self) -> usize {
        self.widths()
            .iter()
            .zip(&self.columns)
            .enumerate()
            .map(|(i, (w, c))| w + if i == 0 { 0 } else { c.gap().len() })
            .sum()
    }

    fn widths(&self) -> Vec<usize> {
        let cell = |row: &Vec<String>, i: usize| row.get(i).map_or(0, |text| text.width());
        let of = |(i, column): (usize, &Column)| {
            self.rows.iter().map(|row| cell(row, i)).chain([column.title.width()]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = self.columns.iter().enumerate().map(of).collect();
        // A heading wider than its columns widens the last of them.
        for (heading, span) in self.groups() {
            let room = self.room(&widths, &span);
            widths[span.end - 1] += heading.width().saturating_sub(room);
        }
        widths
    }

    /// The width of these columns with the gaps between them.
    fn room(&self, widths: &[usize], span: &std::ops::Range<usize>) -> usize {
        let gaps: usize = self.columns[span.start + 1..span.end].iter().map(|column| column.gap().len()).sum();
        widths[span.clone()].iter().sum::<usize>() + gaps
    }

    /// Headings with the columns that they stand over.
    fn groups(&self) -> Vec<(&str, std::ops::Range<usize>)> {
        let starts: Vec<usize> =
            (0..self.columns.len()).filter(|&i| i == 0 || self.columns[i].group.is_some()).collect();
        let ends = starts.iter().skip(1).copied().chain([self.columns.len()]);
        let heading = |i: usize| self.columns[i].group.as_deref().unwrap_or_default();
        starts.iter().zip(ends).map(|(&start, end)| (heading(start), start..end)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize], paint: impl Fn(&str) -> String) -> String {
        let mut line = String::new();
        for (i, ((text, column), &width)) in row.iter().zip(&self.columns).zip(widths).enumerate() {
            line += if i == 0 { "" } else { column.gap() };
            let blank = " ".repeat(width.saturating_sub(text.width()));
            line += &match column.align {
                Align::Left => paint(text) + &blank,
                Align::Right => blank + &paint(text),
            };
        }
        line.trim_end().to_owned()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.columns.is_empty() {
            return Ok(());
        }
        let widths = self.widths();
        if self.columns.iter().any(|column| column.group.as_ref().is_some_and(|heading| !heading.is_empty())) {
            let mut line = String::new();
            for (heading, span) in self.groups() {
                let blank = self.room(&widths, &span).saturating_sub(heading.width());
                line += &(heading.to_owned() + &" ".repeat(blank) + GAP);
            }
            writeln!(f, "{}", self.paint.heading(line.trim_end()))?;
        }
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.clone()).collect();
        writeln!(f, "{}", self.paint.heading(&self.line(&titles, &widths, str::to_owned)))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", self.line(row, &widths, |text| self.paint.cell(text))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_width_on_screen_not_by_bytes() {
        let mut table = Table::default()
            .column("name", Align::Left)
            .group("speed", "inf/s", Align::Right)
            .column("x", Align::Right);
        table.row(vec!["模型".into(), "1".into(), "–".into()]);
        table.row(vec!["é".into(), "12.5".into(), "±3".into()]);
        assert_eq!(table.to_string(), "      speed\nname  inf/s   x\n模型      1   –\né      12.5  ±3\n");
    }

    #[test]
    fn a_wide_heading_makes_room() {
        let mut table = Table::default().group("latency of one call", "p50", Align::Right).group("", "x", Align::Right);
        table.row(vec!["1".into(), "2".into()]);
        let lines: Vec<String> = table.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[1].width(), "latency of one call".len() + GAP.len() + 1);
    }

    #[test]
    fn the_least_useful_columns_go_first_and_take_their_intervals_with_them() {
        let table = || {
            let mut table = Table::default()
                .column("cell", Align::Left)
                .group("speed", "p50", Align::Right)
                .rank(2)
                .tight()
                .rank(3)
                .column("p95", Align::Right)
                .column("empty", Align::Left);
            table.row(["a", "1.0", "±0.5", "2.0", ""].map(Into::into).to_vec());
            table
        };
        let shown = |width| table().fit(width, Paint::default()).to_string();
        assert_eq!(shown(80), "      speed\ncell  p50       p95\na     1.0 ±0.5  2.0\n");
        assert_eq!(shown(18), "      speed\ncell    p95\na       2.0\n", "the interval goes with its figure");
    }
}
