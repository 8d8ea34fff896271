//! The Docker daemon of this machine, by its socket.

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};
use modelmeter_common::{Code, Problem};

const DEFAULT_SOCKET: &str = "/var/run/docker.sock";
const SCHEME: &str = "unix://";
/// For each answer to begin.
const TIMEOUT_S: u64 = 30;

/// The daemon that `DOCKER_HOST` names, or the default one.
///
/// # Errors
/// `invalid_argument` for one that is not on this machine, `not_installed` if none answers.
pub(super) async fn connect() -> Result<Docker, Problem> {
    let socket = socket(std::env::var("DOCKER_HOST").ok().as_deref())?;
    let none = |e: Error| none_answers(&socket, &e);
    let docker = Docker::connect_with_unix(&socket, TIMEOUT_S, API_DEFAULT_VERSION).map_err(none)?;
    docker.ping().await.map_err(none)?;
    Ok(docker)
}

/// The version of the daemon that containers would run under. Blocks until it answers.
///
/// # Errors
/// `not_installed` if none does, with what to do.
pub fn docker_version() -> Result<String, Problem> {
    let ask = async {
        let version = connect().await?.version().await.map_err(|e| refused("ask the Docker daemon", &e))?;
        Ok(version.version.unwrap_or_else(|| "of an unknown version".into()))
    };
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
    // A runtime of its own on a thread of its own: the caller may be on another already.
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| runtime().map(|runtime| runtime.block_on(ask)));
        let failed = |why: String| Err(Problem::new(Code::Internal, format!("cannot ask the Docker daemon: {why}")));
        match asked.join() {
            Ok(Ok(version)) => version,
            Ok(Err(e)) => failed(e.to_string()),
            Err(_) => failed("the thread that asks ended with a panic".into()),
        }
    })
}

/// The socket's path.
fn socket(host: Option<&str>) -> Result<String, Problem> {
    let host = host.filter(|host| !host.is_empty());
    match host.map(|host| host.strip_prefix(SCHEME)) {
        None => Ok(DEFAULT_SOCKET.into()),
        Some(Some(path)) => Ok(path.into()),
        Some(None) => Err(Problem::invalid(
            "DOCKER_HOST",
            format!("'{}' is not a socket of this machine", host.unwrap_or_default()),
        )
        .with_hint("containers are given a model of this machine and measured on its devices: use unix:///path")),
    }
}

fn none_answers(socket: &str, error: &Error) -> Problem {
    Problem::new(Code::NotInstalled, format!("no Docker daemon answers at {socket}: {}", root_cause(error)))
        .with_field("docker")
        .with_hint("start Docker, be allowed to use its socket (group docker), or set DOCKER_HOST=unix:///path")
}

/// What the daemon refused, in its own words.
pub(super) fn refused(what: &str, error: &Error) -> Problem {
    Problem::new(Code::EngineFailed, format!("cannot {what}: {}", words(error)))
}

/// The daemon's own words, or why there are none.
pub(super) fn words(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.clone(),
        other => root_cause(other),
    }
}

/// Whether the daemon says that there is no such thing.
pub(super) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code: 404, .. })
}

fn root_cause(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), root_cause)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_one_of_this_machine() {
        assert_eq!(socket(None).unwrap(), DEFAULT_SOCKET);
        assert_eq!(socket(Some("")).unwrap(), DEFAULT_SOCKET);
        assert_eq!(socket(Some("unix:///run/user/1/docker.sock")).unwrap(), "/run/user/1/docker.sock");
        for elsewhere in ["tcp://10.0.0.1:2375", "ssh://host"] {
            assert_eq!(socket(Some(elsewhere)).unwrap_err().code, Code::InvalidArgument);
        }
    }
}
