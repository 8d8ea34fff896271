//! Colour, where the screen has it: it repeats what the words and marks say and never says it alone.

use super::number::{INVALID, OBSERVED};
use console::Style;

/// Whether to colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Paint {
    /// Off: text passes as it is.
    pub on: bool,
}

impl Paint {
    /// A heading of a table.
    pub fn heading(self, text: &str) -> String {
        self.with(text, Style::new().bold())
    }

    /// What is less to the point than the rest.
    pub fn dim(self, text: &str) -> String {
        self.with(text, Style::new().dim())
    }

    /// A cell of a table, by what it says.
    pub fn cell(self, text: &str) -> String {
        match text {
            "✓" => self.with(text, Style::new().green()),
            "✗" | "failed" | "invalid" => self.with(text, Style::new().red()),
            "?" | "cancelled" | "partial" => self.with(text, Style::new().yellow()),
            _ if text.starts_with(INVALID) => self.with(text, Style::new().red()),
            _ if text.starts_with(OBSERVED) => self.with(text, Style::new().yellow()),
            _ if text.starts_with('±') || text.starts_with('[') => self.dim(text),
            _ => text.to_owned(),
        }
    }

    /// A line of words, by the word or sign that it begins with.
    pub fn line(self, text: &str) -> String {
        let end = text.find([' ', ':']).unwrap_or(text.len());
        let (first, rest) = text.split_at(end);
        let first = match first {
            "warning" => self.with(first, Style::new().yellow()),
            "fastest" | "quickest" | "sharper" => self.with(first, Style::new().bold()),
            _ => self.cell(first),
        };
        first + rest
    }

    fn with(self, text: &str, by: Style) -> String {
        if !self.on || text.is_empty() {
            return text.to_owned();
        }
        let leading = text.len() - text.trim_start().len();
        let (blank, text) = text.split_at(leading);
        format!("{blank}{}", by.apply_to(text).force_styling(true))
    }
}
