//! Artifacts in GridFS (bucket `artifacts`, file name = sha256), readable by any GridFS client.
//!
//! Written by hand rather than with the driver's streams: those drop calls half way when a caller goes
//! away, and could not hold a file name unique. Chunks come first, under an id of this upload's own; the
//! document in `artifacts.files` makes them visible, and its unique name lets one upload of many win.
//! Source of the format: MongoDB specifications, "GridFS Spec".

use super::super::{ByteStream, HubError, Inserted, PIECE};
use super::{Calls, date, int};
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use modelmeter_common::{
    Timestamp,
    artifact::verify::{Verifier, is_sha256},
    model::ArtifactRef,
};
use mongodb::{
    Collection, Database,
    bson::{Binary, Document, doc, oid::ObjectId, spec::BinarySubtype},
    options::ReadConcern,
};

/// Chunks fetched ahead of the reader.
const AHEAD: usize = 2;

pub(super) struct Artifacts {
    files: Collection<Document>,
    chunks: Collection<Document>,
    calls: Calls,
}

impl Artifacts {
    pub(super) fn new(database: &Database, calls: Calls) -> Self {
        Self { files: database.collection("artifacts.files"), chunks: database.collection("artifacts.chunks"), calls }
    }

    pub(super) async fn has(&self, sha256: &str) -> Result<bool, HubError> {
        Ok(self.file(sha256).await?.is_some())
    }

    /// Reads with majority concern: a file that is found is not uploaded again, so it must not be rolled back.
    async fn file(&self, sha256: &str) -> Result<Option<Document>, HubError> {
        let (files, filter) = (self.files.clone(), doc! { "filename": sha256 });
        self.calls.call(async move { files.find_one(filter).read_concern(ReadConcern::majority()).await }).await
    }

    pub(super) async fn put(&self, artifact: &ArtifactRef, mut bytes: ByteStream) -> Result<Inserted, HubError> {
        let verifier = Verifier::new(artifact)?;
        if self.has(&artifact.sha256).await? {
            return Ok(Inserted::Existed);
        }
        let upload = Upload { id: ObjectId::new(), chunks: self.chunks.clone(), kept: false };
        match self.receive(&upload, verifier, &mut bytes).await {
            Ok(()) => self.publish(upload, artifact).await,
            Err(error) => {
                upload.discard(&self.calls).await;
                Err(error)
            }
        }
    }

    async fn receive(&self, upload: &Upload, mut verifier: Verifier, bytes: &mut ByteStream) -> Result<(), HubError> {
        let (mut buffer, mut n) = (BytesMut::new(), 0);
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            verifier.update(&piece)?;
            buffer.extend_from_slice(&piece);
            while buffer.len() >= PIECE {
                self.store(upload, n, buffer.split_to(PIECE)).await?;
                n += 1;
            }
        }
        verifier.finish()?;
        if buffer.is_empty() { Ok(()) } else { self.store(upload, n, buffer).await }
    }

    async fn store(&self, upload: &Upload, n: i32, data: BytesMut) -> Result<(), HubError> {
        let data = Binary { subtype: BinarySubtype::Generic, bytes: data.to_vec() };
        let (chunks, chunk) = (self.chunks.clone(), doc! { "files_id": upload.id, "n": n, "data": data });
        self.calls.call(async move { chunks.insert_one(chunk).await }).await.map(|_| ())
    }

    async fn publish(&self, mut upload: Upload, artifact: &ArtifactRef) -> Result<Inserted, HubError> {
        let file = doc! {
            "_id": upload.id,
            "length": int(artifact.bytes),
            "chunkSize": PIECE as i32,
            "uploadDate": date(Timestamp::now()),
            "filename": &artifact.sha256,
            "metadata": { "format": artifact.format.as_str(), "sha256": &artifact.sha256 },
        };
        let files = self.files.clone();
        // From here on an error leaves open whether the file is visible: its chunks must stay.
        upload.kept = true;
        let insert = async move { files.insert_many([file]).ordered(false).await };
        if self.calls.insert(1, insert).await? == 1 {
            return Ok(Inserted::New);
        }
        upload.discard(&self.calls).await;
        Ok(Inserted::Existed)
    }

    pub(super) async fn get(&self, sha256: &str) -> Result<Option<ByteStream>, HubError> {
        if !is_sha256(sha256) {
            return Ok(None);
        }
        let Some(file) = self.file(sha256).await? else { return Ok(None) };
        let layout = Layout::read(&file).map_err(|reason| HubError::Corrupt { what: "artifact", reason })?;
        let (chunks, calls) = (self.chunks.clone(), self.calls.clone());
        let fetched = stream::iter(0..layout.chunks()).map(move |n| {
            let (chunks, calls) = (chunks.clone(), calls.clone());
            async move { fetch(&chunks, &calls, layout, n).await }
        });
        Ok(Some(fetched.buffered(AHEAD).flat_map(pieces).boxed()))
    }
}

/// One upload's chunks, deleted unless they became a file.
struct Upload {
    id: ObjectId,
    chunks: Collection<Document>,
    kept: bool,
}

impl Upload {
    /// Nobody can read these chunks, so a failure to delete them costs space alone.
    async fn discard(mut self, calls: &Calls) {
        self.kept = true;
        let (chunks, id) = (self.chunks.clone(), self.id);
        if let Err(error) = calls.call(async move { chunks.delete_many(doc! { "files_id": id }).await }).await {
            tracing::warn!(upload = %id, %error, "the chunks of a failed upload stay in the hub");
        }
    }
}

/// Deletes the chunks of an upload that its caller broke off.
impl Drop for Upload {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.kept {
            let (chunks, id) = (self.chunks.clone(), self.id);
            runtime.spawn(async move { chunks.delete_many(doc! { "files_id": id }).await });
        }
    }
}

/// Sizes of a file and its chunks. Other clients may have written the file with another chunk size.
#[derive(Clone, Copy)]
struct Layout {
    id: ObjectId,
    length: u64,
    chunk_size: u64,
}

impl Layout {
    fn read(file: &Document) -> Result<Self, String> {
        let whole = |key: &str| {
            let value = file.get(key).and_then(|v| v.as_i64().or_else(|| v.as_i32().map(i64::from)));
            value.and_then(|v| u64::try_from(v).ok()).ok_or_else(|| format!("{key} is not a size"))
        };
        let id = file.get_object_id("_id").map_err(|error| error.to_string())?;
        let layout = Self { id, length: whole("length")?, chunk_size: whole("chunkSize")? };
        if layout.chunk_size == 0 { Err("chunkSize is 0".to_owned()) } else { Ok(layout) }
    }

    fn chunks(self) -> u64 {
        self.length.div_ceil(self.chunk_size)
    }
}

async fn fetch(chunks: &Collection<Document>, calls: &Calls, layout: Layout, n: u64) -> Result<Bytes, HubError> {
    let (chunks, filter) = (chunks.clone(), doc! { "files_id": layout.id, "n": int(n) });
    let chunk = calls.call(async move { chunks.find_one(filter).await }).await?.unwrap_or_default();
    let data = chunk.get_binary_generic("data").map(Vec::as_slice).unwrap_or_default();
    let wanted = layout.chunk_size.min(layout.length - n * layout.chunk_size);
    if data.len() as u64 == wanted {
        return Ok(Bytes::copy_from_slice(data));
    }
    let reason = format!("chunk {n} of {} has {} of its {wanted} bytes", layout.id, data.len());
    Err(HubError::Corrupt { what: "artifact", reason })
}

/// A chunk in pieces of at most [`PIECE`].
fn pieces(chunk: Result<Bytes, HubError>) -> impl futures::Stream<Item = Result<Bytes, HubError>> {
    let pieces = match chunk {
        Ok(mut rest) => {
            let split = std::iter::from_fn(move || {
                let next = rest.split_to(rest.len().min(PIECE));
                (!next.is_empty()).then_some(Ok(next))
            });
            split.collect::<Vec<_>>()
        }
        Err(error) => vec![Err(error)],
    };
    stream::iter(pieces)
}
