//! A request's way to the coordinator, and its news from there, over connections that may break.

use crate::{client::Client, failure::Failure, progress::Progress};
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

/// Shows a request until it ends; gives its last status. Lives through a coordinator that restarts.
pub async fn watch(client: &mut Client, id: RequestId, progress: &mut Progress) -> Result<Status, Problem> {
    let mut failures = 0;
    loop {
        let lost = match follow(client, id, progress, &mut failures).await {
            Ok(Some(status)) => return Ok(status),
            Ok(None) => {
                Problem::new(Code::Unreachable, "the coordinator ended the connection").with_field("coordinator")
            }
            Err(problem) if problem.code == Code::Unreachable => problem,
            Err(problem) => return Err(problem),
        };
        failures += 1;
        if failures > RETRIES {
            return Err(lost);
        }
        sleep(PAUSE).await;
    }
}

/// One stream of statuses; none if it ended before the request did. Each status ends the count of `failures`.
async fn follow(
    client: &mut Client,
    id: RequestId,
    progress: &mut Progress,
    failures: &mut u32,
) -> Result<Option<Status>, Problem> {
    let mut statuses = client.watch(id).await?;
    while let Some(status) = statuses.next().await? {
        *failures = 0;
        let ended = status.state.is_terminal().then(|| status.clone());
        progress.update(status);
        if ended.is_some() {
            return Ok(ended);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_broke_off_is_submitted_again_under_its_id() {
        let mut calls = 0;
        let answered = submit(RequestId::random(), async || {
            calls += 1;
            if calls < 2 { Err(Problem::new(Code::Unreachable, "the connection broke")) } else { Ok(4) }
        });
        assert_eq!(answered.await.unwrap(), 4);
        let refused =
            submit(RequestId::random(), async || Err(Problem::invalid("engines", "unknown engine 'x'"))).await;
        assert_eq!(refused.unwrap_err().exit_code(), 2);
    }
}
