//! Merging: in any grouping and any order the same bytes, and the same as one recorder of all samples.

#[path = "support/laws.rs"]
#[allow(dead_code)]
mod laws;

use laws::Rng;
use modelmeter_common::stats::Histogram;

const CASES: u64 = 50;

/// Some latencies over the whole range of what a histogram holds, beyond it too, and sometimes none.
fn latencies_ns(rng: &mut Rng) -> Vec<u64> {
    let count = (rng.uniform() * 400.0) as usize * usize::from(rng.uniform() > 0.1);
    (0..count).map(|_| rng.log_normal(5e6, 5.0) as u64).collect()
}

fn recorded(latencies_ns: &[u64]) -> Histogram {
    let mut histogram = Histogram::default();
    latencies_ns.iter().for_each(|ns| histogram.record(*ns));
    histogram
}

fn sum<'a>(histograms: impl IntoIterator<Item = &'a Histogram>) -> Histogram {
    histograms.into_iter().fold(Histogram::default(), |mut sum, h| {
        sum.merge(h);
        sum
    })
}

#[test]
fn merging_is_commutative_and_associative() {
    for seed in 0..CASES {
        let mut rng = Rng::new(seed);
        let [a, b, c] = [(); 3].map(|()| recorded(&latencies_ns(&mut rng)));
        let bytes = |h: Histogram| h.to_bytes();
        assert_eq!(bytes(sum([&a, &b])), bytes(sum([&b, &a])), "seed {seed}");
        assert_eq!(bytes(sum([&sum([&a, &b]), &c])), bytes(sum([&a, &sum([&b, &c])])), "seed {seed}");
        assert_eq!(bytes(sum([&a, &Histogram::default()])), bytes(a), "seed {seed}");
    }
}

#[test]
fn eight_workers_merged_are_bit_identical_to_one_recorder() {
    for seed in 0..CASES {
        let mut rng = Rng::new(seed);
        let mut workers = vec![Vec::new(); 8];
        let all: Vec<u64> = (0..10).flat_map(|_| latencies_ns(&mut rng)).collect();
        for ns in &all {
            workers[(rng.uniform() * 7.999) as usize].push(*ns);
        }
        // Over the wire, as the coordinator gets them.
        let parts: Vec<Histogram> = workers
            .iter()
            .map(|ns| Histogram::from_bytes(&recorded(ns).to_bytes()).expect("what we wrote reads back"))
            .collect();
        let mut order: Vec<&Histogram> = parts.iter().collect();
        for i in (1..order.len()).rev() {
            order.swap(i, (rng.uniform() * (i as f64 + 0.999)) as usize);
        }
        assert_eq!(sum(order).to_bytes(), recorded(&all).to_bytes(), "seed {seed}");
    }
}
