//! TLS settings of an endpoint, and error messages about TLS that say what to do.

use modelmeter_common::Problem;
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, InvalidMessage,
    OtherError, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The protocol that is asked for in the handshake.
const ALPN: &[u8] = b"h2";

/// TLS settings as a user gives them.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsFiles {
    /// PEM file of the certificates that are trusted; none: this machine's own.
    pub ca: Option<PathBuf>,
    /// PEM file of the client's certificate and those that lead to its CA.
    pub cert: Option<PathBuf>,
    /// PEM file of the client's private key.
    pub key: Option<PathBuf>,
    /// Accept any certificate of the server.
    pub insecure: bool,
}

impl TlsFiles {
    /// The first flag that was given.
    pub(super) fn first_flag(&self) -> Option<&'static str> {
        let given = [
            ("ca", self.ca.is_some()),
            ("cert", self.cert.is_some()),
            ("key", self.key.is_some()),
            ("insecure", self.insecure),
        ];
        given.into_iter().find_map(|(flag, is_given)| is_given.then_some(flag))
    }
}

/// Ready-made settings.
#[derive(Clone)]
pub(super) struct Tls {
    files: TlsFiles,
    config: Arc<ClientConfig>,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.files == other.files
    }
}

impl Tls {
    pub fn new(files: &TlsFiles) -> Result<Self, Problem> {
        let provider = Arc::new(ring::default_provider());
        let trust = match files.insecure {
            true => None,
            false => Some(Trust::new(files.ca.as_deref(), &provider)?),
        };
        let verifier = Arc::new(Verifier { provider: provider.clone(), trust });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports the default versions")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match (&files.cert, &files.key) {
            (Some(cert), Some(key)) => {
                let chain = certificates(cert, "cert")?;
                let private =
                    PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("key", key, "private key", &e))?;
                builder.with_client_auth_cert(chain, private).map_err(|e| {
                    Problem::invalid("key", format!("{} does not go with {}: {e}", key.display(), cert.display()))
                })?
            }
            (None, None) => builder.with_no_client_auth(),
            (Some(_), None) => {
                return Err(Problem::invalid("key", "the certificate needs its key").with_hint("--key FILE"));
            }
            (None, Some(_)) => {
                return Err(Problem::invalid("cert", "the key needs its certificate").with_hint("--cert FILE"));
            }
        };
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self { files: files.clone(), config: Arc::new(config) })
    }

    /// The settings for one server.
    pub fn client(&self, host: &str) -> Result<Client, Problem> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned())
            .map_err(|_| Problem::invalid("endpoint", format!("'{host}' is no name that a certificate can have")))?;
        Ok(Client { config: self.config.clone(), name })
    }
}

/// What a handshake with one server needs.
#[derive(Clone)]
pub(super) struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Client {
    pub fn begin(&self) -> Result<ClientConnection, Error> {
        ClientConnection::new(self.config.clone(), self.name.clone())
    }
}

fn certificates(path: &Path, field: &str) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|e| unreadable(field, path, "certificate", &e))?;
    if found.is_empty() {
        return Err(unreadable(field, path, "certificate", &rustls::pki_types::pem::Error::NoItemsFound));
    }
    Ok(found)
}

fn unreadable(field: &str, path: &Path, what: &str, error: &rustls::pki_types::pem::Error) -> Problem {
    use rustls::pki_types::pem::Error as Pem;
    let message = match error {
        Pem::Io(e) => format!("cannot read {}: {e}", path.display()),
        Pem::NoItemsFound => format!("{} holds no {what}", path.display()),
        other => format!("{} is no PEM file: {other}", path.display()),
    };
    Problem::invalid(field, message).with_hint(format!("a PEM file with -----BEGIN {}-----", what.to_uppercase()))
}

/// How the server's certificate is checked; that the server has its key is checked in any case.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    /// Whose certificates are trusted; none: any certificate is, as the user asked for.
    trust: Option<Trust>,
}

/// The usual trust. Besides, a server may have the very certificate that the user gave, which is how a self-signed one is
/// trusted: then its name is checked, and its dates are not.
#[derive(Debug)]
struct Trust {
    usual: Arc<WebPkiServerVerifier>,
    given: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn new(ca: Option<&Path>, provider: &Arc<CryptoProvider>) -> Result<Self, Problem> {
        let mut roots = RootCertStore::empty();
        let given = ca.map_or_else(|| Ok(Vec::new()), |path| certificates(path, "ca"))?;
        match ca {
            Some(path) => {
                for certificate in &given {
                    roots.add(certificate.clone()).map_err(|e| {
                        Problem::invalid(
                            "ca",
                            format!("{} holds a certificate that cannot be used: {e}", path.display()),
                        )
                    })?;
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let none = |_| {
            Problem::invalid("ca", "this machine has no CA certificates to check the server's with")
                .with_hint("--ca FILE names the server's CA, --insecure accepts any certificate")
        };
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        Ok(Self { usual: usual.build().map_err(none)?, given })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(Trust { usual, given }) = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        if given.iter().any(|given| given.as_ref() == end_entity.as_ref()) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        usual.verify_server_cert(end_entity, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The kind of a TLS failure.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// The server's certificate is not trusted.
    Untrusted,
    /// It is for another name.
    Name,
    /// It is not valid at this time.
    Expired,
    /// The server wants a certificate of the client, or another one.
    ClientCertificate,
    /// The port does not speak TLS.
    NotTls,
    /// The server speaks TLS, but no HTTP/2 within.
    NoHttp2,
    /// The port speaks TLS, and the call did not.
    PlainToTls,
    /// Something else.
    Other,
}

impl Trouble {
    /// What the user can do about the failure.
    pub fn hint(self) -> &'static str {
        match self {
            Self::Untrusted => "name the CA that signed it with --ca FILE, or accept any certificate with --insecure",
            Self::Name => "name the server as its certificate does, or accept any certificate with --insecure",
            Self::Expired => "renew the server's certificate, set this machine's clock, or accept any with --insecure",
            Self::ClientCertificate => "give a certificate that the server takes: --cert FILE --key FILE",
            Self::NotTls => "if the port speaks plain gRPC, name it as host:port",
            Self::NoHttp2 => "name the server's gRPC port, or switch HTTP/2 on in the proxy before it",
            Self::PlainToTls => "name it as https://host:port",
            Self::Other => "look at the server's log",
        }
    }

    /// Whether trying again, unchanged, would end the same: it is about who is trusted.
    pub fn is_about_certificates(self) -> bool {
        matches!(self, Self::Untrusted | Self::Name | Self::Expired | Self::ClientCertificate)
    }

    /// Whether the port answered in TLS.
    pub fn is_said_in_tls(self) -> bool {
        matches!(self, Self::ClientCertificate | Self::NoHttp2 | Self::Untrusted | Self::Name | Self::Expired)
    }
}

/// A TLS error in words.
#[derive(Debug)]
pub struct Refusal {
    /// What kind it is of.
    pub trouble: Trouble,
    words: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// An error of the system that says this.
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }

    /// Nothing that TLS says came, or not all.
    pub fn unanswered(what: &str) -> Self {
        Self { trouble: Trouble::NotTls, words: format!("{what}; it may not speak TLS") }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let (trouble, words) = match &error {
            Error::InvalidCertificate(certificate) => of_certificate(certificate),
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                (Trouble::NotTls, "what it answers is not TLS".to_owned())
            }
            Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
                (Trouble::NoHttp2, "it speaks TLS, but no HTTP/2 within (ALPN h2)".to_owned())
            }
            Error::AlertReceived(
                alert @ (AlertDescription::CertificateRequired
                | AlertDescription::BadCertificate
                | AlertDescription::UnknownCA
                | AlertDescription::AccessDenied
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError),
            ) => (Trouble::ClientCertificate, format!("the server wants another client certificate ({alert:?})")),
            Error::AlertReceived(alert) => (Trouble::Other, format!("the server ended the TLS handshake ({alert:?})")),
            other => (Trouble::Other, format!("TLS failed: {other}")),
        };
        Self { trouble, words }
    }
}

fn of_certificate(error: &CertificateError) -> (Trouble, String) {
    match error {
        CertificateError::UnknownIssuer => {
            (Trouble::Untrusted, "its TLS certificate is signed by no CA that is trusted here".into())
        }
        // webpki has no variant of rustls' own for it: a certificate that is its own CA.
        CertificateError::Other(OtherError(inner)) if inner.to_string().contains("CaUsedAsEndEntity") => {
            (Trouble::Untrusted, "its TLS certificate is self-signed, and not trusted here".into())
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            (Trouble::Name, format!("its TLS certificate is for another name: {error}"))
        }
        CertificateError::Expired
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYet
        | CertificateError::NotValidYetContext { .. } => {
            (Trouble::Expired, format!("its TLS certificate is not valid now: {error}"))
        }
        other => (Trouble::Untrusted, format!("its TLS certificate is not valid: {other}")),
    }
}

/// The TLS error that an error of the system carries.
pub fn refusal_in(error: &io::Error) -> Option<&Refusal> {
    error.get_ref()?.downcast_ref()
}
