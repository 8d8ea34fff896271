//! Pools, purely: slots with equal abilities share one queue. Never a queue per device × engine: prefetch is
//! per consumer, and a slot would hoard.

use modelmeter_common::{
    device::{self, CPU_CLASS},
    status::WorkerDoc,
    task::Task,
    wire::sha256_hex,
};
use std::collections::BTreeMap;

/// Slots with equal abilities.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    /// Device class, a dot, and the start of the hash of its engines: also the end of its queue's name.
    pub id: String,
    /// The device class of its slots.
    pub class: String,
    /// The engines that each of its slots can run, sorted.
    pub engines: Vec<String>,
    /// How many slots it has.
    pub slots: u32,
}

/// The id of the pool of slots with this class and these engines.
pub fn id(class: &str, engines: &[String]) -> String {
    let mut engines = engines.to_vec();
    engines.sort();
    format!("{class}.{}", &sha256_hex(engines.join(",").as_bytes())[..8])
}

/// The pools that these workers form, in the order of their ids.
pub fn pools(workers: &[WorkerDoc]) -> Vec<Pool> {
    let mut pools: BTreeMap<String, Pool> = BTreeMap::new();
    for slot in workers.iter().flat_map(|worker| &worker.slots) {
        let pool = pools.entry(slot.pool.clone()).or_insert_with(|| {
            let mut engines = slot.engines.clone();
            engines.sort();
            Pool { id: slot.pool.clone(), class: slot.device.class.clone(), engines, slots: 0 }
        });
        pool.slots += 1;
    }
    pools.into_values().collect()
}

/// Whether a slot of this class with these engines can run the task.
pub fn fits(task: &Task, class: &str, engines: &[String]) -> bool {
    device::selects(&task.cell.device_class, class) && engines.contains(&task.cell.engine)
}

/// Whether some slot takes from the queue of this pool.
pub fn is_there(id: &str, pools: &[Pool]) -> bool {
    pools.iter().any(|pool| pool.id == id)
}

/// How many slots can run one of these engines on one of these device classes.
pub fn slots(engines: &[String], device_classes: &[String], pools: &[Pool]) -> u32 {
    let can = |pool: &&Pool| {
        device_classes.iter().any(|class| device::selects(class, &pool.class))
            && engines.iter().any(|engine| pool.engines.contains(engine))
    };
    pools.iter().filter(can).map(|pool| pool.slots).sum()
}

/// Why no pool can run this engine on this device class; none if one can.
pub fn why_not(engine: &str, device_class: &str, pools: &[Pool]) -> Option<String> {
    if pools.is_empty() {
        return Some("no worker is connected".into());
    }
    let on_device: Vec<&Pool> = pools.iter().filter(|pool| device::selects(device_class, &pool.class)).collect();
    if on_device.is_empty() {
        let what = if device_class == CPU_CLASS { "a CPU slot".to_owned() } else { format!("device '{device_class}'") };
        return Some(format!("no connected worker has {what}"));
    }
    let offered = on_device.iter().any(|pool| pool.engines.iter().any(|e| e == engine));
    (!offered).then(|| format!("no connected worker offers engine '{engine}' on device '{device_class}'"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(class: &str, engines: &[&str]) -> Pool {
        let engines: Vec<String> = engines.iter().map(ToString::to_string).collect();
        Pool { id: id(class, &engines), class: class.into(), engines, slots: 1 }
    }

    #[test]
    fn the_id_does_not_depend_on_the_order_of_engines() {
        let (a, b) = (["onnx".to_owned(), "rten".to_owned()], ["rten".to_owned(), "onnx".to_owned()]);
        assert_eq!(id("cpu", &a), id("cpu", &b));
        assert_ne!(id("cpu", &a), id("cpu", &a[..1]));
    }

    #[test]
    fn slots_count_where_they_can_run_some_of_it() {
        let pools = [pool("cpu", &["onnx", "rten"]), pool("cpu", &["rten"]), pool("nvidia-a10", &["onnx", "triton"])];
        let count = |engines: &[&str], classes: &[&str]| {
            let owned = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
            slots(&owned(engines), &owned(classes), &pools)
        };
        assert_eq!((count(&["rten"], &["cpu"]), count(&["onnx"], &["cpu"])), (2, 1));
        assert_eq!((count(&["rten"], &["gpu"]), count(&["onnx", "rten"], &["gpu", "cpu"])), (0, 3));
    }

    #[test]
    fn says_what_is_missing() {
        let pools = [pool("cpu", &["rten"])];
        assert_eq!(why_not("rten", "cpu", &pools), None);
        assert!(why_not("onnx", "cpu", &pools).unwrap().contains("engine 'onnx'"));
        assert!(why_not("rten", "gpu", &pools).unwrap().contains("device 'gpu'"));
        assert!(why_not("rten", "cpu", &[]).unwrap().contains("no worker"));
    }
}
