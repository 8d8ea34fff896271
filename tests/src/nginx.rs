//! nginx in front of a gRPC server, as it is set up by default: plain and TLS, each on a free port of loopback.

use crate::{Child, eventually, ports};
use anyhow::{Context, Result};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};
use tempfile::TempDir;

const PROGRAM: &str = "/usr/sbin/nginx";
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running nginx. Dropping it ends it.
pub struct Nginx {
    /// Where it speaks plain HTTP/2.
    pub plain: u16,
    /// Where it speaks HTTP/2 in TLS.
    pub tls: u16,
    _child: Child,
    _dir: TempDir,
}

/// PEM file of the CA that signed the certificate of [`Nginx::tls`], which is for `localhost`.
pub fn ca() -> PathBuf {
    certificates().join("ca.pem")
}

fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../meter/tests/load/certs")
}

impl Nginx {
    /// Starts one that passes gRPC on to this port, and waits until it takes connections.
    pub async fn start(upstream: u16) -> Result<Self> {
        anyhow::ensure!(
            Path::new(PROGRAM).exists(),
            "nginx is not installed: run scripts/test, or apt-get install nginx-light"
        );
        let dir = TempDir::with_prefix("modelmeter-nginx-")?;
        let (plain, tls) = (ports::free()?, ports::free()?);
        let path = dir.path().join("nginx.conf");
        fs::write(&path, configuration(dir.path(), plain, tls, upstream))?;
        let mut command = Command::new(PROGRAM);
        command.arg("-p").arg(dir.path()).arg("-c").arg(&path).args(["-g", "daemon off;", "-e", "stderr"]);
        let mut child = Child::spawn("nginx", command, &dir.path().join("nginx.log"))?;
        for port in [plain, tls] {
            let listens = || std::future::ready(TcpStream::connect(("127.0.0.1", port)).ok().map(drop));
            let up = eventually("nginx takes connections", START_LIMIT, listens).await;
            anyhow::ensure!(child.ended().is_none(), "nginx ended:\n{}", child.log());
            up.context("nginx is not up")?;
        }
        Ok(Self { plain, tls, _child: child, _dir: dir })
    }
}

/// All other settings are nginx's defaults, such as 1,000 calls a connection.
fn configuration(dir: &Path, plain: u16, tls: u16, upstream: u16) -> String {
    let (dir, certificates) = (dir.display(), certificates());
    let certificates = certificates.display();
    // Its workers would be somebody else, who may not look into the folder, if it is started by root.
    // SAFETY: it has no arguments and changes nothing.
    let user = if unsafe { libc::geteuid() } == 0 { "user root;" } else { "" };
    format!(
        "{user}
worker_processes 1;
pid {dir}/nginx.pid;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    upstream model {{
        server 127.0.0.1:{upstream};
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{plain} http2;
        listen 127.0.0.1:{tls} ssl http2;
        ssl_certificate {certificates}/server.pem;
        ssl_certificate_key {certificates}/server.key;
        location / {{ grpc_pass grpc://model; }}
    }}
}}
"
    )
}
