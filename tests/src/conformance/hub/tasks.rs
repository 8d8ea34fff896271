//! Tasks: idempotent inserts, filters, counts, and the compare-and-swap that everything rests on.

use super::race;
use crate::documents as docs;
use modelmeter_common::{
    RequestId, TaskId, Timestamp,
    model::Format,
    task::{Task, TaskState},
};
use modelmeter_coordinator::hub::{Hub, TaskCounts, TaskFilter, TaskKind};
use std::sync::Arc;

/// A request's id and `n` tasks of it, in the hub.
async fn stored(hub: &dyn Hub, n: u32) -> (RequestId, Vec<Task>) {
    let request = RequestId::random();
    let tasks: Vec<Task> = (0..n).map(|order| docs::task(request, order)).collect();
    assert_eq!(hub.insert_tasks(&tasks).await.unwrap(), u64::from(n));
    (request, tasks)
}

fn of(request: RequestId) -> TaskFilter {
    TaskFilter { request: Some(request), ..TaskFilter::default() }
}

pub async fn inserts_ignore_duplicates(hub: &dyn Hub) {
    assert_eq!(hub.insert_tasks(&[]).await.unwrap(), 0);
    let request = RequestId::random();
    let mut tasks: Vec<Task> = (0..2100).map(|order| docs::task(request, order)).collect();
    assert_eq!(hub.insert_tasks(&tasks[..50]).await.unwrap(), 50);
    tasks.reverse();
    assert_eq!(hub.insert_tasks(&tasks).await.unwrap(), 2050, "the rest, in more than one batch");
    assert_eq!(hub.insert_tasks(&tasks).await.unwrap(), 0);
    let altered = Task { revision: 7, ..tasks[0].clone() };
    assert_eq!(hub.insert_tasks(&[altered]).await.unwrap(), 0);
    assert_eq!(hub.task(tasks[0].id).await.unwrap(), Some(tasks[0].clone()), "what was there stays");
    assert_eq!(hub.task(TaskId(request.0)).await.unwrap(), None);
    tasks.reverse();
    assert_eq!(hub.tasks(&of(request)).await.unwrap(), tasks, "in order");
    assert_eq!(hub.count_tasks(request).await.unwrap(), [(TaskState::Waiting, 2100)].into());
}

pub async fn filters(hub: &dyn Hub) {
    let (request, mut tasks) = stored(hub, 6).await;
    let (other, _) = stored(hub, 2).await;
    let now = docs::at(10);
    let steps: [fn(&Task, Timestamp) -> Task; 4] = [
        |task, now| task.queue(&"pool-a".into(), now).unwrap(),
        |task, now| task.claim(&"pool-a".into(), docs::lease(1), now).unwrap(),
        |task, now| task.claim(&"pool-b".into(), docs::lease(2), now).unwrap(),
        |task, now| task.cancel("stopped", now).unwrap(),
    ];
    for (task, step) in tasks.iter_mut().zip(steps) {
        let next = step(task, now);
        assert!(hub.swap_task(task, &next).await.unwrap());
        *task = next;
    }
    let orders = async |filter: TaskFilter| -> Vec<u32> {
        hub.tasks(&filter).await.unwrap().iter().map(|task| task.order).collect()
    };
    use TaskState::*;
    assert_eq!(orders(TaskFilter { states: vec![Claimed], ..of(request) }).await, [1, 2]);
    assert_eq!(orders(TaskFilter { states: vec![Waiting, Cancelled, Queued], ..of(request) }).await, [0, 3, 4, 5]);
    assert_eq!(orders(TaskFilter { states: vec![Failed], ..of(request) }).await, [0; 0]);
    assert_eq!(orders(TaskFilter { limit: Some(3), ..of(request) }).await, [0, 1, 2]);
    assert_eq!(orders(TaskFilter { limit: Some(0), ..of(request) }).await, [0; 0]);
    let in_pool = |pool: &str| TaskFilter { pool: Some(pool.into()), ..of(request) };
    assert_eq!(orders(in_pool("pool-a")).await, [0, 1]);
    assert_eq!(orders(TaskFilter { states: vec![Claimed], ..in_pool("pool-b") }).await, [2]);
    assert_eq!(orders(in_pool("pool-c")).await, [0; 0]);
    let key = Some(tasks[0].deployment_key.clone());
    let same = TaskFilter { deployment_key: key, states: vec![Waiting], limit: Some(1), ..of(request) };
    assert_eq!(orders(same).await, [4]);
    assert_eq!(orders(TaskFilter { deployment_key: Some("none".to_owned()), ..of(request) }).await, [0; 0]);
    let counts = [(Waiting, 2), (Queued, 1), (Claimed, 2), (Cancelled, 1)].into();
    assert_eq!(hub.count_tasks(request).await.unwrap(), counts);
    assert_eq!(hub.count_tasks(RequestId::random()).await.unwrap(), TaskCounts::new());
    over_requests(hub, request, other).await;
}

/// The first waiting ones of some kinds, whatever else waits, as a plain filter over the list has them.
pub async fn waiting_ones_by_kind(hub: &dyn Hub) {
    let request = RequestId::random();
    let engines = ["onnx", "my \"own\" größe", "endpoint"];
    let mut tasks: Vec<Task> = (0..60_u32)
        .map(|order| {
            let mut task = docs::task(request, order);
            task.cell.engine = engines[order as usize % 3].to_owned();
            task.cell.device_class = ["cpu", "gpu"][order as usize / 3 % 2].to_owned();
            match task.cell.artifact.as_mut() {
                Some(_) if task.cell.engine == "endpoint" => task.cell.artifact = None,
                Some(artifact) if order % 5 == 0 => artifact.format = Format::Triton,
                _ => {}
            }
            if order % 7 == 0 {
                task.cell.inspector = "photos".to_owned();
            }
            task
        })
        .collect();
    // Stored in no order.
    tasks.rotate_left(17);
    assert_eq!(hub.insert_tasks(&tasks).await.unwrap(), 60);
    let (other, _) = stored(hub, 3).await;
    for task in &mut tasks {
        let next = match task.order % 11 {
            0 => task.queue(&"p".into(), docs::at(1)).unwrap(),
            1 => task.cancel("stopped", docs::at(1)).unwrap(),
            _ => continue,
        };
        assert!(hub.swap_task(task, &next).await.unwrap());
        *task = next;
    }
    tasks.sort_by_key(|task| task.order);
    let kind = |engine: &str, format, class: &str, inspector: &str| TaskKind {
        engine: engine.to_owned(),
        format,
        device_class: class.to_owned(),
        inspector: inspector.to_owned(),
    };
    let kinds = [
        kind("onnx", Some(Format::Onnx), "cpu", "default"),
        kind("onnx", Some(Format::Triton), "cpu", "default"),
        kind(engines[1], Some(Format::Onnx), "gpu", "default"),
        kind(engines[1], Some(Format::Onnx), "gpu", "photos"),
        kind("endpoint", None, "gpu", "default"),
        kind("onnx", None, "cpu", "default"),
        kind("none", Some(Format::Onnx), "cpu", "default"),
    ];
    let is = |task: &Task, kind: &TaskKind| {
        let cell = &task.cell;
        let format = cell.artifact.as_ref().map(|artifact| artifact.format);
        (&cell.engine, &cell.device_class, &cell.inspector) == (&kind.engine, &kind.device_class, &kind.inspector)
            && format == kind.format
    };
    for (of, limit) in
        [(&kinds[..], 100), (&kinds[..], 7), (&kinds[..1], 2), (&kinds[4..5], 100), (&kinds[5..], 9), (&[], 9)]
    {
        let waits = |task: &&Task| task.state == TaskState::Waiting && of.iter().any(|kind| is(task, kind));
        let wanted: Vec<Task> = tasks.iter().filter(waits).take(limit as usize).cloned().collect();
        assert_eq!(hub.waiting_tasks(request, of, limit).await.unwrap(), wanted, "{limit} of {of:?}");
    }
    assert_eq!(hub.waiting_tasks(request, &kinds, 0).await.unwrap(), vec![]);
    let theirs = hub.waiting_tasks(other, &[kind("rten", Some(Format::Onnx), "cpu", "default")], 2).await.unwrap();
    assert_eq!(theirs.iter().map(|task| (task.request_id, task.order)).collect::<Vec<_>>(), [(other, 0), (other, 1)]);
}

async fn over_requests(hub: &dyn Hub, request: RequestId, other: RequestId) {
    let filter = TaskFilter { states: vec![TaskState::Waiting, TaskState::Queued], ..TaskFilter::default() };
    let all = hub.tasks(&filter).await.unwrap();
    let places: Vec<_> = all.iter().map(|task| (task.request_id, task.order)).collect();
    assert!(places.is_sorted(), "in the order of request, then place");
    for (request, n) in [(request, 3), (other, 2)] {
        assert_eq!(places.iter().filter(|(of, _)| *of == request).count(), n);
    }
}

pub async fn one_swap_of_many_wins(hub: &Arc<dyn Hub>) {
    let (_, tasks) = stored(&**hub, 1).await;
    let mut current = tasks[0].clone();
    for round in 1..=5 {
        let old = current.clone();
        let winners = race(hub, 32, |hub, i| {
            let (old, mut new) = (old.clone(), old.clone());
            new.revision += 1;
            new.reason = Some(format!("racer {i}"));
            async move { hub.swap_task(&old, &new).await.unwrap() }
        });
        assert_eq!(winners.await, 1, "round {round}");
        current = hub.task(old.id).await.unwrap().unwrap();
        assert_eq!(current.revision, old.revision + 1);
    }
}

pub async fn swaps_move_a_task_between_filters(hub: &dyn Hub) {
    let (request, tasks) = stored(hub, 1).await;
    let waiting = &tasks[0];
    let queued = waiting.queue(&"p".into(), docs::at(1)).unwrap();
    let claimed = queued.claim(&"p".into(), docs::lease(3), docs::at(2)).unwrap();
    assert!(!hub.swap_task(&queued, &claimed).await.unwrap(), "it was not queued");
    assert!(hub.swap_task(waiting, &queued).await.unwrap());
    assert!(!hub.swap_task(waiting, &claimed).await.unwrap(), "a change came first");
    assert!(hub.swap_task(&queued, &claimed).await.unwrap());
    assert_eq!(hub.task(waiting.id).await.unwrap(), Some(claimed.clone()), "lease and times to the millisecond");
    let queued = TaskFilter { states: vec![TaskState::Queued], ..of(request) };
    assert_eq!(hub.tasks(&queued).await.unwrap(), vec![]);
    let absent = docs::task(RequestId::random(), 0);
    let next = absent.queue(&"p".into(), docs::at(1)).unwrap();
    assert!(!hub.swap_task(&absent, &next).await.unwrap());
    assert_eq!(hub.task(absent.id).await.unwrap(), None, "a swap never inserts");
}
