//! The artifact cache: `<home>/cache/<sha256>.<format>`, filled from the coordinator; checked against its sha256 then,
//! and by its length at each use. An archive is unpacked; the folder has its name only once it is whole.

use crate::{coordinator::Coordinator, storage};
use modelmeter_common::{
    Code, Problem,
    artifact::{
        archive,
        verify::{Mismatch, Verifier, is_sha256},
    },
    grpc,
    model::{ArtifactRef, Format},
};
use modelmeter_proto::control::artifact_chunk::Content;
use std::{io, path::Path, path::PathBuf, time::Duration};
use tokio::{
    fs::{self, File},
    io::AsyncWriteExt,
};

/// Between two chunks; a slow link is fine, a dead one is not.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);

/// A folder of artifacts by content.
#[derive(Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Opens (makes) the folder.
    ///
    /// # Errors
    /// `storage` if it cannot be written to.
    pub fn open(folder: PathBuf) -> Result<Self, Problem> {
        let probe = std::fs::create_dir_all(&folder).and_then(|()| {
            let probe = folder.join(format!("probe-{}.tmp", uuid::Uuid::new_v4()));
            std::fs::write(&probe, b"x")?;
            std::fs::remove_file(&probe)
        });
        probe.map_err(|e| storage("write", &folder, &e))?;
        Ok(Self { folder })
    }

    /// The path of an artifact, fetched if it is not here yet. Two slots may fetch the same one: the last rename wins,
    /// and both files are the same.
    ///
    /// # Errors
    /// `invalid_argument` for a name that is no sha256, `bad_response` for bytes that are not the artifact,
    /// `unreachable`, `storage`.
    pub async fn get(&self, artifact: &ArtifactRef, coordinator: &Coordinator) -> Result<PathBuf, Problem> {
        let sha256 = &artifact.sha256;
        if !is_sha256(sha256) {
            return Err(Problem::invalid("artifact.sha256", format!("'{sha256}' is not a sha256 in hex")));
        }
        let path = self.folder.join(format!("{sha256}.{}", extension(artifact.format)));
        match fs::metadata(&path).await {
            Ok(found) if found.is_dir() || found.len() == artifact.bytes => return Ok(path),
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(storage("write", &path, &e)),
            _ => {}
        }
        let fresh = Fresh(self.folder.join(format!("{sha256}-{}.tmp", uuid::Uuid::new_v4())));
        self.fetch(artifact, coordinator, &fresh.0).await?;
        let packed = match artifact.format {
            Format::Savedmodel | Format::Triton => true,
            Format::Onnx => archive::is_archive(&fresh.0).map_err(|e| storage("read", &fresh.0, &e))?,
            Format::Torchscript | Format::Data => false,
        };
        if packed {
            return unpacked(fresh, path).await;
        }
        fs::rename(&fresh.0, &path).await.map_err(|e| storage("write", &path, &e))?;
        Ok(path)
    }

    async fn fetch(&self, artifact: &ArtifactRef, coordinator: &Coordinator, path: &Path) -> Result<(), Problem> {
        let failed = |e: io::Error| storage("write", path, &e);
        let mut stream = coordinator.artifact(&artifact.sha256).await?;
        let mut file = File::create(path).await.map_err(failed)?;
        let other = |mismatch: Mismatch| Problem::new(Code::BadResponse, mismatch.to_string());
        let mut verifier = Verifier::new(artifact).map_err(other)?;
        while let Some(data) = next(&mut stream).await? {
            verifier.update(&data).map_err(other)?;
            file.write_all(&data).await.map_err(failed)?;
        }
        verifier.finish().map_err(other)?;
        // `sync_all` would not tell of a last write that failed.
        file.flush().await.map_err(failed)?;
        file.sync_all().await.map_err(failed)
    }
}

/// The folder that an archive holds, at `path`.
async fn unpacked(archive: Fresh, path: PathBuf) -> Result<PathBuf, Problem> {
    let work = move || {
        let folder = Fresh(archive.0.with_extension("unpacked.tmp"));
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::InvalidData => Problem::new(Code::BadResponse, format!("the artifact does not unpack: {e}")),
            _ => storage("write", &folder.0, &e),
        };
        let file = std::fs::File::open(&archive.0).map_err(failed)?;
        archive::unpack(io::BufReader::new(file), &folder.0).map_err(failed)?;
        match std::fs::rename(&folder.0, &path) {
            // Another slot was faster: it is the same.
            Err(_) if path.is_dir() => Ok(path),
            Err(e) => Err(storage("write", &path, &e)),
            Ok(()) => Ok(path),
        }
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|e| Problem::new(Code::Internal, format!("unpacking failed: {e}")))?
}

async fn next(
    stream: &mut tonic::Streaming<modelmeter_proto::control::ArtifactChunk>,
) -> Result<Option<Vec<u8>>, Problem> {
    let lost = |reason: String| {
        Problem::new(Code::Unreachable, format!("the artifact was cut off on its way from the coordinator: {reason}"))
    };
    loop {
        let chunk = tokio::time::timeout(CHUNK_TIMEOUT, stream.message()).await;
        let chunk = chunk.map_err(|_| lost(format!("nothing came for {} s", CHUNK_TIMEOUT.as_secs())))?;
        let chunk = chunk.map_err(|status| match grpc::problem_of(&status) {
            Problem { code: Code::Unreachable, .. } => lost(grpc::reason(&status)),
            refused => refused,
        });
        match chunk?.map(|chunk| chunk.content) {
            Some(Some(Content::Data(data))) => return Ok(Some(data)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

/// Some engines go by the name.
fn extension(format: Format) -> &'static str {
    match format {
        Format::Onnx => "onnx",
        Format::Torchscript => "pt",
        Format::Savedmodel => "savedmodel",
        Format::Triton => "triton",
        Format::Data => "data",
    }
}

/// Removed when dropped, unless it was renamed.
struct Fresh(PathBuf);

impl Drop for Fresh {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0).or_else(|_| std::fs::remove_dir_all(&self.0));
    }
}
