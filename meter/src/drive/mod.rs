//! The client: makes calls when they are due and records how they end, whatever their protocol.
//!
//! What belongs here: the event loop ([`client`]), its connections and the calls in flight, and the messages between meter
//! and client ([`control`]). What does not: the bytes on a connection ([`crate::transports`]), and the end of a run
//! ([`crate::point`]).
//!
//! There are two seams. A [`Transport`] starts a client for each load point, behind one virtual call. A [`Protocol`] with
//! its [`Connection`] is what an event loop is compiled for, so that a single call costs none.

mod awake;
mod client;
mod control;
mod events;
mod flights;
mod once;
mod places;
mod problems;

pub use client::start;
pub use control::{Orders, Started};
pub use events::Seen;
pub use once::{Answer, Unanswered, call_once, reach};

pub(crate) use control::{Control, Report, STOP, Shared};
pub(crate) use once::{blocking, exchange};
pub(crate) use problems::{failed, silent, unreachable};

use crate::{
    endpoint::{Endpoint, Socket},
    record::{Done, Failure, Lost, Metric},
};
use async_trait::async_trait;
use modelmeter_common::Problem;
use std::{io, time::Duration};
use tokio_util::sync::CancellationToken;

/// A call made by itself: its time, and its answer's message where there is one to check.
pub type Called = (Duration, Option<Vec<u8>>);

/// Makes the calls of load points, all of one kind.
#[async_trait]
pub trait Transport: Send + Sync {
    /// Items in a call.
    fn batch_size(&self) -> u32;

    /// Metrics of each call besides its latency.
    fn metrics(&self) -> &'static [Metric] {
        &[]
    }

    /// Starts a client on a thread of its own.
    ///
    /// # Errors
    /// The system has no thread or descriptor left, or the transport cannot make calls at this pace.
    fn start(&self, orders: Orders) -> io::Result<Started>;

    /// Makes one call by itself, as [`call_once`] does.
    ///
    /// # Errors
    /// The reason why the call was not answered, with what to do.
    async fn once(&self, endpoint: &Endpoint, timeout: Duration, cancel: &CancellationToken)
    -> Result<Called, Problem>;
}

/// How calls are put on connections.
pub trait Protocol: Send + 'static {
    /// The connection that calls go over.
    type Connection: Connection;

    /// Takes over a connected socket.
    fn connection(&self, socket: Socket) -> Self::Connection;

    /// Puts the next call on a connection; `keep` asks for the whole answer. Gives the connection's own number of the call.
    fn send(&mut self, connection: &mut Self::Connection, token: usize, keep: bool) -> u32;
}

/// A connection that never blocks. The event loop owns it and tells it when to read and write.
pub trait Connection {
    /// The socket, to wait on.
    fn socket(&self) -> &Socket;

    /// Calls in flight.
    fn active(&self) -> usize;

    /// Whether the connection takes another call now.
    fn has_room(&self) -> bool;

    /// Whether the server has said that it takes calls.
    fn is_settled(&self) -> bool;

    /// Whether the connection never carried a call.
    fn is_unused(&self) -> bool;

    /// Whether the connection takes no more calls, ever.
    fn is_going_away(&self) -> bool;

    /// Whether the connection takes no more calls, ever, and has none left.
    fn is_spent(&self) -> bool {
        self.is_going_away() && self.active() == 0
    }

    /// Whether bytes wait to be written.
    fn wants_write(&self) -> bool;

    /// Whether the server may have begun any of the calls in flight.
    fn has_begun_any(&self) -> bool;

    /// Gives up the call of this number.
    fn cancel(&mut self, number: u32);

    /// Ends the calls in flight as failed: the connection is gone. Calls of which nothing was written were not sent.
    fn fail_all(&mut self, failure: Failure, done: &mut Vec<Done>);

    /// Writes as much as the socket takes.
    ///
    /// # Errors
    /// The connection is lost.
    fn write(&mut self) -> io::Result<()>;

    /// Reads once and handles what came. False if there was nothing to read.
    ///
    /// # Errors
    /// The connection is lost.
    fn read(&mut self, buffer: &mut [u8], seen: &mut Seen) -> Result<bool, Lost>;
}
