//! The model servers that this program contains, as the discovery of engines is told of them.

use modelmeter_common::{Code, Problem, config::Config, program::on_path};
use modelmeter_serving::{RTEN_VERSION, check_settings, onnxruntime, torchscript};
use modelmeter_worker::engine::discover::{Discovery, Servers};
use std::{path::PathBuf, sync::OnceLock};

/// The engines of this machine, as its configuration says.
pub fn discovery(config: &Config) -> Discovery<'_> {
    let servers = Servers {
        program: server_program,
        rten_version: RTEN_VERSION,
        onnxruntime: |configured| onnxruntime::locate(configured).map(|located| (located.path, located.version)),
        torchscript: torchscript::write_server,
        check_settings,
    };
    Discovery { config, servers }
}

/// Set where this process is `modelmeter` itself, whatever its file is called.
static IS_THE_PROGRAM: OnceLock<()> = OnceLock::new();

/// Says that this process is `modelmeter` itself: it can serve.
pub fn this_is_the_program() {
    IS_THE_PROGRAM.get_or_init(|| ());
}

/// The program that serves: `modelmeter` itself; for a program that uses the library, the one beside it or on PATH.
///
/// # Errors
/// `not_installed` when there is none.
fn server_program() -> Result<PathBuf, Problem> {
    const NAME: &str = "modelmeter";
    let own = std::env::current_exe()
        .map_err(|e| Problem::new(Code::Internal, format!("cannot find the path of this program: {e}")))?;
    if IS_THE_PROGRAM.get().is_some() {
        return Ok(own);
    }
    // Examples and tests lie one folder below the binary.
    let mut beside = own.ancestors().skip(1).take(2).map(|dir| dir.join(NAME));
    beside.find(|candidate| candidate.is_file()).or_else(|| on_path(NAME)).ok_or_else(|| {
        Problem::new(Code::NotInstalled, "the program `modelmeter`, which serves the built-in engines, was not found")
            .with_hint("build it (cargo build --release -p modelmeter), or put it on PATH")
    })
}
