//! What results look like on standard output: tables, the classic block, JSON. Pure: documents in, text out.

mod classic;
mod footer;
mod lists;
mod number;
mod profiles;
mod table;

#[cfg(test)]
mod samples;

pub use classic::classic;
pub use lists::{cells, dryrun, models, requests, time, workers};
pub use number::{bytes, counted, number};
pub use profiles::profiles;
pub(crate) use profiles::{shapes, shapes_differ};
pub use table::{Align, Table};

use crate::args::Format;
use modelmeter_common::profile::Profile;

/// Profiles in the format asked for, with a line break at the end. `points`: each load point too.
pub fn render(found: &[Profile], format: Format, points: bool) -> String {
    match format {
        Format::Table => profiles(found, points),
        Format::Classic => classic(found),
        Format::Json => json(&found),
    }
}

/// Any document as indented JSON.
pub fn json<T: serde::Serialize>(document: &T) -> String {
    let text = serde_json::to_string_pretty(document).expect("our documents hold nothing that JSON cannot carry");
    text + "\n"
}
