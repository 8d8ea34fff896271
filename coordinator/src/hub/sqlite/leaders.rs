//! The leader's lease: the one row of the table `leader`, which files of earlier builds lack.

use super::{SqliteHub, decode, encode, int};
use crate::hub::{HubError, Lead, Leaders};
use async_trait::async_trait;
use rusqlite::{Connection, OptionalExtension as _};

const TABLE: &str = "CREATE TABLE IF NOT EXISTS leader
    (id INTEGER PRIMARY KEY CHECK (id = 1), holder TEXT NOT NULL, epoch INTEGER NOT NULL, expires_at INTEGER NOT NULL,
     doc TEXT NOT NULL) STRICT";

#[async_trait]
impl Leaders for SqliteHub {
    async fn lead(&self) -> Result<Option<Lead>, HubError> {
        let read = |connection: &Connection| {
            connection.prepare_cached(TABLE)?.execute([])?;
            let mut found = connection.prepare_cached("SELECT doc FROM leader WHERE id = 1")?;
            found.query_row([], |row| row.get::<_, String>(0)).optional()
        };
        self.store.write(read).await?.map(|text| decode("leader's lease", &text)).transpose()
    }

    async fn swap_lead(&self, old: Option<&Lead>, new: &Lead) -> Result<bool, HubError> {
        let (old, doc) = (old.cloned(), encode(new)?);
        let (holder, epoch, expires_at) = (new.holder.clone(), int(new.epoch), new.expires_at.0);
        let swap = move |connection: &Connection| {
            connection.prepare_cached(TABLE)?.execute([])?;
            match old {
                None => {
                    let sql =
                        "INSERT OR IGNORE INTO leader (id, holder, epoch, expires_at, doc) VALUES (1, ?, ?, ?, ?)";
                    connection.prepare_cached(sql)?.execute((holder, epoch, expires_at, doc))
                }
                Some(old) => {
                    let sql = "UPDATE leader SET holder = ?, epoch = ?, expires_at = ?, doc = ?
                               WHERE id = 1 AND holder = ? AND epoch = ? AND expires_at = ?";
                    let (was, at, until) = (old.holder, int(old.epoch), old.expires_at.0);
                    connection.prepare_cached(sql)?.execute((holder, epoch, expires_at, doc, was, at, until))
                }
            }
        };
        Ok(self.store.write(swap).await? == 1)
    }
}
