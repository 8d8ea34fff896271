//! One call on a connection: the rest of its request, and the part of its answer that has come.

use super::{
    frame::be32,
    hpack::ResponseHead,
    page::{self, MAX_PAGE},
};
use crate::record::{Done, Failure};
use bytes::Bytes;

/// The most bytes of one response.
pub(super) const MAX_RESPONSE: u64 = 512 << 20;

/// A call that was sent and has not ended.
pub(super) struct Stream {
    pub token: usize,
    pub window: i64,
    /// The rest of the request that flow control still holds back.
    pub unsent: Bytes,
    /// The place of its first byte in the outbox.
    pub begins: u64,
    pub head: ResponseHead,
    pub received: u64,
    prefix: [u8; 5],
    message: Option<Vec<u8>>,
    /// The beginning of the body of an answer that is not gRPC's.
    page: Option<Vec<u8>>,
}

impl Stream {
    /// A call that sends this frame; `keep` asks for the whole answer.
    pub fn new(token: usize, window: i64, frame: &Bytes, begins: u64, keep: bool) -> Self {
        Self {
            token,
            window,
            unsent: frame.clone(),
            begins,
            head: ResponseHead::default(),
            received: 0,
            prefix: [0; 5],
            message: keep.then(Vec::new),
            page: None,
        }
    }

    /// Takes in a block of headers.
    pub fn take_head(&mut self, head: ResponseHead, is_end: bool) {
        self.head = head.after(std::mem::take(&mut self.head));
        if !is_end {
            self.page = (!self.head.is_grpc()).then(Vec::new);
        }
    }

    /// Takes in a part of the body. False where the body is or will be larger than the limit.
    pub fn take_data(&mut self, data: &[u8]) -> bool {
        let at = self.received.min(5) as usize;
        let n = data.len().min(5 - at);
        self.prefix[at..at + n].copy_from_slice(&data[..n]);
        self.received += data.len() as u64;
        if let Some(page) = &mut self.page {
            page.extend_from_slice(&data[..data.len().min(MAX_PAGE - page.len())]);
        }
        let is_grpc = self.received >= 5 && self.head.http_status == Some(200) && self.page.is_none();
        let announced = if is_grpc { u64::from(be32(&self.prefix[1..])) } else { 0 };
        if let Some(message) = &mut self.message {
            message.reserve_exact(announced.min(MAX_RESPONSE).saturating_sub(message.len() as u64) as usize);
            message.extend_from_slice(&data[n..]);
        }
        announced.max(self.received) <= MAX_RESPONSE
    }

    /// Ends the call; without a failure of the transport, its own status is the result.
    pub fn end(self, failure: Option<Failure>) -> Done {
        let result = failure.map_or_else(|| self.outcome(), Err);
        let words = match result {
            Err(Failure::Http(_) | Failure::NotGrpc) => {
                Some(page::of_page(&self.head, self.page.as_deref().unwrap_or_default()))
            }
            Err(Failure::Compressed) => Some(page::of_compressed(&self.head)),
            _ => self.head.grpc_message,
        };
        let message = if result.is_ok() { self.message } else { None };
        Done { token: self.token, result, words, message }
    }

    fn outcome(&self) -> Result<(), Failure> {
        match (self.head.http_status, self.head.grpc_status) {
            (_, Some(0)) => {}
            (_, Some(code)) => return Err(Failure::grpc(code)),
            (Some(status), None) if status != 200 => return Err(Failure::Http(status)),
            _ if !self.head.is_grpc() => return Err(Failure::NotGrpc),
            _ => return Err(Failure::BadResponse),
        }
        let [compressed, len @ ..] = self.prefix;
        let whole = self.received == 5 + u64::from(u32::from_be_bytes(len));
        match compressed {
            0 if whole => Ok(()),
            1 if whole => Err(Failure::Compressed),
            _ => Err(Failure::BadResponse),
        }
    }
}
