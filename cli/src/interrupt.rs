//! Ctrl-C and SIGTERM: the first asks for a stop, the second ends the process at once.

use modelmeter_common::{Code, Problem};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of an interrupted command.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Listens from now on; the token is cancelled by the first signal. Engines die with the process by themselves, so
/// that the second one may end it without further ado; one in a container is left to the next worker.
pub fn listen() -> Result<CancellationToken, Problem> {
    let failed = |e: std::io::Error| Problem::new(Code::Internal, format!("cannot listen to signals: {e}"));
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };
        next().await;
        token.cancel();
        next().await;
        std::process::exit(i32::from(EXIT_INTERRUPTED));
    });
    Ok(stop)
}

/// The problem that an interrupted command ends with.
pub fn interrupted() -> Problem {
    Problem::new(Code::Cancelled, "interrupted")
}
