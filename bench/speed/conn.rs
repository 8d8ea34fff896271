//! One connection, seen from the server (RFC 9113): takes frames apart, and puts answers together.

use crate::{headers::Headers, kserve::Method};
use anyhow::{Result, bail, ensure};
use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
const MAX_FRAME: usize = 1 << 20;
const WINDOW: u32 = i32::MAX as u32;
const DEFAULT_WINDOW: i64 = 65_535;
/// No answer is longer.
const MAX_ANSWER: i64 = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// Head and trailers of an answer, `:status 200`, the content type and `grpc-status: 0`: the first of a connection puts
/// them into the client's table, later ones refer to it. A client without a table gets them in full.
const FIRST: [&[u8]; 2] = [b"\x88\x5f\x10application/grpc", b"\x40\x0bgrpc-status\x010"];
const LATER: [&[u8]; 2] = [b"\x88\xbf", b"\xbe"];
const IN_FULL: [&[u8]; 2] = [b"\x88\x0f\x10\x10application/grpc", b"\x00\x0bgrpc-status\x010"];

/// A call whose request is whole.
pub struct Call {
    pub stream: u32,
    pub request: Vec<u8>,
}

struct Open {
    stream: u32,
    method: Method,
    request: Vec<u8>,
}

/// A connection.
pub struct Conn {
    pub socket: TcpStream,
    inbox: Vec<u8>,
    out: Vec<u8>,
    headers: Headers,
    begun: bool,
    open: Vec<Open>,
    /// Inferences to be answered.
    pub calls: Vec<Call>,
    window: i64,
    /// Answers that flow control holds back.
    held: VecDeque<(u32, Vec<u8>)>,
    received: u32,
    keeps_table: bool,
    answered: bool,
    /// The client is gone.
    pub closed: bool,
}

impl Conn {
    /// Takes over an accepted socket.
    pub fn new(socket: TcpStream) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        let mut conn = Self {
            socket,
            inbox: Vec::new(),
            out: Vec::new(),
            headers: Headers::default(),
            begun: false,
            open: Vec::new(),
            calls: Vec::new(),
            window: DEFAULT_WINDOW,
            held: VecDeque::new(),
            received: 0,
            keeps_table: true,
            answered: false,
            closed: false,
        };
        let settings: [(u16, u32); 3] = [(3, 4096), (4, WINDOW), (5, MAX_FRAME as u32)];
        conn.put_header(settings.len() * 6, SETTINGS, 0, 0);
        for (id, value) in settings {
            conn.out.extend_from_slice(&id.to_be_bytes());
            conn.out.extend_from_slice(&value.to_be_bytes());
        }
        conn.put_window_update(WINDOW - DEFAULT_WINDOW as u32);
        Ok(conn)
    }

    /// Whether bytes wait for the socket.
    pub fn wants_write(&self) -> bool {
        !self.out.is_empty()
    }

    /// Reads what is there. False at the end of the connection.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<bool> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.take(&buffer[..n])?;
                    if n < buffer.len() {
                        return Ok(true);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(true),
                Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes what the socket takes. False at the end of the connection.
    pub fn write(&mut self) -> Result<bool> {
        while !self.out.is_empty() {
            match self.socket.write(&self.out) {
                Ok(n) => drop(self.out.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if matches!(e.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Ok(false);
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    /// Answers a call, now or as soon as the client's window allows.
    pub fn answer(&mut self, stream: u32, message: Vec<u8>) {
        if self.window < MAX_ANSWER {
            return self.held.push_back((stream, message));
        }
        let len = message.len() + 5;
        self.window -= len as i64;
        let [head, tail] = match (self.keeps_table, std::mem::replace(&mut self.answered, true)) {
            (true, false) => FIRST,
            (true, true) => LATER,
            (false, _) => IN_FULL,
        };
        self.put_header(head.len(), HEADERS, END_HEADERS, stream);
        self.out.extend_from_slice(head);
        self.put_header(len, DATA, 0, stream);
        self.out.push(0);
        self.out.extend_from_slice(&(message.len() as u32).to_be_bytes());
        self.out.extend_from_slice(&message);
        self.put_header(tail.len(), HEADERS, END_HEADERS | END_STREAM, stream);
        self.out.extend_from_slice(tail);
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if self.inbox.is_empty() {
            return self.take_frames(bytes);
        }
        let mut joined = std::mem::take(&mut self.inbox);
        joined.extend_from_slice(bytes);
        self.take_frames(&joined)
    }

    fn take_frames(&mut self, mut bytes: &[u8]) -> Result<()> {
        if !self.begun && bytes.len() >= PREFACE.len() {
            bytes = bytes.strip_prefix(PREFACE).ok_or_else(|| anyhow::anyhow!("not HTTP/2"))?;
            self.begun = true;
        }
        while let (true, Some(header)) = (self.begun, bytes.get(..HEADER)) {
            let len = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            let (kind, flags, stream) = (header[3], header[4], be32(&header[5..]) & i32::MAX as u32);
            ensure!(len <= MAX_FRAME, "a frame of {len} bytes");
            let Some(payload) = bytes.get(HEADER..HEADER + len) else { break };
            self.on_frame(kind, flags, stream, payload)?;
            bytes = &bytes[HEADER + len..];
        }
        self.inbox.extend_from_slice(bytes);
        Ok(())
    }

    fn on_frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Result<()> {
        match kind {
            HEADERS => {
                ensure!(flags & (END_HEADERS | PADDED) == END_HEADERS, "a header block in pieces");
                let block = if flags & PRIORITY == 0 { payload } else { &payload[5..] };
                let method = self.headers.method(block)?;
                self.open.push(Open { stream, method, request: Vec::new() });
            }
            DATA => {
                ensure!(flags & PADDED == 0, "padded data");
                self.count_received(payload.len());
                self.on_data(stream, payload, flags & END_STREAM != 0);
            }
            SETTINGS if flags & ACK == 0 => self.on_settings(payload)?,
            PING if flags & ACK == 0 => {
                self.put_header(payload.len(), PING, ACK, 0);
                self.out.extend_from_slice(payload);
            }
            WINDOW_UPDATE if stream == 0 => {
                self.window += i64::from(be32(payload));
                for (stream, message) in std::mem::take(&mut self.held) {
                    self.answer(stream, message);
                }
            }
            RST_STREAM => self.open.retain(|o| o.stream != stream),
            CONTINUATION => bail!("a header block in pieces"),
            _ => {}
        }
        Ok(())
    }

    fn on_settings(&mut self, payload: &[u8]) -> Result<()> {
        for entry in payload.chunks_exact(6) {
            let value = be32(&entry[2..]);
            match u16::from_be_bytes([entry[0], entry[1]]) {
                1 => self.keeps_table = value >= 4096,
                4 => ensure!(i64::from(value) >= MAX_ANSWER, "the client's window is smaller than an answer"),
                _ => {}
            }
        }
        self.put_header(0, SETTINGS, ACK, 0);
        Ok(())
    }

    fn on_data(&mut self, stream: u32, data: &[u8], end: bool) {
        let Some(at) = self.open.iter().position(|o| o.stream == stream) else { return };
        self.open[at].request.extend_from_slice(data);
        if !end {
            return;
        }
        let Open { method, mut request, .. } = self.open.swap_remove(at);
        // The five bytes before a message say that it is not compressed, and how long it is.
        request.drain(..request.len().min(5));
        if method == Method::ModelInfer {
            self.calls.push(Call { stream, request });
        } else {
            self.answer(stream, method.answer(&request));
        }
    }

    fn count_received(&mut self, bytes: usize) {
        self.received += bytes as u32;
        if self.received > WINDOW / 4 {
            let received = std::mem::take(&mut self.received);
            self.put_window_update(received);
        }
    }

    fn put_window_update(&mut self, by: u32) {
        self.put_header(4, WINDOW_UPDATE, 0, 0);
        self.out.extend_from_slice(&by.to_be_bytes());
    }

    fn put_header(&mut self, len: usize, kind: u8, flags: u8, stream: u32) {
        let [_, a, b, c] = (len as u32).to_be_bytes();
        let [d, e, f, g] = stream.to_be_bytes();
        self.out.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
    }
}

fn be32(bytes: &[u8]) -> u32 {
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
