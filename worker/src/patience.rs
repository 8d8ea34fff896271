//! Waiting for what is not there yet and will come: a device that another worker holds, a coordinator that has not started.

use modelmeter_common::{Code, Problem};
use std::{fmt, future::Future, sync::Arc, time::Duration};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// For what another process lets go of: nobody else waits there.
const LONGEST_BRIEF_PAUSE: Duration = Duration::from_secs(1);

/// Whether to wait, and who is told.
#[derive(Clone, Default)]
pub enum Patience {
    /// What stands in the way ends it.
    #[default]
    Refuse,
    /// It is waited for, for ever: whoever called may drop it. Told is what stands in the way, and each time that this changes.
    Wait(Arc<dyn Fn(&Problem) + Send + Sync>),
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.waits() { "Wait" } else { "Refuse" })
    }
}

impl Patience {
    /// Whether it waits.
    pub fn waits(&self) -> bool {
        matches!(self, Self::Wait(_))
    }

    /// Waits for what another process holds.
    ///
    /// # Errors
    /// What the call gives; `busy` only where it does not wait.
    pub async fn while_busy<T, F>(&self, call: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        self.repeat(Code::Busy, Backoff::brief(), call).await
    }

    /// Waits for what cannot be reached.
    ///
    /// # Errors
    /// What the call gives; `unreachable` only where it does not wait.
    pub async fn while_unreachable<T, F>(&self, call: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        self.repeat(Code::Unreachable, Backoff::default(), call).await
    }

    async fn repeat<T, F>(&self, passing: Code, mut backoff: Backoff, call: impl Fn() -> F) -> Result<T, Problem>
    where
        F: Future<Output = Result<T, Problem>>,
    {
        let mut said = None;
        loop {
            let (problem, say) = match (call().await, self) {
                (Err(problem), Self::Wait(say)) if problem.code == passing => (problem, say),
                (done, _) => return done,
            };
            if said.as_ref() != Some(&problem.message) {
                say(&problem);
                said = Some(problem.message);
            }
            backoff.pause().await;
        }
    }
}

/// Pauses between tries: doubling, with jitter, so that those who wait do not come back all at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST_PAUSE, longest: LONGEST_PAUSE }
    }
}

impl Backoff {
    fn brief() -> Self {
        Self { longest: LONGEST_BRIEF_PAUSE, ..Self::default() }
    }

    pub async fn pause(&mut self) {
        // The low bits of a v4 UUID are random.
        let share = f64::from(uuid::Uuid::new_v4().as_u128() as u32) / f64::from(u32::MAX);
        tokio::time::sleep(self.next.mul_f64(0.5 + share / 2.0)).await;
        self.next = (self.next * 2).min(self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{
        Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    };

    /// Tries that fail so often, and what was said meanwhile.
    async fn tried(failures: &[(Code, &str)]) -> (Result<u32, Problem>, Vec<String>) {
        let (count, said) = (AtomicU32::new(0), Arc::new(Mutex::new(Vec::new())));
        let heard = said.clone();
        let patience =
            Patience::Wait(Arc::new(move |problem: &Problem| heard.lock().unwrap().push(problem.message.clone())));
        let call = || async {
            let n = count.fetch_add(1, Relaxed);
            failures.get(n as usize).map_or(Ok(n), |(code, why)| Err(Problem::new(*code, *why)))
        };
        let done = patience.while_busy(call).await;
        let said = said.lock().unwrap().clone();
        (done, said)
    }

    #[tokio::test]
    async fn what_stands_in_the_way_is_said_once_and_waited_for() {
        let (done, said) =
            tried(&[(Code::Busy, "w1 has it"), (Code::Busy, "w1 has it"), (Code::Busy, "w2 has it")]).await;
        assert_eq!((done.unwrap(), said), (3, vec!["w1 has it".to_owned(), "w2 has it".to_owned()]));
    }

    #[tokio::test]
    async fn what_will_not_pass_ends_it() {
        let (done, said) = tried(&[(Code::Busy, "w1 has it"), (Code::Storage, "no folder")]).await;
        assert_eq!((done.unwrap_err().code, said.len()), (Code::Storage, 1));
        let call = || async { Err::<(), _>(Problem::new(Code::Busy, "held")) };
        assert_eq!(Patience::Refuse.while_busy(call).await.unwrap_err().code, Code::Busy);
    }
}
