//! The journal: what an attempt measured, on disk before it is published, kept until the coordinator has it.
//!
//! One file an attempt, `<task>-<attempt>.journal`: its parts in order, then its final, each in wire form behind
//! its length (u32, big-endian). A file is written whole under another name, synced, and renamed, so that a
//! journal exists complete or not at all. One that is not complete was damaged: it is set aside, never a crash.

use crate::storage;
use modelmeter_common::{
    Code, Problem, TaskId, ids,
    part::{Final, Outcome, Part},
    wire,
};
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The most parts that an attempt may have.
const MAX_PARTS: usize = 10_000;
const LENGTH_BYTES: usize = 4;

/// One attempt, ready to be published: parts first, the final last.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Entry {
    pub task: TaskId,
    pub attempt: u32,
    /// Message ids and wire forms, in the order in which they must be published.
    pub messages: Vec<(String, Vec<u8>)>,
}

impl Entry {
    /// Of the parts' wire forms and the final that names them.
    pub fn new(parts: Vec<Vec<u8>>, last: &Final) -> Result<Self, Problem> {
        let (task, attempt) = (last.task_id, last.attempt);
        let part = |(seq, bytes)| (ids::part_id(task, attempt, seq), bytes);
        let mut messages: Vec<_> = (0..).zip(parts).map(part).collect();
        messages.push((last.id(), encode(last)?));
        Ok(Self { task, attempt, messages })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, message) in &self.messages {
            let length = u32::try_from(message.len()).expect("the wire caps a message at 4 MiB");
            bytes.extend_from_slice(&length.to_be_bytes());
            bytes.extend_from_slice(message);
        }
        bytes
    }

    /// Reads a file's content; anything but a complete attempt is an error.
    fn from_bytes(mut bytes: &[u8]) -> Result<Self, String> {
        let mut frames = Vec::new();
        while let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() {
            let length = u32::from_be_bytes(*length) as usize;
            let frame = rest.get(..length).ok_or("it is cut off")?;
            frames.push(frame);
            bytes = &rest[length..];
        }
        if !bytes.is_empty() || frames.len() > MAX_PARTS {
            return Err("it is cut off or too long".into());
        }
        let last = frames.pop().ok_or("it is empty")?;
        let last: Final = wire::decode(last).map_err(|e| format!("its final cannot be read: {e}"))?;
        check_parts(&frames, &last)?;
        Self::new(frames.into_iter().map(<[u8]>::to_vec).collect(), &last).map_err(|e| e.to_string())
    }
}

/// The parts must be the very ones that the final names.
fn check_parts(frames: &[&[u8]], last: &Final) -> Result<(), String> {
    let named: &[String] = match &last.outcome {
        Outcome::Done { parts, .. } => parts,
        Outcome::Failed { .. } => &[],
    };
    if named.len() != frames.len() {
        return Err(format!("it has {} parts where its final names {}", frames.len(), named.len()));
    }
    for (frame, sha256) in frames.iter().zip(named) {
        let part: Part = wire::decode(frame).map_err(|e| format!("a part cannot be read: {e}"))?;
        if (part.task_id, part.attempt) != (last.task_id, last.attempt) || wire::sha256_hex(frame) != *sha256 {
            return Err("a part is not the one that its final names".into());
        }
    }
    Ok(())
}

/// The wire form of a message of ours.
pub(crate) fn encode<M: wire::Message>(message: &M) -> Result<Vec<u8>, Problem> {
    wire::encode(message).map_err(|e| Problem::new(Code::Internal, format!("cannot encode a result: {e}")))
}

/// The folder of one worker's journals. Calls block on the disk.
#[derive(Debug)]
pub(crate) struct Journal {
    folder: PathBuf,
    /// Two workers of one name and home would take each other's journals for their own.
    _lock: File,
}

impl Journal {
    /// Opens (makes) the folder.
    ///
    /// # Errors
    /// `storage` if it cannot be written to, `busy` if another process has it.
    pub fn open(folder: PathBuf) -> Result<Self, Problem> {
        let unusable = |e: io::Error| storage("use", &folder, &e);
        fs::create_dir_all(&folder).map_err(unusable)?;
        let lock = File::create(folder.join("lock")).map_err(unusable)?;
        if !crate::lock::try_flock(&lock, false).map_err(unusable)? {
            return Err(Problem::new(Code::Busy, format!("the journal {} is in use", folder.display()))
                .with_field("name")
                .with_hint("another worker runs under this name: choose another --name or --home"));
        }
        Ok(Self { folder, _lock: lock })
    }

    /// Writes an attempt, on the disk when this returns.
    pub fn write(&self, entry: &Entry) -> Result<(), Problem> {
        let path = self.path(entry.task, entry.attempt);
        let fresh = path.with_extension("tmp");
        let written = File::create(&fresh).and_then(|mut file| {
            file.write_all(&entry.to_bytes())?;
            file.sync_all()?;
            fs::rename(&fresh, &path)?;
            File::open(&self.folder)?.sync_all()
        });
        written.map_err(|e| {
            let _ = fs::remove_file(&fresh);
            storage("write", &path, &e)
        })
    }

    /// Every complete attempt that is held, oldest first; what is damaged is set aside with a warning.
    pub fn read(&self) -> Result<Vec<Entry>, Problem> {
        let list = || -> io::Result<Vec<_>> {
            let mut files = Vec::new();
            for entry in fs::read_dir(&self.folder)? {
                let path = entry?.path();
                match path.extension().and_then(|e| e.to_str()) {
                    Some("journal") => files.push((fs::metadata(&path)?.modified()?, path)),
                    // Never renamed, so never published from: the attempt ended with its worker.
                    Some("tmp") => fs::remove_file(&path)?,
                    _ => {}
                }
            }
            files.sort();
            Ok(files)
        };
        let files = list().map_err(|e| storage("read", &self.folder, &e))?;
        Ok(files.into_iter().filter_map(|(_, path)| self.read_one(&path)).collect())
    }

    /// One attempt; none if it is not held, or is damaged and was set aside.
    pub fn read_attempt(&self, task: TaskId, attempt: u32) -> Option<Entry> {
        let path = self.path(task, attempt);
        path.exists().then(|| self.read_one(&path))?
    }

    fn read_one(&self, path: &Path) -> Option<Entry> {
        let read = fs::read(path).map_err(|e| e.to_string()).and_then(|bytes| Entry::from_bytes(&bytes));
        match read {
            Ok(entry) if self.path(entry.task, entry.attempt) == path => Some(entry),
            Ok(_) => self.set_aside(path, "it is of another attempt than its name says"),
            Err(reason) => self.set_aside(path, &reason),
        }
    }

    fn set_aside(&self, path: &Path, reason: &str) -> Option<Entry> {
        let aside = path.with_extension("damaged");
        let moved = fs::rename(path, &aside);
        tracing::warn!(path = %aside.display(), reason, ?moved, "a damaged journal was set aside; its task runs again");
        None
    }

    /// Forgets an attempt; one that is not held is fine.
    pub fn remove(&self, task: TaskId, attempt: u32) -> Result<(), Problem> {
        let path = self.path(task, attempt);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(storage("remove", &path, &e)),
            _ => Ok(()),
        }
    }

    fn path(&self, task: TaskId, attempt: u32) -> PathBuf {
        self.folder.join(format!("{task}-{attempt}.journal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn done() -> Entry {
        testing::entry(2)
    }

    #[test]
    fn what_was_written_is_read_and_what_was_removed_is_gone() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(home.path().join("journal")).unwrap();
        let entry = done();
        journal.write(&entry).unwrap();
        journal.write(&entry).unwrap();
        assert_eq!(journal.read().unwrap(), std::slice::from_ref(&entry));
        assert_eq!(journal.read_attempt(entry.task, entry.attempt).as_ref(), Some(&entry));
        assert_eq!(journal.read_attempt(entry.task, entry.attempt + 1), None);
        journal.remove(entry.task, entry.attempt).unwrap();
        journal.remove(entry.task, entry.attempt).unwrap();
        assert!(journal.read().unwrap().is_empty());
    }

    #[test]
    fn every_cut_and_every_flipped_byte_is_refused() {
        let good = done().to_bytes();
        assert_eq!(Entry::from_bytes(&good), Ok(done()));
        for cut in 0..good.len() {
            assert!(Entry::from_bytes(&good[..cut]).is_err(), "cut at {cut}");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert!(Entry::from_bytes(&bad).is_err(), "flipped byte {at}");
        }
    }

    #[test]
    fn parts_of_another_attempt_are_refused() {
        let (good, other) = (done(), testing::entry_of(2, 7));
        let mixed = Entry {
            messages: vec![other.messages[0].clone(), good.messages[1].clone(), good.messages[2].clone()],
            ..good
        };
        assert!(Entry::from_bytes(&mixed.to_bytes()).is_err());
    }

    #[test]
    fn damage_is_set_aside_and_the_rest_is_read() {
        let home = tempfile::tempdir().unwrap();
        let journal = Journal::open(home.path().to_owned()).unwrap();
        let (good, bad) = (done(), testing::entry_of(1, 9));
        journal.write(&good).unwrap();
        journal.write(&bad).unwrap();
        let path = journal.path(bad.task, bad.attempt);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        fs::write(home.path().join("leftover.tmp"), b"half").unwrap();
        assert_eq!(journal.read().unwrap(), [good]);
        assert!(path.with_extension("damaged").exists() && !path.exists());
        assert!(!home.path().join("leftover.tmp").exists());
    }

    #[test]
    fn a_second_worker_of_the_same_name_is_told() {
        let home = tempfile::tempdir().unwrap();
        let _first = Journal::open(home.path().to_owned()).unwrap();
        assert_eq!(Journal::open(home.path().to_owned()).unwrap_err().code, Code::Busy);
    }
}
