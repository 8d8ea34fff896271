//! A job from start to end, the same for the command and the library: prepare, submit, watch, fetch the results, stop what
//! was started.

use crate::{
    client::Client,
    embedded::Embedded,
    failure::Failure,
    follow::{submit, watch},
    interrupt::interrupted,
    job::Job,
    notes::{opening, time_limit},
    place::{self, Place},
    progress::Progress,
};
use modelmeter_common::{
    Code, Problem, RequestId,
    config::Config,
    profile::{Profile, ProfileState},
    request::{Request, RequestState},
    status::{Dryrun, Status},
    task::TaskState,
};
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// After an interruption: how long what running cells had finished is waited for, and how often it is asked for.
const FAREWELL: Duration = Duration::from_secs(3);
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How a job ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Finished {
    /// The request that was made.
    pub request_id: RequestId,
    /// How it ended.
    pub state: RequestState,
    /// Whether the user interrupted it.
    pub interrupted: bool,
    /// Its profiles, failed cells included.
    pub profiles: Vec<Profile>,
}

impl Finished {
    /// Whether each cell is shown to keep its SLA.
    pub fn keeps_sla(&self) -> bool {
        self.profiles.iter().all(|p| p.sla.as_ref().is_some_and(|sla| sla.met == Some(true)))
    }

    /// 0 done, 1 failed, 3 some cells failed, 130 interrupted.
    pub fn exit_code(&self) -> u8 {
        match self.state {
            _ if self.interrupted => crate::interrupt::EXIT_INTERRUPTED,
            RequestState::Done => 0,
            RequestState::Partial => 3,
            RequestState::Failed | RequestState::Cancelled | RequestState::Running => 1,
        }
    }
}

/// Measures. `stop` interrupts it: then what is measured already is given.
///
/// # Errors
/// Everything that is wrong with the input, before any engine starts; the loss of a request that runs.
pub async fn profile(
    config: &Config,
    job: Job,
    progress: &mut Progress,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let prepared = within(stop, place::prepare(config, job, progress)).await?;
    let Place { mut client, mut embedded, request } = prepared;
    let (id, is_here) = (RequestId::random(), embedded.is_some());
    let finished = tokio::select! {
        finished = measure(&mut client, id, &request, is_here, progress, stop) => finished,
        problem = lost(embedded.as_mut()) => Err(Failure::later(problem)),
    };
    let finished = match finished {
        Err(failure) if failure.problem.code == Code::Cancelled && stop.is_cancelled() => {
            progress.finish();
            progress.say("interrupted, stopping (press Ctrl-C again to quit now)");
            let profiles = give_up(&mut client, id, embedded.as_ref()).await;
            Ok(Finished { request_id: id, state: RequestState::Cancelled, interrupted: true, profiles })
        }
        finished => finished,
    };
    progress.finish();
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
    finished
}

/// Completes when the worker in this process ended by itself: nobody would measure what is left.
async fn lost(embedded: Option<&mut Embedded>) -> Problem {
    match embedded {
        Some(embedded) => embedded.worker_ended().await,
        None => std::future::pending().await,
    }
}

/// Says what it would measure: nothing is measured, stored or held for it.
///
/// # Errors
/// As [`profile`].
pub async fn dry_run(
    config: &Config,
    job: Job,
    progress: &Progress,
    stop: &CancellationToken,
) -> Result<Dryrun, Problem> {
    within(stop, place::plan(config, job, progress)).await
}

async fn within<T, E: From<Problem>>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(interrupted().into()),
        done = work => done,
    }
}

/// Submits, watches to the end, fetches the profiles. `is_here`: this process measures.
async fn measure(
    client: &mut Client,
    id: RequestId,
    request: &Request,
    is_here: bool,
    progress: &mut Progress,
    stop: &CancellationToken,
) -> Result<Finished, Failure> {
    let watched = async {
        let tasks = submit(id, async || client.submit(id, request).await).await?;
        let plan = opening(request, tasks);
        progress.begin(&if is_here { plan } else { format!("request {id}: {plan}") }, time_limit(request));
        watch(client, id, progress).await.map_err(Failure::later)
    };
    match within(stop, watched).await {
        Ok(Status { error: Some(problem), .. }) => Err(Failure::later(problem)),
        Ok(status) => {
            let profiles = client.results(Some(id), None, Some(u32::MAX)).await.map_err(Failure::later)?;
            Ok(Finished { request_id: id, state: status.state, interrupted: false, profiles })
        }
        Err(failure) => Err(failure),
    }
}

/// Cancels a request, waits for the load points that its running cells had finished, and gives what was measured.
async fn give_up(client: &mut Client, id: RequestId, embedded: Option<&Embedded>) -> Vec<Profile> {
    let running = client
        .status(id)
        .await
        .map_or(0, |status| status.cells.iter().filter(|cell| cell.state == TaskState::Claimed).count());
    if let Err(problem) = client.cancel(id, "interrupted by the user").await {
        tracing::warn!(%problem, "the request could not be cancelled");
    }
    if let Some(embedded) = embedded {
        embedded.ask_now();
    }
    let deadline = Instant::now() + FAREWELL;
    loop {
        let profiles = client.results(Some(id), None, Some(u32::MAX)).await.unwrap_or_default();
        let kept = profiles.iter().filter(|p| p.state == ProfileState::Partial).count();
        if kept >= running || Instant::now() >= deadline {
            return profiles;
        }
        sleep(ASK_AGAIN).await;
    }
}
