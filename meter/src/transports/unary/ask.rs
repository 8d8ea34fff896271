//! Questions to a server: one call, one answer.

use super::{Call, Unary, message::grpc_frame};
use crate::{
    drive::{Unanswered, exchange},
    endpoint::Endpoint,
};
use modelmeter_common::{Code, Problem};
use std::time::Duration;

/// Asks a server one question and decodes its answer; tries to connect once.
///
/// # Errors
/// No answer came, or one that cannot be decoded.
pub async fn ask<Q: prost::Message, A: prost::Message + Default>(
    endpoint: &Endpoint,
    path: &str,
    question: &Q,
    timeout: Duration,
) -> Result<A, Unanswered> {
    let frame = grpc_frame(question).map_err(Unanswered::Other)?;
    let call = Call { path: path.to_owned(), frames: vec![frame], batch_size: 1 };
    let answer = exchange(endpoint, &Unary::new(call), timeout, 1).await?;
    A::decode(&*answer.message).map_err(|e| {
        let message = format!("what {endpoint} answers to {path} cannot be decoded: {e}");
        Unanswered::Other(Problem::new(Code::BadResponse, message))
    })
}
