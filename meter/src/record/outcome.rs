//! The outcomes of calls: failures by kind, and lost connections.

use crate::endpoint::{Trouble, refusal_in};
use std::io;

/// Why a call failed. Each is one kind in a point's `error_kinds`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Failure {
    /// No connection: nothing listens.
    Refused,
    /// No connection in time, or no route.
    Unreachable,
    /// The connection or the call was cut off.
    Reset,
    /// The server was going away and did not take the call.
    Goaway,
    /// The server refused to begin the call: RST_STREAM with REFUSED_STREAM.
    RefusedStream,
    /// The connection was lost before the call was sent on it.
    NotSent,
    /// No connection: TLS failed.
    Tls(Trouble),
    /// Not answered within the time-out.
    Timeout,
    /// A gRPC status other than OK: see [`Self::grpc`].
    Grpc(u32),
    /// An HTTP status other than 200, without a gRPC status.
    Http(u16),
    /// A web page or the like: its content type is not gRPC's.
    NotGrpc,
    /// A compressed message, which was not asked for.
    Compressed,
    /// Not one whole gRPC message with a status.
    BadResponse,
    /// More bytes than are accepted.
    TooLarge,
    /// Not HTTP/2, or against its rules.
    Protocol,
    /// A call that a custom inspector made itself, and that it says failed.
    Inspector,
    /// Open loop: due while the limit of calls in flight was reached, so not sent.
    InFlightLimit,
    /// Open loop: due while each connection had as many calls as the server takes, so not sent.
    StreamsLimit,
}

/// Source: the gRPC documentation, "Status codes and their use in gRPC".
const GRPC_CODES: [&str; 17] = [
    "ok",
    "cancelled",
    "unknown",
    "invalid_argument",
    "deadline_exceeded",
    "not_found",
    "already_exists",
    "permission_denied",
    "resource_exhausted",
    "failed_precondition",
    "aborted",
    "out_of_range",
    "unimplemented",
    "internal",
    "unavailable",
    "data_loss",
    "unauthenticated",
];

/// Name that gRPC gives to an unknown status.
const UNKNOWN: u32 = 2;
/// gRPC's status of a server that does not take calls for now.
const UNAVAILABLE: u32 = 14;

impl Failure {
    /// A gRPC status other than OK, as the server said it: one that gRPC does not have is `unknown`, so that no server
    /// makes kinds without end.
    pub fn grpc(code: u32) -> Self {
        Self::Grpc(if (code as usize) < GRPC_CODES.len() { code } else { UNKNOWN })
    }

    /// The kind's name in documents.
    pub fn name(self) -> String {
        match self {
            Self::Refused => "refused".into(),
            Self::Unreachable => "unreachable".into(),
            Self::Reset => "reset".into(),
            Self::Goaway => "goaway".into(),
            Self::RefusedStream => "refused_stream".into(),
            Self::NotSent => "not_sent".into(),
            Self::Tls(_) => "tls".into(),
            Self::Timeout => "timeout".into(),
            Self::Grpc(code) => format!("grpc_{}", GRPC_CODES.get(code as usize).unwrap_or(&"unknown")),
            Self::Http(status) => format!("http_{status}"),
            Self::NotGrpc => "not_grpc".into(),
            Self::Compressed => "compressed".into(),
            Self::BadResponse => "bad_response".into(),
            Self::TooLarge => "response_too_large".into(),
            Self::Protocol => "protocol".into(),
            Self::Inspector => "inspector".into(),
            Self::InFlightLimit => "in_flight_limit".into(),
            Self::StreamsLimit => "streams_limit".into(),
        }
    }

    /// Whether the server answered, if not with what was asked for. What a custom inspector says of its own call is an
    /// answer too.
    pub fn is_answer(self) -> bool {
        matches!(
            self,
            Self::Grpc(_)
                | Self::Http(_)
                | Self::NotGrpc
                | Self::Compressed
                | Self::BadResponse
                | Self::TooLarge
                | Self::Inspector
        )
    }

    /// Whether the server never began the call, so that it may be sent again. Source: the gRPC documentation, "gRPC Retry
    /// Design", transparent retries; RFC 9113, 8.7.
    pub fn is_unbegun(self) -> bool {
        matches!(self, Self::Goaway | Self::RefusedStream | Self::NotSent)
    }

    /// Whether a server that is only starting, or a proxy before it, fails so: nothing listens, or nothing takes calls yet.
    pub fn may_be_starting(self) -> bool {
        matches!(self, Self::Refused | Self::Grpc(UNAVAILABLE) | Self::Http(502..=504))
    }

    /// Whether a server that answers a first call so would answer the next the same: invalid argument, failed precondition,
    /// out of range, unimplemented, and what runtimes and Python servers say of an exception: unknown, internal.
    pub fn is_refusal(self) -> bool {
        matches!(self, Self::Grpc(2 | 3 | 9 | 11 | 12 | 13))
    }

    /// Description of a failure for which the system has no message.
    pub fn words(self) -> String {
        match self {
            Self::Protocol => "what it says is not HTTP/2".into(),
            Self::Reset => "it closed the connection".into(),
            Self::Tls(Trouble::PlainToTls) => "the port speaks TLS, and the call did not".into(),
            other => other.name(),
        }
    }
}

impl From<&io::Error> for Failure {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind;
        if let Some(refusal) = refusal_in(error) {
            return Self::Tls(refusal.trouble);
        }
        match error.kind() {
            // A Unix socket that is not there yet is a port at which nothing listens.
            ErrorKind::ConnectionRefused | ErrorKind::NotFound => Self::Refused,
            ErrorKind::TimedOut | ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Reset,
        }
    }
}

/// Why a connection is lost, or did not come about.
#[derive(Debug)]
pub struct Lost {
    /// The failure of the calls that the connection had.
    pub failure: Failure,
    /// What happened, in words.
    pub words: String,
    /// The server closed the connection gracefully.
    pub is_end: bool,
}

impl Lost {
    /// A loss for which the system has no message.
    pub fn because(failure: Failure, words: impl Into<String>) -> Self {
        Self { failure, words: words.into(), is_end: false }
    }
}

impl From<Failure> for Lost {
    fn from(failure: Failure) -> Self {
        Self::because(failure, failure.words())
    }
}

impl From<&io::Error> for Lost {
    fn from(error: &io::Error) -> Self {
        Self::because(error.into(), error.to_string())
    }
}

/// A call that ended.
#[derive(Debug)]
pub struct Done {
    /// The token that the call was sent with.
    pub token: usize,
    /// How the call ended.
    pub result: Result<(), Failure>,
    /// The server's own words on a failure.
    pub words: Option<String>,
    /// The whole message, where it was wanted.
    pub message: Option<Vec<u8>>,
}
