//! Wall time that is shared out over points.

use crate::rules::Slice;
use modelmeter_common::part::Point;
use std::time::{Duration, Instant};

/// A point with less time than this is not worth starting.
const LEAST: Duration = Duration::from_secs(1);
/// The reference's share of a sweep; it may take all of it, and the grace, until p95 and p99 are seen.
const REFERENCE_SHARE: f64 = 0.4;
/// Calls after which a median has an interval.
const MEDIAN_CALLS: f64 = 8.0;

/// Time to share out over points that are not all known yet. The default has no end.
#[derive(Clone, Copy, Default, Debug)]
pub struct Budget {
    pub(super) end: Option<Instant>,
    /// How much longer the reference of a sweep may go on for the calls with which p95 and p99 are seen.
    grace: Duration,
}

impl Budget {
    /// A budget that begins now.
    pub fn new(time: Duration, grace: Duration) -> Self {
        Self { end: Some(Instant::now() + time), grace }
    }

    /// The next point's slice: this share of what is left, and at most `most` of it, but enough to be worth starting.
    pub(super) fn slice(&self, share: f64, most: f64) -> Option<Slice> {
        let now = Instant::now();
        let left = self.end?.saturating_duration_since(now);
        let part = |share: f64| now + left.mul_f64(share.clamp(0.0, 1.0)).max(LEAST).min(left);
        Some(Slice { share: part(share), end: part(most.max(share)) })
    }

    /// The slice of a sweep's reference.
    pub(super) fn reference(&self) -> Option<Slice> {
        let slice = self.slice(REFERENCE_SHARE, 1.0)?;
        Some(Slice { end: slice.end + self.grace, ..slice })
    }

    /// The slice of the next of about `left` points, which may take the whole slice until its median has an interval.
    pub(super) fn share(&self, left: usize) -> Option<Slice> {
        self.slice(1.0 / left.max(1) as f64, 1.0)
    }

    /// This share of the time that is left.
    pub(super) fn part(&self, share: f64) -> Self {
        Self { end: self.left().map(|left| Instant::now() + left.mul_f64(share)), ..*self }
    }

    pub(super) fn left(&self) -> Option<Duration> {
        Some(self.end?.saturating_duration_since(Instant::now()))
    }

    pub(super) fn is_spent(&self) -> bool {
        self.left().is_some_and(|left| left < LEAST)
    }

    /// Whether enough is left for the calls of one more point, at the speed of those before: more calls in flight do
    /// not make a server slower than it was.
    pub(super) fn affords(&self, concurrency: u32, points: &[Point]) -> bool {
        let Some(left) = self.left() else { return true };
        let rates = points.iter().filter_map(|p| p.requests_per_s.map(|r| r.value));
        let calls = f64::from(concurrency) + MEDIAN_CALLS;
        left >= LEAST && left.as_secs_f64() * rates.fold(0.0, f64::max) >= calls
    }
}
