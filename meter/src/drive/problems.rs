//! Error messages about a server that does not answer, or answers with failures.

use crate::{
    endpoint::{Endpoint, Trouble},
    record::Failure,
};
use modelmeter_common::{Code, Problem};
use std::time::Duration;

/// Nothing answers at an endpoint.
pub(crate) fn unreachable(endpoint: &Endpoint, failure: Failure, words: &str) -> Problem {
    let (code, hint) = match failure {
        Failure::Tls(trouble) if trouble.is_about_certificates() => (Code::Unauthenticated, trouble.hint()),
        Failure::Tls(trouble) => (Code::Unreachable, trouble.hint()),
        _ => (Code::Unreachable, "is the server running, and is this its gRPC port?"),
    };
    let problem = Problem::new(code, format!("no gRPC server at {endpoint}: {words}"));
    match (failure, endpoint.with_https()) {
        (Failure::Tls(Trouble::PlainToTls), Some(https)) => problem.with_hint(format!(
            "name it as {https}; --ca FILE names the CA of its certificate, --insecure accepts any certificate"
        )),
        _ => problem.with_hint(hint),
    }
}

pub(crate) fn silent(endpoint: &Endpoint, timeout: Duration) -> Problem {
    Problem::new(Code::DeadlineExceeded, format!("{endpoint} did not answer within {} s", timeout.as_secs_f64()))
        .with_hint("raise --timeout, or look at the server's log")
}

/// A call failed before anything was measured.
pub(crate) fn failed(endpoint: &Endpoint, failure: Failure, words: Option<&str>) -> Problem {
    let code = match failure {
        Failure::Refused | Failure::Unreachable => Code::Unreachable,
        Failure::Timeout => Code::DeadlineExceeded,
        Failure::NotGrpc | Failure::Compressed | Failure::Http(..500) => Code::BadResponse,
        Failure::BadResponse | Failure::TooLarge | Failure::Protocol | Failure::Grpc(12) => Code::BadResponse,
        Failure::Grpc(3 | 5) => Code::InvalidArgument,
        _ => Code::EngineFailed,
    };
    let hint = match failure {
        Failure::Http(413) => {
            "a proxy refuses requests of this size: raise its limit (nginx: client_max_body_size), or use smaller batches"
        }
        Failure::Http(502..=504) => {
            "a proxy answers there, and does not reach the server behind it: is that one running?"
        }
        Failure::NotGrpc | Failure::Http(_) => {
            "a proxy or a web server answers there: name the server's own gRPC port, or have the proxy pass gRPC on"
        }
        Failure::Compressed => "switch compression off in the server, or in the proxy before it",
        Failure::Tls(trouble) => trouble.hint(),
        _ => {
            "look at the server's log; check the model's name, its inputs' shapes, and that random values suit it (else --data)"
        }
    };
    let words = words.map(|w| format!(": {w}")).unwrap_or_default();
    Problem::new(code, format!("the call to {endpoint} failed with {}{words}", failure.name())).with_hint(hint)
}
