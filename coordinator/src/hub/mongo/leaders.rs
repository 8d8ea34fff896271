//! The leader's lease: the one document of the collection `leader`.

use super::{MongoHub, date, int, keyed};
use crate::hub::{HubError, Inserted, Lead, Leaders};
use async_trait::async_trait;
use mongodb::{
    Collection,
    bson::{Document, doc},
};

const ID: &str = "leader";

impl MongoHub {
    fn leader(&self) -> Collection<Document> {
        self.database.collection("leader")
    }
}

#[async_trait]
impl Leaders for MongoHub {
    async fn lead(&self) -> Result<Option<Lead>, HubError> {
        self.find_one("leader's lease", &self.leader(), doc! { "_id": ID }).await
    }

    async fn swap_lead(&self, old: Option<&Lead>, new: &Lead) -> Result<bool, HubError> {
        let Some(old) = old else {
            return Ok(self.insert(&self.leader(), keyed(ID.to_owned(), new)?).await? == Inserted::New);
        };
        let unchanged = doc! {
            "_id": ID,
            "holder": &old.holder,
            "epoch": int(old.epoch),
            "expires_at": date(old.expires_at),
        };
        self.replace(&self.leader(), unchanged, new).await
    }
}
