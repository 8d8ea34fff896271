//! The responder's own record of what it was sent.

use serde_json::{Value, json};
use std::{fs::File, io::Write, path::Path};

const BIN_NS: u64 = 100_000_000;

/// When one request came and was answered, in ns of the responder's clock.
#[derive(Clone, Copy)]
pub struct Seen {
    pub came_ns: u64,
    pub answered_ns: u64,
}

/// Everything since the last mark.
#[derive(Default)]
pub struct Record {
    requests: u64,
    first_ns: u64,
    last_ns: u64,
    /// Requests in each tenth of a second from the first on.
    bins: Vec<u64>,
    cpu_before_s: f64,
    /// Each request, where that is asked for.
    seen: Option<Vec<Seen>>,
}

impl Record {
    /// One that keeps each request.
    pub fn in_full() -> Self {
        Self { seen: Some(Vec::new()), ..Self::default() }
    }

    /// A request was answered.
    pub fn add(&mut self, seen: Seen) {
        if self.requests == 0 {
            self.first_ns = seen.came_ns;
        }
        self.requests += 1;
        self.last_ns = seen.answered_ns;
        let bin = (seen.answered_ns.saturating_sub(self.first_ns) / BIN_NS) as usize;
        self.bins.resize(self.bins.len().max(bin + 1), 0);
        self.bins[bin] += 1;
        if let Some(all) = &mut self.seen {
            all.push(seen);
        }
    }

    /// Says what came since the last mark and begins anew; each request goes to `path` as two little-endian u64.
    pub fn mark(&mut self, path: &Path) -> anyhow::Result<Value> {
        let cpu_s = cpu_s();
        let said = json!({
            "requests": self.requests,
            "seconds": self.last_ns.saturating_sub(self.first_ns) as f64 / 1e9,
            "cpu_s": cpu_s - self.cpu_before_s,
            "bin_s": BIN_NS as f64 / 1e9,
            "bins": self.bins,
        });
        if let Some(all) = &self.seen {
            let bytes: Vec<u8> =
                all.iter().flat_map(|s| [s.came_ns, s.answered_ns]).flat_map(u64::to_le_bytes).collect();
            File::create(path)?.write_all(&bytes)?;
        }
        let seen = self.seen.as_ref().map(|_| Vec::new());
        *self = Self { cpu_before_s: cpu_s, seen, ..Self::default() };
        Ok(said)
    }
}

/// CPU time of this process.
fn cpu_s() -> f64 {
    // SAFETY: rusage is plain memory, which the call fills.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
