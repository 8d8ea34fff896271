//! How steady the cores are. Other virtual machines on the same physical cores, and clocks that move, slow down whatever
//! runs here, and no counter of this machine shows it.

use std::{
    hint::black_box,
    thread,
    time::{Duration, Instant},
};

const TIME: Duration = Duration::from_secs(2);
const SLICE: Duration = Duration::from_millis(10);
/// Fits into the smallest cache of any core, and keeps its arithmetic units busy.
const FLOATS: usize = 2048;

/// How much faster the fastest twentieth of the slices was than the slowest, every core computing: 1 if steady.
pub(super) fn spread(cores: u32) -> f64 {
    let computing: Vec<_> = (0..cores).map(|_| thread::spawn(paces)).collect();
    // Cores may differ; each is compared with itself.
    let spreads = computing.into_iter().filter_map(|core| Some(ratio(core.join().ok()?)));
    spreads.fold(1.0, f64::max)
}

/// Rounds in each slice.
fn paces() -> Vec<u32> {
    let (mut floats, begun, mut paces) = ([1.0f32; FLOATS], Instant::now(), Vec::new());
    while begun.elapsed() < TIME {
        let (slice, mut rounds) = (Instant::now(), 0);
        while slice.elapsed() < SLICE {
            for _ in 0..16 {
                black_box(&mut floats).iter_mut().for_each(|x| *x = *x * 0.999 + 0.001);
            }
            rounds += 1;
        }
        paces.push(rounds);
    }
    paces
}

fn ratio(mut paces: Vec<u32>) -> f64 {
    paces.sort_unstable();
    let at = |share: f64| f64::from(paces[(share * (paces.len() - 1) as f64) as usize]);
    if paces.is_empty() { 1.0 } else { at(0.95) / at(0.05).max(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spell_of_half_speed_shows_and_a_single_pause_does_not() {
        assert_eq!(ratio(vec![100; 200]), 1.0);
        assert_eq!(ratio((0..200).map(|i| if i == 7 { 1 } else { 100 }).collect()), 1.0);
        assert_eq!(ratio((0..200).map(|i| if i < 40 { 50 } else { 100 }).collect()), 2.0);
        assert_eq!(ratio(Vec::new()), 1.0);
    }
}
