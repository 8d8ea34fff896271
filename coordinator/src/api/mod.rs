//! How users and workers reach the coordinator. Each verb reads its input, calls one function of [`crate::service`], and
//! writes the answer; no rule lives here.

mod artifacts;
mod control;
pub mod grpc;
pub mod http;
mod work;

use modelmeter_common::{Code, Problem, grpc::status_of};
use tonic::Status;

/// A call's problem as a gRPC status; a fault that is not the caller's is logged.
pub(crate) fn refused(problem: Problem) -> Status {
    if matches!(problem.code, Code::Unreachable | Code::Storage | Code::Internal) {
        tracing::warn!(%problem, "a call failed");
    }
    status_of(&problem)
}

/// Parses an argument of a call, naming it.
pub(crate) fn parse<T: std::str::FromStr>(field: &str, text: &str) -> Result<T, Status> {
    text.parse().map_err(|_| refused(Problem::invalid(field, format!("'{text}' is not a valid id"))))
}

/// Reads a JSON document out of a call, naming it.
pub(crate) fn from_json<T: serde::de::DeserializeOwned>(field: &str, json: &str) -> Result<T, Status> {
    serde_json::from_str(json).map_err(|e| refused(Problem::invalid(field, e.to_string())))
}

/// Writes a document for a reply.
pub(crate) fn to_json<T: serde::Serialize>(document: &T) -> Result<String, Status> {
    serde_json::to_string(document).map_err(|e| refused(Problem::new(Code::Internal, e.to_string())))
}
