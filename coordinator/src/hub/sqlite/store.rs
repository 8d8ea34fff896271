//! The one thread that owns the connection, and the group commit.
//!
//! Jobs queue up; the thread takes all that are there, runs them in one transaction and commits once before
//! it answers any of them. So each write is on the disk before its caller hears of it, and many callers
//! share one `fsync`.

use super::super::HubError;
use rusqlite::{Connection, ErrorCode};
use std::{path::Path, time::Duration};
use tokio::sync::{mpsc, oneshot};

/// Length of the queue of jobs; when it is full, callers wait.
const QUEUE: usize = 1024;
/// Most jobs in one transaction.
const BATCH: usize = 256;
/// How long to wait for another process that writes.
const BUSY: Duration = Duration::from_secs(5);

/// Answers a job's caller, once it is known whether the transaction was committed.
type Answer = Box<dyn FnOnce(Option<&rusqlite::Error>) + Send>;

/// Scripts that a file which lacks them is given, whatever its version: each with the name of something that it makes.
pub(super) type Additions = [(&'static str, &'static str)];

struct Job {
    writes: bool,
    run: Box<dyn FnOnce(&Connection) -> Answer + Send>,
}

/// A handle on the thread, which ends with the last handle.
#[derive(Clone)]
pub(super) struct Store(mpsc::Sender<Job>);

impl Store {
    pub(super) fn open(path: &Path, schema: &str, version: u32, additions: &Additions) -> Result<Self, HubError> {
        let connection = prepare(path, schema, version, additions)?;
        let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE);
        let serve = move || {
            while let Some(first) = jobs.blocking_recv() {
                let mut batch = vec![first];
                batch.extend(std::iter::from_fn(|| jobs.try_recv().ok()).take(BATCH - 1));
                run(&connection, batch);
            }
        };
        let thread = std::thread::Builder::new().name("hub-sqlite".to_owned()).spawn(serve);
        thread.map(|_| Self(sender)).map_err(|error| HubError::Failed(format!("no thread for the hub: {error}")))
    }

    /// Runs statements that change nothing.
    pub(super) async fn read<T, F>(&self, job: F) -> Result<T, HubError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.submit(false, job).await
    }

    /// Runs statements in a transaction, and returns once they are on the disk.
    pub(super) async fn write<T, F>(&self, job: F) -> Result<T, HubError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        self.submit(true, job).await
    }

    async fn submit<T, F>(&self, writes: bool, job: F) -> Result<T, HubError>
    where
        T: Send + 'static,
        F: FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let run = move |connection: &Connection| -> Answer {
            let result = job(connection).map_err(|error| in_our_words(&error));
            Box::new(move |failed| {
                // A caller that went away needs no answer.
                let _ = answer.send(failed.map_or(result, |error| Err(in_our_words(error))));
            })
        };
        let ended = || HubError::Failed("the hub's thread has ended".to_owned());
        self.0.send(Job { writes, run: Box::new(run) }).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }
}

fn run(connection: &Connection, batch: Vec<Job>) {
    let writes = batch.iter().any(|job| job.writes);
    if writes && let Err(error) = connection.execute_batch("BEGIN IMMEDIATE") {
        return refuse(connection, batch, &error);
    }
    let answers: Vec<Answer> = batch.into_iter().map(|job| (job.run)(connection)).collect();
    let committed = if writes { connection.execute_batch("COMMIT") } else { Ok(()) };
    if committed.is_err() && !connection.is_autocommit() {
        // The error that the callers hear of is the commit's.
        let _ = connection.execute_batch("ROLLBACK");
    }
    for answer in answers {
        answer(committed.as_ref().err());
    }
}

/// Answers jobs without a transaction, which could not be begun: reads still run, writes change nothing and get the
/// error.
fn refuse(connection: &Connection, batch: Vec<Job>, error: &rusqlite::Error) {
    let _ = connection.execute_batch("PRAGMA query_only = ON");
    for job in batch {
        let writes = job.writes;
        (job.run)(connection)(writes.then_some(error));
    }
    let _ = connection.execute_batch("PRAGMA query_only = OFF");
}

fn prepare(path: &Path, schema: &str, version: u32, additions: &Additions) -> Result<Connection, HubError> {
    let here = |error: &rusqlite::Error| match in_our_words(error) {
        HubError::Storage(reason) => HubError::Storage(format!("{}: {reason}", path.display())),
        HubError::Failed(reason) => HubError::Failed(format!("{}: {reason}", path.display())),
        other => other,
    };
    let connection = Connection::open(path).map_err(|error| here(&error))?;
    let found = configure(&connection, schema, version, additions).map_err(|error| here(&error))?;
    if found > version {
        let reason = format!("{} was written by a newer modelmeter (schema {found}, here {version})", path.display());
        return Err(HubError::Storage(reason));
    }
    Ok(connection)
}

/// Makes the tables where they are missing; gives the schema's version that was found or made.
fn configure(connection: &Connection, schema: &str, version: u32, additions: &Additions) -> rusqlite::Result<u32> {
    connection.busy_timeout(BUSY)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Statement journals and sorts are small; a file for each costs more than the statement.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    let found = schema_version(connection)?;
    if (1..version).contains(&found) {
        // Documents of an older version still read; documents written from now on do not read in older programs.
        connection.pragma_update(None, "user_version", version)?;
    }
    if found == 0 {
        // The version is read again under the lock: another process may be making the tables too.
        connection.execute_batch("BEGIN IMMEDIATE")?;
        if schema_version(connection)? == 0 {
            connection.execute_batch(&format!("{schema}; PRAGMA user_version = {version}"))?;
        }
        connection.execute_batch("COMMIT")?;
    }
    let found = schema_version(connection)?;
    if found <= version {
        for (name, addition) in additions {
            add(connection, name, addition)?;
        }
    }
    Ok(found)
}

/// Runs a script, unless what it makes last, `name`, is there.
fn add(connection: &Connection, name: &str, script: &str) -> rusqlite::Result<()> {
    let is_there = || connection.prepare("SELECT 1 FROM sqlite_master WHERE name = ?")?.exists([name]);
    if is_there()? {
        return Ok(());
    }
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let added = is_there().and_then(|there| if there { Ok(()) } else { connection.execute_batch(script) });
    connection.execute_batch(if added.is_ok() { "COMMIT" } else { "ROLLBACK" })?;
    added
}

fn schema_version(connection: &Connection) -> rusqlite::Result<u32> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

fn in_our_words(error: &rusqlite::Error) -> HubError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => HubError::TimedOut(BUSY),
        Some(
            ErrorCode::ReadOnly
            | ErrorCode::DiskFull
            | ErrorCode::CannotOpen
            | ErrorCode::PermissionDenied
            | ErrorCode::SystemIoFailure
            | ErrorCode::TooBig,
        ) => HubError::Storage(error.to_string()),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            HubError::Storage(format!("the file is not a hub, or is damaged: {error}"))
        }
        _ => HubError::Failed(error.to_string()),
    }
}
