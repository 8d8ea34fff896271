//! Threads as the kernel knows them: the cores that they may run on, and their CPU time.

/// The logical cores that this process may run on.
pub fn available_cores() -> Vec<u32> {
    // SAFETY: the set is plain memory of the size given, which the call fills; CPU_ISSET checks its bound.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as u32).filter(|&core| libc::CPU_ISSET(core as usize, &set)).collect()
    }
}

/// Pins the calling thread.
pub fn pin_this_thread(cores: &[u32]) {
    let set = set_of(cores);
    // SAFETY: the set is ours. It fails only for cores that went offline since they were checked: then nothing is pinned.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) };
}

/// A set of cores in the kernel's form.
pub fn set_of(cores: &[u32]) -> libc::cpu_set_t {
    // SAFETY: an all-zero set is the empty set; CPU_SET checks its bound.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for &core in cores {
            libc::CPU_SET(core as usize, &mut set);
        }
        set
    }
}

/// CPU time of this thread.
pub fn thread_cpu_ns() -> u64 {
    let mut spec = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut spec) };
    spec.tv_sec as u64 * 1_000_000_000 + spec.tv_nsec as u64
}

/// Lets the calling thread run only on idle cores, where the system allows it.
pub fn rest_while_others_work() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameters are ours. Where it fails the thread is one like others.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) };
}
