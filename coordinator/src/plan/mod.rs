//! What a request comes to, purely: its cells and tasks, the pools that can run them, shares of its budget, the choice of
//! the next task, and a dry run. Nothing here reads a hub, a broker or a clock.

pub mod alone;
pub mod budget;
pub mod dryrun;
pub mod expand;
pub mod pool;
pub mod schedule;
