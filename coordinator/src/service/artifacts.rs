//! Artifacts between users, hub and workers: which are accepted, and which are missing.

use super::not_found;
use crate::{
    core::Core,
    hub::{ByteStream, Inserted},
};
use modelmeter_common::{Problem, artifact::verify::is_sha256, model::ArtifactRef};

/// The largest artifact that is accepted.
const MAX_ARTIFACT_BYTES: u64 = 32 << 30;

/// Refuses an artifact that cannot be stored, before its bytes are read.
///
/// # Errors
/// `invalid_argument` for a malformed hash or too many bytes.
pub fn check(artifact: &ArtifactRef) -> Result<(), Problem> {
    if !is_sha256(&artifact.sha256) {
        return Err(Problem::invalid("sha256", "must be 64 lower-case hexadecimal digits"));
    }
    if artifact.bytes > MAX_ARTIFACT_BYTES {
        let problem = Problem::invalid("bytes", format!("{} is too large", artifact.bytes));
        return Err(problem.with_hint(format!("at most {MAX_ARTIFACT_BYTES}")));
    }
    Ok(())
}

/// Takes an artifact into the hub.
///
/// # Errors
/// As [`check`]; `invalid_argument` for bytes that differ from the announced size or hash.
pub async fn put(core: &Core, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, Problem> {
    check(artifact)?;
    Ok(core.hub.put_artifact(artifact, bytes).await?)
}

/// The bytes of an artifact in pieces.
///
/// # Errors
/// `not_found`.
pub async fn get(core: &Core, sha256: &str) -> Result<ByteStream, Problem> {
    core.hub.artifact(sha256).await?.ok_or_else(|| not_found("artifact", sha256, "add the model again"))
}

/// The artifacts of this list that the hub lacks.
pub async fn missing(core: &Core, all: Vec<String>) -> Result<Vec<String>, Problem> {
    let mut missing = Vec::new();
    for sha256 in all {
        if !core.hub.has_artifact(&sha256).await? {
            missing.push(sha256);
        }
    }
    Ok(missing)
}
