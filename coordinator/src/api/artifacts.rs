//! Artifacts on their way between users, hub and workers.

use super::{hub_status, status_of};
use crate::{
    core::Core,
    hub::{HubError, Inserted},
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use modelmeter_common::{
    Problem,
    artifact::verify::is_sha256,
    model::{ArtifactRef, Format},
};
use modelmeter_proto::control::{ArtifactChunk, ArtifactHeader, PutArtifactReply, artifact_chunk::Content};
use tonic::{Status, Streaming};

/// The largest artifact that is taken.
const MAX_ARTIFACT_BYTES: u64 = 32 << 30;

/// Takes a stream of header and bytes into the hub.
pub async fn put(core: &Core, mut chunks: Streaming<ArtifactChunk>) -> Result<PutArtifactReply, Status> {
    let Some(ArtifactChunk { content: Some(Content::Header(header)) }) = chunks.message().await? else {
        return Err(status_of(&Problem::invalid("artifact", "the first message must be the header")));
    };
    let artifact = checked(&header)?;
    let bytes = stream::unfold(chunks, |mut chunks| async move {
        let item = match chunks.message().await {
            Ok(None) => return None,
            Ok(Some(ArtifactChunk { content: Some(Content::Data(data)) })) => Ok(Bytes::from(data)),
            Ok(Some(_)) => Err(HubError::Failed("an artifact message without data".into())),
            Err(status) => Err(HubError::Failed(format!("the upload broke off: {}", status.message()))),
        };
        Some((item, chunks))
    });
    let inserted = core.hub.put_artifact(&artifact, bytes.boxed()).await.map_err(hub_status)?;
    Ok(PutArtifactReply { existed: inserted == Inserted::Existed })
}

fn checked(header: &ArtifactHeader) -> Result<ArtifactRef, Status> {
    if !is_sha256(&header.sha256) {
        return Err(status_of(&Problem::invalid("sha256", "must be 64 lower-case hexadecimal digits")));
    }
    if header.bytes > MAX_ARTIFACT_BYTES {
        let problem = Problem::invalid("bytes", format!("{} is too large", header.bytes));
        return Err(status_of(&problem.with_hint(format!("at most {MAX_ARTIFACT_BYTES}"))));
    }
    let format: Format = serde_json::from_value(serde_json::Value::String(header.format.clone()))
        .map_err(|_| status_of(&Problem::invalid("format", format!("unknown artifact format '{}'", header.format))))?;
    Ok(ArtifactRef { format, sha256: header.sha256.clone(), bytes: header.bytes })
}

/// The bytes of an artifact in pieces, for a worker.
pub async fn get(
    core: &Core,
    sha256: &str,
) -> Result<impl Stream<Item = Result<ArtifactChunk, Status>> + use<>, Status> {
    let found = core.hub.artifact(sha256).await.map_err(hub_status)?;
    let bytes = found.ok_or_else(|| super::not_found("artifact", sha256, "add the model again"))?;
    Ok(bytes.map(|piece| match piece {
        Ok(data) => Ok(ArtifactChunk { content: Some(Content::Data(data.to_vec())) }),
        Err(error) => Err(hub_status(error)),
    }))
}
