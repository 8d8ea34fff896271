//! One call: when it was due, sent and answered, and the events on the way.

use super::Failure;
use modelmeter_common::stats::series::Batch;

/// When a call was due and when it was sent, in nanoseconds of the client's clock.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub scheduled_ns: u64,
    pub sent_ns: u64,
}

/// A call that ended. Times are nanoseconds of the client's clock.
#[derive(Clone, Copy, Debug)]
pub struct CallRecord<'a> {
    /// When the call was due: in a closed loop, when it was sent.
    pub scheduled_ns: u64,
    /// When the call was sent.
    pub sent_ns: u64,
    /// Events before the end, in order. Calls that are answered whole have none.
    pub events: &'a [Event],
    /// When the call ended.
    pub end_ns: u64,
    /// How the call ended.
    pub outcome: Result<(), Failure>,
}

impl<'a> CallRecord<'a> {
    /// A call without events.
    pub(crate) fn unary(times: Times, outcome: Result<(), Failure>, end_ns: u64) -> Self {
        Self::new(times, &[], outcome, end_ns)
    }

    pub(crate) fn new(times: Times, events: &'a [Event], outcome: Result<(), Failure>, end_ns: u64) -> Self {
        Self { scheduled_ns: times.scheduled_ns, sent_ns: times.sent_ns, events, end_ns, outcome }
    }
}

/// A piece of an answer that came before its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// When the bytes came out of the socket.
    pub at_ns: u64,
    /// What the piece is, by the transport's own numbering.
    pub kind: u16,
    /// Output tokens in the piece; 0 where it carries none.
    pub tokens: u32,
}

/// A duration that a transport's calls have besides their latency, such as the time to the first token.
#[derive(Debug)]
pub struct Metric {
    /// The name in documents.
    pub name: &'static str,
    /// The unit in documents, in which a millisecond is 1.
    pub unit: &'static str,
    /// Records the values of a call that succeeded, in ns, in a batch.
    pub record: fn(&CallRecord<'_>, &mut Batch),
}
