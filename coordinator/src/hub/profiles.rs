//! The profiles: the folds of cells, which users ask for.

use super::HubError;
use async_trait::async_trait;
use modelmeter_common::{ProfileId, RequestId, profile::Profile};

/// Which profiles to list, newest first.
#[derive(Clone, Default, Debug)]
pub struct ProfileFilter {
    /// Of this request.
    pub request: Option<RequestId>,
    /// Of the model with this name.
    pub model: Option<String>,
    /// And of this version.
    pub version: Option<String>,
    /// At most this many.
    pub limit: Option<u32>,
}

/// Profiles by id and by what is asked of them.
#[async_trait]
pub trait Profiles: Send + Sync + 'static {
    /// Inserts the profile if `replaces` is none, else replaces the one of that revision; `false`: another came first.
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError>;
    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError>;
    async fn profiles(&self, filter: &ProfileFilter) -> Result<Vec<Profile>, HubError>;
}
