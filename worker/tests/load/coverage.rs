//! The law's own value lies inside the interval as often as it should, in real runs. (Simulated runs, thousands of them:
//! `common`'s tests and bench.)

use super::{closed, laws, laws::ms, mock::Mock, rules, run, turn};
use modelmeter_common::{part::Point, stats::Interval};

const RUNS: u64 = 60;
/// Runs at the same time, each with a server of its own: they wait, and hardly work.
const AT_ONCE: u64 = 5;
/// Of 60 intervals that hold 95 % of the time, fewer than this hold with less than one chance in 500.
const FEWEST: usize = 51;
const MEDIAN_MS: f64 = 20.0;
const SIGMA: f64 = 0.3;

async fn point(seed: u64) -> Point {
    let mock = Mock::start(laws::log_normal(ms(MEDIAN_MS as u64), SIGMA, seed));
    run(&mock, closed(8), &rules(600)).await.unwrap()
}

#[tokio::test]
async fn intervals_hold_the_laws_own_values() {
    let _turn = turn().await;
    let mut points = Vec::new();
    for first in (0..RUNS).step_by(AT_ONCE as usize) {
        points.extend(futures::future::join_all((first..first + AT_ONCE).map(point)).await);
    }
    let mean_s = MEDIAN_MS / 1e3 * (SIGMA * SIGMA / 2.0).exp();
    let holding = |truth: f64, of: &dyn Fn(&Point) -> Option<Interval>| {
        let holds = |i: &Interval| i.ci95[0] <= truth && truth <= i.ci95[1];
        points.iter().filter_map(of).filter(holds).count()
    };
    let percentile = |q: f64| move |p: &Point| p.percentiles.iter().find(|p| p.q == q).and_then(|p| p.ms);
    let found = [
        ("throughput", holding(8.0 / mean_s, &|p| p.requests_per_s)),
        ("p50", holding(MEDIAN_MS, &percentile(50.0))),
        ("p90", holding(MEDIAN_MS * (SIGMA * 1.281_552).exp(), &percentile(90.0))),
    ];
    println!("of {RUNS} intervals hold: {found:?}");
    assert!(found.iter().all(|(_, n)| *n >= FEWEST), "{found:?}");
    // A value that is no one's median must fall outside: intervals are not all as wide as can be.
    assert!(holding(MEDIAN_MS * 1.2, &percentile(50.0)) < 10);
}
