//! A hub that counts what is read from it.

use async_trait::async_trait;
use modelmeter_common::{
    ProfileId, RequestId, TaskId, Timestamp,
    model::{ArtifactRef, Model},
    part::{Final, Part},
    profile::Profile,
    request::RequestDoc,
    status::WorkerDoc,
    task::Task,
};
use modelmeter_coordinator::hub::{
    ByteStream, Fields, Hub, HubError, Inserted, Lead, Leaders, Library, Page, ProfileQuery, Profiles, TaskCounts,
    TaskFilter, TaskKind, Work, Workers,
};
use serde_json::Value;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// The hub below, and how often it was asked.
pub struct Counting {
    pub hub: Arc<dyn Hub>,
    /// Documents of tasks that were read.
    pub tasks: AtomicU64,
    /// Calls that read requests, tasks, counts, results or workers.
    pub reads: AtomicU64,
}

impl Counting {
    pub fn new(hub: Arc<dyn Hub>) -> Self {
        Self { hub, tasks: AtomicU64::new(0), reads: AtomicU64::new(0) }
    }

    /// The documents of tasks and the calls since the last time.
    pub fn since(&self) -> (u64, u64) {
        (self.tasks.swap(0, Relaxed), self.reads.swap(0, Relaxed))
    }

    fn read(&self) -> &dyn Hub {
        self.reads.fetch_add(1, Relaxed);
        &*self.hub
    }

    fn read_tasks(&self, tasks: Result<Vec<Task>, HubError>) -> Result<Vec<Task>, HubError> {
        self.tasks.fetch_add(tasks.as_ref().map_or(0, Vec::len) as u64, Relaxed);
        tasks
    }
}

#[async_trait]
impl Work for Counting {
    async fn now(&self) -> Result<Timestamp, HubError> {
        self.hub.now().await
    }
    async fn insert_request(&self, request: &RequestDoc) -> Result<Inserted, HubError> {
        self.hub.insert_request(request).await
    }
    async fn request(&self, id: RequestId) -> Result<Option<RequestDoc>, HubError> {
        self.read().request(id).await
    }
    async fn requests(&self, running_only: bool, limit: u32) -> Result<Vec<RequestDoc>, HubError> {
        self.read().requests(running_only, limit).await
    }
    async fn update_request(&self, old: &RequestDoc, new: &RequestDoc) -> Result<bool, HubError> {
        self.hub.update_request(old, new).await
    }
    async fn insert_tasks(&self, tasks: &[Task]) -> Result<u64, HubError> {
        self.hub.insert_tasks(tasks).await
    }
    async fn task(&self, id: TaskId) -> Result<Option<Task>, HubError> {
        self.tasks.fetch_add(1, Relaxed);
        self.read().task(id).await
    }
    async fn tasks(&self, filter: &TaskFilter) -> Result<Vec<Task>, HubError> {
        let tasks = self.read().tasks(filter).await;
        self.read_tasks(tasks)
    }
    async fn waiting_tasks(&self, request: RequestId, kinds: &[TaskKind], limit: u32) -> Result<Vec<Task>, HubError> {
        let tasks = self.read().waiting_tasks(request, kinds, limit).await;
        self.read_tasks(tasks)
    }
    async fn count_tasks(&self, request: RequestId) -> Result<TaskCounts, HubError> {
        self.read().count_tasks(request).await
    }
    async fn swap_task(&self, old: &Task, new: &Task) -> Result<bool, HubError> {
        self.hub.swap_task(old, new).await
    }
    async fn insert_part(&self, part: &Part, sha256: &str) -> Result<Inserted, HubError> {
        self.hub.insert_part(part, sha256).await
    }
    async fn parts(&self, task: TaskId, attempt: u32) -> Result<Vec<(Part, String)>, HubError> {
        self.read().parts(task, attempt).await
    }
    async fn insert_final(&self, last: &Final) -> Result<Inserted, HubError> {
        self.hub.insert_final(last).await
    }
    async fn finals(&self, task: TaskId) -> Result<Vec<Final>, HubError> {
        self.read().finals(task).await
    }
}

#[async_trait]
impl Profiles for Counting {
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError> {
        self.hub.put_profile(profile, replaces).await
    }
    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError> {
        self.read().profile(id).await
    }
    async fn profiles(&self, query: &ProfileQuery) -> Result<Page<Profile>, HubError> {
        self.read().profiles(query).await
    }
    async fn profile_fields(&self, query: &ProfileQuery, fields: &Fields) -> Result<Page<Value>, HubError> {
        self.read().profile_fields(query, fields).await
    }
}

#[async_trait]
impl Workers for Counting {
    async fn put_worker(&self, worker: &WorkerDoc) -> Result<(), HubError> {
        self.hub.put_worker(worker).await
    }
    async fn workers(&self) -> Result<Vec<WorkerDoc>, HubError> {
        self.read().workers().await
    }
}

#[async_trait]
impl Library for Counting {
    async fn swap_model(&self, old: Option<&Model>, new: &Model) -> Result<bool, HubError> {
        self.hub.swap_model(old, new).await
    }
    async fn model(&self, name: &str, version: Option<&str>) -> Result<Option<Model>, HubError> {
        self.hub.model(name, version).await
    }
    async fn models(&self, name: Option<&str>) -> Result<Vec<Model>, HubError> {
        self.hub.models(name).await
    }
    async fn has_artifact(&self, sha256: &str) -> Result<bool, HubError> {
        self.hub.has_artifact(sha256).await
    }
    async fn put_artifact(&self, artifact: &ArtifactRef, bytes: ByteStream) -> Result<Inserted, HubError> {
        self.hub.put_artifact(artifact, bytes).await
    }
    async fn artifact(&self, sha256: &str) -> Result<Option<ByteStream>, HubError> {
        self.hub.artifact(sha256).await
    }
}

#[async_trait]
impl Leaders for Counting {
    async fn lead(&self) -> Result<Option<Lead>, HubError> {
        self.hub.lead().await
    }
    async fn swap_lead(&self, old: Option<&Lead>, new: &Lead) -> Result<bool, HubError> {
        self.hub.swap_lead(old, new).await
    }
}
