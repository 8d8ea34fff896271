//! What is seen of a started engine, whatever it runs in: whether it has ended and how, and its last lines.

use crate::storage;
use modelmeter_common::Problem;
use std::{
    collections::VecDeque,
    fs::{self, File},
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::watch;

/// For the last output of an engine that has ended to be read.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(500);
/// Lines kept for errors, and bytes of each: its end, where a reason stands.
const TAIL_LINES: usize = 40;
const LINE_BYTES: usize = 600;
/// A log file grows to this and no further.
const LOG_BYTES: usize = 16 << 20;

/// A started engine, seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    /// How it ended, as in "exited with code 1", once it has.
    pub(super) exit: watch::Receiver<Option<String>>,
    pub(super) tail: watch::Receiver<Tail>,
    pub log_path: PathBuf,
}

impl Watched {
    pub fn is_alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Completes when it has ended; says how.
    pub async fn ended(&self) -> String {
        let mut exit = self.exit.clone();
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|how| how.clone()).unwrap_or_else(|| "ended".into())
    }

    /// The last lines that it wrote.
    pub async fn last_lines(&self) -> String {
        let mut tail = self.tail.clone();
        if !self.is_alive() {
            // Its output may still be on the way; a descendant that escaped may hold it open for ever.
            let _ = tokio::time::timeout(LAST_WORDS, tail.wait_for(|tail| tail.ended)).await;
        }
        let lines = tail.borrow();
        lines.text()
    }
}

/// Where an engine's output goes: a file of limited size, and its tail. Dropped, the output has ended.
#[derive(Debug)]
pub(super) struct Log {
    file: File,
    written: usize,
    tail: watch::Sender<Tail>,
}

impl Log {
    /// The one before is overwritten.
    ///
    /// # Errors
    /// `storage` if the file cannot be made.
    pub fn create(path: &Path) -> Result<(Self, watch::Receiver<Tail>), Problem> {
        let folder = path.parent().unwrap_or(Path::new("."));
        let file = fs::create_dir_all(folder).and_then(|()| File::create(path));
        let file = file.map_err(|e| storage("write", path, &e))?;
        let (tail, receiver) = watch::channel(Tail::default());
        Ok((Self { file, written: 0, tail }, receiver))
    }

    pub fn push(&mut self, bytes: &[u8]) {
        if self.written < LOG_BYTES {
            self.written += bytes.len();
            // A full disk must not stop the engine: the tail is kept all the same.
            let _ = self.file.write_all(bytes);
        }
        self.tail.send_modify(|tail| tail.push(bytes));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.tail.send_modify(|tail| tail.ended = true);
    }
}

/// The end of an engine's output.
#[derive(Debug, Default)]
pub(super) struct Tail {
    lines: VecDeque<Vec<u8>>,
    ended: bool,
}

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|&b| b == b'\n') {
            match self.lines.back_mut() {
                Some(line) if line.last() != Some(&b'\n') => extend_line(line, piece),
                _ => {
                    let mut line = Vec::new();
                    extend_line(&mut line, piece);
                    self.lines.push_back(line);
                }
            }
        }
        while self.lines.len() > TAIL_LINES {
            self.lines.pop_front();
        }
    }

    pub fn text(&self) -> String {
        self.lines.iter().map(|line| shown(line)).collect::<Vec<_>>().join("\n")
    }
}

/// Adds to a line, of which no more than twice its cap is held: its end.
fn extend_line(line: &mut Vec<u8>, piece: &[u8]) {
    line.extend_from_slice(&piece[piece.len().saturating_sub(2 * LINE_BYTES)..]);
    let over = line.len().saturating_sub(2 * LINE_BYTES);
    line.drain(..over);
}

/// A line as it is shown: the end of a long one.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    let mut from = text.len().saturating_sub(LINE_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    if from == 0 { text.to_owned() } else { format!("…{}", &text[from..]) }
}

/// How many engines have not wholly ended yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Census(Arc<watch::Sender<usize>>);

/// One engine that has not wholly ended, until dropped.
#[derive(Debug)]
pub(super) struct Counted(Census);

impl Census {
    /// Completes when there is none.
    pub async fn none_left(&self) {
        // Cannot fail: the sender is our own.
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }

    pub(super) fn count(&self) -> Counted {
        self.0.send_modify(|count| *count += 1);
        Counted(self.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tail_keeps_the_last_lines_and_the_ends_of_long_ones() {
        let mut tail = Tail::default();
        for line in 0..100 {
            tail.push(format!("line {line}\n").as_bytes());
        }
        tail.push(&[b'x'; 10_000]);
        tail.push("é: the reason\nend".as_bytes());
        let text = tail.text();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines[0], "line 62");
        assert!(lines[38].starts_with("…x") && lines[38].ends_with("xé: the reason"), "{}", lines[38]);
        assert_eq!((lines[38].len(), lines[39]), ("…".len() + LINE_BYTES, "end"));
    }
}
