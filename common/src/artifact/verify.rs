//! What an incoming artifact is held to: its size and its sha256.

use crate::{model::ArtifactRef, wire::hex};
use sha2::{Digest, Sha256};

/// Whether this is a sha256 in lower-case hex: anything else names no artifact, and never a path.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Not the artifact that was announced.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("artifact {sha256} came with {what} that does not match")]
pub struct Mismatch {
    /// The artifact that it should have been.
    pub sha256: String,
    /// What is wrong, as `a size`.
    pub what: &'static str,
}

/// Follows the bytes of an artifact as they come in.
#[derive(Debug)]
pub struct Verifier {
    wanted: ArtifactRef,
    hasher: Sha256,
    got: u64,
}

impl Verifier {
    /// Refuses a name that no content can have.
    pub fn new(wanted: &ArtifactRef) -> Result<Self, Mismatch> {
        let verifier = Self { wanted: wanted.clone(), hasher: Sha256::new(), got: 0 };
        if is_sha256(&wanted.sha256) { Ok(verifier) } else { Err(verifier.mismatch("a sha256")) }
    }

    /// Counts and hashes a piece; refuses the first byte too many.
    pub fn update(&mut self, piece: &[u8]) -> Result<(), Mismatch> {
        self.got += piece.len() as u64;
        if self.got > self.wanted.bytes {
            return Err(self.mismatch("a size"));
        }
        self.hasher.update(piece);
        Ok(())
    }

    /// Whether it was exactly what was announced.
    pub fn finish(self) -> Result<(), Mismatch> {
        if self.got != self.wanted.bytes {
            return Err(self.mismatch("a size"));
        }
        let sha256 = hex(self.hasher.clone());
        if sha256 == self.wanted.sha256 { Ok(()) } else { Err(self.mismatch("a sha256")) }
    }

    fn mismatch(&self, what: &'static str) -> Mismatch {
        Mismatch { sha256: self.wanted.sha256.clone(), what }
    }
}
