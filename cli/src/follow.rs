//! A request's way to the coordinator, and its news from there, over connections that may break.

use crate::{
    client::{Client, News, Place, Watch},
    failure::Failure,
    progress::Progress,
};
use modelmeter_common::{Code, Problem, RequestId, status::Status};
use std::time::Duration;
use tokio::time::sleep;

/// How often in a row what broke off is tried again, and how long after.
const RETRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);

/// Submits under this id until it is answered: what broke off may have been taken in, and is taken in once.
pub(crate) async fn submit(id: RequestId, mut call: impl AsyncFnMut() -> Result<u64, Problem>) -> Result<u64, Failure> {
    let mut failures = 0;
    loop {
        let lost = match call().await {
            Err(problem) if problem.code == Code::Unreachable => problem,
            done => return Ok(done?),
        };
        failures += 1;
        if failures > RETRIES {
            return Err(Failure::later(
                lost.with_hint(format!("the request may run nevertheless: modelmeter status {id}")),
            ));
        }
        tracing::warn!(problem = %lost, "submitting again");
        sleep(PAUSE).await;
    }
}

/// Shows a request until it ends; gives its last status. Lives through a coordinator that restarts, and goes on at another.
pub async fn watch(client: &mut Client, id: RequestId, progress: &mut Progress) -> Result<Status, Problem> {
    let mut follower = Follower::new(client, id);
    loop {
        follower.next().await?;
        let Some(status) = &follower.status else { continue };
        progress.update(status.clone());
        if status.state.is_terminal() {
            return Ok(status.clone());
        }
    }
}

/// What is known of a request. After a lost connection it is resumed where it broke off.
struct Follower<'a> {
    client: &'a mut Client,
    id: RequestId,
    watch: Option<Watch>,
    /// The last status, brought up to date by each event.
    status: Option<Status>,
    place: Place,
    failures: u32,
}

impl<'a> Follower<'a> {
    fn new(client: &'a mut Client, id: RequestId) -> Self {
        Self { client, id, watch: None, status: None, place: Place::default(), failures: 0 }
    }

    /// Takes in the next news, from whichever coordinator tells them.
    async fn next(&mut self) -> Result<News, Problem> {
        loop {
            let lost = match self.told().await {
                Ok(Some(news)) => {
                    self.take(&news);
                    return Ok(news);
                }
                Ok(None) => {
                    Problem::new(Code::Unreachable, "the coordinator ended the connection").with_field("coordinator")
                }
                Err(problem) if problem.code == Code::Unreachable => problem,
                Err(problem) => return Err(problem),
            };
            self.watch = None;
            self.failures += 1;
            if self.failures > RETRIES {
                return Err(lost);
            }
            sleep(PAUSE).await;
        }
    }

    async fn told(&mut self) -> Result<Option<News>, Problem> {
        let watch = match &mut self.watch {
            Some(watch) => watch,
            none => none.insert(self.client.watch(self.id, &self.place).await?),
        };
        watch.next().await
    }

    fn take(&mut self, news: &News) {
        self.failures = 0;
        self.place = news.place.clone();
        if news.status.is_some() {
            self.status.clone_from(&news.status);
        }
        if let Some(status) = &mut self.status {
            // An event that cannot be applied is followed by a whole status.
            news.events.iter().for_each(|event| _ = status.apply(event));
        }
    }
}

#[cfg(test)]
mod tests;
