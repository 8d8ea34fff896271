//! Unary gRPC calls over HTTP/2, spoken below any gRPC library: prebuilt header blocks, and no copy of a large request.
//!
//! [`conn`] is one connection, made of [`frame`]s, header blocks ([`hpack`]), bytes on their way ([`outbox`]) and calls
//! ([`stream`]). [`page`] describes answers that are not gRPC. [`ask()`] asks a server one question.

mod ask;
mod conn;
mod frame;
mod hpack;
mod message;
mod outbox;
mod page;
mod stream;

pub use ask::ask;
pub use message::{frame_around, grpc_frame};

use crate::{
    drive::{self, Called, Orders, Protocol, Started, Transport},
    endpoint::{Endpoint, Socket},
};
use async_trait::async_trait;
use bytes::Bytes;
use conn::Conn;
use hpack::RequestHead;
use modelmeter_common::Problem;
use std::{io, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// What to call, and with what: ready-made gRPC messages, sent in turn.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// The gRPC method, `/package.Service/Method`.
    pub path: String,
    /// Complete gRPC frames (five bytes of prefix, then the message). Never empty.
    pub frames: Vec<Bytes>,
    /// Items in a call.
    pub batch_size: u32,
}

/// Unary gRPC calls.
#[derive(Clone, Debug)]
pub struct Unary(Call);

impl Unary {
    /// The transport of these calls.
    pub fn new(call: Call) -> Self {
        Self(call)
    }
}

#[async_trait]
impl Transport for Unary {
    fn batch_size(&self) -> u32 {
        self.0.batch_size
    }

    fn start(&self, orders: Orders) -> io::Result<Started> {
        let (authority, is_tls) = (orders.endpoint.authority(), orders.endpoint.is_tls());
        let head = Arc::new(RequestHead::new(&self.0.path, &authority, is_tls));
        // A call by itself is always the first.
        let most = if orders.at_once == Some(1) { 1 } else { usize::MAX };
        let frames = self.0.frames.iter().take(most).cloned().collect();
        drive::start(Grpc { head, frames, next: 0 }, orders, self.metrics())
    }

    async fn once(&self, server: &Endpoint, timeout: Duration, cancel: &CancellationToken) -> Result<Called, Problem> {
        let answer = drive::call_once(server, self, timeout, cancel).await?;
        Ok((answer.latency, Some(answer.message)))
    }
}

/// The calls of one client.
struct Grpc {
    head: Arc<RequestHead>,
    frames: Vec<Bytes>,
    next: usize,
}

impl Protocol for Grpc {
    type Connection = Conn;

    fn connection(&self, socket: Socket) -> Conn {
        Conn::new(socket, Arc::clone(&self.head))
    }

    fn send(&mut self, connection: &mut Conn, token: usize, keep: bool) -> u32 {
        let frame = &self.frames[self.next];
        self.next = (self.next + 1) % self.frames.len();
        connection.send(token, frame, keep)
    }
}
