//! The loops that only one coordinator of a hub runs: dispatch, collect, sweep. The others answer users and workers,
//! and
//! take over when the leader's lease ends.
//!
//! Two leaders for a moment (one was frozen and does not know yet) do no harm: every change of state is a compare-and-swap
//! on a task. The lease spares them the double work.

mod dispatch;
mod election;
mod sweep;

pub use election::Candidate;

use crate::{
    collect,
    core::{Core, Leadership},
    hub::Lead,
};
use modelmeter_common::{Problem, broker::RESULTS};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A lease is renewed, and another's looked at, this many times within it.
const LOOKS_PER_LEASE: u32 = 3;
/// Time for the loops of a leader that steps down to finish their current step.
const STEP_DOWN: Duration = Duration::from_secs(2);

/// Stands for election until `stop`, and leads while elected. Returns earlier only where a loop ended by itself.
pub async fn run(core: Arc<Core>, candidate: Candidate, sweep_every: Duration, stop: CancellationToken) {
    let mut term: Option<Term> = None;
    let mut is_first = true;
    loop {
        let asked = core.clock.elapsed();
        let sure_until = term.as_ref().map(|term| term.sure_until);
        let elected = tokio::select! {
            () = stop.cancelled() => break,
            elected = stand(&core, &candidate) => elected,
            () = until(&core, sure_until) => {
                tracing::warn!("the hub does not answer");
                down(&core, &mut term).await;
                continue;
            }
        };
        match elected {
            Ok(Some(lead)) if term.as_ref().is_some_and(|term| term.lead.epoch == lead.epoch) => {
                term.iter_mut().for_each(|term| term.renewed(&lead, asked + core.lease));
            }
            Ok(Some(lead)) => {
                down(&core, &mut term).await;
                match Term::begin(&core, lead, asked + core.lease, sweep_every, is_first).await {
                    Ok(begun) => term = Some(begun),
                    Err(problem) => tracing::warn!(%problem, "cannot lead yet"),
                }
            }
            Ok(None) => down(&core, &mut term).await,
            Err(problem) => tracing::warn!(%problem, "cannot tell who leads"),
        }
        is_first = false;
        // From the beginning of this look: one that took long delays no other.
        let next = asked + core.lease / LOOKS_PER_LEASE;
        let sure_until = term.as_ref().map(|term| term.sure_until);
        tokio::select! {
            () = stop.cancelled() => break,
            () = ended(&mut term) => break,
            () = until(&core, sure_until) => down(&core, &mut term).await,
            () = until(&core, Some(next)) => {}
        }
    }
    if let Some(term) = term {
        term.release(&core).await;
    }
}

/// Takes or renews the lease; none while another leads.
async fn stand(core: &Core, candidate: &Candidate) -> Result<Option<Lead>, Problem> {
    core.read_clock().await?;
    let stored = core.hub.lead().await?;
    let Some(lead) = candidate.elected(stored.as_ref(), core.now(), core.lease) else { return Ok(None) };
    Ok(core.hub.swap_lead(stored.as_ref(), &lead).await?.then_some(lead))
}

/// Returns at this time of the coordinator's clock; never for none.
async fn until(core: &Core, time: Option<Duration>) {
    match time {
        Some(time) => core.clock.sleep(time.saturating_sub(core.clock.elapsed())).await,
        None => std::future::pending().await,
    }
}

/// Returns once a loop of the leader has ended by itself.
async fn ended(term: &mut Option<Term>) {
    match term {
        Some(term) => drop(term.loops.join_next().await),
        None => std::future::pending().await,
    }
}

async fn down(core: &Core, term: &mut Option<Term>) {
    if let Some(term) = term.take() {
        tracing::info!(epoch = term.lead.epoch, "this coordinator no longer leads");
        term.end(core).await;
    }
}

/// One term of leading, with its loops.
struct Term {
    lead: Lead,
    /// Time of the coordinator's clock until which no other can lead.
    sure_until: Duration,
    loops: JoinSet<()>,
    stop: CancellationToken,
}

impl Term {
    /// Begins to lead: everything that this process remembers may be old, and is read from the hub again.
    async fn begin(
        core: &Arc<Core>,
        lead: Lead,
        sure_until: Duration,
        sweep_every: Duration,
        is_first: bool,
    ) -> Result<Self, Problem> {
        core.forget_all();
        // What the leader before did last, nobody may have been told.
        core.feeds.lose_all();
        core.outbox.miss();
        if !is_first {
            // Workers may have talked to the other coordinator, which is gone, until now.
            core.listen_anew();
        }
        collect::resume(core).await?;
        let results = core.broker.consume(RESULTS, collect::PREFETCH).await?;
        let (mut loops, stop) = (JoinSet::new(), CancellationToken::new());
        // Each of these runs until `stop`; none may end before.
        loops.spawn(dispatch::run(core.clone(), stop.clone()));
        loops.spawn(collect::run(core.clone(), results, stop.clone()));
        loops.spawn(sweep::run(core.clone(), sweep_every, stop.clone()));
        tracing::info!(epoch = lead.epoch, "this coordinator leads");
        core.leadership.send_replace(Leadership::Leader { epoch: lead.epoch });
        Ok(Self { lead, sure_until, loops, stop })
    }

    fn renewed(&mut self, lead: &Lead, sure_until: Duration) {
        (self.lead, self.sure_until) = (lead.clone(), sure_until);
    }

    async fn end(mut self, core: &Core) {
        core.leadership.send_replace(Leadership::Follower);
        core.set_stuck(None);
        self.stop.cancel();
        let drained = async { while self.loops.join_next().await.is_some() {} };
        if tokio::time::timeout(STEP_DOWN, drained).await.is_err() {
            self.loops.shutdown().await;
        }
    }

    /// Ends the term, and its lease with it: another leads at once.
    async fn release(self, core: &Core) {
        let lead = self.lead.clone();
        self.end(core).await;
        let ended = Lead { expires_at: core.now(), ..lead.clone() };
        let released = tokio::time::timeout(STEP_DOWN, core.hub.swap_lead(Some(&lead), &ended)).await;
        if !matches!(released, Ok(Ok(true))) {
            tracing::warn!("the lease could not be given up; another coordinator leads once it ends");
        }
    }
}
