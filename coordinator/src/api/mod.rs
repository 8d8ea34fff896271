//! How users and workers reach the coordinator. Each verb checks its input, asks the core, and answers; no rule lives here.

mod artifacts;
mod control;
pub mod grpc;
pub mod http;
pub mod submit;
mod work;

use crate::hub::HubError;
use modelmeter_common::{Code, Problem};
use tonic::{Code as GrpcCode, Status};

/// The metadata key under which a problem travels as JSON.
pub use modelmeter_proto::PROBLEM_KEY;

/// A problem as a gRPC status: its code, its text, and the whole of it as binary metadata.
pub(crate) fn status_of(problem: &Problem) -> Status {
    let mut status = Status::new(GrpcCode::from_i32(problem.code.grpc()), problem.to_string());
    if let Ok(json) = serde_json::to_vec(problem) {
        status.metadata_mut().insert_bin(PROBLEM_KEY, tonic::metadata::MetadataValue::from_bytes(&json));
    }
    status
}

/// A hub's error as a gRPC status.
pub(crate) fn hub_status(error: HubError) -> Status {
    tracing::warn!(%error, "the hub failed a call");
    status_of(&error.into())
}

/// Parses an argument of a call, naming it.
pub(crate) fn parse<T: std::str::FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|_| status_of(&Problem::invalid(field, format!("'{text}' is not a valid id"))))
}

/// Reads a JSON document out of a call, naming it.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(field: &str, json: &str) -> Result<T, Status> {
    serde_json::from_str(json).map_err(|e| status_of(&Problem::invalid(field, e.to_string())))
}

/// Writes a document for a reply.
pub(crate) fn to_json<T: serde::Serialize>(document: &T) -> Result<String, Status> {
    serde_json::to_string(document).map_err(|e| status_of(&Problem::new(Code::Internal, e.to_string())))
}

/// Something asked for that is not there.
pub(crate) fn not_found(what: &str, id: &str, hint: &str) -> Status {
    status_of(&Problem::new(Code::NotFound, format!("no {what} '{id}'")).with_hint(hint))
}
