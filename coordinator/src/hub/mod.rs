//! The seam to the model hub, in our words. The hub is the truth: each change of state is one
//! compare-and-swap on one document, each part and final is inserted once and never changed.
//! `design.md` beside this file says how the two adapters keep that.
//!
//! One trait for each aggregate, in a file of its own here and in each adapter: [`Work`], [`Profiles`], [`Workers`],
//! [`Library`]. [`Hub`] is all of them.

mod leaders;
mod library;
pub mod mongo;
mod open;
mod profiles;
mod query;
pub mod sqlite;
mod work;
mod workers;

pub use leaders::{Lead, Leaders};
pub use library::Library;
pub use open::open;
pub use profiles::{Profiles, stream};
pub use query::{Cursor, Fields, Page, ProfileFilter, ProfileQuery, SlaOutcome, Sort, SortBy};
pub use work::{TaskCounts, TaskFilter, TaskKind, Work};
pub use workers::Workers;

use bytes::Bytes;
use futures::stream::BoxStream;
use modelmeter_common::{Problem, artifact::verify::Mismatch};

/// The hub. Writes that return have been acknowledged durably (majority and journal where there are several).
pub trait Hub: Work + Profiles + Workers + Library + Leaders {}

impl<T: Work + Profiles + Workers + Library + Leaders> Hub for T {}

/// Whether an insert stored its document or found one with the same key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inserted {
    /// Stored now.
    New,
    /// A document with this key was there: nothing changed.
    Existed,
}

/// The largest piece in which an artifact is read.
const PIECE: usize = 1024 * 1024;

/// Bytes on their way in or out.
pub type ByteStream = BoxStream<'static, Result<Bytes, HubError>>;

/// Why a hub call failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum HubError {
    #[error("cannot reach the hub at {address}: {reason}")]
    Unreachable { address: String, reason: String },
    #[error("hub address '{address}' is not valid: {reason}")]
    BadUrl { address: String, reason: String },
    #[error("the hub at {address} refused the credentials: {reason}")]
    Unauthenticated { address: String, reason: String },
    /// A write may have happened: repeat it or read.
    #[error("the hub did not answer within {0:?}")]
    TimedOut(std::time::Duration),
    #[error("cursor is not valid: {0}")]
    BadCursor(String),
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    #[error("the hub holds a document that does not read as a {what}: {reason}")]
    Corrupt { what: &'static str, reason: String },
    #[error("the hub cannot write: {0}")]
    Storage(String),
    #[error("the hub failed: {0}")]
    Failed(String),
}

impl HubError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut(_) | Self::Failed(_))
    }

    /// Whether the hub itself could not be reached, so that every call fails.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::TimedOut(_) | Self::Storage(_))
    }
}

impl From<HubError> for Problem {
    fn from(error: HubError) -> Self {
        use modelmeter_common::Code;
        let (code, hint) = match &error {
            HubError::Unreachable { .. } => (Code::Unreachable, Some("check that it runs and that --hub names it")),
            HubError::TimedOut(_) => (Code::Unreachable, Some("check that the hub is up and not overloaded")),
            HubError::Unauthenticated { .. } => {
                (Code::Unauthenticated, Some("put a user that may read and write the database into the address"))
            }
            HubError::BadUrl { .. } => (
                Code::InvalidArgument,
                Some("mongodb://HOST:PORT/DATABASE, mongodb+srv://HOST/DATABASE, sqlite:PATH or the path of a file"),
            ),
            HubError::BadCursor(_) => {
                (Code::InvalidArgument, Some("take it from the page before, or leave it out to begin anew"))
            }
            HubError::Mismatch(_) => (Code::InvalidArgument, Some("the upload was cut off or altered; send it again")),
            HubError::Storage(_) => (Code::Storage, Some("check free space and permissions of the hub's folder")),
            HubError::Corrupt { .. } | HubError::Failed(_) => (Code::Internal, None),
        };
        let problem = Self::new(code, error.to_string());
        match hint {
            Some(hint) => problem.with_hint(hint),
            None => problem,
        }
    }
}
