//! How fast the writes of a running request are, through several callers at once.

use crate::documents as docs;
use modelmeter_common::{RequestId, task::Task};
use modelmeter_coordinator::hub::{Hub, Inserted};
use std::{future::Future, sync::Arc, time::Instant};

/// Writes a second.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    pub swaps_per_s: f64,
    pub parts_per_s: f64,
}

/// Each of `callers` swaps its own task and inserts its own parts, `n` times each.
pub async fn speed(hub: &Arc<dyn Hub>, callers: u32, n: u32) -> Speed {
    let request = RequestId::random();
    let tasks: Vec<Task> = (0..callers).map(|order| docs::task(request, order)).collect();
    hub.insert_tasks(&tasks).await.unwrap();
    let swaps_per_s = rate(n, &tasks, |mut task| {
        let hub = hub.clone();
        async move {
            for _ in 0..n {
                let next = Task { revision: task.revision + 1, ..task.clone() };
                assert!(hub.swap_task(&task, &next).await.unwrap());
                task = next;
            }
        }
    });
    let swaps_per_s = swaps_per_s.await;
    let parts_per_s = rate(n, &tasks, |task| {
        let hub = hub.clone();
        async move {
            for seq in 0..n {
                assert_eq!(hub.insert_part(&docs::part(&task, 1, seq), "00").await.unwrap(), Inserted::New);
            }
        }
    });
    Speed { swaps_per_s, parts_per_s: parts_per_s.await }
}

async fn rate<F: Future<Output = ()> + Send + 'static>(n: u32, tasks: &[Task], caller: impl Fn(Task) -> F) -> f64 {
    let started = Instant::now();
    let callers: Vec<_> = tasks.iter().map(|task| tokio::spawn(caller(task.clone()))).collect();
    for caller in callers {
        caller.await.unwrap();
    }
    f64::from(n) * tasks.len() as f64 / started.elapsed().as_secs_f64()
}
