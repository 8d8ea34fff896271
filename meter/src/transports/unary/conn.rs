//! One HTTP/2 connection (RFC 9113) to a gRPC server: non-blocking, for unary calls only, without tasks and without
//! copies of large requests. The event loop ([`crate::drive`]) owns the connection and tells it when to read and write.

use super::{
    frame::{
        ACK, CANCEL, END_HEADERS, END_STREAM, HEADER, IdHasher, PADDED, PRIORITY, REFUSED_STREAM, be32, kind,
        put_header, unpadded,
    },
    hpack::{DEFAULT_TABLE, RequestHead, ResponseHead},
    outbox::Outbox,
    page,
    stream::Stream,
};
use crate::{
    drive::{Connection, Seen},
    endpoint::Socket,
    record::{Done, Failure, Lost},
};
use bytes::Bytes;
use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
    hash::BuildHasherDefault,
    io::{self, Read, Write},
    sync::Arc,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest frame that we accept, and announce.
const MAX_FRAME: usize = 1 << 20;
/// The largest header block that we accept.
const MAX_BLOCK: usize = 64 << 10;
/// The window that we announce, for the connection and each call: as good as none.
const WINDOW: u32 = i32::MAX as u32;
const DEFAULT_WINDOW: i64 = 65_535;
/// Ids run out at 2³¹; a connection is replaced before.
const LAST_ID: u32 = i32::MAX as u32 - 8;

/// A data frame that is only partly there.
struct Partial {
    stream: u32,
    left: usize,
    end: bool,
}

/// A connection.
pub(super) struct Conn {
    socket: Socket,
    request: Arc<RequestHead>,
    out: Outbox,
    inbox: Vec<u8>,
    partial: Option<Partial>,
    /// Header block in several frames: stream, whether it ends the stream, block so far.
    block: Option<(u32, bool, Vec<u8>)>,
    /// The last header blocks with status 200 and OK: each block is complete in itself, so equal bytes mean the same.
    known_ok: [Vec<u8>; 2],
    streams: HashMap<u32, Stream, BuildHasherDefault<IdHasher>>,
    waiting: VecDeque<u32>,
    next_id: u32,
    window: i64,
    unacknowledged: u32,
    peer_window: i64,
    peer_frame: usize,
    peer_streams: u32,
    peer_table: u32,
    /// Whether the server's table holds our fields: settled by the first call.
    tabled: bool,
    settled: bool,
    going_away: bool,
}

impl Conn {
    /// Takes over a connected socket and queues the preface.
    pub fn new(socket: Socket, request: Arc<RequestHead>) -> Self {
        let mut out = Outbox::default();
        out.put(PREFACE);
        let settings: [(u16, u32); 4] = [(1, 0), (2, 0), (4, WINDOW), (5, MAX_FRAME as u32)];
        put_header(&mut out, settings.len() * 6, kind::SETTINGS, 0, 0);
        for (id, value) in settings {
            out.put(&id.to_be_bytes());
            out.put(&value.to_be_bytes());
        }
        put_header(&mut out, 4, kind::WINDOW_UPDATE, 0, 0);
        out.put(&(WINDOW - DEFAULT_WINDOW as u32).to_be_bytes());
        Self {
            socket,
            request,
            out,
            inbox: Vec::new(),
            partial: None,
            block: None,
            known_ok: [Vec::new(), Vec::new()],
            streams: HashMap::default(),
            waiting: VecDeque::new(),
            next_id: 1,
            window: DEFAULT_WINDOW,
            unacknowledged: 0,
            peer_window: DEFAULT_WINDOW,
            peer_frame: 16_384,
            peer_streams: u32::MAX,
            peer_table: DEFAULT_TABLE,
            tabled: false,
            settled: false,
            going_away: false,
        }
    }

    /// Queues a call with a ready-made gRPC frame; `keep` asks for the whole answer. Returns its stream.
    pub fn send(&mut self, token: usize, frame: &Bytes, keep: bool) -> u32 {
        let id = self.next_id;
        self.next_id += 2;
        self.going_away |= self.next_id > LAST_ID;
        let request = Arc::clone(&self.request);
        if id == 1 {
            self.tabled = self.peer_table >= DEFAULT_TABLE && request.table <= DEFAULT_TABLE;
        }
        let block = match (self.tabled, id) {
            (true, 1) => &request.first,
            (true, _) => &request.again,
            (false, _) => &request.literal,
        };
        // A table below the default must be acknowledged before the first field (RFC 7541, 4.2).
        let resize: &[u8] = if self.peer_table < DEFAULT_TABLE && id == 1 { &[0x20] } else { &[] };
        let begins = self.out.end();
        put_header(&mut self.out, resize.len() + block.len(), kind::HEADERS, END_HEADERS, id);
        self.out.put(resize);
        self.out.put(block);
        let stream = Stream::new(token, self.peer_window, frame, begins, keep);
        self.streams.insert(id, stream);
        if !self.push_data(id) {
            self.waiting.push_back(id);
        }
        id
    }

    /// Handles bytes as they come off the wire.
    fn take(&mut self, bytes: &[u8], done: &mut Vec<Done>) -> Result<(), Failure> {
        if self.inbox.is_empty() {
            return self.take_frames(bytes, done);
        }
        let mut joined = std::mem::take(&mut self.inbox);
        joined.extend_from_slice(bytes);
        self.take_frames(&joined, done)
    }

    /// Handles whole frames and parts of data frames; keeps the rest.
    fn take_frames(&mut self, mut bytes: &[u8], done: &mut Vec<Done>) -> Result<(), Failure> {
        loop {
            if let Some(partial) = self.partial.take() {
                let n = partial.left.min(bytes.len());
                let whole = n == partial.left;
                self.on_data(partial.stream, &bytes[..n], whole && partial.end, done);
                bytes = &bytes[n..];
                if !whole {
                    self.partial = Some(Partial { left: partial.left - n, ..partial });
                    return Ok(());
                }
            }
            let Some(header) = bytes.get(..HEADER) else { break };
            let len = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let (kind, flags) = (header[3], header[4]);
            let stream = be32(&header[5..]) & i32::MAX as u32;
            if len > MAX_FRAME || (!self.settled && kind != kind::SETTINGS) {
                return Err(Failure::Protocol);
            }
            if kind == kind::DATA && flags & PADDED == 0 && self.block.is_none() {
                self.count_received(len as u32);
                self.partial = Some(Partial { stream, left: len, end: flags & END_STREAM != 0 });
                bytes = &bytes[HEADER..];
                continue;
            }
            let Some(payload) = bytes.get(HEADER..HEADER + len) else { break };
            self.on_frame(kind, flags, stream, payload, done)?;
            bytes = &bytes[HEADER + len..];
        }
        self.inbox.extend_from_slice(bytes);
        Ok(())
    }

    fn on_frame(&mut self, kind: u8, flags: u8, id: u32, p: &[u8], done: &mut Vec<Done>) -> Result<(), Failure> {
        if self.block.is_some() && kind != kind::CONTINUATION {
            return Err(Failure::Protocol);
        }
        match kind {
            kind::DATA => {
                self.count_received(p.len() as u32);
                self.on_data(id, unpadded(p, flags)?, flags & END_STREAM != 0, done);
            }
            kind::HEADERS => {
                let mut block = unpadded(p, flags)?;
                if flags & PRIORITY != 0 {
                    block = block.get(5..).ok_or(Failure::Protocol)?;
                }
                self.on_block(id, block.into(), flags & END_STREAM != 0, flags, done)?;
            }
            kind::CONTINUATION => {
                let (of, end, mut block) = self.block.take().filter(|b| b.0 == id).ok_or(Failure::Protocol)?;
                block.extend_from_slice(p);
                self.on_block(of, block.into(), end, flags, done)?;
            }
            kind::RST_STREAM => {
                let is_refused = p.get(..4).is_some_and(|code| be32(code) == REFUSED_STREAM);
                self.finish(id, Some(if is_refused { Failure::RefusedStream } else { Failure::Reset }), done);
            }
            kind::SETTINGS => self.on_settings(flags, p)?,
            kind::PING if flags & ACK == 0 && p.len() == 8 => {
                put_header(&mut self.out, 8, kind::PING, ACK, 0);
                self.out.put(p);
            }
            kind::GOAWAY => self.on_goaway(p, done)?,
            kind::WINDOW_UPDATE => self.on_window(id, p)?,
            _ => {}
        }
        Ok(())
    }

    fn on_settings(&mut self, flags: u8, payload: &[u8]) -> Result<(), Failure> {
        if flags & ACK != 0 {
            return Ok(());
        }
        for entry in payload.chunks_exact(6) {
            let value = be32(&entry[2..]);
            match u16::from_be_bytes([entry[0], entry[1]]) {
                1 => {
                    self.peer_table = value;
                    // The server's table was cleared: the next connection begins with the smaller one.
                    self.going_away |= self.tabled && value < DEFAULT_TABLE;
                }
                3 => self.peer_streams = value,
                4 => {
                    let grown = i64::from(value) - self.peer_window;
                    self.peer_window = i64::from(value);
                    self.streams.values_mut().for_each(|s| s.window += grown);
                }
                5 => self.peer_frame = (value as usize).clamp(16_384, (1 << 24) - 1),
                _ => {}
            }
        }
        self.settled = true;
        put_header(&mut self.out, 0, kind::SETTINGS, ACK, 0);
        self.push_waiting();
        Ok(())
    }

    fn on_window(&mut self, id: u32, payload: &[u8]) -> Result<(), Failure> {
        let grown = i64::from(be32(payload.get(..4).ok_or(Failure::Protocol)?) & i32::MAX as u32);
        if id == 0 {
            self.window += grown;
        } else if let Some(stream) = self.streams.get_mut(&id) {
            stream.window += grown;
        }
        self.push_waiting();
        Ok(())
    }

    fn on_goaway(&mut self, payload: &[u8], done: &mut Vec<Done>) -> Result<(), Failure> {
        let last = be32(payload.get(..8).ok_or(Failure::Protocol)?) & i32::MAX as u32;
        self.going_away = true;
        let refused: Vec<u32> = self.streams.keys().copied().filter(|&id| id > last).collect();
        refused.into_iter().for_each(|id| self.finish(id, Some(Failure::Goaway), done));
        Ok(())
    }

    /// Takes a header block as far as it has come.
    fn on_block(
        &mut self,
        id: u32,
        block: Cow<'_, [u8]>,
        end: bool,
        flags: u8,
        done: &mut Vec<Done>,
    ) -> Result<(), Failure> {
        if block.len() > MAX_BLOCK {
            return Err(Failure::Protocol);
        }
        if flags & END_HEADERS == 0 {
            self.block = Some((id, end, block.into_owned()));
            return Ok(());
        }
        self.on_headers(id, &block, end, done)
    }

    fn on_headers(&mut self, id: u32, block: &[u8], end: bool, done: &mut Vec<Done>) -> Result<(), Failure> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let known = &mut self.known_ok[usize::from(end)];
        if !block.is_empty() && known.as_slice() == block {
            stream.head.http_status = Some(200);
            stream.head.grpc_status = end.then_some(0);
        } else {
            let head = ResponseHead::parse(block).map_err(|_| Failure::Protocol)?;
            let plain_ok = match end {
                false => head.is_grpc() && head.grpc_status.is_none() && head.encoding.is_none(),
                true => head.grpc_status == Some(0) && head.http_status.is_none(),
            };
            if plain_ok {
                known.clear();
                known.extend_from_slice(block);
            }
            stream.take_head(head, end);
        }
        if end {
            self.finish(id, None, done);
        }
        Ok(())
    }

    fn on_data(&mut self, id: u32, data: &[u8], end: bool, done: &mut Vec<Done>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.take_data(data) {
            self.reset(id);
            self.finish(id, Some(Failure::TooLarge), done);
        } else if end {
            self.finish(id, None, done);
        }
    }

    /// Ends a call; without a failure of the transport, its own status says how.
    fn finish(&mut self, id: u32, failure: Option<Failure>, done: &mut Vec<Done>) {
        let Some(stream) = self.streams.remove(&id) else { return };
        // The server may answer without having read all: it must not wait for the rest.
        if !stream.unsent.is_empty() && failure.is_none() {
            self.reset(id);
        }
        done.push(stream.end(failure));
    }

    fn reset(&mut self, id: u32) {
        put_header(&mut self.out, 4, kind::RST_STREAM, 0, id);
        self.out.put(&CANCEL.to_be_bytes());
    }

    /// Gives the connection's window back in large steps.
    fn count_received(&mut self, bytes: u32) {
        self.unacknowledged += bytes;
        if self.unacknowledged > WINDOW / 4 {
            put_header(&mut self.out, 4, kind::WINDOW_UPDATE, 0, 0);
            self.out.put(&self.unacknowledged.to_be_bytes());
            self.unacknowledged = 0;
        }
    }

    fn push_waiting(&mut self) {
        for _ in 0..self.waiting.len() {
            if self.window <= 0 {
                return;
            }
            let Some(id) = self.waiting.pop_front() else { return };
            if self.streams.contains_key(&id) && !self.push_data(id) {
                self.waiting.push_back(id);
            }
        }
    }

    /// Queues as much of a request as flow control allows. True when all of it is queued.
    fn push_data(&mut self, id: u32) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return true };
        loop {
            let room = stream.window.min(self.window).clamp(0, self.peer_frame as i64) as usize;
            let n = room.min(stream.unsent.len());
            let whole = n == stream.unsent.len();
            if n == 0 && !whole {
                return false;
            }
            put_header(&mut self.out, n, kind::DATA, if whole { END_STREAM } else { 0 }, id);
            self.out.put_bytes(stream.unsent.split_to(n));
            stream.window -= n as i64;
            self.window -= n as i64;
            if whole {
                return true;
            }
        }
    }
}

impl Connection for Conn {
    fn socket(&self) -> &Socket {
        &self.socket
    }

    fn active(&self) -> usize {
        self.streams.len()
    }

    fn has_room(&self) -> bool {
        self.settled && !self.going_away && self.streams.len() < self.peer_streams as usize
    }

    fn is_settled(&self) -> bool {
        self.settled
    }

    fn is_unused(&self) -> bool {
        self.next_id == 1
    }

    fn is_going_away(&self) -> bool {
        self.going_away
    }

    fn wants_write(&self) -> bool {
        !self.out.is_empty() || self.socket.wants_write()
    }

    fn has_begun_any(&self) -> bool {
        self.streams.values().any(|stream| self.out.has_written(stream.begins))
    }

    fn cancel(&mut self, number: u32) {
        if self.streams.remove(&number).is_some() {
            self.reset(number);
        }
    }

    fn fail_all(&mut self, failure: Failure, done: &mut Vec<Done>) {
        let out = &self.out;
        let failed = self.streams.drain().map(|(_, s)| {
            let failure = if out.has_written(s.begins) { failure } else { Failure::NotSent };
            Done { token: s.token, result: Err(failure), words: None, message: None }
        });
        done.extend(failed);
    }

    fn write(&mut self) -> io::Result<()> {
        self.out.write(&mut self.socket)?;
        self.socket.flush()
    }

    fn read(&mut self, buffer: &mut [u8], seen: &mut Seen) -> Result<bool, Lost> {
        let n = match self.socket.read(buffer) {
            Ok(0) if !self.settled && !self.inbox.is_empty() => return Err(page::lost_to(&self.inbox)),
            Ok(0) => return Err(Lost { is_end: true, ..Failure::Reset.into() }),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err((&e).into()),
        };
        match self.take(&buffer[..n], &mut seen.done) {
            Ok(()) => Ok(self.socket.may_have_more(n, buffer.len())),
            Err(Failure::Protocol) if !self.settled => Err(page::lost_to(&buffer[..n])),
            Err(failure) => Err(failure.into()),
        }
    }
}

#[cfg(test)]
#[path = "conn_tests.rs"]
mod tests;
