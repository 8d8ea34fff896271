//! The places that a client has for connections: which one takes the next call, and when another is added.

use super::Connection;
use std::ops::{Deref, DerefMut};

const MAX_CONNECTIONS: usize = 128;
/// Time for a server to send its settings on a new connection, while no connection has them yet.
const FIRST_SETTINGS_NS: u64 = 5_000_000_000;
/// Time for a server to send its settings on a new connection, once another connection has them.
const SETTINGS_NS: u64 = 1_000_000_000;

/// State of one place.
pub(super) enum Link<C> {
    /// Nothing for now: another place took over while the connection here went away.
    Idle,
    /// Nothing; the place is dialled again at this time.
    Down { retry_ns: u64 },
    /// A thread is dialling.
    Connecting,
    /// A connection stands.
    Up(Box<C>),
}

/// A place for a connection.
pub(super) struct Place<C> {
    pub link: Link<C>,
    /// Failed attempts in a row.
    pub failures: u32,
    /// When bytes last came.
    pub heard_ns: u64,
    /// When the connection was made.
    pub up_ns: u64,
}

impl<C: Connection> Place<C> {
    fn new() -> Self {
        Self { link: Link::Down { retry_ns: 0 }, failures: 0, heard_ns: 0, up_ns: 0 }
    }

    fn is_settled(&self) -> bool {
        matches!(&self.link, Link::Up(conn) if conn.is_settled())
    }

    fn is_idle(&self) -> bool {
        matches!(self.link, Link::Idle)
    }
}

/// All places. Their indices do not change.
pub(super) struct Places<C> {
    all: Vec<Place<C>>,
    /// Number of places that are kept connected.
    kept: usize,
}

impl<C: Connection> Places<C> {
    /// Places for so many connections to begin with.
    pub fn new(wanted: usize) -> Self {
        let kept = wanted.clamp(1, MAX_CONNECTIONS);
        Self { all: (0..kept).map(|_| Place::new()).collect(), kept }
    }

    /// Whether every connection stands or has failed, and at least one stands: calls are then spread evenly.
    pub fn are_ready(&self) -> bool {
        let failed = |p: &Place<C>| matches!(p.link, Link::Down { .. });
        self.iter().all(|p| p.is_settled() || failed(p)) && self.any_settled()
    }

    /// Whether any connection stands.
    pub fn any_settled(&self) -> bool {
        self.iter().any(Place::is_settled)
    }

    /// Whether any place is connected.
    pub fn any_up(&self) -> bool {
        self.iter().any(|p| matches!(p.link, Link::Up(_)))
    }

    /// Whether a connection is being made at a place without failures, such as the next after one that ended gracefully.
    pub fn any_coming(&self) -> bool {
        let is_coming = |p: &Place<C>| match &p.link {
            Link::Down { .. } | Link::Connecting => p.failures == 0,
            Link::Up(conn) => !conn.is_settled(),
            Link::Idle => false,
        };
        self.iter().any(is_coming)
    }

    /// Places that are connected but have waited too long for the server's settings: the server may queue its
    /// connections.
    pub fn unsettled(&self, now: u64) -> Vec<usize> {
        let most = if self.any_settled() { SETTINGS_NS } else { FIRST_SETTINGS_NS };
        let is_late = |p: &Place<C>| matches!(p.link, Link::Up(_)) && !p.is_settled() && now - p.up_ns > most;
        self.iter().enumerate().filter(|(_, place)| is_late(place)).map(|(index, _)| index).collect()
    }

    /// The place whose connection has the fewest calls and takes another; where all are full, as many more places are
    /// dialled.
    pub fn roomiest(&mut self) -> Option<usize> {
        let room = |p: &Place<C>| match &p.link {
            Link::Up(conn) if conn.has_room() => Some(conn.active()),
            _ => None,
        };
        let best = self.iter().enumerate().filter_map(|(i, p)| Some((room(p)?, i))).min();
        if best.is_none() && self.iter().all(|p| p.is_settled() || p.is_idle()) {
            let settled = self.iter().filter(|p| p.is_settled()).count();
            (0..settled).for_each(|_| self.add());
        }
        best.map(|(_, i)| i)
    }

    fn add(&mut self) {
        match self.iter().position(Place::is_idle) {
            Some(idle) => self.all[idle] = Place::new(),
            None if self.all.len() < MAX_CONNECTIONS => self.all.push(Place::new()),
            None => {}
        }
    }

    /// Marks the place of a connection that has gone away after all its calls ended.
    pub fn vacate(&mut self, index: usize) {
        let others = self.iter().filter(|p| !p.is_idle()).count() - 1;
        self.all[index].link = if others < self.kept { Link::Down { retry_ns: 0 } } else { Link::Idle };
    }
}

impl<C> Deref for Places<C> {
    type Target = [Place<C>];
    fn deref(&self) -> &[Place<C>] {
        &self.all
    }
}

impl<C> DerefMut for Places<C> {
    fn deref_mut(&mut self) -> &mut [Place<C>] {
        &mut self.all
    }
}
