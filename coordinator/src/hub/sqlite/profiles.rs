//! Profiles in SQLite.

use super::{
    super::{HubError, ProfileFilter, Profiles},
    SqliteHub, Where, encode, int,
};
use async_trait::async_trait;
use modelmeter_common::{ProfileId, profile::Profile};
use rusqlite::params_from_iter;

#[async_trait]
impl Profiles for SqliteHub {
    async fn put_profile(&self, profile: &Profile, replaces: Option<u64>) -> Result<bool, HubError> {
        let (id, request, doc) = (profile.id.to_string(), profile.request_id.to_string(), encode(profile)?);
        let (model, version) = (profile.model.name.clone(), profile.model.version.clone());
        let (created_at, revision) = (profile.created_at.0, int(profile.revision));
        let changed = match replaces {
            None => {
                let sql = "INSERT OR IGNORE INTO profiles (request_id, model, version, created_at, revision, doc, id)
                           VALUES (?, ?, ?, ?, ?, ?, ?)";
                self.change(sql, (request, model, version, created_at, revision, doc, id)).await?
            }
            Some(before) => {
                let sql = "UPDATE profiles SET request_id = ?, model = ?, version = ?, created_at = ?, revision = ?,
                           doc = ? WHERE id = ? AND revision = ?";
                self.change(sql, (request, model, version, created_at, revision, doc, id, int(before))).await?
            }
        };
        Ok(changed == 1)
    }

    async fn profile(&self, id: ProfileId) -> Result<Option<Profile>, HubError> {
        self.one("profile", "SELECT doc FROM profiles WHERE id = ?", [id.to_string()]).await
    }

    async fn profiles(&self, filter: &ProfileFilter) -> Result<Vec<Profile>, HubError> {
        let mut query = Where::default();
        query.equals("request_id", filter.request.map(|id| id.to_string()));
        query.equals("model", filter.model.clone());
        query.equals("version", filter.version.clone());
        let (sql, values) = query.select("profiles", "created_at DESC, id DESC", filter.limit);
        self.all("profile", sql, params_from_iter(values)).await
    }
}
