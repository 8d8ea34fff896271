//! Logs of the children that live: a test that waited in vain prints their ends.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

/// The logs, each with its child's name.
static LOGS: Mutex<Vec<(String, PathBuf)>> = Mutex::new(Vec::new());
/// Lines of each log that are shown.
const SHOWN_LINES: usize = 60;

/// Adds the log of a child that starts.
pub(crate) fn add(name: &str, path: &Path) {
    with(|logs| logs.push((name.to_owned(), path.to_owned())));
}

/// Removes the log of a child that ended.
pub(crate) fn remove(path: &Path) {
    with(|logs| logs.retain(|(_, other)| other != path));
}

fn with<T>(f: impl FnOnce(&mut Vec<(String, PathBuf)>) -> T) -> T {
    f(&mut LOGS.lock().expect("no code panics while it holds the logs"))
}

/// Prints the end of every living child's log to standard error.
pub fn print() {
    for (name, path) in with(|logs| logs.clone()) {
        let text = fs::read_to_string(&path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        eprintln!("--- {name} ({} lines) ---", lines.len());
        for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
            eprintln!("{line}");
        }
    }
}
