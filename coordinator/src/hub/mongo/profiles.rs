//! Profiles in MongoDB.

use super::{
    super::{HubError, Inserted, ProfileFilter, Profiles},
    MongoHub, decode_all,
    document::encode,
    int,
};
use async_trait::async_trait;
use modelmeter_common::{ProfileId, profile::Profile};
use mongodb::bson::{Document, doc};

#[async_trait]
impl Profiles for MongoHub {
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError> {
        match replaces {
            None => Ok(self.insert(&self.profiles, encode(profile)?).await? == Inserted::New),
            Some(revision) => {
                let filter = doc! { "_id": profile.id.to_string(), "revision": int(revision) };
                self.replace(&self.profiles, filter, profile).await
            }
        }
    }

    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError> {
        self.find_one("profile", &self.profiles, doc! { "_id": id.to_string() }).await
    }

    async fn profiles(&self, filter: &ProfileFilter) -> Result<Vec<Profile>, HubError> {
        let mut query = Document::new();
        if let Some(request) = filter.request {
            query.insert("request_id", request.to_string());
        }
        if let Some(model) = &filter.model {
            query.insert("model.name", model);
        }
        if let Some(version) = &filter.version {
            query.insert("model.version", version);
        }
        let sort = doc! { "created_at": -1, "_id": -1 };
        decode_all("profile", self.find(&self.profiles, query, sort, filter.limit).await?)
    }
}
