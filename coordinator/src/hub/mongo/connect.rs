//! The connection: options of the address, options that are fixed, and the indexes.

use super::{
    super::{HubError, SortBy},
    Calls, MongoHub,
    calls::WRITE_TIMEOUT,
    facets,
};
use modelmeter_common::redact::redact;
use mongodb::{
    Client, Database, IndexModel,
    bson::{Document, doc},
    options::{Acknowledgment, ClientOptions, IndexOptions, ReadPreference, SelectionCriteria, WriteConcern},
};
use std::time::Duration;

/// The database where the address names none.
const DATABASE: &str = "modelmeter";
/// Time that a call waits for a server to be reachable.
const SELECTION_TIMEOUT: Duration = Duration::from_secs(5);

/// Connects, and makes the indexes where they are missing. A standalone server serves; a replica set is what
/// we recommend, since only it survives the loss of a disk.
///
/// # Errors
/// [`HubError::BadUrl`], [`HubError::Unreachable`] with the hosts that were tried (after 5 s, or the address's own
/// `serverSelectionTimeoutMS`), [`HubError::Unauthenticated`].
pub async fn connect(url: &str) -> Result<MongoHub, HubError> {
    let bad = |reason: String| HubError::BadUrl { address: redact(url), reason: without_secrets(url, &reason) };
    let mut options = ClientOptions::parse(url).await.map_err(|error| match *error.kind {
        mongodb::error::ErrorKind::DnsResolve { ref message, .. } => {
            HubError::Unreachable { address: redact(url), reason: message.clone() }
        }
        ref kind => bad(kind.to_string()),
    })?;
    insist(&mut options);
    let hosts: Vec<String> = options.hosts.iter().map(ToString::to_string).collect();
    let calls = Calls::new(hosts.join(","));
    let name = options.default_database.clone().unwrap_or_else(|| DATABASE.to_owned());
    let client = Client::with_options(options).map_err(|error| bad(error.kind.to_string()))?;
    let database = client.database(&name);
    make_indexes(&database, &calls).await?;
    let hub = MongoHub::new(database, calls);
    hub.add_missing_keys().await?;
    Ok(hub)
}

/// Promises that no address may weaken: majority, journal, reads from the primary.
fn insist(options: &mut ClientOptions) {
    options.app_name.get_or_insert_with(|| "modelmeter".to_owned());
    options.server_selection_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.connect_timeout.get_or_insert(SELECTION_TIMEOUT);
    options.max_pool_size.get_or_insert(32);
    let durable = WriteConcern::builder().w(Acknowledgment::Majority).journal(true).w_timeout(WRITE_TIMEOUT).build();
    options.write_concern = Some(durable);
    options.selection_criteria = Some(SelectionCriteria::ReadPreference(ReadPreference::Primary));
}

/// Keys of the index that serves filters by state, and alone answers the counts by state.
pub(super) fn by_state() -> Document {
    doc! { "state": 1, "request_id": 1, "order": 1 }
}

/// Indexes of profiles: three for users' own queries, and one for each order.
fn profile_indexes() -> Vec<Document> {
    let newest = doc! { "created_at": -1, "_id": -1 };
    let users = [newest, doc! { "request_id": 1 }, doc! { "model.name": 1, "created_at": -1, "_id": -1 }];
    users.into_iter().chain(SortBy::ALL.map(facets::index)).collect()
}

/// Keys of the index of a request's waiting tasks by what a slot must be able to do.
pub(super) fn waiting() -> Document {
    doc! {
        "state": 1, "request_id": 1, "cell.engine": 1, "cell.artifact.format": 1, "cell.device_class": 1,
        "cell.inspector": 1, "order": 1,
    }
}

async fn make_indexes(database: &Database, calls: &Calls) -> Result<(), HubError> {
    let newest = || doc! { "created_at": -1, "_id": -1 };
    let plain: [(&str, Vec<Document>); 6] = [
        ("requests", vec![newest(), doc! { "state": 1, "created_at": -1, "_id": -1 }]),
        (
            "tasks",
            vec![
                doc! { "request_id": 1, "order": 1 },
                by_state(),
                doc! { "deployment_key": 1, "state": 1 },
                doc! { "pool": 1, "state": 1 },
                waiting(),
            ],
        ),
        ("parts", vec![doc! { "task_id": 1, "attempt": 1, "seq": 1 }]),
        ("finals", vec![doc! { "task_id": 1, "attempt": 1 }]),
        ("profiles", profile_indexes()),
        ("models", vec![doc! { "name": 1, "created_at": -1, "_id": -1 }]),
    ];
    for (collection, keys) in plain {
        let indexes = keys.into_iter().map(|keys| IndexModel::builder().keys(keys).build()).collect();
        make(database, calls, collection, indexes).await?;
    }
    let unique =
        |keys: Document| IndexModel::builder().keys(keys).options(IndexOptions::builder().unique(true).build()).build();
    make(database, calls, "artifacts.files", vec![unique(doc! { "filename": 1 })]).await?;
    make(database, calls, "artifacts.chunks", vec![unique(doc! { "files_id": 1, "n": 1 })]).await
}

async fn make(database: &Database, calls: &Calls, name: &str, indexes: Vec<IndexModel>) -> Result<(), HubError> {
    let collection = database.collection::<Document>(name);
    calls.call(async move { collection.create_indexes(indexes).await }).await.map(|_| ())
}

/// A driver's message without the credentials of the address, should it quote them.
fn without_secrets(url: &str, message: &str) -> String {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    match authority.rsplit_once('@') {
        Some((credentials, _)) if !credentials.is_empty() => {
            let parts = credentials.split(':').filter(|part| part.len() > 2);
            parts.fold(message.replace(credentials, "***"), |message, part| message.replace(part, "***"))
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn addresses_that_cannot_be_meant_are_refused_without_their_password() {
        for url in
            ["mongodb://", "mongodb:h:1", "mongodb://me:se/cr%zzet@h:1/db", "mongodb://h:1/db?w=majority&journal=maybe"]
        {
            let Err(error) = connect(url).await else { panic!("connected to {url}") };
            assert!(matches!(error, HubError::BadUrl { .. }), "{url}: {error}");
            assert!(!error.to_string().contains("cr%zzet"), "{error}");
        }
    }

    #[tokio::test]
    async fn no_server_is_said_with_the_host_that_was_tried() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let url = format!("mongodb://user:secret@{free}/db?serverSelectionTimeoutMS=300");
        let Err(error) = connect(&url).await else { panic!("connected") };
        assert!(matches!(error, HubError::Unreachable { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&free.to_string()) && text.contains("refused") && !text.contains("secret"), "{text}");
    }

    #[tokio::test]
    async fn no_address_weakens_the_promises() {
        let mut options =
            ClientOptions::parse("mongodb://h:1/?w=1&journal=false&readPreference=secondary").await.unwrap();
        insist(&mut options);
        let concern = options.write_concern.unwrap();
        assert_eq!((concern.w, concern.journal), (Some(Acknowledgment::Majority), Some(true)));
        assert_eq!(options.selection_criteria, Some(SelectionCriteria::ReadPreference(ReadPreference::Primary)));
    }
}
