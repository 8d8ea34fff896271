//! The calls of workers.

use super::{artifacts, from_json, parse, refused, to_json};
use crate::{
    core::Core,
    service::{
        claim::{self, Answer, Claimant, Why},
        workers::{self, Fate, Progress, Registration, Renewal},
    },
};
use futures::Stream;
use modelmeter_common::{
    Problem,
    broker::RESULTS,
    status::{Abilities, SlotDoc},
};
use modelmeter_proto::control::{
    ArtifactChunk, ArtifactId, AttemptFate, AttemptRef, ClaimNextRequest, ClaimReply, ClaimRequest, Granted,
    HandBackReply, HandBackRequest, Refused, RegisterReply, RegisterRequest, RenewReply, RenewRequest, Slot,
    attempt_fate, claim_reply::Outcome, refused, work_server::Work,
};
use std::{pin::Pin, sync::Arc};
use tonic::{Request, Response, Status};

/// The `Work` service.
pub struct WorkApi(Arc<Core>);

type Reply<T> = Result<Response<T>, Status>;

impl WorkApi {
    pub fn new(core: Arc<Core>) -> Self {
        Self(core)
    }
}

fn slot(slot: Slot) -> Result<SlotDoc, Status> {
    let abilities: Abilities = match slot.abilities_json.as_str() {
        "" => Abilities::default(),
        json => from_json("abilities", json)?,
    };
    Ok(workers::slot(slot.index, from_json("device", &slot.device_json)?, slot.engines, abilities))
}

fn reply(answer: Answer) -> Reply<ClaimReply> {
    let outcome = match answer {
        Answer::Granted(assignment) => Outcome::Granted(Granted {
            task_id: assignment.task_id.to_string(),
            attempt: assignment.attempt,
            task_json: to_json(&assignment)?,
        }),
        Answer::Refused(why) => Outcome::Refused(Refused { why: word(why).into() }),
    };
    Ok(Response::new(ClaimReply { outcome: Some(outcome) }))
}

fn word(why: Why) -> refused::Why {
    match why {
        Why::Held => refused::Why::Held,
        Why::Terminal => refused::Why::Terminal,
        Why::Unknown => refused::Why::Unknown,
        Why::WrongSlot => refused::Why::WrongSlot,
        Why::NothingLeft => refused::Why::None,
        Why::StaleWorker => refused::Why::StaleWorker,
    }
}

fn told(fate: Fate) -> attempt_fate::Fate {
    match fate {
        Fate::Renewed => attempt_fate::Fate::Renewed,
        Fate::Terminal => attempt_fate::Fate::Terminal,
        Fate::Lost => attempt_fate::Fate::Lost,
        Fate::Cancelled => attempt_fate::Fate::Cancelled,
    }
}

#[tonic::async_trait]
impl Work for WorkApi {
    type GetArtifactStream = Pin<Box<dyn Stream<Item = Result<ArtifactChunk, Status>> + Send>>;

    async fn register(&self, request: Request<RegisterRequest>) -> Reply<RegisterReply> {
        let request = request.into_inner();
        // The version is checked first: the other fields of another version may not decode.
        let checked = workers::checked_version(&request.worker, &request.version, request.wire_version);
        let wire_version = checked.map_err(refused)?;
        let held = request.held.iter().filter_map(|held| Some((held.task_id.parse().ok()?, held.attempt))).collect();
        let announced = Registration {
            worker: request.worker,
            incarnation: request.incarnation.into(),
            version: request.version,
            wire_version,
            slots: request.slots.into_iter().map(slot).collect::<Result<_, _>>()?,
            held,
            labels: request.labels.into_iter().collect(),
        };
        let queues = workers::register(&self.0, announced).await.map_err(refused)?;
        let lease_ms = self.0.lease.as_millis() as u64;
        Ok(Response::new(RegisterReply { queues, results_queue: RESULTS.to_owned(), lease_ms }))
    }

    async fn claim(&self, request: Request<ClaimRequest>) -> Reply<ClaimReply> {
        let ClaimRequest { task_id, worker, incarnation, slot, claim_id } = request.into_inner();
        let by = Claimant { worker: &worker, incarnation: &incarnation.into(), slot, claim_id: &claim_id };
        reply(claim::claim(&self.0, parse("task_id", &task_id)?, &by).await.map_err(refused)?)
    }

    async fn claim_next(&self, request: Request<ClaimNextRequest>) -> Reply<ClaimReply> {
        let ClaimNextRequest { after_task_id, worker, incarnation, slot } = request.into_inner();
        let by = Claimant { worker: &worker, incarnation: &incarnation.into(), slot, claim_id: "" };
        reply(claim::claim_next(&self.0, parse("after_task_id", &after_task_id)?, &by).await.map_err(refused)?)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Reply<RenewReply> {
        let RenewRequest { worker, incarnation, attempts } = request.into_inner();
        let progress = |of: &AttemptRef| {
            let task = parse("task_id", &of.task_id)?;
            Ok::<_, Status>(Progress { task, attempt: of.attempt, progress: of.progress.clone() })
        };
        let asked = attempts.iter().map(progress).collect::<Result<Vec<_>, _>>()?;
        let fates = match workers::renew(&self.0, &worker, &incarnation.into(), &asked).await.map_err(refused)? {
            Renewal::Fates(fates) => fates,
            Renewal::RegisterAgain => {
                return Ok(Response::new(RenewReply { register_again: true, ..RenewReply::default() }));
            }
            Renewal::Replaced => return Ok(Response::new(RenewReply { replaced: true, ..RenewReply::default() })),
        };
        let of = |(of, fate): (AttemptRef, Fate)| AttemptFate {
            task_id: of.task_id,
            attempt: of.attempt,
            fate: told(fate).into(),
        };
        let fates = attempts.into_iter().zip(fates).map(of).collect();
        Ok(Response::new(RenewReply { fates, ..RenewReply::default() }))
    }

    async fn hand_back(&self, request: Request<HandBackRequest>) -> Reply<HandBackReply> {
        let HandBackRequest { task_id, attempt, reason, problem_json, .. } = request.into_inner();
        let problem = match problem_json.as_str() {
            "" => None,
            json => Some(from_json::<Problem>("problem", json)?),
        };
        let task = parse("task_id", &task_id)?;
        workers::hand_back(&self.0, task, attempt, &reason, problem).await.map_err(refused)?;
        Ok(Response::new(HandBackReply {}))
    }

    async fn get_artifact(&self, request: Request<ArtifactId>) -> Reply<Self::GetArtifactStream> {
        let bytes = artifacts::get(&self.0, &request.into_inner().sha256).await?;
        Ok(Response::new(Box::pin(bytes)))
    }
}
