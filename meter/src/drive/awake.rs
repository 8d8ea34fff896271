//! Busy waiting, where it pays: a thread that sleeps wakes up tens of µs late, which shows in latencies of that order.
//! Where answers take longer, busy waiting costs next to nothing, since the client hardly tries it.

/// For at most this long.
pub(super) const AWAKE_NS: u64 = 100_000;
/// With more calls in flight a late awakening is made up for by what came meanwhile.
pub(super) const AWAKE_IN_FLIGHT: usize = 4;
/// Where staying awake did not pay, it is next tried after twice as many waits as before, at most 2 to this power.
const MAX_ASLEEP: u32 = 10;

/// Whether waiting awake pays: learned from whether it did.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// In a row.
    failures: u32,
    /// Waits to sleep through.
    asleep: u32,
    /// Never, on a single core: nobody could answer meanwhile.
    alone: bool,
}

impl Awake {
    /// For this machine.
    pub fn new() -> Self {
        Self { alone: std::thread::available_parallelism().is_ok_and(|n| n.get() == 1), ..Self::default() }
    }

    /// Whether to stay awake through the wait that begins.
    pub fn pays(&mut self) -> bool {
        self.asleep = self.asleep.saturating_sub(1);
        self.asleep == 0 && !self.alone
    }

    /// What came of it.
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
