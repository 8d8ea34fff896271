//! A socket, TCP or Unix, plain or within TLS: connecting blocks, a connected socket does not.

use super::tls::{Client, Refusal};
use rustls::ClientConnection;
use std::{
    io::{self, IoSlice, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    time::Duration,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Plain bytes that may wait in TLS to be encrypted and written.
const TLS_BUFFER: usize = 256 << 10;

/// How to connect: to the first address that answers.
#[derive(Clone)]
pub(crate) struct Route {
    pub(super) to: To,
    pub(super) tls: Option<Client>,
}

#[derive(Clone)]
pub(super) enum To {
    Tcp(Vec<SocketAddr>),
    Unix(PathBuf),
}

impl Route {
    /// Connects, TLS handshake included. Blocks, at most about five seconds an address and as long for the handshake.
    ///
    /// # Errors
    /// The system's, or a [`Refusal`] within one.
    pub fn connect(&self) -> io::Result<Socket> {
        let raw = match &self.to {
            To::Tcp(addresses) => Raw::Tcp(connect(addresses)?),
            To::Unix(path) => Raw::Unix(UnixStream::connect(path)?),
        };
        let tls = match &self.tls {
            Some(client) => Some(Box::new(handshake(client, &raw)?)),
            None => None,
        };
        raw.set_nonblocking()?;
        Ok(Socket { raw, tls })
    }
}

fn connect(addresses: &[SocketAddr]) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn handshake(client: &Client, raw: &Raw) -> io::Result<ClientConnection> {
    let mut tls = client.begin().map_err(|e| Refusal::from(e).into_io())?;
    tls.set_buffer_limit(Some(TLS_BUFFER));
    raw.set_timeout(Some(CONNECT_TIMEOUT))?;
    while tls.is_handshaking() {
        if let Err(error) = tls.complete_io(&mut &*raw) {
            return Err(explained(error));
        }
    }
    raw.set_timeout(None)?;
    Ok(tls)
}

/// A handshake's error: what rustls says within the system's, and silence, in words.
fn explained(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            Refusal::unanswered("it did not answer the TLS handshake in time").into_io()
        }
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Refusal::unanswered("it closed the connection in the TLS handshake").into_io()
        }
        _ => match error.downcast::<rustls::Error>() {
            Ok(error) => Refusal::from(error).into_io(),
            Err(error) => error,
        },
    }
}

enum Raw {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Raw {
    fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => {
                socket.set_nodelay(true)?;
                socket.set_nonblocking(true)
            }
            Self::Unix(socket) => socket.set_nonblocking(true),
        }
    }

    fn set_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout)),
            Self::Unix(socket) => socket.set_read_timeout(timeout).and_then(|()| socket.set_write_timeout(timeout)),
        }
    }
}

impl Read for &Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Raw::Tcp(socket) => (&*socket).read(buffer),
            Raw::Unix(socket) => (&*socket).read(buffer),
        }
    }
}

impl Write for &Raw {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Raw::Tcp(socket) => (&*socket).write(bytes),
            Raw::Unix(socket) => (&*socket).write(bytes),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Raw::Tcp(socket) => (&*socket).write_vectored(slices),
            Raw::Unix(socket) => (&*socket).write_vectored(slices),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connected socket that never blocks.
pub struct Socket {
    raw: Raw,
    tls: Option<Box<ClientConnection>>,
}

impl Socket {
    /// Over a connected TCP socket, without TLS.
    #[cfg(test)]
    pub fn plain(socket: TcpStream) -> io::Result<Self> {
        let raw = Raw::Tcp(socket);
        raw.set_nonblocking()?;
        Ok(Self { raw, tls: None })
    }

    /// Whether TLS has bytes that wait to be written.
    pub fn wants_write(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.wants_write())
    }

    /// Whether more may be there after a read of so many bytes into a buffer of this size. TLS gives a record or a few at a
    /// time.
    pub fn may_have_more(&self, read: usize, size: usize) -> bool {
        read == size || self.tls.is_some()
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return (&self.raw).read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                // A server that hangs up without TLS' own farewell still hangs up.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                read => return read,
            }
            if tls.read_tls(&mut &self.raw)? == 0 {
                return Ok(0);
            }
            if let Err(error) = tls.process_new_packets() {
                // The server is told why, if it still listens.
                let _ = tls.write_tls(&mut &self.raw);
                return Err(Refusal::from(error).into_io());
            }
        }
    }
}

impl Socket {
    /// Writes what TLS holds, as much as the socket takes.
    fn flush_tls(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut &self.raw) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn through_tls(&mut self, put: impl Fn(&mut ClientConnection) -> io::Result<usize>) -> io::Result<usize> {
        let tls = self.tls.as_mut().expect("asked only where there is TLS");
        let n = put(tls)?;
        self.flush_tls()?;
        if n > 0 { Ok(n) } else { Err(io::ErrorKind::WouldBlock.into()) }
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.tls {
            None => (&self.raw).write(bytes),
            Some(_) => self.through_tls(|tls| tls.writer().write(bytes)),
        }
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.tls {
            None => (&self.raw).write_vectored(slices),
            Some(_) => self.through_tls(|tls| tls.writer().write_vectored(slices)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_tls()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.raw {
            Raw::Tcp(socket) => socket.as_fd(),
            Raw::Unix(socket) => socket.as_fd(),
        }
    }
}
