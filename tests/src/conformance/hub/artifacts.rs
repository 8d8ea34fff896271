//! Artifacts: what has the name has the content, and nothing else is ever there.

use super::race;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use modelmeter_common::{
    model::{ArtifactRef, Format},
    wire::sha256_hex,
};
use modelmeter_coordinator::hub::{ByteStream, Hub, HubError, Inserted};
use std::{sync::Arc, time::Duration};

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|i| (i as u8).wrapping_mul(31) ^ (i >> 8) as u8 ^ seed).collect()
}

fn named(content: &[u8]) -> ArtifactRef {
    ArtifactRef { format: Format::Onnx, sha256: sha256_hex(content), bytes: content.len() as u64 }
}

/// The content in pieces of this length.
fn stream(content: &[u8], piece: usize) -> ByteStream {
    let pieces: Vec<_> = content.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces).boxed()
}

async fn read(hub: &dyn Hub, sha256: &str) -> Option<Vec<u8>> {
    let pieces: Vec<Bytes> = hub.artifact(sha256).await.unwrap()?.try_collect().await.unwrap();
    assert!(pieces.iter().all(|piece| piece.len() <= 1024 * 1024), "pieces of at most 1 MiB");
    Some(pieces.concat())
}

pub async fn contents(hub: &dyn Hub) {
    let mib = 1024 * 1024;
    for (length, piece) in [(0, 1), (1, 1), (mib, mib), (3 * mib, 4096), (3 * mib + 1, 5 * mib / 2)] {
        let content = bytes(length, 0);
        let artifact = named(&content);
        assert!(!hub.has_artifact(&artifact.sha256).await.unwrap());
        assert_eq!(read(hub, &artifact.sha256).await, None);
        assert_eq!(hub.put_artifact(&artifact, stream(&content, piece)).await.unwrap(), Inserted::New);
        assert!(hub.has_artifact(&artifact.sha256).await.unwrap());
        assert!(read(hub, &artifact.sha256).await == Some(content.clone()), "{length} bytes come back");
        assert_eq!(hub.put_artifact(&artifact, stream(&content, piece)).await.unwrap(), Inserted::Existed);
    }
}

pub async fn what_does_not_match_is_not_kept(hub: &dyn Hub) {
    let content = bytes(2_500_000, 1);
    let artifact = named(&content);
    let altered = {
        let mut b = content.clone();
        b[1_900_000] ^= 1;
        b
    };
    let longer = [content.as_slice(), b"x"].concat();
    let cut = &content[..content.len() - 1];
    for wrong in [cut, &longer, &altered, &[]] {
        let refused = hub.put_artifact(&artifact, stream(wrong, 300_000)).await;
        assert!(matches!(refused, Err(HubError::Mismatch { .. })), "{refused:?}");
        absent(hub, &artifact.sha256).await;
    }
    let broken = stream(&content[..2_000_000], 300_000).chain(stream::iter([Err(HubError::Failed("cut off".into()))]));
    let refused = hub.put_artifact(&artifact, broken.boxed()).await;
    assert!(matches!(&refused, Err(HubError::Failed(reason)) if reason == "cut off"), "{refused:?}");
    absent(hub, &artifact.sha256).await;
    // Names that are no sha256 are no paths either.
    for name in ["", "../../../etc/passwd", "/etc/passwd", &artifact.sha256.to_uppercase(), &artifact.sha256[1..]] {
        absent(hub, name).await;
        let misnamed = ArtifactRef { sha256: name.to_owned(), ..artifact.clone() };
        let refused = hub.put_artifact(&misnamed, stream(&content, 300_000)).await;
        assert!(matches!(refused, Err(HubError::Mismatch { .. })), "{name}: {refused:?}");
    }
    assert_eq!(hub.put_artifact(&artifact, stream(&content, 300_000)).await.unwrap(), Inserted::New);
}

async fn absent(hub: &dyn Hub, sha256: &str) {
    assert!(!hub.has_artifact(sha256).await.unwrap());
    assert!(hub.artifact(sha256).await.unwrap().is_none());
}

pub async fn uploads_at_once_leave_one(hub: &Arc<dyn Hub>) {
    let content = bytes(2_200_000, 2);
    let artifact = named(&content);
    let winners = race(hub, 8, |hub, _| {
        let (artifact, bytes) = (artifact.clone(), stream(&content, 100_000));
        async move { hub.put_artifact(&artifact, bytes).await.unwrap() == Inserted::New }
    });
    assert_eq!(winners.await, 1);
    assert!(read(&**hub, &artifact.sha256).await == Some(content));
}

pub async fn an_upload_whose_caller_goes_away_is_not_kept(hub: &Arc<dyn Hub>) {
    let content = bytes(2_500_000, 3);
    let artifact = named(&content);
    let (arrived, arrives) = tokio::sync::oneshot::channel::<()>();
    let stalls = stream(&content[..2_000_000], 100_000).chain(stream::once(async move {
        let _ = arrived.send(());
        std::future::pending().await
    }));
    let (uploader, wanted) = (hub.clone(), artifact.clone());
    let upload = tokio::spawn(async move { uploader.put_artifact(&wanted, stalls.boxed()).await });
    tokio::time::timeout(Duration::from_secs(30), arrives).await.unwrap().unwrap();
    upload.abort();
    assert!(upload.await.unwrap_err().is_cancelled());
    absent(&**hub, &artifact.sha256).await;
    assert_eq!(hub.put_artifact(&artifact, stream(&content, 100_000)).await.unwrap(), Inserted::New);
}
