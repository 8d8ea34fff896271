//! NumPy's `.npz` files: a zip archive of `.npy` files. Source: PKWARE's APPNOTE.TXT, sections 4.3.7, 4.3.12, 4.3.16.

use super::MAX_BYTES;
use bytes::Bytes;
use flate2::{Crc, read::DeflateDecoder};
use std::io::Read;

const END: &[u8] = b"PK\x05\x06";
const ENTRY: &[u8] = b"PK\x01\x02";
const LOCAL: &[u8] = b"PK\x03\x04";
/// A size or place that stands elsewhere, in an archive beyond 4 GiB.
const ZIP64: u32 = u32::MAX;

/// The arrays' names and the `.npy` files that hold them.
pub(super) fn members(archive: &Bytes) -> Result<Vec<(String, Bytes)>, String> {
    // The end record is 22 bytes and a comment of at most 64 KiB.
    let tail = archive.len().saturating_sub(22 + (1 << 16));
    let end = archive[tail..].windows(END.len()).rposition(|w| w == END).ok_or("not an .npz file")? + tail;
    let count = u16_at(archive, end + 10)?;
    let mut at = u32_at(archive, end + 16)? as usize;
    let (mut found, mut total) = (Vec::new(), 0u64);
    for _ in 0..count {
        if archive.get(at..at + 4) != Some(ENTRY) {
            return Err(damaged());
        }
        let entry = Entry {
            method: u16_at(archive, at + 10)?,
            crc: u32_at(archive, at + 16)?,
            packed: u32_at(archive, at + 20)?,
            size: u32_at(archive, at + 24)?,
            at: u32_at(archive, at + 42)?,
        };
        let [name, extra, comment] = [28, 30, 32].map(|offset| u16_at(archive, at + offset));
        let (name, extra, comment) = (usize::from(name?), usize::from(extra?), usize::from(comment?));
        let text = archive.get(at + 46..at + 46 + name).ok_or_else(damaged)?;
        let text = String::from_utf8_lossy(text).into_owned();
        total += u64::from(entry.size);
        if total > MAX_BYTES {
            return Err(format!("more than {MAX_BYTES} bytes of arrays"));
        }
        if let Some(name) = text.strip_suffix(".npy") {
            found.push((name.to_owned(), entry.content(archive)?));
        }
        at += 46 + name + extra + comment;
    }
    Ok(found)
}

struct Entry {
    method: u16,
    crc: u32,
    packed: u32,
    size: u32,
    at: u32,
}

impl Entry {
    fn content(&self, archive: &Bytes) -> Result<Bytes, String> {
        if [self.packed, self.size, self.at].contains(&ZIP64) {
            return Err("it is a zip64 archive: give smaller arrays, or .npy files".into());
        }
        let at = self.at as usize;
        if archive.get(at..at + 4) != Some(LOCAL) {
            return Err(damaged());
        }
        // The local header has a name and an extra field of its own.
        let start = at + 30 + usize::from(u16_at(archive, at + 26)?) + usize::from(u16_at(archive, at + 28)?);
        let end = start + self.packed as usize;
        if end > archive.len() {
            return Err(damaged());
        }
        let packed = archive.slice(start..end);
        let content = match self.method {
            0 => packed,
            8 => {
                let mut content = Vec::with_capacity(self.size as usize);
                let mut unpacked = DeflateDecoder::new(&packed[..]).take(u64::from(self.size) + 1);
                unpacked.read_to_end(&mut content).map_err(|_| damaged())?;
                content.into()
            }
            other => return Err(format!("zip method {other} is not supported: np.savez or np.savez_compressed is")),
        };
        let mut crc = Crc::new();
        crc.update(&content);
        if content.len() != self.size as usize || crc.sum() != self.crc {
            return Err(damaged());
        }
        Ok(content)
    }
}

fn damaged() -> String {
    "the archive is damaged or cut off".into()
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16, String> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u16::from_le_bytes(*b)).ok_or_else(damaged)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32, String> {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map(|b| u32::from_le_bytes(*b)).ok_or_else(damaged)
}
