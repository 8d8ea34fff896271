//! Text in aligned columns, with an optional line of headings over groups of them.

use std::fmt;
use unicode_width::UnicodeWidthStr;

/// The gap between columns.
const GAP: &str = "  ";

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
}

/// A table under construction.
#[derive(Default)]
pub struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// Adds a column on the right.
    #[must_use]
    pub fn column(mut self, title: &str, align: Align) -> Self {
        self.columns.push(Column { title: title.into(), align, group: None });
        self
    }

    /// Adds a column that begins a group with this heading; an empty heading ends the group before.
    #[must_use]
    pub fn group(mut self, heading: &str, title: &str, align: Align) -> Self {
        self.columns.push(Column { title: title.into(), align, group: Some(heading.into()) });
        self
    }

    /// Adds a row with a cell for each column.
    pub fn row(&mut self, cells: Vec<String>) {
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push(cells);
    }

    fn widths(&self) -> Vec<usize> {
        let cell = |row: &Vec<String>, i: usize| row.get(i).map_or(0, |text| text.width());
        let of = |(i, column): (usize, &Column)| {
            self.rows.iter().map(|row| cell(row, i)).chain([column.title.width()]).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = self.columns.iter().enumerate().map(of).collect();
        // A heading wider than its columns widens the last of them.
        for (heading, span) in self.groups() {
            let room: usize = widths[span.clone()].iter().sum::<usize>() + GAP.len() * (span.len() - 1);
            widths[span.end - 1] += heading.width().saturating_sub(room);
        }
        widths
    }

    /// Headings with the columns that they stand over.
    fn groups(&self) -> Vec<(&str, std::ops::Range<usize>)> {
        let starts: Vec<usize> =
            (0..self.columns.len()).filter(|&i| i == 0 || self.columns[i].group.is_some()).collect();
        let ends = starts.iter().skip(1).copied().chain([self.columns.len()]);
        let heading = |i: usize| self.columns[i].group.as_deref().unwrap_or_default();
        starts.iter().zip(ends).map(|(&start, end)| (heading(start), start..end)).collect()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.columns.is_empty() {
            return Ok(());
        }
        let widths = self.widths();
        if self.columns.iter().any(|column| column.group.is_some()) {
            let mut line = String::new();
            for (heading, span) in self.groups() {
                let room: usize = widths[span.clone()].iter().sum::<usize>() + GAP.len() * (span.len() - 1);
                line += &pad(heading, room, Align::Left);
                line += GAP;
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        let titles: Vec<String> = self.columns.iter().map(|column| column.title.clone()).collect();
        for row in std::iter::once(&titles).chain(&self.rows) {
            let cells: Vec<String> = row
                .iter()
                .zip(&self.columns)
                .zip(&widths)
                .map(|((text, column), &width)| pad(text, width, column.align))
                .collect();
            writeln!(f, "{}", cells.join(GAP).trim_end())?;
        }
        Ok(())
    }
}

fn pad(text: &str, width: usize, align: Align) -> String {
    let blank = " ".repeat(width.saturating_sub(text.width()));
    match align {
        Align::Left => format!("{text}{blank}"),
        Align::Right => format!("{blank}{text}"),
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
            .column("±", Align::Right);
        table.row(vec!["模型".into(), "1".into(), "–".into()]);
        table.row(vec!["é".into(), "12.5".into(), "±3".into()]);
        assert_eq!(table.to_string(), "      speed\nname  inf/s   ±\n模型      1   –\né      12.5  ±3\n");
    }

    #[test]
    fn a_wide_heading_makes_room() {
        let mut table = Table::default().group("latency of one call", "p50", Align::Right).group("", "x", Align::Right);
        table.row(vec!["1".into(), "2".into()]);
        let lines: Vec<String> = table.to_string().lines().map(str::to_owned).collect();
        assert_eq!(lines[1].width(), "latency of one call".len() + GAP.len() + 1);
    }
}
