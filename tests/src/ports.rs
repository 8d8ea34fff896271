//! Free ports on loopback, for servers that cannot be given a bound socket.

use std::{collections::BTreeSet, io, net::TcpListener, sync::Mutex};

static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// A port that nothing listens on, and that this process has not given out before.
pub fn free() -> io::Result<u16> {
    let mut given = GIVEN.lock().expect("no code panics while it holds the ports");
    loop {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        if given.insert(port) {
            return Ok(port);
        }
    }
}
