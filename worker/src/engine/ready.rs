//! Readiness, asked of the engine itself: KServe ModelReady, TensorFlow Serving GetModelStatus; of what cannot say it,
//! that it answers.

use modelmeter_common::{Code, Problem, engine::Protocol};
use modelmeter_proto::{
    kserve::{ModelReadyRequest, ServerMetadataRequest, grpc_inference_service_client::GrpcInferenceServiceClient},
    mlmodelci::{InferRequest, predict_client::PredictClient},
    tensorflow::serving::{
        GetModelStatusRequest, ModelSpec, model_service_client::ModelServiceClient, model_version_status::State,
    },
};
use std::{error::Error, time::Duration};
use tonic::transport::{Channel, Endpoint, Uri};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// One question; a server that hangs is asked again until the deadline.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The address of a gRPC server as a URI; none if it is not `host:port`.
pub(super) fn uri(address: &str) -> Option<Uri> {
    let uri: Uri = format!("http://{address}").parse().ok()?;
    (uri.host().is_some_and(|host| !host.is_empty()) && uri.port_u16().is_some() && uri.path() == "/").then_some(uri)
}

/// What a server answered.
enum Answer {
    /// Ready; its version.
    Ready(String),
    /// Not yet, in words.
    NotYet(String),
    /// Nothing listens there, or not in time.
    Silence,
    /// It gave the model up, with its reason.
    GaveUp(String),
}

/// Waits until the server says that the model is ready; gives the server's version.
///
/// # Errors
/// `engine_failed` when the server says that it gave up; `deadline_exceeded` with what it last answered.
pub(super) async fn wait(
    protocol: Protocol,
    address: &str,
    model: &str,
    deadline: Duration,
) -> Result<String, Problem> {
    let uri = uri(address).ok_or_else(|| Problem::invalid("address", format!("'{address}' is not host:port")))?;
    let endpoint = Endpoint::from(uri).connect_timeout(CALL_TIMEOUT).timeout(CALL_TIMEOUT);
    let mut last = format!("nothing listens at {address}");
    let poll = async {
        let mut pause = FIRST_PAUSE;
        loop {
            match ask(protocol, &endpoint, model).await {
                Answer::Ready(version) => return Ok(version),
                Answer::GaveUp(reason) => {
                    let message = format!("the server at {address} gave model '{model}' up: {reason}");
                    return Err(Problem::new(Code::EngineFailed, message));
                }
                Answer::NotYet(words) => last = format!("it answers: {words}"),
                Answer::Silence => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    let answered = tokio::time::timeout(deadline, poll).await;
    answered.unwrap_or_else(|_| {
        let message = format!("model '{model}' at {address} was not ready within {} s: {last}", deadline.as_secs_f64());
        Err(Problem::new(Code::DeadlineExceeded, message))
    })
}

async fn ask(protocol: Protocol, endpoint: &Endpoint, model: &str) -> Answer {
    let Ok(channel) = endpoint.connect().await else { return Answer::Silence };
    let asked = match protocol {
        Protocol::Tfs => ask_tfs(channel, model).await,
        Protocol::KserveV2 => ask_kserve(channel, model).await,
        Protocol::MlmodelciPredict => ask_predict(channel, model).await,
    };
    asked.unwrap_or_else(|status| Answer::NotYet(status.message().to_owned()))
}

async fn ask_kserve(channel: Channel, model: &str) -> Result<Answer, tonic::Status> {
    let mut client = GrpcInferenceServiceClient::new(channel);
    let request = ModelReadyRequest { name: model.to_owned(), version: String::new() };
    if !client.model_ready(request).await?.into_inner().ready {
        return Ok(Answer::NotYet("the model is not ready".into()));
    }
    // Metadata is optional: a server without it is simply of an unknown version.
    let metadata = client.server_metadata(ServerMetadataRequest {}).await.ok();
    let version = metadata.map(|m| m.into_inner().version).filter(|v| !v.is_empty());
    Ok(Answer::Ready(version.unwrap_or_else(|| UNKNOWN.into())))
}

/// What a server's version is where it does not say.
const UNKNOWN: &str = "unknown";

async fn ask_tfs(channel: Channel, model: &str) -> Result<Answer, tonic::Status> {
    let spec = ModelSpec { name: model.to_owned(), ..ModelSpec::default() };
    let request = GetModelStatusRequest { model_spec: Some(spec) };
    let versions = ModelServiceClient::new(channel).get_model_status(request).await?.into_inner().model_version_status;
    if versions.iter().any(|version| version.state() == State::Available) {
        return Ok(Answer::Ready(UNKNOWN.into()));
    }
    let failed = versions.iter().find(|version| version.state() == State::End);
    if let Some(status) = failed.and_then(|version| version.status.as_ref()).filter(|status| status.error_code != 0) {
        return Ok(Answer::GaveUp(status.error_message.clone()));
    }
    let states: Vec<_> = versions.iter().map(|version| version.state().as_str_name()).collect();
    Ok(Answer::NotYet(format!("the states of its versions are [{}]", states.join(", "))))
}

/// An empty request: a server that answers it, if only to refuse it, has loaded its model.
async fn ask_predict(channel: Channel, model: &str) -> Result<Answer, tonic::Status> {
    let request = InferRequest { model_name: model.to_owned(), ..InferRequest::default() };
    match PredictClient::new(channel).infer(request).await {
        // The connection's refusal has a source, the server's has none.
        Err(status) if status.code() == tonic::Code::Unimplemented || status.source().is_some() => Err(status),
        _ => Ok(Answer::Ready(UNKNOWN.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_host_and_port() {
        for good in ["127.0.0.1:8001", "host:1", "[::1]:8001"] {
            assert!(uri(good).is_some(), "{good}");
        }
        for bad in ["", "host", ":8001", "host:8001/path", "http://host:8001", "host:port"] {
            assert!(uri(bad).is_none(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_deadline_says_what_was_seen() {
        let problem = wait(Protocol::KserveV2, "127.0.0.1:9", "m", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(problem.code, Code::DeadlineExceeded);
        assert!(problem.message.contains("nothing listens at 127.0.0.1:9"), "{problem}");
    }
}
