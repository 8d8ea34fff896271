//! How long the responder takes to answer.

use anyhow::{Result, bail};
use rand::{Rng, SeedableRng, rngs::SmallRng};

const SERVICE_NS: u64 = 5_000_000;
const STALL_NS: u64 = 1_000_000_000;
const STALL_EVERY_NS: u64 = 10_000_000_000;
const MEDIAN_NS: f64 = 1_000_000.0;
const SIGMA: f64 = 0.1;

/// When a request that came at some time is answered.
pub enum Law {
    /// At once.
    Null,
    /// After 5 ms; the last second of every ten nothing is answered.
    Stalls,
    /// Log-normal, median 1 ms, σ 0.1.
    LogNormal(Box<SmallRng>),
}

impl Law {
    /// The law of this name.
    pub fn named(name: &str) -> Result<Self> {
        Ok(match name {
            "null" => Self::Null,
            "stalls" => Self::Stalls,
            "log-normal" => Self::LogNormal(Box::new(SmallRng::seed_from_u64(1))),
            _ => bail!("no law '{name}': null, stalls or log-normal"),
        })
    }

    /// When to answer what came at `now`.
    pub fn due_ns(&mut self, now: u64) -> u64 {
        match self {
            Self::Null => now,
            Self::Stalls => {
                let due = now + SERVICE_NS;
                let into = due % STALL_EVERY_NS;
                let begin = STALL_EVERY_NS - STALL_NS;
                if into < begin { due } else { due - into + STALL_EVERY_NS + SERVICE_NS }
            }
            Self::LogNormal(rng) => {
                // Box and Muller.
                let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
                let normal = (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos();
                now + (MEDIAN_NS * (SIGMA * normal).exp()) as u64
            }
        }
    }
}
