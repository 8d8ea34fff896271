//! The profiles: the folds of cells, which users ask for.

use super::{
    Hub, HubError,
    query::{Fields, Page, ProfileQuery},
};
use async_trait::async_trait;
use futures::{
    StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use modelmeter_common::{ProfileId, RequestId, profile::Profile};
use serde_json::Value;
use std::{collections::HashSet, sync::Arc};

/// Profiles that a stream reads at a time.
const STREAM_PAGE: u32 = 100;

/// Profiles by id and by what is asked of them.
#[async_trait]
pub trait Profiles: Send + Sync + 'static {
    /// Inserts the profile if `replaces` is none, else replaces the one of that revision; `false`: another came first.
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError>;
    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError>;
    /// A page of the profiles asked for.
    async fn profiles(&self, query: &ProfileQuery) -> Result<Page<Profile>, HubError>;
    /// The same page, of each document only these fields.
    async fn profile_fields(&self, query: &ProfileQuery, fields: &Fields) -> Result<Page<Value>, HubError>;

    /// The ids of a request's profiles.
    async fn profile_ids(&self, request: RequestId) -> Result<HashSet<ProfileId>, HubError> {
        let ids = self.profile_fields(&ProfileQuery::of_request(request), &Fields::new([""; 0])).await?.items;
        let read = |document: Value| {
            let id = document["_id"].as_str().and_then(|id| id.parse().ok());
            id.ok_or_else(|| HubError::Corrupt { what: "profile", reason: format!("id {}", document["_id"]) })
        };
        ids.into_iter().map(read).collect()
    }
}

/// The profiles asked for, a page at a time: memory does not grow with their number. One that is written meanwhile is seen
/// if its place in the order has not been passed.
pub fn stream(hub: Arc<dyn Hub>, query: ProfileQuery) -> BoxStream<'static, Result<Profile, HubError>> {
    let pages = stream::try_unfold(Some(query), move |query| {
        let hub = hub.clone();
        async move {
            let Some(query) = query else { return Ok(None) };
            let size = query.limit.map_or(STREAM_PAGE, |left| left.min(STREAM_PAGE));
            let page = hub.profiles(&ProfileQuery { limit: Some(size), ..query.clone() }).await?;
            let left = query.limit.map(|left| left - size);
            let next = page.next.filter(|_| left != Some(0));
            let next = next.map(|after| ProfileQuery { after: Some(after), limit: left, ..query });
            Ok::<_, HubError>(Some((stream::iter(page.items.into_iter().map(Ok)), next)))
        }
    });
    pages.try_flatten().boxed()
}
