//! System calls of the event loop that the standard library does not have, and its clock.

pub(crate) use crate::threads::thread_cpu_ns;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::FileExt,
    },
    time::{Duration, Instant},
};

/// A monotonic clock that counts nanoseconds from when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Default for Clock {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Clock {
    /// The time since the clock was made.
    pub fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// What to wait for on a descriptor, and what was found.
#[repr(transparent)]
pub(crate) struct Watch(libc::pollfd);

impl Watch {
    pub fn new(fd: BorrowedFd, write: bool) -> Self {
        let events = libc::POLLIN | if write { libc::POLLOUT } else { 0 };
        Self(libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 })
    }

    /// Whether it watches this descriptor.
    pub fn is_for(&self, fd: BorrowedFd) -> bool {
        self.0.fd == fd.as_raw_fd()
    }

    /// Whether the descriptor has something to read, the end or an error included.
    pub fn readable(&self) -> bool {
        self.0.revents & !libc::POLLOUT != 0
    }

    /// Whether the descriptor takes bytes.
    pub fn writable(&self) -> bool {
        self.0.revents & libc::POLLOUT != 0
    }
}

/// Waits until something is ready, at most `timeout`, to the nanosecond as far as the kernel can.
pub(crate) fn wait(watches: &mut [Watch], timeout: Duration) -> io::Result<()> {
    let spec = libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
    };
    let fds = watches.as_mut_ptr().cast::<libc::pollfd>();
    // SAFETY: a Watch is laid out as the pollfd in it, and slice and timespec outlive the call.
    let n = unsafe { libc::ppoll(fds, watches.len() as libc::nfds_t, &raw const spec, std::ptr::null()) };
    if n < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    Ok(())
}

/// What the scheduler keeps of a thread (Linux, Documentation/scheduler/sched-stats.rst), where it keeps it.
#[derive(Debug, Default)]
pub(crate) struct Schedstat(Option<File>);

impl Schedstat {
    pub fn of_this_thread() -> Self {
        Self(File::open("/proc/thread-self/schedstat").ok())
    }

    /// How long the thread has waited for a core, ready to run: the second of its numbers. 0 where that is not kept.
    pub fn starved_ns(&self) -> u64 {
        let mut text = [0; 64];
        let read = self.0.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&text[..read]).unwrap_or_default();
        text.split_whitespace().nth(1).and_then(|ns| ns.parse().ok()).unwrap_or(0)
    }
}

/// Lets others run that wait for this core.
pub(crate) fn give_way() {
    // SAFETY: it has no arguments and changes no memory.
    unsafe { libc::sched_yield() };
}

/// Lets this thread's waits end when they are due, not up to 50 µs later.
pub(crate) fn precise_timers() {
    // SAFETY: changes nothing but the calling thread's timer slack.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}
