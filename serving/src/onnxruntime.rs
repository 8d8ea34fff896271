//! Finding ONNX Runtime's library on this machine, and loading it once a process.

use libloading::{Library, Symbol};
use modelmeter_common::{Code, Problem, program};
use ort::{environment::Environment, logging::LogLevel};
use std::{
    ffi::CStr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The variable that names the library, as the `ort` crate and others have it.
pub const VARIABLE: &str = "ORT_DYLIB_PATH";
/// The oldest ONNX Runtime 1.x that serves.
pub const OLDEST_MINOR: u32 = ort::MINOR_VERSION;

const INSTALL: &str = "pip install onnxruntime, or set ORT_DYLIB_PATH to libonnxruntime.so";

/// A library that loads and is new enough.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Located {
    /// The library file.
    pub path: PathBuf,
    /// Its own version, such as `1.32.0`.
    pub version: String,
}

/// Looks for the library in `configured`, `ORT_DYLIB_PATH`, the active Python, then the system's library folders.
/// The first two may name the file or its folder, and are the last word: what they name must do. The library is
/// loaded to ask its version, and stays loaded.
///
/// # Errors
/// `not_installed`, with what was found and everywhere that was looked.
pub fn locate(configured: Option<&Path>) -> Result<Located, Problem> {
    if let Some(path) = configured {
        return named("the configuration", path);
    }
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        return named(VARIABLE, Path::new(&path));
    }
    search(python_folders().into_iter().chain(system_folders()))
}

/// What a user has named.
fn named(by: &str, path: &Path) -> Result<Located, Problem> {
    let file = if path.is_dir() { library_in(path) } else { Some(path.to_owned()).filter(|path| path.exists()) };
    let outcome = file.ok_or_else(|| "there is no such library".to_owned()).and_then(|file| verify(&file));
    outcome.map_err(|reason| {
        let message = format!("ONNX Runtime at {}, named by {by}, cannot be used: {reason}", path.display());
        Problem::new(Code::NotInstalled, message).with_field("onnxruntime").with_hint(INSTALL)
    })
}

/// The first library in these folders that can be used.
fn search(folders: impl Iterator<Item = PathBuf>) -> Result<Located, Problem> {
    let (mut looked, mut unfit) = (Vec::new(), Vec::new());
    for folder in folders {
        if looked.contains(&folder) {
            continue;
        }
        if let Some(file) = library_in(&folder) {
            match verify(&file) {
                Ok(located) => return Ok(located),
                Err(reason) => unfit.push(format!("{}: {reason}", file.display())),
            }
        }
        looked.push(folder);
    }
    let message = if unfit.is_empty() {
        "ONNX Runtime is not installed".to_owned()
    } else {
        format!("no ONNX Runtime here can be used ({})", unfit.join("; "))
    };
    let places: Vec<String> = looked.iter().map(|folder| folder.display().to_string()).collect();
    Err(Problem::new(Code::NotInstalled, message)
        .with_field("onnxruntime")
        .with_hint(format!("{INSTALL}; looked in the active python3, {}", places.join(", "))))
}

/// The newest `libonnxruntime.so…` of a folder; its providers beside it have other names.
fn library_in(folder: &Path) -> Option<PathBuf> {
    let is_library =
        |name: &str| name.starts_with("libonnxruntime.") && (name.contains(".so") || name.ends_with(".dylib"));
    let version = |name: &str| -> Vec<u32> { name.split('.').filter_map(|part| part.parse().ok()).collect() };
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let newest = names.filter(|name| is_library(name)).max_by_key(|name| version(name))?;
    Some(folder.join(newest))
}

/// Loads a library and asks its version; the error is a reason for people.
fn verify(path: &Path) -> Result<Located, String> {
    // Absolute, since the linker takes a bare name for one to search for.
    let path = path.canonicalize().map_err(|error| error.to_string())?;
    // SAFETY: running a library's constructors is what the user asks for by naming or installing it.
    let library = unsafe { Library::new(&path) }.map_err(|error| format!("it does not load: {error}"))?;
    let version = version_of(&library)?;
    // ONNX Runtime does not support being unloaded: whoever loads it again gets this one.
    std::mem::forget(library);
    let minor = match version.split('.').map(str::parse::<u32>).collect::<Vec<_>>().as_slice() {
        [Ok(1), Ok(minor), ..] => *minor,
        _ => return Err(format!("version '{version}' is not known")),
    };
    if minor < OLDEST_MINOR {
        return Err(format!("version {version} is too old: 1.{OLDEST_MINOR} or newer is needed"));
    }
    Ok(Located { path, version })
}

/// What `OrtGetApiBase()->GetVersionString()` says. Source: onnxruntime_c_api.h.
fn version_of(library: &Library) -> Result<String, String> {
    // SAFETY: the symbol has had this type since ONNX Runtime 1.0; a library that has it is one.
    let base: Symbol<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase> =
        unsafe { library.get(b"OrtGetApiBase") }.map_err(|_| "it is not ONNX Runtime: it has no OrtGetApiBase")?;
    // SAFETY: as above; the table it points to is static.
    let base = unsafe { base().as_ref() }.ok_or("it gives no interface")?;
    // SAFETY: the function gives a static string.
    let version = unsafe { CStr::from_ptr((base.GetVersionString)()) };
    version.to_str().map(str::to_owned).map_err(|_| "its version is not text".into())
}

/// `onnxruntime/capi` of the active virtual environment, then of the `python3` on the path.
fn python_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    if let Some(environment) = std::env::var_os("VIRTUAL_ENV") {
        let lib = Path::new(&environment).join("lib");
        let versions = std::fs::read_dir(&lib).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
        let pythons =
            versions.filter(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python")));
        folders.extend(pythons.map(|python| python.join("site-packages/onnxruntime/capi")));
    }
    folders.extend(ask_python().map(|package| package.join("capi")));
    folders
}

/// Where the `python3` on the path has the package, without importing it.
fn ask_python() -> Option<PathBuf> {
    const QUESTION: &str = "import importlib.util as u; s = u.find_spec('onnxruntime'); \
                            print(list(s.submodule_search_locations)[0] if s else '')";
    let answer = program::ask("python3", QUESTION, program::PATIENCE);
    let answer = answer.inspect_err(|reason| tracing::debug!("python3 {reason}")).ok()?;
    Some(answer.trim()).filter(|answer| !answer.is_empty()).map(PathBuf::from)
}

/// The folders that the dynamic linker looks in.
fn system_folders() -> Vec<PathBuf> {
    let from_environment = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&from_environment).filter(|p| p.is_absolute()).collect();
    let configured =
        std::fs::read_dir("/etc/ld.so.conf.d").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    for file in configured {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        folders.extend(text.lines().map(str::trim).filter(|line| line.starts_with('/')).map(PathBuf::from));
    }
    folders.extend(
        ["/usr/local/lib", "/usr/lib", "/usr/lib64", "/lib", "/opt/onnxruntime/lib", "/opt/homebrew/lib"]
            .map(PathBuf::from),
    );
    folders
}

/// The process's one ONNX Runtime, from this library at the first call.
pub(crate) fn environment(located: &Located) -> Result<Environment, Problem> {
    static LOADED: Mutex<Option<(Located, Environment)>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((first, environment)) = &*loaded {
        if first == located {
            return Ok(environment.clone());
        }
        let message = format!("this process has already loaded {}", first.path.display());
        return Err(Problem::new(Code::Busy, message).with_field("onnxruntime"));
    }
    let unfit = |error: &dyn std::fmt::Display| {
        let message = format!("ONNX Runtime at {} does not start: {error}", located.path.display());
        Problem::new(Code::NotInstalled, message).with_field("onnxruntime").with_hint(INSTALL)
    };
    let environment = ort::init_from(&located.path)
        .map_err(|error| unfit(&error))?
        .with_name("modelmeter")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|error| unfit(&error))?;
    environment.set_log_level(LogLevel::Warning);
    *loaded = Some((located.clone(), environment.clone()));
    Ok(environment)
}

/// ONNX Runtime's own messages, into ours.
fn log(level: LogLevel, _category: &str, _id: &str, place: &str, message: &str) {
    match level {
        LogLevel::Verbose | LogLevel::Info => {}
        LogLevel::Warning => tracing::warn!(place, "ONNX Runtime: {message}"),
        LogLevel::Error | LogLevel::Fatal => tracing::error!(place, "ONNX Runtime: {message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_must_exist_and_be_a_library_of_the_right_kind() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("libonnxruntime.so.1.20.0");
        for (path, reason) in [(text.clone(), "there is no such library"), (folder.path().into(), "no such library")] {
            let problem = locate(Some(&path)).unwrap_err();
            assert_eq!(problem.code, Code::NotInstalled);
            assert!(problem.message.contains(reason), "{problem}");
            assert!(problem.hint.unwrap().contains("pip install onnxruntime"));
        }
        std::fs::write(&text, "not a library").unwrap();
        for path in [&text, folder.path()] {
            assert!(locate(Some(path)).unwrap_err().message.contains("it does not load"));
        }
        // Every Rust program on Linux has this one mapped already, and it is no ONNX Runtime.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.split_whitespace().find(|word| word.contains("libc.so") || word.contains("libc-")).unwrap();
        assert!(locate(Some(Path::new(libc))).unwrap_err().message.contains("it is not ONNX Runtime"));
    }

    #[test]
    fn a_search_skips_what_does_not_load_and_says_where_it_looked() {
        let (empty, broken) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(broken.path().join("libonnxruntime.so.1.9.0"), "").unwrap();
        std::fs::write(broken.path().join("libonnxruntime.so.1.32.0"), "").unwrap();
        std::fs::write(broken.path().join("libonnxruntime_providers_shared.so"), "").unwrap();
        let nothing = search(std::iter::once(empty.path().to_owned())).unwrap_err();
        assert_eq!(nothing.message, "ONNX Runtime is not installed");
        assert!(nothing.hint.unwrap().contains(&empty.path().display().to_string()));
        let unfit = search([empty.path(), broken.path()].into_iter().map(Path::to_owned)).unwrap_err();
        assert!(unfit.message.contains("libonnxruntime.so.1.32.0: it does not load"), "{unfit}");
    }
}
