//! The first inference after a server is ready: one checked call.

use crate::{Remark, Target, drive::blocking};
use modelmeter_common::Problem;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The first inference: engines compile and allocate in it, so it is not part of any point.
#[derive(Clone, Debug, PartialEq)]
pub struct FirstInference {
    /// Time from just before the send to the whole response, in ms.
    pub latency_ms: f64,
    /// Differences between the answer and what the server declared.
    pub remarks: Vec<Remark>,
}

/// Makes the first call and checks its answer wholly.
pub async fn first_inference(
    target: &Target,
    timeout: Duration,
    cancel: &CancellationToken,
) -> Result<FirstInference, Problem> {
    let (latency, message) = target.transport.once(&target.endpoint, timeout, cancel).await?;
    let remarks = match message {
        None => Vec::new(),
        Some(message) => {
            let check = target.check.clone();
            blocking(move || check.examine(&message)).await?
        }
    };
    Ok(FirstInference { latency_ms: latency.as_secs_f64() * 1e3, remarks })
}
