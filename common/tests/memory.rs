//! A series takes no more memory after ten million calls than after one million.

use modelmeter_common::stats::series::{Batch, Series};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The system's allocator, with a count of the bytes that are in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all is handed on to the system's allocator as it came; counting touches no memory of its users.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: `at` was allocated by the system's allocator with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// 50,000 calls a second, in the windows that the series asks for. The most bytes that were in use meanwhile.
fn push(series: &mut Series, calls: u64) -> usize {
    const CALL_NS: u64 = 20_000;
    MOST.store(IN_USE.load(Relaxed), Relaxed);
    let (until, mut window) = (series.requests() + calls, Batch::default());
    while series.requests() < until {
        while window.duration_ns < series.window_ns() {
            window.record(100_000 + (window.duration_ns / 7) % 1_000_000);
            window.duration_ns += CALL_NS;
        }
        series.push(&window);
        window.latency.clear();
        window.latency_sum_ns = 0;
        window.duration_ns = 0;
    }
    MOST.load(Relaxed)
}

#[test]
fn memory_is_flat_through_ten_million_calls() {
    let mut series = Series::default();
    let first = push(&mut series, 1_000_000);
    let rest = push(&mut series, 9_000_000);
    println!("{:.1} MB in the first million, {:.1} MB in the other nine", first as f64 / 1e6, rest as f64 / 1e6);
    assert!(series.requests() >= 10_000_000 && series.batches().len() < 64);
    assert!(rest <= first, "{rest} bytes after {first}");
    assert!(rest < 16_000_000, "{rest} bytes");
}
