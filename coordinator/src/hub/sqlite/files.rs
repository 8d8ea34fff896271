//! Artifacts as files in a folder beside the database, named by their sha256.
//!
//! A file gets its name after its bytes were checked and are on the disk: what has the name has the content.

use super::super::{ByteStream, HubError, Inserted, PIECE};
use futures::{StreamExt as _, TryStreamExt as _};
use modelmeter_common::{
    artifact::verify::{Verifier, is_sha256},
    model::ArtifactRef,
};
use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{fs, io::AsyncWriteExt as _};
use tokio_util::io::ReaderStream;

/// Start of the names of files that are still coming in.
const INCOMING: &str = ".incoming-";
/// An incoming file that nobody has written to for this long was left by a crash.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

pub(super) struct Files(PathBuf);

impl Files {
    /// Makes the folder, and removes incoming files that a crash left in it.
    pub(super) fn open(folder: PathBuf) -> Result<Self, HubError> {
        std::fs::create_dir_all(&folder).map_err(|error| storage(&folder, &error))?;
        for entry in std::fs::read_dir(&folder).map_err(|error| storage(&folder, &error))?.flatten() {
            let untouched = entry.metadata().and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
            let incoming = entry.file_name().to_string_lossy().starts_with(INCOMING);
            if incoming && untouched.is_some_and(|time| time > ABANDONED) {
                // A file that cannot be removed only costs space.
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Ok(Self(folder))
    }

    pub(super) async fn has(&self, sha256: &str) -> Result<bool, HubError> {
        if !is_sha256(sha256) {
            return Ok(false);
        }
        let path = self.0.join(sha256);
        fs::try_exists(&path).await.map_err(|error| storage(&path, &error))
    }

    pub(super) async fn put(&self, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, HubError> {
        let verifier = Verifier::new(artifact)?;
        if self.has(&artifact.sha256).await? {
            return Ok(Inserted::Existed);
        }
        let incoming = Incoming(self.0.join(format!("{INCOMING}{}", uuid::Uuid::new_v4())));
        receive(&incoming.0, verifier, bytes).await?;
        let path = self.0.join(&artifact.sha256);
        // Linking fails where renaming would replace: of two uploads one is new.
        let published = match fs::hard_link(&incoming.0, &path).await {
            Ok(()) => Inserted::New,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Inserted::Existed,
            Err(error) => return Err(storage(&path, &error)),
        };
        let folder = fs::File::open(&self.0).await.map_err(|error| storage(&self.0, &error))?;
        folder.sync_all().await.map_err(|error| storage(&self.0, &error))?;
        Ok(published)
    }

    pub(super) async fn get(&self, sha256: &str) -> Result<Option<ByteStream>, HubError> {
        if !is_sha256(sha256) {
            return Ok(None);
        }
        let path = self.0.join(sha256);
        match fs::File::open(&path).await {
            Ok(file) => {
                let pieces = ReaderStream::with_capacity(file, PIECE);
                Ok(Some(pieces.map_err(move |error| storage(&path, &error)).boxed()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(storage(&path, &error)),
        }
    }
}

async fn receive(path: &Path, mut verifier: Verifier, mut bytes: ByteStream) -> Result<(), HubError> {
    let failed = |error: io::Error| storage(path, &error);
    let mut file = fs::File::create_new(path).await.map_err(failed)?;
    while let Some(piece) = bytes.next().await {
        let piece = piece?;
        verifier.update(&piece)?;
        file.write_all(&piece).await.map_err(failed)?;
    }
    verifier.finish()?;
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)
}

/// An incoming file, removed when dropped, also when the caller goes away in the middle.
struct Incoming(PathBuf);

impl Drop for Incoming {
    fn drop(&mut self) {
        // The file may never have been made.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn storage(path: &Path, error: &io::Error) -> HubError {
    HubError::Storage(format!("{}: {error}", path.display()))
}
