//! A server that writes what a test says, frame by frame or not even frames.

use super::mock::response;
use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const DATA: u8 = 0;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PREFACE: usize = 24;

/// Runs a script on a thread for each connection, with its number; a script ends when its client hangs up.
pub struct Raw {
    pub endpoint: String,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Raw {
    pub fn start(script: impl Fn(usize, TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (ends, script) = (Arc::new(AtomicBool::new(false)), Arc::new(script));
        let end = ends.clone();
        let thread = std::thread::spawn(move || {
            for (nth, socket) in listener.incoming().enumerate() {
                if end.load(SeqCst) {
                    return;
                }
                let script = script.clone();
                // A client that hangs up in the middle of a script is no failure of the test.
                std::thread::spawn(move || drop(socket.and_then(|s| script(nth, s))));
            }
        });
        Self { endpoint, ends, thread: Some(thread) }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.ends.store(true, SeqCst);
        let _ = TcpStream::connect(&self.endpoint);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Our settings, and none of the client's.
pub fn greet(socket: &mut TcpStream) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    socket.read_exact(&mut [0; PREFACE])?;
    socket.write_all(&frame(SETTINGS, 0, 0, &[]))
}

/// The next frame's kind and stream.
pub fn next(socket: &mut TcpStream) -> std::io::Result<(u8, u32)> {
    let mut header = [0; 9];
    socket.read_exact(&mut header)?;
    let [a, b, c, kind, _, stream @ ..] = header;
    socket.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize])?;
    Ok((kind, u32::from_be_bytes(stream)))
}

/// Hears and says nothing more, until the client hangs up.
pub fn stay_silent(mut socket: TcpStream) -> std::io::Result<()> {
    loop {
        next(&mut socket)?;
    }
}

/// The stream of the next call.
pub fn next_call(socket: &mut TcpStream) -> std::io::Result<u32> {
    loop {
        if let (HEADERS, stream) = next(socket)? {
            return Ok(stream);
        }
    }
}

pub fn head(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &[0x88])
}

pub fn data(stream: u32, bytes: &[u8]) -> Vec<u8> {
    frame(DATA, 0, stream, bytes)
}

/// A whole good answer.
pub fn answer(stream: u32) -> Vec<u8> {
    let trailers = b"\0\x0bgrpc-status\x010";
    let end = frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers);
    [head(stream), data(stream, &response(&[1], &[1.0])), end].concat()
}

/// A whole answer that is nothing but a gRPC status, of two digits.
pub fn failure(stream: u32, status: u32) -> Vec<u8> {
    let block = [b"\x88\0\x0bgrpc-status\x02", status.to_string().as_bytes()].concat();
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block)
}
