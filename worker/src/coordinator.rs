//! The client of the coordinator's `Work` service: several coordinators tried in turn, each call with a deadline.

use crate::patience::Backoff;
use modelmeter_common::{
    Code, Problem, grpc,
    net::{Access, Connection, Limits, Peers, Unanswered, each_of},
};
use modelmeter_proto::control::{
    ArtifactChunk, ArtifactId, ClaimNextRequest, ClaimReply, ClaimRequest, HandBackRequest, RegisterReply,
    RegisterRequest, RenewReply, RenewRequest, work_client::WorkClient,
};
use std::{future::Future, time::Duration};
use tonic::{Request, Response, Status, Streaming};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// An assignment or a chunk of an artifact, with room.
const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The coordinators that a worker knows. Connects by itself, at the first call and after a loss.
#[derive(Debug)]
pub(crate) struct Coordinator {
    peers: Peers,
}

impl Coordinator {
    /// For these addresses, `http://host:port`.
    pub fn new(addresses: &[String]) -> Result<Self, Problem> {
        if addresses.is_empty() {
            return Err(Problem::invalid("coordinator", "is empty, needs at least one")
                .with_hint("for example --coordinator http://127.0.0.1:7600"));
        }
        let limits =
            Limits { connect: CONNECT_TIMEOUT, call: Some(CALL_TIMEOUT), keep_alive: KEEP_ALIVE, while_idle: true };
        Ok(Self { peers: Peers::new("coordinator", addresses, limits, Access::default())? })
    }

    pub async fn register(&self, request: &RegisterRequest) -> Result<RegisterReply, Problem> {
        self.call(request, |mut c, r| async move { c.register(r).await }).await
    }

    pub async fn claim(&self, request: &ClaimRequest) -> Result<ClaimReply, Problem> {
        self.call(request, |mut c, r| async move { c.claim(r).await }).await
    }

    pub async fn claim_next(&self, request: &ClaimNextRequest) -> Result<ClaimReply, Problem> {
        self.call(request, |mut c, r| async move { c.claim_next(r).await }).await
    }

    pub async fn renew(&self, request: &RenewRequest) -> Result<RenewReply, Problem> {
        self.call(request, |mut c, r| async move { c.renew(r).await }).await
    }

    pub async fn hand_back(&self, request: &HandBackRequest) -> Result<(), Problem> {
        self.call(request, |mut c, r| async move { c.hand_back(r).await }).await.map(|_| ())
    }

    /// The stream of an artifact's bytes; reading it has no deadline of its own.
    pub async fn artifact(&self, sha256: &str) -> Result<Streaming<ArtifactChunk>, Problem> {
        let request = ArtifactId { sha256: sha256.to_owned() };
        self.call(&request, |mut c, r| async move { c.get_artifact(r).await }).await
    }

    /// Asks each coordinator once, beginning with the one that answered last.
    ///
    /// # Errors
    /// `unreachable`, with what was tried, if none answered; else what the first that answered said.
    async fn call<Q, A, F>(
        &self,
        request: &Q,
        call: impl Fn(WorkClient<Connection>, Request<Q>) -> F,
    ) -> Result<A, Problem>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let client = |connection| WorkClient::new(connection).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let answer = self.peers.call(request, |connection, request| call(client(connection), request)).await;
        answer.map_err(|unanswered| match unanswered {
            Unanswered::Refused(status) => grpc::problem_of(&status),
            Unanswered::Unreached(tried) => {
                let message = format!("cannot reach a coordinator ({})", each_of(&tried));
                Problem::new(Code::Unreachable, message)
                    .with_field("coordinator")
                    .with_hint("start one with 'modelmeter coordinator', or name a running one with --coordinator")
            }
        })
    }
}

/// Repeats a call as long as its problem is `unreachable`; never gives up, so race it against a stop.
pub(crate) async fn patiently<T, F>(call: impl Fn() -> F) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let mut backoff = Backoff::default();
    loop {
        match call().await {
            Err(problem) if problem.code == Code::Unreachable => {
                tracing::warn!(%problem, "trying again");
                backoff.pause().await;
            }
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn unreachable_coordinators_are_all_named() {
        let none = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let addresses = [format!("http://{none}"), "http://127.0.0.1:9".to_owned()];
        let problem = Coordinator::new(&addresses).unwrap().renew(&RenewRequest::default()).await.unwrap_err();
        assert_eq!(problem.code, Code::Unreachable);
        for address in addresses {
            assert!(problem.message.contains(&address), "{problem}");
        }
    }

    #[tokio::test]
    async fn no_password_in_an_address_is_shown() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let known = Coordinator::new(&[format!("http://joe:hunter2@{closed}")]).unwrap();
        let unreachable = known.renew(&RenewRequest::default()).await.unwrap_err();
        let bad = Coordinator::new(&["https://joe:hunter2@host:1".to_owned()]).unwrap_err();
        for text in [format!("{unreachable:?} {known:?}"), format!("{bad:?}")] {
            assert!(text.contains("***@") && !text.contains("hunter2"), "{text}");
        }
    }

    #[tokio::test]
    async fn bad_addresses_are_refused_before_any_call() {
        for bad in ["", "127.0.0.1:7600", "ftp://x", "http://"] {
            let problem = Coordinator::new(&[bad.to_owned()]).unwrap_err();
            assert_eq!(problem.code, Code::InvalidArgument, "{bad}");
        }
        assert!(Coordinator::new(&[]).is_err());
    }
}
