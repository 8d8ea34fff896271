//! Frames to and from a child over its standard streams, without ever waiting on one while the other is full.
//!
//! What belongs here: bytes, frames and their limits. What they mean is [`super::child`]'s.

use modelmeter_proto::inspector::{Command, Reply};
use prost::Message;
use std::{
    fs::File,
    io::{self, ErrorKind, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsRawFd, OwnedFd},
    time::Instant,
};

/// The largest frame, either way.
const MAX_FRAME: usize = 256 << 20;
const PREFIX: usize = 4;

/// Why a child cannot be talked to any more.
#[derive(Debug)]
pub(super) enum Flaw {
    /// It closed its output: it has ended, or is about to.
    Ended,
    /// It said what is no reply.
    Garbage(String),
}

/// The worker's ends of a child's standard input and output.
#[derive(Debug)]
pub(super) struct Pipe {
    to: File,
    from: File,
    outbox: Vec<u8>,
    written: usize,
    inbox: Vec<u8>,
}

impl Pipe {
    /// A pipe, and the ends that the child is given: its standard input and output.
    pub fn new() -> io::Result<(Self, PipeReader, PipeWriter)> {
        let (stdin, to) = io::pipe()?;
        let (from, stdout) = io::pipe()?;
        let (to, from) = (File::from(OwnedFd::from(to)), File::from(OwnedFd::from(from)));
        [&to, &from].into_iter().try_for_each(unblocked)?;
        Ok((Self { to, from, outbox: Vec::new(), written: 0, inbox: Vec::new() }, stdin, stdout))
    }

    /// Puts a command on its way; [`Self::pull`] moves it.
    pub fn push(&mut self, command: &Command) -> Result<(), Flaw> {
        let len = command.encoded_len();
        if len > MAX_FRAME {
            return Err(Flaw::Garbage(format!("is to be given {len} bytes at once, over the limit of {MAX_FRAME}")));
        }
        self.outbox.extend_from_slice(&(len as u32).to_be_bytes());
        command.encode(&mut self.outbox).expect("a vector takes every write");
        Ok(())
    }

    /// The next reply; none if there is none until then.
    pub fn pull(&mut self, until: Instant) -> Result<Option<Reply>, Flaw> {
        loop {
            if let Some(reply) = self.take_reply()? {
                return Ok(Some(reply));
            }
            self.write()?;
            let mut fds = [watch(&self.from, libc::POLLIN), watch(&self.to, libc::POLLOUT)];
            let count = if self.outbox.is_empty() { 1 } else { 2 };
            if !poll(&mut fds[..count], until) {
                return Ok(None);
            }
            if fds[0].revents != 0 {
                self.read()?;
            }
        }
    }

    fn write(&mut self) -> Result<(), Flaw> {
        while self.written < self.outbox.len() {
            match self.to.write(&self.outbox[self.written..]) {
                Ok(written) => self.written += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(Flaw::Ended),
            }
        }
        self.outbox.clear();
        self.written = 0;
        Ok(())
    }

    fn read(&mut self) -> Result<(), Flaw> {
        let mut buffer = [0; 64 << 10];
        match self.from.read(&mut buffer) {
            Ok(0) => Err(Flaw::Ended),
            Ok(read) => {
                self.inbox.extend_from_slice(&buffer[..read]);
                Ok(())
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(()),
            Err(_) => Err(Flaw::Ended),
        }
    }

    fn take_reply(&mut self) -> Result<Option<Reply>, Flaw> {
        let Some(prefix) = self.inbox.first_chunk::<PREFIX>() else { return Ok(None) };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > MAX_FRAME {
            let start = String::from_utf8_lossy(&self.inbox[..self.inbox.len().min(40)]).into_owned();
            return Err(Flaw::Garbage(format!(
                "wrote what is no frame of the protocol to its standard output: {start:?}"
            )));
        }
        let Some(message) = self.inbox.get(PREFIX..PREFIX + len) else { return Ok(None) };
        let reply = Reply::decode(message)
            .map_err(|e| Flaw::Garbage(format!("wrote a frame to its standard output that is no reply: {e}")))?;
        self.inbox.drain(..PREFIX + len);
        Ok(Some(reply))
    }
}

fn unblocked(file: &File) -> io::Result<()> {
    // SAFETY: plain system calls on a descriptor that is open while `file` lives.
    let done = unsafe {
        let flags = libc::fcntl(file.as_raw_fd(), libc::F_GETFL);
        libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn watch(file: &File, events: libc::c_short) -> libc::pollfd {
    libc::pollfd { fd: file.as_raw_fd(), events, revents: 0 }
}

/// Waits until one is ready; false when the time is up.
fn poll(fds: &mut [libc::pollfd], until: Instant) -> bool {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // Rounded up, so that a last fraction of a millisecond does not spin.
        let timeout = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        // SAFETY: the slice is valid for the call, and of the length given.
        let ready = unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, timeout) };
        match ready {
            1.. => return true,
            0 if left.is_zero() => return false,
            0 => {}
            _ if io::Error::last_os_error().kind() == ErrorKind::Interrupted => {}
            // Nothing of ours can make poll fail otherwise; then reading says what is wrong.
            _ => return true,
        }
    }
}
