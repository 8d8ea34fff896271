//! What of a change is told to those who follow its request. Nobody follows: nothing is done.

use super::status;
use crate::core::Core;
use modelmeter_common::{
    RequestId,
    event::What,
    request::RequestState,
    task::{Task, TaskState},
};

/// Tells what happened to a request.
pub fn happened(core: &Core, request: RequestId, what: What) {
    if let Some(feed) = core.feeds.of(request) {
        feed.tell(core.now(), what);
    }
}

/// Tells of a task that was changed.
pub(super) async fn changed(core: &Core, old: &Task, new: &Task) {
    let Some(feed) = core.feeds.of(new.request_id) else { return };
    let (index, revision) = (new.order, new.revision);
    let is_same = (old.state, old.attempt) == (new.state, new.attempt);
    let what = if is_same && new.state == TaskState::Claimed {
        let shown = status::cell(new, &[], None).reason;
        What::Progress { index, revision, progress: shown }
    } else {
        let is_to_run = matches!(new.state, TaskState::Waiting | TaskState::Queued);
        let pools = if is_to_run { core.pools().await } else { Ok(Vec::new()) };
        let Ok(pools) = pools else { return feed.lose() };
        let cell = Box::new(status::cell(new, &pools, core.stuck().as_deref()));
        What::Task { index, revision, cell }
    };
    feed.tell(core.now(), what);
}

/// Tells that a request has ended, and ends its feed.
pub(super) fn ended(core: &Core, request: RequestId, state: RequestState) {
    happened(core, request, What::Ended { state });
    core.feeds.close(request);
    core.forget(request);
}
