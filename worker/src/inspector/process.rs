//! An inspector's process, noted in the lock of its device: whoever takes the lock next ends what a dead worker left.

use crate::engine::{self, Command, Place, Process};
use modelmeter_common::Problem;
use std::{sync::Arc, time::Duration};

/// For the end of one that closed its output to be seen.
const FAREWELL: Duration = Duration::from_secs(1);

/// A started inspector. Dropped, it ends at once, with all that it started.
#[derive(Debug)]
pub(super) struct Kept {
    process: Process,
    place: Arc<Place>,
}

impl Kept {
    pub async fn start(command: Command, place: &Arc<Place>) -> Result<Self, Problem> {
        let process = engine::start(command).await?;
        engine::note(&place.lock, process.identity());
        Ok(Self { process, place: place.clone() })
    }

    /// How it ended, as in "exited with code 1"; none if it goes on.
    pub async fn end(&self) -> Option<String> {
        tokio::time::timeout(FAREWELL, self.process.watched.ended()).await.ok()
    }

    /// Ends it at once, without waiting.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// The same problem with its last lines.
    pub async fn explain(&self, problem: Problem) -> Problem {
        let lines = self.process.watched.last_lines().await;
        let log = self.process.watched.log_path.display();
        match lines.is_empty() {
            true => problem,
            false => Problem { message: format!("{}; its last lines:\n{lines}", problem.message), ..problem },
        }
        .with_hint(format!("what it wrote to standard error is in {log}"))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.process.kill();
        if let Err(problem) = self.place.lock.remove_engine(self.process.identity()) {
            tracing::warn!(%problem, "an inspector that ended stays noted in its device's lock");
        }
    }
}
