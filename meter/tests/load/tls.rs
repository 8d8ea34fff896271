//! TLS and Unix sockets: the same calls, and what goes wrong with certificates in words.

use super::{
    calls::floats,
    closed,
    laws::constant,
    mock::{Mock, Reply},
    rules, run_target, target_of, turn,
};
use modelmeter_common::{Code, Problem};
use modelmeter_meter::{
    call_once,
    endpoint::{Endpoint, TlsFiles},
    first_inference,
};
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
        server::WebPkiClientVerifier,
    },
};
use tokio_util::sync::CancellationToken;

fn pem(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/load/certs").join(name)
}

/// A server with this certificate, that wants one of its clients or not, and speaks these protocols.
fn acceptor(name: &str, wants_client: bool, protocols: &[&str]) -> TlsAcceptor {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
    let builder = if wants_client {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(pem("ca.pem")).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let certificate = CertificateDer::from_pem_file(pem(&format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(pem(&format!("{name}.key"))).unwrap();
    let mut config = builder.with_single_cert(vec![certificate], key).unwrap();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

fn serve(name: &str, wants_client: bool) -> Mock {
    Mock::tls(acceptor(name, wants_client, &["h2"]), constant(Duration::ZERO))
}

fn at(host: &str, mock: &Mock, files: TlsFiles) -> Endpoint {
    Endpoint::new(&format!("https://{host}:{}", mock.address.port()), &files).unwrap()
}

fn ca(name: &str) -> TlsFiles {
    TlsFiles { ca: Some(pem(name)), ..TlsFiles::default() }
}

fn with_client(name: &str) -> TlsFiles {
    let [cert, key] = ["pem", "key"].map(|suffix| Some(pem(&format!("{name}.{suffix}"))));
    TlsFiles { cert, key, ..ca("ca.pem") }
}

/// Makes one call; what stood in the way.
async fn call(endpoint: Endpoint) -> Result<(), Problem> {
    let target = target_of(endpoint, 1);
    first_inference(&target, Duration::from_secs(5), &CancellationToken::new()).await.map(drop)
}

#[tokio::test]
async fn a_server_whose_ca_is_named_is_measured() {
    let _turn = turn().await;
    for host in ["localhost", "127.0.0.1"] {
        let mock = serve("server", false);
        let target = target_of(at(host, &mock, ca("ca.pem")), 16);
        let point = run_target(&target, closed(8), &rules(400)).await.unwrap();
        assert_eq!((point.errors, point.valid), (0, true), "{:?} {:?}", point.error_kinds, point.warnings);
        assert!(point.requests > 200 && mock.most_in_flight() == 8, "{}", point.requests);
    }
}

#[tokio::test]
async fn large_requests_go_through_tls_whole() {
    let _turn = turn().await;
    let mock = serve("server", false);
    let target = target_of(at("localhost", &mock, ca("ca.pem")), 3 << 18);
    let mut fixed = rules(20_000);
    fixed.batches = Some(20);
    fixed.stop.timeout_ms = 10_000;
    let point = run_target(&target, closed(3), &fixed).await.unwrap();
    assert_eq!((point.requests, point.errors), (20, 0), "{:?}", point.error_kinds);
    assert_eq!(mock.body_sizes().last(), floats(3 << 18, 1).frames.iter().map(|frame| frame.len()).max().as_ref());
}

#[tokio::test]
async fn connections_that_end_are_made_again_in_tls() {
    let _turn = turn().await;
    let leaving = |nth, _| if nth % 100 == 99 { Reply::Leave } else { Reply::After(Duration::ZERO) };
    let mock = Mock::tls(acceptor("server", false, &["h2"]), leaving);
    let target = target_of(at("localhost", &mock, ca("ca.pem")), 1);
    let point = run_target(&target, closed(8), &rules(600)).await.unwrap();
    assert!(point.errors == 0 && mock.connections() > 3, "{:?}", point.error_kinds);
}

#[tokio::test]
async fn certificates_that_are_not_trusted_say_what_to_do() {
    let _turn = turn().await;
    let refused = async |endpoint: Endpoint, says: &str, hints: &str| {
        let problem = call(endpoint).await.unwrap_err();
        assert_eq!(problem.code, Code::Unauthenticated, "{problem}");
        assert!(problem.message.contains(says), "{says}: {problem}");
        assert!(problem.hint.as_ref().is_some_and(|hint| hint.contains(hints)), "{hints}: {:?}", problem.hint);
    };
    let mock = serve("server", false);
    refused(at("localhost", &mock, ca("self.pem")), "signed by no CA", "--ca FILE").await;
    call(at("localhost", &mock, TlsFiles { insecure: true, ..TlsFiles::default() })).await.unwrap();
    // One that signed itself: as good as its own CA, under its own name.
    let mock = serve("self", false);
    refused(at("localhost", &mock, ca("ca.pem")), "self-signed", "--insecure").await;
    call(at("localhost", &mock, ca("self.pem"))).await.unwrap();
    refused(at("127.0.0.1", &mock, ca("self.pem")), "another name", "as its certificate does").await;
}

#[tokio::test]
async fn a_server_may_want_a_certificate_of_its_client() {
    let _turn = turn().await;
    let mock = serve("server", true);
    call(at("localhost", &mock, with_client("client"))).await.unwrap();
    for files in [ca("ca.pem"), with_client("self")] {
        let problem = call(at("localhost", &mock, files)).await.unwrap_err();
        assert!(problem.message.contains("client certificate"), "{problem}");
        assert!(problem.hint.unwrap().contains("--cert FILE --key FILE"));
    }
}

#[tokio::test]
async fn plain_and_tls_that_meet_are_told_apart() {
    let _turn = turn().await;
    let secure = serve("server", false);
    let plain = call(secure.endpoint().parse().unwrap()).await.unwrap_err();
    assert!(plain.message.contains("speaks TLS"), "{plain}");
    assert!(
        plain.hint.as_ref().is_some_and(|hint| hint.contains(&format!("https://{}", secure.endpoint()))),
        "{plain:?}"
    );
    let open = Mock::start(constant(Duration::ZERO));
    let tls = call(at("localhost", &open, ca("ca.pem"))).await.unwrap_err();
    assert!(tls.message.contains("not TLS") && tls.hint.unwrap().contains("host:port"), "{}", tls.message);
    let old = Mock::tls(acceptor("server", false, &["http/1.1"]), constant(Duration::ZERO));
    let http1 = call(at("localhost", &old, ca("ca.pem"))).await.unwrap_err();
    assert!(http1.message.contains("no HTTP/2"), "{http1}");
}

#[test]
fn files_that_hold_no_certificate_or_key_are_named() {
    let wrong = |files: TlsFiles| Endpoint::new("https://localhost:1", &files).unwrap_err();
    let missing = wrong(ca("nowhere.pem"));
    assert!(missing.field.as_deref() == Some("ca") && missing.message.contains("nowhere.pem"), "{missing}");
    assert!(wrong(ca("client.key")).message.contains("holds no certificate"));
    let swapped =
        wrong(TlsFiles { cert: Some(pem("client.pem")), key: Some(pem("client.pem")), ..TlsFiles::default() });
    assert!(swapped.field.as_deref() == Some("key") && swapped.message.contains("holds no private key"), "{swapped}");
    let other = wrong(TlsFiles { key: Some(pem("server.key")), ..with_client("client") });
    assert!(other.field.as_deref() == Some("key") && other.message.contains("does not go with"), "{other}");
    let alone = wrong(TlsFiles { key: None, ..with_client("client") });
    assert!(alone.hint.unwrap().contains("--key"));
}

#[tokio::test]
async fn a_unix_socket_is_measured() {
    let _turn = turn().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("server.sock");
    let endpoint: Endpoint = format!("unix://{}", path.display()).parse().unwrap();
    let target = target_of(endpoint, 16);
    let nobody = first_inference(&target, Duration::from_secs(1), &CancellationToken::new()).await.unwrap_err();
    assert_eq!(nobody.code, Code::Unreachable, "{nobody}");
    let _mock = Mock::unix(&path, constant(Duration::ZERO));
    let point = run_target(&target, closed(4), &rules(300)).await.unwrap();
    assert!(point.errors == 0 && point.requests > 200 && point.valid, "{point:?}");
    let limit = Duration::from_secs(5);
    assert!(call_once(&target.endpoint, &*target.transport, limit, &CancellationToken::new()).await.is_ok());
}
