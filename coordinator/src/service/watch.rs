//! Following a request: its status once, then what changes. A watcher costs what happens, not what exists; it reads the whole
//! again where something cannot be told as an event: other workers came, events were missed, the request ended.

use super::requests;
use crate::{
    core::Core,
    events::{Feed, Position},
    hub::TaskCounts,
    plan::pool::Pool,
};
use modelmeter_common::{
    Problem, RequestId,
    event::{RequestEvent, What},
    request::RequestDoc,
    status::Status,
};
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, sleep_until};

/// After news, the next ones are gathered for this long.
const GAP: Duration = Duration::from_millis(100);
/// Without news, this often is looked for what no event tells.
const IDLE: Duration = Duration::from_secs(1);
/// Another coordinator may end before it told what it did: after this long the tasks are counted, and the whole is read again
/// if the counts differ.
const COUNTS: Duration = Duration::from_secs(5);
/// While other coordinators are not heard the whole is read this often, and with each cell more rarely, since it is of all.
const DEAF_LOOKS: Duration = Duration::from_secs(1);
const DEAF_LOOKS_A_CELL: Duration = Duration::from_millis(1);

/// What a watcher is told.
pub enum News {
    /// Where the request stands.
    Whole(Box<Status>),
    /// What happened since.
    Events(Vec<RequestEvent>),
}

/// One watcher of a request.
pub struct Watch {
    core: Arc<Core>,
    request: RequestDoc,
    feed: Arc<Feed>,
    position: Position,
    /// What the watcher knows; none where it resumed.
    shown: Option<Status>,
    /// Of each task, the revision of the last event.
    revisions: HashMap<u32, u64>,
    surroundings: (Vec<Pool>, Option<String>),
    looked: Instant,
    /// When there were news last.
    told: Instant,
    /// The whole is to be told next.
    is_due: bool,
    has_ended: bool,
}

impl Watch {
    /// Begins to follow a request; after a place in a feed of this coordinator, if its events are still there.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn new(core: Arc<Core>, id: RequestId, after: Option<Position>) -> Result<Self, Problem> {
        let request = requests::find(&core, id).await?;
        let feed = core.feeds.open(id);
        let resumed = after.filter(|after| !request.state.is_terminal() && feed.after(*after).is_some());
        Ok(Self {
            position: resumed.unwrap_or_else(|| feed.position()),
            surroundings: surroundings(&core).await?,
            core,
            request,
            feed,
            shown: None,
            revisions: HashMap::new(),
            looked: Instant::now(),
            told: Instant::now(),
            is_due: resumed.is_none(),
            has_ended: false,
        })
    }

    /// The place after what was told last.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The next news; none after the status of a request that has ended.
    pub async fn next(&mut self) -> Result<Option<News>, Problem> {
        let news = self.wait().await;
        self.told = Instant::now();
        news
    }

    async fn wait(&mut self) -> Result<Option<News>, Problem> {
        if self.has_ended {
            return Ok(None);
        }
        if std::mem::take(&mut self.is_due)
            && let Some(status) = self.whole().await?
        {
            return Ok(Some(News::Whole(status)));
        }
        loop {
            tokio::select! {
                () = self.feed.beyond(self.position.seq) => sleep_until(self.told + GAP).await,
                () = sleep(IDLE) => {}
            }
            let news = self.events();
            if news.is_none() {
                // Whatever the watcher knows is not enough.
                self.shown = None;
            }
            let now = surroundings(&self.core).await?;
            let is_silent = news.as_ref().is_some_and(Vec::is_empty);
            if news.is_none() || now != self.surroundings || self.has_unheard(is_silent).await? {
                self.surroundings = now;
                self.is_due = true;
            }
            if let Some(events) = news.filter(|events| !events.is_empty()) {
                return Ok(Some(News::Events(events)));
            }
            if std::mem::take(&mut self.is_due)
                && let Some(status) = self.whole().await?
            {
                return Ok(Some(News::Whole(status)));
            }
        }
    }

    /// The events since; none where they are not enough.
    fn events(&mut self) -> Option<Vec<RequestEvent>> {
        let mut events = self.feed.after(self.position)?;
        let mut is_enough = true;
        for event in &events {
            self.position.seq = event.seq;
            is_enough &= !matches!(event.what, What::Expanded { .. } | What::Ended { .. });
        }
        let revisions = &mut self.revisions;
        events.retain(|event| match &event.what {
            What::Task { index, revision, .. } | What::Progress { index, revision, .. } => {
                let known = revisions.entry(*index).or_insert(0);
                let is_later = *revision > *known;
                *known = (*known).max(*revision);
                is_later
            }
            _ => true,
        });
        if let Some(shown) = &mut self.shown {
            is_enough &= events.iter().all(|event| shown.apply(event));
        }
        is_enough.then_some(events)
    }

    /// Whether there may be changes of which no event tells. While events come in, it is not asked: what the hub has more than
    /// they told is on its way.
    async fn has_unheard(&mut self, is_silent: bool) -> Result<bool, Problem> {
        let since = self.looked.elapsed();
        if self.core.is_alone {
            return Ok(false);
        }
        if !self.core.outbox.hears() {
            let cells = u32::try_from(self.request.tasks).unwrap_or(u32::MAX);
            return Ok(since >= DEAF_LOOKS + DEAF_LOOKS_A_CELL * cells);
        }
        if !is_silent || since < COUNTS {
            return Ok(false);
        }
        self.looked = Instant::now();
        let Some(shown) = &self.shown else { return Ok(true) };
        let mut counts = TaskCounts::new();
        shown.cells.iter().for_each(|cell| *counts.entry(cell.state).or_default() += 1);
        let has_ended = requests::find(&self.core, self.request.id).await?.state.is_terminal();
        Ok(has_ended || self.core.hub.count_tasks(self.request.id).await? != counts)
    }

    /// The whole status, unless the watcher knows it.
    async fn whole(&mut self) -> Result<Option<Box<Status>>, Problem> {
        self.looked = Instant::now();
        // Before the reading: what happens meanwhile is told again.
        self.position = self.feed.position();
        self.request = requests::find(&self.core, self.request.id).await?;
        let status = requests::status(&self.core, &self.request).await?;
        self.has_ended = self.request.state.is_terminal();
        if self.shown.as_ref() == Some(&status) {
            return Ok(None);
        }
        self.shown = Some(status.clone());
        Ok(Some(Box::new(status)))
    }
}

/// What the reasons of waiting cells depend on besides their tasks.
async fn surroundings(core: &Core) -> Result<(Vec<Pool>, Option<String>), Problem> {
    Ok((core.pools().await?, core.stuck()))
}
