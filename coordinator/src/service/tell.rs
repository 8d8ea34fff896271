//! What of a change is told: to those who follow its request at this coordinator, and to the other coordinators. Where there is
//! neither, nothing is done.

use super::status;
use crate::{bulletin::Note, core::Core};
use modelmeter_common::{
    RequestId, Timestamp,
    event::What,
    request::RequestState,
    task::{Task, TaskState},
};

/// Tells what happened to a request.
pub fn happened(core: &Core, request: RequestId, what: What) {
    let at = core.now();
    if let Some(feed) = core.feeds.of(request) {
        feed.tell(at, what.clone());
    }
    core.outbox.tell(Note::Request { id: request, at, what });
}

/// Tells what happened to a request through another coordinator.
pub fn heard(core: &Core, request: RequestId, at: Timestamp, what: What) {
    let has_ended = matches!(what, What::Ended { .. });
    if matches!(&what, What::Task { cell, .. } if cell.state.is_terminal()) {
        core.count_again(request);
    }
    if let Some(feed) = core.feeds.of(request) {
        feed.tell(at, what);
    }
    if has_ended {
        forget(core, request);
    }
}

/// Tells of a task that was changed.
pub(super) async fn changed(core: &Core, old: &Task, new: &Task) {
    let feed = core.feeds.of(new.request_id);
    if feed.is_none() && !core.outbox.has_readers() {
        return core.outbox.miss();
    }
    let (index, revision) = (new.order, new.revision);
    let is_same = (old.state, old.attempt) == (new.state, new.attempt);
    let what = if is_same && new.state == TaskState::Claimed {
        let shown = status::cell(new, &[], None).reason;
        What::Progress { index, revision, progress: shown }
    } else {
        let is_to_run = matches!(new.state, TaskState::Waiting | TaskState::Queued);
        let pools = if is_to_run { core.pools().await } else { Ok(Vec::new()) };
        let Ok(pools) = pools else {
            feed.iter().for_each(|feed| feed.lose());
            return core.outbox.miss();
        };
        let cell = Box::new(status::cell(new, &pools, core.stuck().as_deref()));
        What::Task { index, revision, cell }
    };
    happened(core, new.request_id, what);
}

/// Tells that a request has ended, and ends its feed.
pub(super) fn ended(core: &Core, request: RequestId, state: RequestState) {
    happened(core, request, What::Ended { state });
    forget(core, request);
}

fn forget(core: &Core, request: RequestId) {
    core.feeds.close(request);
    core.forget(request);
}
