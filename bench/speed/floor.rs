//! The least that a client can cost: a bare loop over raw HTTP/2 frames on one blocking socket, against
//! `bench-responder`. It checks nothing, times nothing but each call's whole, and sends the same bytes again and again.
//!
//! `bench-floor PORT IN_FLIGHT SECONDS` prints calls a second, CPU a call, the median and the number of calls as JSON.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream},
    time::{Duration, Instant},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const HEADER: usize = 9;
const PATH: &[u8] = b"/inference.GRPCInferenceService/ModelInfer";
/// A ModelInferRequest: model "m", input "x" of FP32 [1, 16], 64 bytes of zeros.
const REQUEST: &[u8] = b"\x0a\x01m\x2a\x0d\x0a\x01x\x12\x04FP32\x1a\x02\x01\x10\x3a\x40";
const FLOATS: usize = 64;
/// Latencies are counted in bins of this width.
const BIN_NS: usize = 100;
const BINS: usize = 100_000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<u64>());
    let mut next = || args.next().context("PORT IN_FLIGHT SECONDS").and_then(|a| Ok(a?));
    let (port, in_flight, seconds) = (u16::try_from(next()?)?, next()? as usize, next()?);
    let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    socket.set_nodelay(true)?;
    let mut client = Client { out: preface(), stream: 1, sent: Vec::new(), calls: 0, bins: vec![0; BINS] };
    let begun = Instant::now();
    (0..in_flight).for_each(|_| client.send(begun));
    let mut buffer = vec![0; 256 << 10];
    let mut left = 0;
    while begun.elapsed() < Duration::from_secs(seconds) {
        socket.write_all(&client.out)?;
        client.out.clear();
        let n = socket.read(&mut buffer[left..])?;
        ensure!(n > 0, "the responder hung up");
        let taken = client.take(&buffer[..left + n]);
        buffer.copy_within(taken..left + n, 0);
        left = left + n - taken;
    }
    let wall = begun.elapsed().as_secs_f64();
    let rate = client.calls as f64 / wall;
    let cpu_us = cpu_s() / client.calls as f64 * 1e6;
    println!("{}", json!({"calls": client.calls, "rate": rate, "cpu_us": cpu_us, "p50_us": client.median_us()}));
    Ok(())
}

struct Client {
    out: Vec<u8>,
    stream: u32,
    /// When each call in flight was sent: the responder answers in order.
    sent: Vec<Instant>,
    calls: u64,
    bins: Vec<u64>,
}

impl Client {
    fn send(&mut self, now: Instant) {
        let head: &[u8] = if self.stream == 1 { &first_head() } else { &[0x83, 0x86, 0xbe] };
        put_header(&mut self.out, head.len(), HEADERS, END_HEADERS, self.stream);
        self.out.extend_from_slice(head);
        let len = REQUEST.len() + FLOATS;
        put_header(&mut self.out, len + 5, DATA, END_STREAM, self.stream);
        self.out.push(0);
        self.out.extend_from_slice(&(len as u32).to_be_bytes());
        self.out.extend_from_slice(REQUEST);
        self.out.extend_from_slice(&[0; FLOATS]);
        self.stream += 2;
        self.sent.push(now);
    }

    /// Takes whole frames; returns how many bytes they were.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let (now, mut at, mut ended) = (Instant::now(), 0, 0);
        while let Some(h) = bytes.get(at..at + HEADER) {
            let len = usize::from(h[0]) << 16 | usize::from(h[1]) << 8 | usize::from(h[2]);
            if bytes.len() < at + HEADER + len {
                break;
            }
            ended += usize::from(h[3] == HEADERS && h[4] & END_STREAM != 0);
            if h[3] == SETTINGS && h[4] == 0 {
                put_header(&mut self.out, 0, SETTINGS, 1, 0);
            }
            at += HEADER + len;
        }
        for sent in self.sent.drain(..ended) {
            let bin = now.duration_since(sent).as_nanos() as usize / BIN_NS;
            self.bins[bin.min(BINS - 1)] += 1;
        }
        self.calls += ended as u64;
        (0..ended).for_each(|_| self.send(now));
        at
    }

    fn median_us(&self) -> f64 {
        let mut seen = 0;
        let middle = self.bins.iter().take_while(|&&n| {
            seen += n;
            seen < self.calls / 2
        });
        middle.count() as f64 * BIN_NS as f64 / 1e3
    }
}

fn preface() -> Vec<u8> {
    const WINDOW: u32 = i32::MAX as u32;
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // No table for headers, and a window as good as none.
    put_header(&mut out, 12, SETTINGS, 0, 0);
    out.extend_from_slice(&[0, 1, 0, 0, 0, 0, 0, 4]);
    out.extend_from_slice(&WINDOW.to_be_bytes());
    put_header(&mut out, 4, WINDOW_UPDATE, 0, 0);
    out.extend_from_slice(&(WINDOW - 65_535).to_be_bytes());
    out
}

/// POST, http, and the path into the table.
fn first_head() -> Vec<u8> {
    [&[0x83, 0x86, 0x44, PATH.len() as u8], PATH].concat()
}

fn put_header(out: &mut Vec<u8>, len: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = (len as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, d, e, f, g]);
}

/// CPU time of this process.
fn cpu_s() -> f64 {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut spec) };
    spec.tv_sec as f64 + spec.tv_nsec as f64 / 1e9
}
