//! The bytes that wait to be written to a socket: small pieces in one buffer, large ones by reference, without a copy.

use bytes::{Buf, Bytes};
use std::{
    collections::VecDeque,
    io::{self, IoSlice, Write},
};

/// Largest piece that is copied, which is cheaper than another entry of a vectored write.
const COPY: usize = 8 << 10;
/// Most written bytes that may stay in the buffer before those that wait.
const WRITTEN: usize = 64 << 10;
/// Most entries of one vectored write.
const SLICES: usize = 64;

/// A queue of bytes.
#[derive(Default)]
pub(super) struct Outbox {
    /// Pieces that are written before `tail`.
    pieces: VecDeque<Bytes>,
    tail: Vec<u8>,
    /// Number of bytes of `tail` that are written.
    written: usize,
    /// Number of bytes that were ever appended, and of those that were written.
    all_put: u64,
    all_written: u64,
}

impl Outbox {
    /// Whether all bytes are written.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.tail.is_empty()
    }

    /// Small pieces that wait behind the large ones.
    #[cfg(test)]
    pub fn tail(&self) -> &[u8] {
        &self.tail[self.written..]
    }

    /// Position of the next byte among all that were ever appended.
    pub fn end(&self) -> u64 {
        self.all_put
    }

    /// Whether the byte at this position was written.
    pub fn has_written(&self, place: u64) -> bool {
        self.all_written > place
    }

    /// Appends a copy.
    pub fn put(&mut self, bytes: &[u8]) {
        self.all_put += bytes.len() as u64;
        self.tail.extend_from_slice(bytes);
    }

    /// Appends a large piece by reference, a small one by copy.
    pub fn put_bytes(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY {
            return self.put(&bytes);
        }
        let mut before = Bytes::from(std::mem::take(&mut self.tail));
        before.advance(std::mem::take(&mut self.written));
        if !before.is_empty() {
            self.pieces.push_back(before);
        }
        self.all_put += bytes.len() as u64;
        self.pieces.push_back(bytes);
    }

    /// Writes until all is written or the socket is full.
    pub fn write(&mut self, socket: &mut impl Write) -> io::Result<()> {
        while !self.is_empty() {
            let wrote = if self.pieces.is_empty() {
                socket.write(&self.tail[self.written..])
            } else {
                let tail = &self.tail[self.written..];
                let slices: Vec<IoSlice> =
                    self.pieces.iter().take(SLICES).map(|p| IoSlice::new(p)).chain([IoSlice::new(tail)]).collect();
                // The tail may only follow if every piece is in.
                let n = if self.pieces.len() > SLICES { SLICES } else { slices.len() };
                socket.write_vectored(&slices[..n])
            };
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn advance(&mut self, mut n: usize) {
        self.all_written += n as u64;
        while let Some(front) = self.pieces.front_mut() {
            if front.len() > n {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.pieces.pop_front();
        }
        self.written += n;
        if self.written == self.tail.len() {
            self.tail.clear();
            self.written = 0;
        } else if self.written > WRITTEN.max(self.tail.len() / 2) {
            // A socket that is never empty must not keep all that it ever took. At most as much is moved as is freed.
            self.tail.drain(..self.written);
            self.written = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_freed_though_something_always_waits() {
        let mut out = Outbox::default();
        out.put(&[0; 100]);
        for call in 1..=255 {
            out.put(&[call; 5_000]);
            out.advance(5_000);
            assert!(out.tail.len() <= 2 * WRITTEN, "{} bytes are kept for {}", out.tail.len(), out.tail().len());
            assert_eq!(out.tail(), [call; 100]);
        }
        out.advance(100);
        assert!(out.is_empty());
    }
}
