//! What results look like on standard output: tables, the classic block, JSON. Pure: documents in, text out.

mod advice;
mod cell;
mod classic;
mod detail;
mod footer;
mod lists;
mod number;
mod paint;
mod plot;
mod profiles;
mod shapes;
mod table;
mod text;
mod words;

#[cfg(test)]
mod samples;
#[cfg(test)]
mod snapshots;

pub use advice::budget;
pub use classic::classic;
pub use lists::{cells, dryrun, models, requests, time, workers};
pub use number::{bytes, counted, number};
pub use profiles::profiles;
pub(crate) use shapes::{settings_text, shapes, shapes_differ};
pub use table::{Align, Table};

use clap::ValueEnum;
use console::Term;
use modelmeter_common::profile::Profile;
use paint::Paint;

/// The width of what is no terminal, such as a file.
const FILE_WIDTH: usize = 100;
/// Narrower screens get what needs this width.
const LEAST_WIDTH: usize = 40;

/// How results are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// A table with a row for each cell
    Table,
    /// The classic block of six indicators for each cell
    Classic,
    /// The hub's documents, as one array
    Json,
}

/// How much of the results to show, and on what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct View {
    /// Columns of the screen.
    pub width: usize,
    /// Whether it shows colour.
    pub colour: bool,
    /// Everything that is known, instead of the most useful lines.
    pub detail: bool,
    /// Latency against throughput, as a plot.
    pub plot: bool,
    /// A table of the load points.
    pub points: bool,
}

impl View {
    /// For a file or another program.
    pub fn plain() -> Self {
        Self { width: FILE_WIDTH, colour: false, detail: false, plot: false, points: false }
    }

    /// For standard output as it is: a plot and colours on a terminal only, unless the user or `NO_COLOR` says otherwise.
    pub fn of_stdout() -> Self {
        let out = Term::stdout();
        if !out.is_term() {
            return Self::plain();
        }
        let width = out.size_checked().map_or(FILE_WIDTH, |(_, columns)| usize::from(columns));
        Self { width: width.max(LEAST_WIDTH), colour: console::colors_enabled(), plot: true, ..Self::plain() }
    }

    fn paint(&self) -> Paint {
        Paint { on: self.colour }
    }
}

/// Profiles in the format asked for, with a line break at the end.
pub fn render(found: &[Profile], format: Format, view: View) -> String {
    match format {
        Format::Table => profiles(found, view),
        Format::Classic => classic(found, view),
        Format::Json => json(&found),
    }
}

/// Any document as indented JSON.
pub fn json<T: serde::Serialize>(document: &T) -> String {
    let text = serde_json::to_string_pretty(document).expect("our documents hold nothing that JSON cannot carry");
    text + "\n"
}
