//! Readiness, asked of the engine itself: KServe ModelReady.

use modelmeter_common::{Code, Problem};
use modelmeter_proto::kserve::{
    ModelReadyRequest, ServerMetadataRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
};
use std::time::Duration;
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

/// Waits until the server says that the model is ready; gives the server's version.
///
/// # Errors
/// `deadline_exceeded` with what it last answered; `unreachable` if nothing ever listened there.
pub(super) async fn wait(address: &str, model: &str, deadline: Duration) -> Result<String, Problem> {
    let uri = uri(address).ok_or_else(|| Problem::invalid("address", format!("'{address}' is not host:port")))?;
    let endpoint = Endpoint::from(uri).connect_timeout(CALL_TIMEOUT).timeout(CALL_TIMEOUT);
    let mut last = format!("nothing listens at {address}");
    let poll = async {
        let mut pause = FIRST_PAUSE;
        loop {
            match ask(&endpoint, model).await {
                Ok(Some(version)) => return version,
                Ok(None) => last = "it answers that the model is not ready".into(),
                Err(Some(answer)) => last = format!("it answers: {answer}"),
                Err(None) => {}
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    };
    let answered = tokio::time::timeout(deadline, poll).await;
    answered.map_err(|_| {
        let message = format!("model '{model}' at {address} was not ready within {} s: {last}", deadline.as_secs_f64());
        Problem::new(Code::DeadlineExceeded, message)
    })
}

/// The server's version once the model is ready; `Err(None)`: no connection.
async fn ask(endpoint: &Endpoint, model: &str) -> Result<Option<String>, Option<String>> {
    let channel: Channel = endpoint.connect().await.map_err(|_| None)?;
    let mut client = GrpcInferenceServiceClient::new(channel);
    let request = ModelReadyRequest { name: model.to_owned(), version: String::new() };
    let reply = client.model_ready(request).await.map_err(|status| Some(status.message().to_owned()))?;
    if !reply.into_inner().ready {
        return Ok(None);
    }
    // Metadata is optional: a server without it is simply of an unknown version.
    let metadata = client.server_metadata(ServerMetadataRequest {}).await.ok();
    Ok(Some(metadata.map(|m| m.into_inner().version).filter(|v| !v.is_empty()).unwrap_or_else(|| "unknown".into())))
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
        let problem = wait("127.0.0.1:9", "m", Duration::from_millis(50)).await.unwrap_err();
        assert_eq!(problem.code, Code::DeadlineExceeded);
        assert!(problem.message.contains("nothing listens at 127.0.0.1:9"), "{problem}");
    }
}
