//! The CPU quotas of client and engine while a point runs.

use modelmeter_common::cgroup::{CpuGroups, Throttling};
use modelmeter_meter::Quota;
use std::time::Duration;

/// Both, as they were at the begin of a point.
#[derive(Debug)]
pub(super) struct Quotas {
    client: Begun,
    /// Where the engine is in other groups.
    engine: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    groups: CpuGroups,
    before: Vec<Throttling>,
}

impl Begun {
    fn new(groups: CpuGroups) -> Self {
        Self { before: groups.look(), groups }
    }

    fn end(&self, elapsed: Duration, of_engine: bool) -> Option<Quota> {
        let stopped = self.groups.stopped(&self.before, &self.groups.look(), elapsed)?;
        Some(Quota { cores: stopped.cores, ratio: stopped.ratio, of_engine })
    }
}

impl Quotas {
    /// Looks at the groups of this process and of the engine's, if it runs here.
    pub fn begin(engine_pid: Option<u32>) -> Self {
        let client = Begun::new(CpuGroups::own());
        let engine = engine_pid.map(CpuGroups::of).filter(|groups| *groups != client.groups).map(Begun::new);
        Self { client, engine }
    }

    /// The quota that stopped one of them the most.
    pub fn end(&self, elapsed: Duration) -> Option<Quota> {
        let engine = self.engine.as_ref().and_then(|engine| engine.end(elapsed, true));
        let both = self.client.end(elapsed, false).into_iter().chain(engine);
        both.max_by(|a, b| a.ratio.total_cmp(&b.ratio))
    }
}
