//! Readiness, asked of the engine itself: KServe ModelReady, TensorFlow Serving GetModelStatus; of what cannot say it,
//! that it answers.

use crate::inspector::{kserve_v2, predict};
use modelmeter_common::{Code, Problem, engine::Protocol};
use modelmeter_meter::{Unanswered, endpoint::Endpoint, unary};
use modelmeter_proto::{
    kserve::{ModelReadyRequest, ModelReadyResponse},
    mlmodelci::{InferRequest, InferResponse},
    tensorflow::serving::{GetModelStatusRequest, GetModelStatusResponse, ModelSpec, model_version_status::State},
};
use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// One question takes at most so long; a server that hangs is asked again until the deadline.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const READY_METHOD: &str = "/inference.GRPCInferenceService/ModelReady";
const STATUS_METHOD: &str = "/tensorflow.serving.ModelService/GetModelStatus";
/// gRPC's status of a method that a server does not have.
const UNIMPLEMENTED: u32 = 12;

/// Whom to ask, and how patiently.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub protocol: Protocol,
    pub endpoint: &'a Endpoint,
    pub model: &'a str,
    /// For one question.
    pub timeout: Duration,
    /// For the model to be ready.
    pub deadline: Duration,
    /// Is told what is waited for, whenever that changes.
    pub say: &'a (dyn Fn(String) + Send + Sync),
}

/// What a server answered.
enum Answer {
    /// Ready; its version.
    Ready(String),
    /// Not yet, in words.
    NotYet(String),
    /// It never will be.
    Never(Problem),
}

/// Waits until the server says that the model is ready; gives the server's version.
///
/// # Errors
/// `engine_failed` when the server says that it gave up; `deadline_exceeded` with what it last answered; what no waiting
/// mends, such as a certificate that is not trusted.
pub(super) async fn wait(asked: Asked<'_>) -> Result<String, Problem> {
    let Asked { endpoint, model, deadline, .. } = asked;
    let mut last = format!("nothing listens at {endpoint}");
    let poll = async {
        let mut pause = FIRST_PAUSE;
        loop {
            match asked.ask().await {
                Answer::Ready(version) => return Ok(version),
                Answer::Never(problem) => return Err(problem),
                Answer::NotYet(words) if words != last || pause == FIRST_PAUSE => {
                    (asked.say)(format!(
                        "waiting until {model} is ready, at most {} s: {words}",
                        deadline.as_secs_f64()
                    ));
                    last = words;
                }
                Answer::NotYet(_) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    let answered = tokio::time::timeout(deadline, poll).await;
    answered.unwrap_or_else(|_| {
        let message =
            format!("model '{model}' at {endpoint} was not ready within {} s: {last}", deadline.as_secs_f64());
        Err(Problem::new(Code::DeadlineExceeded, message))
    })
}

impl Asked<'_> {
    async fn ask(&self) -> Answer {
        let answered = match self.protocol {
            Protocol::Tfs => self.ask_tfs().await,
            Protocol::KserveV2 => self.ask_kserve().await,
            Protocol::MlmodelciPredict => self.ask_predict().await,
        };
        answered.unwrap_or_else(|unanswered| match unanswered {
            unanswered if unanswered.is_final() => Answer::Never(unanswered.problem(self.endpoint, self.timeout)),
            unanswered if unanswered.is_refused() => Answer::NotYet(format!("nothing listens at {}", self.endpoint)),
            unanswered if unanswered.grpc_status().is_some() => {
                Answer::NotYet(format!("it answers: {}", unanswered.words()))
            }
            unanswered => Answer::NotYet(unanswered.words()),
        })
    }

    async fn question<Q: prost::Message, A: prost::Message + Default>(
        &self,
        path: &str,
        question: &Q,
    ) -> Result<A, Unanswered> {
        unary::ask(self.endpoint, path, question, self.timeout.min(CALL_TIMEOUT)).await
    }

    async fn ask_kserve(&self) -> Result<Answer, Unanswered> {
        let question = ModelReadyRequest { name: self.model.to_owned(), version: String::new() };
        let answer: ModelReadyResponse = self.question(READY_METHOD, &question).await?;
        if !answer.ready {
            return Ok(Answer::NotYet("it answers: the model is not ready".into()));
        }
        // Metadata is optional: a server without it is simply of an unknown version.
        let server = kserve_v2::server(self.endpoint, self.timeout.min(CALL_TIMEOUT)).await.ok();
        let version = server.map(|server| server.version).filter(|version| !version.is_empty());
        Ok(Answer::Ready(version.unwrap_or_else(|| UNKNOWN.into())))
    }

    async fn ask_tfs(&self) -> Result<Answer, Unanswered> {
        let spec = ModelSpec { name: self.model.to_owned(), ..ModelSpec::default() };
        let question = GetModelStatusRequest { model_spec: Some(spec) };
        let answer: GetModelStatusResponse = self.question(STATUS_METHOD, &question).await?;
        let versions = answer.model_version_status;
        if versions.iter().any(|version| version.state() == State::Available) {
            return Ok(Answer::Ready(UNKNOWN.into()));
        }
        let failed = versions.iter().find(|version| version.state() == State::End);
        if let Some(status) = failed.and_then(|v| v.status.as_ref()).filter(|status| status.error_code != 0) {
            let (endpoint, model, reason) = (self.endpoint, self.model, &status.error_message);
            let message = format!("the server at {endpoint} gave model '{model}' up: {reason}");
            return Ok(Answer::Never(Problem::new(Code::EngineFailed, message)));
        }
        let states: Vec<_> = versions.iter().map(|version| version.state().as_str_name()).collect();
        Ok(Answer::NotYet(format!("it answers: the states of its versions are [{}]", states.join(", "))))
    }

    /// An empty request: a server that answers it, if only to refuse it, has loaded its model.
    async fn ask_predict(&self) -> Result<Answer, Unanswered> {
        let question = InferRequest { model_name: self.model.to_owned(), ..InferRequest::default() };
        match self.question::<_, InferResponse>(predict::INFER_PATH, &question).await {
            Err(unanswered) if unanswered.grpc_status().is_none_or(|status| status == UNIMPLEMENTED) => Err(unanswered),
            _ => Ok(Answer::Ready(UNKNOWN.into())),
        }
    }
}

/// What a server's version is where it does not say.
const UNKNOWN: &str = "unknown";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_deadline_says_what_was_seen_and_waiting_is_said_once() {
        let said = std::sync::Mutex::new(Vec::new());
        let say = |words| said.lock().unwrap().push(words);
        let asked = Asked {
            protocol: Protocol::KserveV2,
            endpoint: &Endpoint::local(9),
            model: "m",
            timeout: Duration::from_secs(1),
            deadline: Duration::from_millis(300),
            say: &say,
        };
        let problem = wait(asked).await.unwrap_err();
        assert_eq!(problem.code, Code::DeadlineExceeded);
        assert!(problem.message.contains("nothing listens at 127.0.0.1:9"), "{problem}");
        assert_eq!(said.lock().unwrap().len(), 1, "{said:?}");
    }
}
