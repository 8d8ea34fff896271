//! What both adapters hold an incoming artifact to: its size and its sha256.

use super::HubError;
use modelmeter_common::model::ArtifactRef;
use sha2::{Digest, Sha256};

/// The largest piece in which an artifact is read.
pub(super) const PIECE: usize = 1024 * 1024;

/// Whether this is a sha256 in lower-case hex: anything else names no artifact, and never a path.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Follows the bytes of an artifact as they come in.
pub(super) struct Verifier {
    wanted: ArtifactRef,
    hasher: Sha256,
    got: u64,
}

impl Verifier {
    /// Refuses a name that no content can have.
    pub(super) fn new(wanted: &ArtifactRef) -> Result<Self, HubError> {
        let verifier = Self { wanted: wanted.clone(), hasher: Sha256::new(), got: 0 };
        if is_sha256(&wanted.sha256) { Ok(verifier) } else { Err(verifier.mismatch("a sha256")) }
    }

    /// Counts and hashes a piece; refuses the first byte too many.
    pub(super) fn update(&mut self, piece: &[u8]) -> Result<(), HubError> {
        self.got += piece.len() as u64;
        if self.got > self.wanted.bytes {
            return Err(self.mismatch("a size"));
        }
        self.hasher.update(piece);
        Ok(())
    }

    /// Whether it was exactly what was announced.
    pub(super) fn finish(self) -> Result<(), HubError> {
        if self.got != self.wanted.bytes {
            return Err(self.mismatch("a size"));
        }
        let digest = self.hasher.clone().finalize();
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if hex == self.wanted.sha256 { Ok(()) } else { Err(self.mismatch("a sha256")) }
    }

    fn mismatch(&self, what: &'static str) -> HubError {
        HubError::Mismatch { sha256: self.wanted.sha256.clone(), what }
    }
}
