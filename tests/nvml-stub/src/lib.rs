//! A libnvidia-ml that replays a trace, so that the real wrapper is exercised without a GPU.
//!
//! The built library replays the trace that lies beside it: `x/any.so` replays `x/any.toml` ([`trace`] has the format,
//! `tests/traces/` has examples). Several copies in one process are several drivers. [`library`] has the entry points that
//! `nvml-wrapper` calls for modelmeter; a name that is not there is a driver too old to have it.

pub mod library;
pub mod trace;

pub use trace::{Figure, Gpu, Moment, Trace};

use std::{
    io,
    path::{Path, PathBuf},
};

/// Sets up a driver that replays `trace`, as `<folder>/<name>.so`, which is returned.
///
/// # Errors
/// When the built library is not beside the running test, or the folder cannot be written to.
pub fn install(folder: &Path, name: &str, trace: &str) -> io::Result<PathBuf> {
    let test = std::env::current_exe()?;
    // Cargo builds it beside the test itself, in `deps`.
    let built = test.with_file_name("libmodelmeter_nvml_stub.so");
    let path = folder.join(name).with_extension("so");
    std::fs::copy(&built, &path).map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", built.display())))?;
    std::fs::write(path.with_extension("toml"), trace)?;
    Ok(path)
}
