//! How the driver is called: in a task of its own that is never dropped half way, under a deadline, and
//! with errors in our words.

use super::super::HubError;
use mongodb::error::{Error, ErrorKind, WriteConcernError, WriteFailure};
use std::{future::Future, sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// The longest that a caller waits for one call. The call itself runs on: it may still take effect.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long the server may wait for its majority; under [`DEADLINE`], so that its own answer arrives.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(8);
/// Most calls at once, including those that no caller waits for any more, so that a frozen server cannot pile them up.
const MAX_IN_FLIGHT: usize = 256;

const DUPLICATE_KEY: i32 = 11000;
const WRITE_CONCERN_TIMED_OUT: i32 = 64;
const TIME_LIMIT: [i32; 2] = [50, 262];
const REFUSED: [i32; 2] = [13, 18];
const OUT_OF_DISK: i32 = 14031;
const TOO_LARGE: [i32; 2] = [10334, 17280];
/// Not the primary, shutting down, or stepped down: another server will answer soon.
const FAILING_OVER: [i32; 8] = [91, 189, 10058, 10107, 11600, 11602, 13435, 13436];

#[derive(Clone)]
pub(super) struct Calls {
    permits: Arc<Semaphore>,
    /// `host:port,…`, for messages.
    address: Arc<str>,
}

impl Calls {
    pub(super) fn new(address: String) -> Self {
        Self { permits: Arc::new(Semaphore::new(MAX_IN_FLIGHT)), address: address.into() }
    }

    /// Runs a driver call to its end or to the deadline, whichever is first.
    pub(super) async fn call<T, F>(&self, call: F) -> Result<T, HubError>
    where
        T: Send + 'static,
        F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
    {
        self.raw(call).await?.map_err(|error| self.error(&error))
    }

    /// Runs an unordered insert likewise; returns how many of `sent` documents were not there yet.
    pub(super) async fn insert<F, T>(&self, sent: usize, call: F) -> Result<u64, HubError>
    where
        T: Send + 'static,
        F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
    {
        let Err(error) = self.raw(call).await? else { return Ok(sent as u64) };
        let ErrorKind::InsertMany(failure) = error.kind.as_ref() else { return Err(self.error(&error)) };
        // A missing acknowledgement is an error also for duplicates, which may not have reached the majority yet.
        if let Some(concern) = &failure.write_concern_error {
            return Err(concern_error(concern));
        }
        let errors = failure.write_errors.as_deref().unwrap_or_default();
        match errors.iter().find(|error| error.code != DUPLICATE_KEY) {
            Some(other) => Err(self.by_code(other.code, &other.message)),
            None => Ok((sent - errors.len()) as u64),
        }
    }

    async fn raw<T, F>(&self, call: F) -> Result<mongodb::error::Result<T>, HubError>
    where
        T: Send + 'static,
        F: Future<Output = mongodb::error::Result<T>> + Send + 'static,
    {
        let permits = self.permits.clone();
        let spawned = async move {
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            tokio::spawn(async move {
                let _held = permit;
                call.await
            })
            .await
        };
        match tokio::time::timeout(DEADLINE, spawned).await {
            Err(_) => Err(HubError::TimedOut(DEADLINE)),
            Ok(Err(died)) => Err(HubError::Failed(format!("a call ended early: {died}"))),
            Ok(Ok(result)) => Ok(result),
        }
    }

    /// Converts a driver's error.
    pub(super) fn error(&self, error: &Error) -> HubError {
        match error.kind.as_ref() {
            ErrorKind::ServerSelection { message, .. }
            | ErrorKind::ConnectionPoolCleared { message, .. }
            | ErrorKind::DnsResolve { message, .. } => self.unreachable(message),
            ErrorKind::Io(error) => self.unreachable(&error.to_string()),
            ErrorKind::InvalidTlsConfig { message, .. } | ErrorKind::InvalidArgument { message, .. } => {
                HubError::BadUrl { address: self.address.to_string(), reason: message.clone() }
            }
            ErrorKind::Authentication { message, .. } => self.refused(message),
            ErrorKind::Command(error) => self.by_code(error.code, &error.message),
            ErrorKind::Write(WriteFailure::WriteError(error)) => self.by_code(error.code, &error.message),
            ErrorKind::Write(WriteFailure::WriteConcernError(error)) => concern_error(error),
            ErrorKind::Bson(error) => HubError::Storage(format!("a document cannot be stored: {error}")),
            _ => HubError::Failed(error.to_string()),
        }
    }

    fn by_code(&self, code: i32, message: &str) -> HubError {
        match code {
            WRITE_CONCERN_TIMED_OUT => HubError::TimedOut(WRITE_TIMEOUT),
            code if TIME_LIMIT.contains(&code) => HubError::TimedOut(DEADLINE),
            code if REFUSED.contains(&code) => self.refused(message),
            code if FAILING_OVER.contains(&code) => self.unreachable(message),
            code if code == OUT_OF_DISK || TOO_LARGE.contains(&code) => HubError::Storage(message.to_owned()),
            code => HubError::Failed(format!("{message} (code {code})")),
        }
    }

    fn unreachable(&self, reason: &str) -> HubError {
        HubError::Unreachable { address: self.address.to_string(), reason: brief(reason) }
    }

    fn refused(&self, reason: &str) -> HubError {
        let reason = reason.trim_end_matches('.').to_owned();
        HubError::Unauthenticated { address: self.address.to_string(), reason }
    }
}

fn concern_error(error: &WriteConcernError) -> HubError {
    match error.code {
        WRITE_CONCERN_TIMED_OUT => HubError::TimedOut(WRITE_TIMEOUT),
        code => HubError::Failed(format!("a write may not last: {} (code {code})", error.message)),
    }
}

/// Whether an upsert lost a race against the same upsert: repeating it replaces.
pub(super) fn is_duplicate(error: &Error) -> bool {
    match error.kind.as_ref() {
        ErrorKind::Write(WriteFailure::WriteError(error)) => error.code == DUPLICATE_KEY,
        ErrorKind::Command(error) => error.code == DUPLICATE_KEY,
        _ => false,
    }
}

/// The first cause in the driver's description of the whole topology.
fn brief(reason: &str) -> String {
    let cause = reason.split_once("Error: ").map_or(reason, |(_, cause)| cause);
    let cause = cause.split(", labels:").next().unwrap_or(cause);
    let cause = cause.strip_prefix("Kind: ").unwrap_or(cause);
    cause.strip_prefix("I/O error: ").unwrap_or(cause).trim_end_matches([' ', '}', ']', ',']).to_owned()
}
