//! Busy waiting, where it pays: a thread that sleeps wakes up tens of µs late, which shows in latencies of that order.
//! Where answers take longer, busy waiting costs next to nothing, since the client hardly tries it.

/// Longest busy wait.
pub(super) const AWAKE_NS: u64 = 100_000;
/// Most calls in flight for which a busy wait pays: with more, a late wake-up finds several answers at once.
pub(super) const AWAKE_IN_FLIGHT: usize = 4;
/// After a busy wait that did not pay, the next is tried after twice as many waits as before, at most 2 to this power.
const MAX_ASLEEP: u32 = 10;

/// Decides whether to wait awake, from how often that paid before.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// Busy waits in a row that did not pay.
    failures: u32,
    /// Waits to sleep through before the next busy wait.
    asleep: u32,
    /// Whether the machine has a single core: a busy wait would keep a server on it from answering.
    alone: bool,
}

impl Awake {
    /// A fresh state for this machine.
    pub fn new() -> Self {
        Self { alone: std::thread::available_parallelism().is_ok_and(|n| n.get() == 1), ..Self::default() }
    }

    /// Whether to stay awake through the wait that begins.
    pub fn pays(&mut self) -> bool {
        self.asleep = self.asleep.saturating_sub(1);
        self.asleep == 0 && !self.alone
    }

    /// Learns from whether something came during the busy wait.
    pub fn learn(&mut self, paid: bool) {
        self.failures = if paid { 0 } else { (self.failures + 1).min(MAX_ASLEEP) };
        self.asleep = (1 << self.failures) - 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staying_awake_is_given_up_where_it_does_not_pay() {
        let mut awake = Awake::default();
        let waits = 100_000;
        let tried = (0..waits).filter(|_| awake.pays()).count();
        assert_eq!(tried, waits, "as long as nothing was learned");
        let mut tried = 0;
        for _ in 0..waits {
            if awake.pays() {
                awake.learn(false);
                tried += 1;
            }
        }
        assert!((90..200).contains(&tried), "{tried} of {waits} waits");
        while !awake.pays() {}
        awake.learn(true);
        assert!((0..10).all(|_| awake.pays()), "one success and it is tried again at once");
        let mut alone = Awake { alone: true, ..Awake::default() };
        assert!(!alone.pays());
    }
}
