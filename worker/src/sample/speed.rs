//! How fast the engine's cores were while a point ran: a little fixed work on each of them now and then.
//!
//! Other virtual machines, a busy sibling thread, heat and power limits slow a core down without a trace in the host's CPU
//! times. The work runs only where a core has nothing else to do (`SCHED_IDLE`), and is timed by the thread's CPU time, in
//! which waiting does not count.

use modelmeter_meter::threads::{pin_this_thread, rest_while_others_work, thread_cpu_ns};
use std::{
    hint::black_box,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

/// From one round over the cores to the next.
const ROUND: Duration = Duration::from_millis(100);
/// CPU time of the work on each core in a round.
const WORK: Duration = Duration::from_micros(200);
/// Rounds in a window, whose median is taken: one round alone may have met an interrupt.
const WINDOW: usize = 5;
/// With fewer windows than this on a core there is no range.
const MIN_WINDOWS: usize = 4;
/// Rounds that are kept: an hour of them.
const MAX_ROUNDS: usize = 36_000;
/// Elements that the work goes over: they stay in the core's own cache.
const ELEMENTS: usize = 2048;

/// The measuring of speed while a point runs. Ends when dropped.
#[derive(Debug)]
pub(super) struct Speed {
    shared: Arc<Shared>,
    thread: Option<Thread>,
}

#[derive(Debug)]
struct Shared {
    ended: AtomicBool,
    /// CPU time of each piece of work in ns, by core.
    times: Mutex<Vec<Vec<u64>>>,
}

impl Speed {
    /// Starts measuring on these cores.
    pub fn begin(cores: &[u32]) -> Self {
        let times = Mutex::new(vec![Vec::new(); cores.len()]);
        let shared = Arc::new(Shared { ended: AtomicBool::new(false), times });
        let (seen, cores) = (shared.clone(), cores.to_vec());
        let started = thread::Builder::new().name("speed".into()).spawn(move || rounds(&cores, &seen));
        let thread = started.ok().map(|handle| handle.thread().clone());
        Self { shared, thread }
    }

    /// The range so far: the 5th and the 95th percentile of the speed over its median.
    pub fn range(&self) -> Option<[f64; 2]> {
        range(&self.shared.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Speed {
    /// Does not wait for the thread, which may have to wait for a core itself.
    fn drop(&mut self) {
        self.shared.ended.store(true, Relaxed);
        if let Some(thread) = &self.thread {
            thread.unpark();
        }
    }
}

/// Rounds over the cores until the end.
fn rounds(cores: &[u32], shared: &Shared) {
    rest_while_others_work();
    let repeats = repeats();
    let mut data = [1.0; ELEMENTS];
    for _ in 0..MAX_ROUNDS {
        let begun = Instant::now();
        for (core, &number) in cores.iter().enumerate() {
            if shared.ended.load(Relaxed) {
                return;
            }
            pin_this_thread(&[number]);
            let ns = work(&mut data, repeats);
            shared.times.lock().unwrap_or_else(PoisonError::into_inner)[core].push(ns);
        }
        while begun.elapsed() < ROUND && !shared.ended.load(Relaxed) {
            thread::park_timeout(ROUND.saturating_sub(begun.elapsed()));
        }
    }
}

/// How often the data is gone over to take about [`WORK`] on this machine: the same for all points of this process.
fn repeats() -> u32 {
    static REPEATS: OnceLock<u32> = OnceLock::new();
    *REPEATS.get_or_init(|| {
        let mut data = [1.0; ELEMENTS];
        let mut once = || work(&mut data, 16) / 16;
        let fastest_ns = (0..8).map(|_| once()).min().unwrap_or(0).max(1);
        (WORK.as_nanos() as u64 / fastest_ns).clamp(1, 100_000) as u32
    })
}

/// Does the work; gives its CPU time in ns.
fn work(data: &mut [f32; ELEMENTS], repeats: u32) -> u64 {
    let begun = thread_cpu_ns();
    for _ in 0..repeats {
        // Stays about 1 for ever, and is not known to the compiler.
        data.iter_mut().for_each(|x| *x = x.mul_add(0.999, 0.001));
        black_box(&mut *data);
    }
    thread_cpu_ns() - begun
}

/// The 5th and 95th percentile of all windows' speeds, each over the median of its own core, since cores may differ; none
/// where no core has windows enough.
fn range(times: &[Vec<u64>]) -> Option<[f64; 2]> {
    let mut speeds = Vec::new();
    for core in times {
        let windows: Vec<f64> = core.chunks_exact(WINDOW).map(|window| 1.0 / median(window).max(1.0)).collect();
        if windows.len() >= MIN_WINDOWS {
            let mut sorted = windows.clone();
            sorted.sort_by(f64::total_cmp);
            let median = at(&sorted, 0.5);
            speeds.extend(windows.into_iter().map(|speed| speed / median));
        }
    }
    speeds.sort_by(f64::total_cmp);
    (!speeds.is_empty()).then(|| [at(&speeds, 0.05), at(&speeds, 0.95)])
}

fn median(times: &[u64]) -> f64 {
    let mut sorted: Vec<f64> = times.iter().map(|ns| *ns as f64).collect();
    sorted.sort_by(f64::total_cmp);
    at(&sorted, 0.5)
}

/// The nearest rank's value of a sorted list that is not empty.
fn at(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(windows: &[u64]) -> Vec<u64> {
        windows.iter().flat_map(|ns| [*ns; WINDOW]).collect()
    }

    #[test]
    fn a_steady_machine_has_no_range_and_a_slow_half_has_one() {
        assert_eq!(range(&[core(&[200; 20])]), Some([1.0, 1.0]));
        let halves = [[200; 10], [300; 10]].concat();
        let [low, high] = range(&[core(&halves)]).unwrap();
        assert!((high / low - 1.5).abs() < 1e-9, "{low} to {high}");
    }

    #[test]
    fn cores_that_differ_are_no_change() {
        assert_eq!(range(&[core(&[200; 20]), core(&[400; 20])]), Some([1.0, 1.0]));
    }

    #[test]
    fn what_meets_single_rounds_does_not_count() {
        let mut times = core(&[200; 20]);
        times.iter_mut().step_by(WINDOW).for_each(|ns| *ns = 900);
        assert_eq!(range(&[times]), Some([1.0, 1.0]));
    }

    #[test]
    fn a_short_point_has_no_range() {
        assert_eq!(range(&[core(&[200; MIN_WINDOWS - 1])]), None);
        assert_eq!(range(&[]), None);
        assert!(range(&[core(&[200; MIN_WINDOWS]), Vec::new()]).is_some(), "a core that was never free says nothing");
    }

    #[test]
    fn the_work_takes_the_time_that_it_is_to_take() {
        let mut data = [1.0; ELEMENTS];
        let ns = (0..20).map(|_| work(&mut data, repeats())).min().unwrap();
        let wanted = WORK.as_nanos() as u64;
        assert!((wanted / 3..=wanted * 3).contains(&ns), "{ns} ns");
    }

    #[test]
    fn the_cores_of_this_process_are_measured_until_the_end() {
        let cores = modelmeter_meter::threads::available_cores();
        let speed = Speed::begin(&cores[..1]);
        let deadline = Instant::now() + Duration::from_secs(60);
        while speed.range().is_none() {
            assert!(Instant::now() < deadline, "no range yet");
            thread::park_timeout(ROUND);
        }
        let [low, high] = speed.range().unwrap();
        assert!(low > 0.0 && low <= 1.0 && high >= 1.0, "{low} to {high}");
        let shared = speed.shared.clone();
        drop(speed);
        while Arc::strong_count(&shared) > 1 {
            assert!(Instant::now() < deadline, "its thread goes on");
            thread::park_timeout(ROUND);
        }
    }
}
