//! Artifacts as streams of gRPC messages.

use super::refused;
use crate::{
    core::Core,
    hub::{HubError, Inserted},
    service::artifacts,
};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use modelmeter_common::{
    Problem,
    model::{ArtifactRef, Format},
};
use modelmeter_proto::control::{ArtifactChunk, ArtifactHeader, PutArtifactReply, artifact_chunk::Content};
use tonic::{Status, Streaming};

/// Takes a stream of header and bytes into the hub.
pub async fn put(core: &Core, mut chunks: Streaming<ArtifactChunk>) -> Result<PutArtifactReply, Status> {
    let Some(ArtifactChunk { content: Some(Content::Header(header)) }) = chunks.message().await? else {
        return Err(refused(Problem::invalid("artifact", "the first message must be the header")));
    };
    let artifact = artifact(header).map_err(refused)?;
    let bytes = stream::unfold(chunks, |mut chunks| async move {
        let item = match chunks.message().await {
            Ok(None) => return None,
            Ok(Some(ArtifactChunk { content: Some(Content::Data(data)) })) => Ok(Bytes::from(data)),
            Ok(Some(_)) => Err(HubError::Failed("an artifact message without data".into())),
            Err(status) => Err(HubError::Failed(format!("the upload broke off: {}", status.message()))),
        };
        Some((item, chunks))
    });
    let inserted = artifacts::put(core, &artifact, bytes.boxed()).await.map_err(refused)?;
    Ok(PutArtifactReply { existed: inserted == Inserted::Existed })
}

fn artifact(header: ArtifactHeader) -> Result<ArtifactRef, Problem> {
    let ArtifactHeader { sha256, format, bytes } = header;
    let unknown = format!("unknown artifact format '{format}'");
    let format: Format = serde_json::from_value(format.into()).map_err(|_| Problem::invalid("format", unknown))?;
    Ok(ArtifactRef { format, sha256, bytes })
}

/// The bytes of an artifact in pieces, for a worker.
pub async fn get(
    core: &Core,
    sha256: &str,
) -> Result<impl Stream<Item = Result<ArtifactChunk, Status>> + use<>, Status> {
    let bytes = artifacts::get(core, sha256).await.map_err(refused)?;
    Ok(bytes.map(|piece| match piece {
        Ok(data) => Ok(ArtifactChunk { content: Some(Content::Data(data.to_vec())) }),
        Err(error) => Err(refused(error.into())),
    }))
}
