//! The address of a gRPC server, as `host:port`, `https://host:port` or `unix:/path`, and connections to it.
//!
//! What belongs here: addresses, TLS settings and connected sockets. What does not: HTTP/2 and calls
//! ([`crate::transports`]).

mod socket;
mod tls;

pub use tls::{TlsFiles, Trouble};

pub(crate) use socket::Route;
pub use socket::Socket;
pub(crate) use tls::refusal_in;

use modelmeter_common::{Code, Problem};
use socket::To;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    str::FromStr,
};
use tls::Tls;

/// What an address may look like.
const FORMS: &str = "host:port of the server's gRPC port, https://host:port where that speaks TLS, or unix:/path";
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// The address of a gRPC server, with the TLS settings to speak to it.
#[derive(Clone, PartialEq)]
pub struct Endpoint {
    address: Address,
    tls: Option<Tls>,
}

#[derive(Clone, PartialEq)]
enum Address {
    /// The host as a URI has it: an IPv6 address in brackets.
    Tcp {
        host: String,
        port: u16,
    },
    Unix(PathBuf),
}

impl Endpoint {
    /// The endpoint at this address, spoken to in TLS where the address says `https://` or `grpcs://`.
    ///
    /// # Errors
    /// `invalid_argument` for an address that is none, for files that cannot be read or hold no certificate or key, and for
    /// TLS settings of an address without TLS.
    pub fn new(text: &str, files: &TlsFiles) -> Result<Self, Problem> {
        let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
        let (address, is_tls) = match scheme.to_ascii_lowercase().as_str() {
            "" if rest.starts_with("unix:") => (unix(&rest["unix:".len()..])?, false),
            "unix" => (unix(rest)?, false),
            "" => (tcp(text, rest, None)?, false),
            "http" | "grpc" => (tcp(text, rest, Some(HTTP_PORT))?, false),
            "https" | "grpcs" => (tcp(text, rest, Some(HTTPS_PORT))?, true),
            "dns" => (tcp(text, rest.trim_start_matches('/'), None)?, false),
            other => {
                return Err(Problem::invalid("endpoint", format!("'{other}://' is no way to speak to a gRPC server"))
                    .with_hint(FORMS));
            }
        };
        if let Some(flag) = files.first_flag().filter(|_| !is_tls) {
            return Err(Problem::invalid(flag, format!("is for TLS, and {text} is spoken to without it"))
                .with_hint("name the server as https://host:port"));
        }
        let tls = if is_tls { Some(Tls::new(files)?) } else { None };
        Ok(Self { address, tls })
    }

    /// A server on this machine's loopback interface.
    pub fn local(port: u16) -> Self {
        Self { address: Address::Tcp { host: "127.0.0.1".into(), port }, tls: None }
    }

    /// What HTTP calls the authority: `host:port`; of a socket without one, `localhost`.
    pub(crate) fn authority(&self) -> String {
        match &self.address {
            Address::Tcp { host, port } => format!("{host}:{port}"),
            Address::Unix(_) => "localhost".into(),
        }
    }

    /// Whether calls go through TLS.
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// The same address with `https://`; none for a Unix socket, and where it has it already.
    pub(crate) fn with_https(&self) -> Option<String> {
        match (&self.address, &self.tls) {
            (Address::Tcp { host, port }, None) => Some(format!("https://{host}:{port}")),
            _ => None,
        }
    }

    /// The socket addresses that the name stands for, and how to connect to one of them.
    ///
    /// # Errors
    /// `unreachable` for a name that does not resolve.
    pub(crate) async fn route(&self) -> Result<Route, Problem> {
        let to = match &self.address {
            Address::Unix(path) => To::Unix(path.clone()),
            Address::Tcp { .. } => To::Tcp(self.resolve().await?),
        };
        let tls = match (&self.address, &self.tls) {
            (Address::Tcp { host, .. }, Some(tls)) => Some(tls.client(host)?),
            _ => None,
        };
        Ok(Route { to, tls })
    }

    async fn resolve(&self) -> Result<Vec<std::net::SocketAddr>, Problem> {
        let unknown =
            |why: String| Problem::new(Code::Unreachable, format!("'{}' {why}", self.authority())).with_hint(FORMS);
        let found = tokio::net::lookup_host(self.authority()).await;
        let found: Vec<_> = found.map_err(|e| unknown(format!("does not resolve: {e}")))?.collect();
        if found.is_empty() { Err(unknown("has no address".into())) } else { Ok(found) }
    }

    /// Connects once, TLS included, and hangs up.
    ///
    /// # Errors
    /// What stood in the way, in the system's words or as a [`Refusal`].
    pub(crate) async fn reach(&self) -> Result<io::Result<()>, Problem> {
        let route = self.route().await?;
        let reached = tokio::task::spawn_blocking(move || route.connect().map(drop)).await;
        reached.map_err(|e| Problem::new(Code::Internal, format!("connecting failed: {e}")))
    }

    /// Whether a port that does not answer as a plain one speaks TLS: tried, whatever certificate it has.
    pub(crate) async fn would_speak_tls(&self) -> bool {
        let Some(tls) = self.with_https() else { return false };
        let any = TlsFiles { insecure: true, ..TlsFiles::default() };
        let Ok(endpoint) = Self::new(&tls, &any) else { return false };
        match endpoint.reach().await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => refusal_in(&error).is_some_and(|refusal| refusal.trouble.is_said_in_tls()),
            Err(_) => false,
        }
    }
}

fn unix(path: &str) -> Result<Address, Problem> {
    if path.is_empty() {
        return Err(Problem::invalid("endpoint", "the Unix socket has no path").with_hint("unix:/path/to/socket"));
    }
    Ok(Address::Unix(Path::new(path).to_owned()))
}

fn tcp(text: &str, rest: &str, default_port: Option<u16>) -> Result<Address, Problem> {
    let wrong = |what: &str| Problem::invalid("endpoint", format!("'{text}' {what}")).with_hint(FORMS);
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(wrong("has a path, and gRPC has none"));
    }
    if authority.contains('@') {
        // Not repeated: it holds a password.
        return Err(Problem::invalid("endpoint", "the address holds a user's name, which gRPC has no place for")
            .with_hint(FORMS));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_bare_ipv6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if is_bare_ipv6 {
        return Err(wrong("is not host:port: an IPv6 address stands in brackets"));
    }
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}');
    if host.is_empty() || !host.chars().all(plain) {
        return Err(wrong("is not host:port"));
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port > 0),
        None => default_port,
    };
    Ok(Address::Tcp { host: host.to_owned(), port: port.ok_or_else(|| wrong("is not host:port"))? })
}

impl FromStr for Endpoint {
    type Err = Problem;

    /// The endpoint at this address; over TLS, with the machine's own certificates.
    fn from_str(text: &str) -> Result<Self, Problem> {
        Self::new(text, &TlsFiles::default())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, &self.tls) {
            (Address::Unix(path), _) => write!(f, "unix:{}", path.display()),
            (Address::Tcp { host, port }, None) => write!(f, "{host}:{port}"),
            (Address::Tcp { host, port }, Some(_)) => write!(f, "https://{host}:{port}"),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_grpc_clients_write_them() {
        let same = [
            ("127.0.0.1:8001", "127.0.0.1:8001"),
            ("host:1", "host:1"),
            ("[::1]:8001", "[::1]:8001"),
            ("http://host:8001", "host:8001"),
            ("http://host:8001/", "host:8001"),
            ("grpc://host:8001", "host:8001"),
            ("dns:///host:8001", "host:8001"),
            ("HTTP://host", "host:80"),
            ("https://host:8443", "https://host:8443"),
            ("grpcs://host:8443/", "https://host:8443"),
            ("https://host", "https://host:443"),
            ("https://[::1]", "https://[::1]:443"),
            ("unix:/run/x.sock", "unix:/run/x.sock"),
            ("unix:///run/x.sock", "unix:/run/x.sock"),
            ("unix:x.sock", "unix:x.sock"),
        ];
        for (text, shown) in same {
            let any = TlsFiles { insecure: shown.starts_with("https"), ..TlsFiles::default() };
            assert_eq!(Endpoint::new(text, &any).map(|e| e.to_string()).as_deref(), Ok(shown), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_says_what_would_be_one() {
        let bad = ["", "host", ":8001", "host:8001/path", "http://host:8001/v2", "host:port", "host:0", "::1", "a b:1"];
        for text in bad.into_iter().chain(["ftp://host:1", "unix:", "https://", "host:70000", "http://me:word@host:1"])
        {
            let problem = text.parse::<Endpoint>().unwrap_err();
            assert_eq!(problem.field.as_deref(), Some("endpoint"), "{text}: {problem}");
            assert!(problem.hint.is_some() && !problem.message.contains("word"), "{text}: {problem}");
        }
    }

    #[test]
    fn settings_of_tls_need_an_address_that_speaks_it() {
        let insecure = TlsFiles { insecure: true, ..TlsFiles::default() };
        for text in ["host:1", "http://host:1", "unix:/x"] {
            let problem = Endpoint::new(text, &insecure).unwrap_err();
            assert!(problem.field.as_deref() == Some("insecure") && problem.hint.unwrap().contains("https://"));
        }
        assert!(Endpoint::new("https://host:1", &insecure).is_ok());
    }

    #[test]
    fn a_unix_socket_has_an_authority_that_servers_take() {
        let endpoint: Endpoint = "unix:/run/x.sock".parse().unwrap();
        assert_eq!((endpoint.authority().as_str(), endpoint.with_https()), ("localhost", None));
        assert_eq!(Endpoint::local(8001).authority(), "127.0.0.1:8001");
    }
}
