//! Channels to other processes of modelmeter over gRPC: several addresses, asked in turn, each call with its limits and the
//! caller's credentials.
//!
//! Every call of the control API is idempotent, so that one that broke off is repeated at the next address.

use crate::{Code, Problem, grpc, redact::redact};
use std::{
    future::Future,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

/// What a client is made on: a connection that is made when it is needed, and again after a loss.
pub type Connection = InterceptedService<Channel, Access>;

/// The credentials of a caller, sent with each of its calls.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// `Bearer …`, never shown.
    token: Option<MetadataValue<Ascii>>,
}

impl Access {
    /// A bearer token.
    ///
    /// # Errors
    /// `invalid_argument` for characters that no header can hold; the token is not repeated.
    pub fn bearer(token: &str) -> Result<Self, Problem> {
        let mut value = MetadataValue::try_from(format!("Bearer {token}")).map_err(|_| {
            Problem::invalid("token", "has characters that cannot be sent").with_hint("use visible ASCII characters")
        })?;
        value.set_sensitive(true);
        Ok(Self { token: Some(value) })
    }
}

impl Interceptor for Access {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The limits of connections and calls.
#[derive(Clone, Debug)]
pub struct Limits {
    /// An address may take this long to take a connection.
    pub connect: Duration,
    /// A call may take this long at one address; none: as long as the connection holds.
    pub call: Option<Duration>,
    /// A connection is asked this often for a sign of life, and may take as long to give one.
    pub keep_alive: Duration,
    /// Whether that is asked without a call, too.
    pub while_idle: bool,
}

/// The addresses of one service. The one that answered last is asked first.
#[derive(Debug)]
pub struct Peers {
    peers: Vec<Peer>,
    current: AtomicUsize,
    limits: Limits,
    access: Access,
}

#[derive(Debug)]
struct Peer {
    /// As it may be shown.
    address: String,
    channel: Channel,
}

/// An address that did not answer.
#[derive(Clone, Debug)]
pub struct Tried {
    /// As it may be shown.
    pub address: String,
    /// What stood in the way.
    pub why: String,
    /// The same, as far as it came as a status.
    pub status: Option<Status>,
}

/// Why a call has no reply.
#[derive(Clone, Debug)]
pub enum Unanswered {
    /// An address answered with this.
    Refused(Status),
    /// No address answered.
    Unreached(Vec<Tried>),
}

/// `http://a:1: connection refused; http://b:1: …`.
pub fn each_of(tried: &[Tried]) -> String {
    tried.iter().map(|Tried { address, why, .. }| format!("{address}: {why}")).collect::<Vec<_>>().join("; ")
}

impl Peers {
    /// For these addresses, `http://host:port`; each is connected to at its first call.
    ///
    /// # Errors
    /// `invalid_argument`, naming the field, for an address that is none.
    pub fn new(field: &str, addresses: &[String], limits: Limits, access: Access) -> Result<Self, Problem> {
        let peer = |address: &String| {
            let channel = endpoint(field, address, &limits)?.connect_lazy();
            Ok(Peer { address: redact(address), channel })
        };
        let peers = addresses.iter().map(peer).collect::<Result<_, Problem>>()?;
        Ok(Self { peers, current: AtomicUsize::new(0), limits, access })
    }

    /// The same, connected to the first of them that takes a connection.
    ///
    /// # Errors
    /// `invalid_argument` as above; the inner error has each address that was tried.
    pub async fn connect(
        field: &str,
        addresses: &[String],
        limits: Limits,
        access: Access,
    ) -> Result<Result<Self, Vec<Tried>>, Problem> {
        let mut all = Self::new(field, addresses, limits, access)?;
        let mut tried = Vec::new();
        for (at, address) in addresses.iter().enumerate() {
            match endpoint(field, address, &all.limits)?.connect().await {
                Ok(channel) => {
                    all.peers[at].channel = channel;
                    all.current = AtomicUsize::new(at);
                    return Ok(Ok(all));
                }
                Err(e) => tried.push(Tried { address: redact(address), why: grpc::root(&e), status: None }),
            }
        }
        Ok(Err(tried))
    }

    /// The address that answered last, for a call that cannot be repeated.
    pub fn current(&self) -> Connection {
        self.connection(self.current.load(Ordering::Relaxed))
    }

    fn connection(&self, at: usize) -> Connection {
        InterceptedService::new(self.peers[at].channel.clone(), self.access.clone())
    }

    /// Asks each address once, beginning with the one that answered last.
    ///
    /// # Errors
    /// What the first that answered said, or each that did not.
    pub async fn call<Q, A, F>(&self, request: &Q, call: impl Fn(Connection, Request<Q>) -> F) -> Result<A, Unanswered>
    where
        Q: Clone,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let first = self.current.load(Ordering::Relaxed);
        let mut tried = Vec::new();
        for at in (0..self.peers.len()).map(|offset| (first + offset) % self.peers.len()) {
            let answer = call(self.connection(at), Request::new(request.clone()));
            let answer = match self.limits.call {
                Some(limit) => tokio::time::timeout(limit, answer).await.map_err(|_| limit),
                None => Ok(answer.await),
            };
            let (why, status) = match answer {
                Ok(Ok(reply)) => {
                    self.current.store(at, Ordering::Relaxed);
                    return Ok(reply.into_inner());
                }
                // Another one, or the same one later, may answer.
                Ok(Err(status)) if grpc::problem_of(&status).code == Code::Unreachable => {
                    (grpc::reason(&status), Some(status))
                }
                Ok(Err(status)) => return Err(Unanswered::Refused(status)),
                Err(limit) => (format!("no answer within {} s", limit.as_secs()), None),
            };
            tried.push(Tried { address: self.peers[at].address.clone(), why, status });
        }
        Err(Unanswered::Unreached(tried))
    }
}

/// Checks an address.
fn endpoint(field: &str, address: &str, limits: &Limits) -> Result<Endpoint, Problem> {
    let bad = |reason: String| {
        Problem::invalid(field, format!("'{}' is not an address: {reason}", redact(address)))
            .with_hint("for example http://127.0.0.1:7600")
    };
    let endpoint = Endpoint::from_shared(address.to_owned()).map_err(|e| bad(e.to_string()))?;
    if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().host().is_none() {
        return Err(bad("it must be http://host:port".into()));
    }
    Ok(endpoint
        .connect_timeout(limits.connect)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(limits.keep_alive)
        .keep_alive_timeout(limits.keep_alive)
        .keep_alive_while_idle(limits.while_idle))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_with_each_call_and_is_never_shown() {
        let mut access = Access::bearer("hunter2").unwrap();
        let sent = access.call(Request::new(())).unwrap();
        assert_eq!(sent.metadata().get("authorization").unwrap().to_str().unwrap(), "Bearer hunter2");
        assert!(!format!("{access:?} {sent:?}").contains("hunter2"));
        assert!(Access::default().call(Request::new(())).unwrap().metadata().is_empty());
        let refused = Access::bearer("a\nb").unwrap_err();
        assert!(refused.field.as_deref() == Some("token") && refused.hint.is_some(), "{refused}");
    }
}
