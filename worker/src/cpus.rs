//! Which logical cores client and engines run on: disjoint ones, where they are named or there are enough, so that what
//! the client does costs the engine nothing.
//!
//! Without a word from the user the client gets a core for each slot from [`MANY`] cores a slot up, if the worker
//! launches its engines itself and has the machine for itself; with fewer nothing is pinned, since a core less for the
//! engine would change what is measured more than the client does. A CPU quota leaves fewer cores than there are: they count.

use modelmeter_common::{Problem, cgroup, device::DeviceKind};

/// Cores a slot from which the client has one of its own.
const MANY: usize = 4;

/// What decides on which cores client and engines run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// The kind of device of each slot.
    pub slots: Vec<DeviceKind>,
    /// The client's cores, where the user says so.
    pub client: Option<&'a [u32]>,
    /// The engines' cores, where the user says so.
    pub engines: Option<&'a [u32]>,
    /// Whether the worker launches all of its engines, and has the machine for itself.
    pub alone: bool,
}

/// Where everything of one worker runs.
#[derive(Debug)]
pub(crate) struct Cpus {
    /// What the client's threads are pinned to; none: wherever the system likes.
    pub client: Option<Vec<u32>>,
    /// By slot.
    pub slots: Vec<Cores>,
}

/// The cores of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Cores {
    /// What it must have for itself.
    pub locked: Vec<u32>,
    /// What its engines are pinned to.
    pub pinned: Option<Vec<u32>>,
}

/// Decides for a worker that may run on `available`, of which a CPU quota may leave it less.
///
/// # Errors
/// Cores that are not there, that two are to have alone, or too few.
pub(crate) fn split(wanted: &Wanted<'_>, available: &[u32], quota: Option<f64>) -> Result<Cpus, Problem> {
    let lists = [("client_cpus", wanted.client), ("engine_cpus", wanted.engines)];
    for (field, list) in lists {
        check_list(field, list, available)?;
    }
    let without = |taken: &[u32]| -> Vec<u32> { available.iter().copied().filter(|c| !taken.contains(c)).collect() };
    let (client, engines) = match (wanted.client.map(<[u32]>::to_vec), wanted.engines.map(<[u32]>::to_vec)) {
        (Some(client), Some(engines)) => (Some(client), engines),
        (Some(client), None) => (Some(client.clone()), without(&client)),
        (None, Some(engines)) => (Some(without(&engines)).filter(|rest| !rest.is_empty()), engines),
        (None, None) => match own_core_each(wanted, available, quota) {
            Some((engines, client)) => (Some(client.to_vec()), engines.to_vec()),
            None => (None, available.to_vec()),
        },
    };
    if let Some(core) = client.iter().flatten().find(|core| engines.contains(core)) {
        return Err(Problem::invalid("engine_cpus", format!("core {core} is the client's too")).with_hint(
            "client and engines need cores of their own: leave one of the two lists out and it is the rest",
        ));
    }
    if engines.is_empty() {
        return Err(Problem::invalid("client_cpus", "no core is left for the engines")
            .with_hint(format!("this process may run on {available:?}")));
    }
    let mut slots = share_out(&wanted.slots, &engines, quota)?;
    if engines.len() < available.len() {
        for cores in slots.iter_mut().filter(|cores| cores.pinned.is_none()) {
            cores.pinned = Some(engines.clone());
        }
    }
    // Whoever measures on the CPU has the client's cores for himself as well.
    if let Some(first) = slots.iter_mut().find(|cores| !cores.locked.is_empty()) {
        first.locked.extend(client.iter().flatten());
    }
    Ok(Cpus { client, slots })
}

fn check_list(field: &str, list: Option<&[u32]>, available: &[u32]) -> Result<(), Problem> {
    match list.and_then(|cores| cores.iter().find(|core| !available.contains(core))) {
        Some(core) => Err(Problem::invalid(field, format!("core {core} is not one that this process may run on"))
            .with_hint(format!("it may run on {available:?}"))),
        None => Ok(()),
    }
}

/// Engines' and client's cores where there are enough and the rest is up to us.
fn own_core_each<'a>(wanted: &Wanted<'_>, available: &'a [u32], quota: Option<f64>) -> Option<(&'a [u32], &'a [u32])> {
    let clients = wanted.slots.len();
    (wanted.alone && cgroup::cap(available.len(), quota) >= MANY * clients)
        .then(|| available.split_at(available.len() - clients))
}

/// Shares `available` cores out evenly over the CPU slots; a lone one has all of them and pins nothing.
///
/// # Errors
/// Too few to share out.
fn share_out(slots: &[DeviceKind], available: &[u32], quota: Option<f64>) -> Result<Vec<Cores>, Problem> {
    let n = slots.iter().filter(|kind| **kind != DeviceKind::Gpu).count();
    let usable = cgroup::cap(available.len(), quota);
    if n > usable {
        let by_quota = quota.filter(|_| usable < available.len());
        let why = by_quota.map(|cores| format!(", since a CPU quota (cgroup) leaves {cores:.2} cores to this process"));
        let message = format!("{n} CPU slots for {usable} cores{}", why.unwrap_or_default());
        return Err(Problem::invalid("devices", message).with_hint("at most one CPU slot a core"));
    }
    let mut nth = 0;
    let cores_of = |kind: &DeviceKind| match kind {
        DeviceKind::Gpu => Cores { locked: Vec::new(), pinned: None },
        DeviceKind::Cpu | DeviceKind::Remote => {
            let share = available[nth * available.len() / n..(nth + 1) * available.len() / n].to_vec();
            nth += 1;
            Cores { pinned: (n > 1).then(|| share.clone()), locked: share }
        }
    };
    Ok(slots.iter().map(cores_of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted<'a>(client: Option<&'a [u32]>, engines: Option<&'a [u32]>) -> Wanted<'a> {
        Wanted { slots: vec![DeviceKind::Cpu], client, engines, alone: true }
    }

    /// Where the client runs, and the engines of the only slot.
    fn split_of(wanted: &Wanted<'_>, available: &[u32]) -> (Option<Vec<u32>>, Option<Vec<u32>>) {
        let cpus = split(wanted, available, None).unwrap();
        (cpus.client, cpus.slots[0].pinned.clone())
    }

    #[test]
    fn one_list_leaves_the_rest_to_the_other() {
        let all = [0, 1, 2, 3];
        let disjoint = (Some(vec![0]), Some(vec![1, 2, 3]));
        assert_eq!(split_of(&wanted(Some(&[0]), None), &all), disjoint);
        assert_eq!(split_of(&wanted(None, Some(&[1, 2, 3])), &all), disjoint);
        assert_eq!(split_of(&wanted(Some(&[3]), Some(&[1])), &all), (Some(vec![3]), Some(vec![1])));
        assert_eq!(split_of(&wanted(None, Some(&all)), &all), (None, None), "nothing is left for the client alone");
    }

    #[test]
    fn the_client_has_a_core_of_its_own_where_there_are_enough() {
        let plain = wanted(None, None);
        assert_eq!(split_of(&plain, &[0, 1, 2]), (None, None));
        assert_eq!(split_of(&plain, &[0, 1, 2, 7]), (Some(vec![7]), Some(vec![0, 1, 2])));
        assert_eq!(split(&plain, &[0, 1, 2, 7], None).unwrap().slots[0].locked, [0, 1, 2, 7]);
        let shared = Wanted { alone: false, ..wanted(None, None) };
        assert_eq!(split_of(&shared, &[0, 1, 2, 3]), (None, None), "another worker's client would be there too");
        let two = Wanted { slots: vec![DeviceKind::Cpu, DeviceKind::Gpu], ..wanted(None, None) };
        assert_eq!(split(&two, &[0, 1, 2, 3], None).unwrap().client, None);
        let cpus = split(&two, &[0, 1, 2, 3, 4, 5, 6, 7], None).unwrap();
        assert_eq!((cpus.client, cpus.slots[1].pinned.clone()), (Some(vec![6, 7]), Some(vec![0, 1, 2, 3, 4, 5])));
    }

    #[test]
    fn a_quota_counts_as_the_cores_that_it_leaves() {
        let all: Vec<u32> = (0..16).collect();
        let client = |quota| split(&wanted(None, None), &all, quota).unwrap().client;
        assert_eq!((client(Some(4.0)), client(Some(3.9))), (Some(vec![15]), None));
        let with = |slots: usize| Wanted { slots: vec![DeviceKind::Cpu; slots], ..wanted(None, None) };
        assert!(split(&with(2), &all, Some(2.5)).is_ok());
        let refused = split(&with(3), &all, Some(2.5)).unwrap_err();
        assert!(refused.message.contains("3 CPU slots for 2 cores") && refused.message.contains("2.50"), "{refused}");
        assert!(split(&with(1), &all, Some(0.5)).is_ok(), "one slot is always there");
    }

    #[test]
    fn impossible_lists_are_refused() {
        let refused = |client, engines| {
            let problem = split(&wanted(client, engines), &[0, 1], None).unwrap_err();
            assert!(problem.hint.is_some());
            (problem.field.unwrap(), problem.message)
        };
        assert_eq!(refused(Some(&[2]), None).0, "client_cpus");
        assert!(refused(None, Some(&[0, 9])).1.contains("core 9"));
        assert!(refused(Some(&[0]), Some(&[0, 1])).1.contains("core 0"));
        assert!(refused(Some(&[0, 1]), None).1.contains("no core is left"));
    }

    #[test]
    fn cores_are_shared_out_evenly_and_wholly() {
        let shares =
            share_out(&[DeviceKind::Cpu, DeviceKind::Gpu, DeviceKind::Cpu, DeviceKind::Cpu], &[0, 1, 2, 3, 4, 7], None)
                .unwrap();
        let pinned: Vec<_> = shares.iter().map(|cores| cores.pinned.clone()).collect();
        assert_eq!(pinned, [Some(vec![0, 1]), None, Some(vec![2, 3]), Some(vec![4, 7])]);
        let uneven = share_out(&[DeviceKind::Cpu, DeviceKind::Cpu], &[0, 1, 2, 3, 4], None).unwrap();
        assert_eq!([&uneven[0].locked[..], &uneven[1].locked], [&[0, 1][..], &[2, 3, 4]]);
        assert_eq!(shares[1].locked, Vec::<u32>::new());
    }

    #[test]
    fn a_lone_cpu_slot_locks_all_and_pins_nothing() {
        let shares = share_out(&[DeviceKind::Cpu], &[0, 1], None).unwrap();
        assert_eq!(shares, [Cores { locked: vec![0, 1], pinned: None }]);
    }

    #[test]
    fn more_slots_than_cores_are_refused() {
        let problem = share_out(&[DeviceKind::Cpu, DeviceKind::Cpu, DeviceKind::Cpu], &[0, 1], None).unwrap_err();
        assert!(problem.message.contains("3 CPU slots"), "{problem}");
    }
}
