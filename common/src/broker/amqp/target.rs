//! Where the broker is, and connecting to it once. Nothing here lets the credentials out.

use crate::{broker::BrokerError, redact::redact};
use lapin::{
    Connection, ConnectionProperties, Error, ErrorKind,
    protocol::{AMQPErrorKind, AMQPHardError},
    uri::AMQPUri,
};
use std::{io, time::Duration};

/// Seconds; the peer is given up after two of these without a sign of life.
const HEARTBEAT_S: u16 = 10;

/// A parsed broker URL.
pub(super) struct Target {
    uri: AMQPUri,
    limit: Duration,
}

impl Target {
    /// `limit`: the longest that connecting may take.
    pub(super) fn parse(url: &str, limit: Duration) -> Result<Self, BrokerError> {
        let bad = |reason: String| BrokerError::BadUrl { address: redact(url), reason };
        if !url.starts_with("amqp://") && !url.starts_with("amqps://") {
            return Err(bad("expected amqp://[user:password@]host[:port][/vhost] or amqps://…".into()));
        }
        // The parser's own messages may quote the whole URL.
        let mut uri: AMQPUri = url.parse().map_err(|e: String| bad(e.replace(url, &redact(url))))?;
        if let Some(host) = bracketed_host(url) {
            uri.authority.host = host.to_owned(); // the parser turns an IPv6 address into "localhost"
        }
        if uri.vhost.is_empty() {
            uri.vhost = "/".to_owned(); // "amqp://host/" means the default virtual host to everyone
        }
        uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
        Ok(Self { uri, limit })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> String {
        let authority = &self.uri.authority;
        if authority.host.contains(':') {
            return format!("[{}]:{}", authority.host, authority.port);
        }
        format!("{}:{}", authority.host, authority.port)
    }

    /// One attempt.
    pub(super) async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        match tokio::time::timeout(self.limit, Connection::connect_uri(self.uri.clone(), properties)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if is_refusal(&error) => {
                Err(BrokerError::Unauthenticated { address: self.address(), reason: self.reason(&error) })
            }
            Ok(Err(error)) => Err(self.unreachable(&error)),
            Err(_) => Err(BrokerError::Unreachable {
                address: self.address(),
                reason: format!("no answer to {} within {:?}", self.tried(), self.limit),
            }),
        }
    }

    /// The error of a connection that is not there, or no longer.
    pub(super) fn unreachable(&self, error: &Error) -> BrokerError {
        BrokerError::Unreachable { address: self.address(), reason: self.reason(error) }
    }

    fn tried(&self) -> String {
        format!("the login to virtual host '{}' over {}", self.uri.vhost, self.uri.scheme)
    }

    fn reason(&self, error: &Error) -> String {
        match error.kind() {
            ErrorKind::IOError(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused; is RabbitMQ running there?".into()
            }
            ErrorKind::IOError(e) if e.kind() == io::ErrorKind::ConnectionAborted => {
                format!("it hung up on {}; is it an AMQP 0-9-1 broker?", self.tried())
            }
            ErrorKind::IOError(e) => e.to_string(),
            ErrorKind::ProtocolError(e) => match e.kind() {
                AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => {
                    format!("{} was not allowed: {}", self.tried(), e.get_message())
                }
                _ if e.get_id() == ACCESS_REFUSED => {
                    format!("{} was refused: check user and password in the URL", self.tried())
                }
                _ => e.get_message().to_string(),
            },
            _ => error.to_string(),
        }
    }
}

/// AMQP's reply code for a login that is refused.
const ACCESS_REFUSED: u16 = 403;

/// Whether a login was refused, or its virtual host to this user: the same login will be refused again.
fn is_refusal(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::ProtocolError(e) => {
            e.get_id() == ACCESS_REFUSED || matches!(e.kind(), AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED))
        }
        _ => false,
    }
}

fn bracketed_host(url: &str) -> Option<&str> {
    let authority = url.split_once("://")?.1.split(['/', '?']).next()?;
    let host = authority.rsplit('@').next()?.strip_prefix('[')?;
    host.split_once(']').map(|(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(url: &str) -> Target {
        Target::parse(url, Duration::from_secs(1)).unwrap()
    }

    #[test]
    fn addresses_and_defaults() {
        assert_eq!(target("amqp://localhost").address(), "localhost:5672");
        assert_eq!(target("amqps://u:p@broker.example").address(), "broker.example:5671");
        assert_eq!(target("amqp://u:p@[::1]:99/x").address(), "[::1]:99");
        assert_eq!(target("amqp://127.0.0.1:99/").uri.vhost, "/");
        assert_eq!(target("amqp://127.0.0.1:99/%2f").uri.vhost, "/");
        assert_eq!(target("amqp://h/v?heartbeat=3").uri.query.heartbeat, Some(3));
        assert_eq!(target("amqp://h/v").uri.query.heartbeat, Some(HEARTBEAT_S));
    }

    #[test]
    fn no_error_shows_the_credentials() {
        for url in [
            "amqp:joe:hunter2@host",
            "http://joe:hunter2@host/",
            "joe:hunter2@host",
            "amqp://joe:hunter2@host:port/",
            "amqp://joe:hunter2@host/?heartbeat=often",
            "amqp://joe:hun/ter2@host/?heartbeat=often",
            "amqp://joe:hunter2@",
        ] {
            let Err(error) = Target::parse(url, Duration::from_secs(1)) else { panic!("{url} was accepted") };
            let text = format!("{error} {error:?}");
            assert!(!text.contains("joe") && !text.contains("ter2"), "{text}");
        }
    }
}
