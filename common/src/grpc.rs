//! A problem on its way through gRPC: as a status, and back.

use crate::{Code, Problem};
use modelmeter_proto::PROBLEM_KEY;
use tonic::{Code as Grpc, Status, metadata::MetadataValue};

/// A problem as a status: its code, its text, and the whole of it as binary metadata.
pub fn status_of(problem: &Problem) -> Status {
    let mut status = Status::new(Grpc::from_i32(problem.code.grpc()), problem.to_string());
    if let Ok(json) = serde_json::to_vec(problem) {
        status.metadata_mut().insert_bin(PROBLEM_KEY, MetadataValue::from_bytes(&json));
    }
    status
}

/// The problem that a coordinator's status carries, else one made of its code and text.
pub fn problem_of(status: &Status) -> Problem {
    let carried = status.metadata().get_bin(PROBLEM_KEY).and_then(|value| value.to_bytes().ok());
    if let Some(problem) = carried.and_then(|json| serde_json::from_slice(&json).ok()) {
        return problem;
    }
    let unreachable = |message: String| Problem::new(Code::Unreachable, message).with_field("coordinator");
    match status.code() {
        // A connection that broke under a call is `Unknown` or `Cancelled` to tonic.
        Grpc::Unavailable | Grpc::Unknown | Grpc::Cancelled | Grpc::Aborted | Grpc::DeadlineExceeded => {
            unreachable(format!("the coordinator is gone: {}", reason(status)))
        }
        Grpc::Unimplemented => unreachable("what answers there is not a modelmeter coordinator of this version".into())
            .with_hint("name a coordinator with --coordinator, and run the same version of modelmeter everywhere"),
        Grpc::InvalidArgument | Grpc::FailedPrecondition => Problem::new(Code::InvalidArgument, status.message()),
        Grpc::NotFound => Problem::new(Code::NotFound, status.message()),
        Grpc::AlreadyExists => Problem::new(Code::AlreadyExists, status.message()),
        Grpc::Unauthenticated | Grpc::PermissionDenied => Problem::new(Code::Unauthenticated, status.message()),
        _ => Problem::new(Code::Internal, format!("the coordinator refused: {}", status.message())),
    }
}

/// What really happened: the innermost cause says it ("connection refused"), the outer ones only where.
pub fn reason(status: &Status) -> String {
    std::error::Error::source(status).map_or_else(|| status.message().to_owned(), root)
}

/// The innermost cause of an error.
pub fn root(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_comes_back_whole_from_a_status() {
        let sent = Problem::invalid("engines", "unknown engine 'onxx'").with_hint("did you mean 'onnx'?");
        assert_eq!(problem_of(&status_of(&sent)), sent);
        assert_eq!(status_of(&sent).code(), Grpc::InvalidArgument);
    }

    #[test]
    fn a_status_of_somebody_else_is_read_by_its_code() {
        assert_eq!(problem_of(&Status::not_found("gone")).code, Code::NotFound);
        let broken = Status::unknown("h2 protocol error: error reading a body from connection");
        assert_eq!(problem_of(&broken).code, Code::Unreachable);
        assert_eq!(problem_of(&Status::resource_exhausted("too large")).code, Code::Internal);
    }
}
