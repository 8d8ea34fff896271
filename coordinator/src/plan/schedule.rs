//! The choice of the next task among requests, purely: stride scheduling, so that a request of 5 tasks is not
//! stuck behind one of 5,000 and priorities are shares. Source: Waldspurger and Weihl, "Stride Scheduling", 1995.

use modelmeter_common::RequestId;
use std::collections::HashMap;

/// The passes of all requests: the service that each has had so far.
#[derive(Default, Debug)]
pub struct Stride {
    passes: HashMap<RequestId, f64>,
    /// The pass of the last choice: where a new request starts, so that it cannot make up for its absence.
    now: f64,
}

impl Stride {
    /// The request to serve next among these (id, priority 1 to 100); charges it one task.
    pub fn choose(&mut self, candidates: &[(RequestId, u32)]) -> Option<RequestId> {
        let pass = |&(id, _): &(RequestId, u32)| self.passes.get(&id).copied().unwrap_or(self.now).max(self.now - 1.0);
        let &(id, priority) = candidates.iter().min_by(|a, b| pass(a).total_cmp(&pass(b)).then(a.0.cmp(&b.0)))?;
        let had = pass(&(id, priority));
        self.now = had;
        self.passes.insert(id, had + 1.0 / f64::from(priority.max(1)));
        Some(id)
    }

    /// Forgets all requests but these.
    pub fn keep(&mut self, live: impl Fn(RequestId) -> bool) {
        self.passes.retain(|id, _| live(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn shares_follow_priorities_and_a_late_request_is_served_at_once() {
        let (a, b, c) = (RequestId(Uuid::from_u128(1)), RequestId(Uuid::from_u128(2)), RequestId(Uuid::from_u128(3)));
        let mut stride = Stride::default();
        let chosen: Vec<_> = (0..400).filter_map(|_| stride.choose(&[(a, 30), (b, 10)])).collect();
        let share = chosen.iter().filter(|id| **id == a).count();
        assert!((295..=305).contains(&share), "{share} of 400");
        let next: Vec<_> = (0..4).filter_map(|_| stride.choose(&[(a, 10), (c, 10)])).collect();
        assert_eq!(next.iter().filter(|id| **id == c).count(), 2, "the newcomer gets its share, no more: {next:?}");
        assert_eq!(stride.choose(&[]), None);
    }
}
