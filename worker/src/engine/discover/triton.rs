//! Triton: the program `tritonserver` as it is installed, or out of the Python package `nvidia-pytriton`.

use super::Found;
use crate::engine::{EngineSpec, Launch, Layout, Ports};
use modelmeter_common::{
    Code, Problem,
    config::Config,
    engine,
    program::{self, on_path},
    wire::sha256_hex,
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

const PROGRAM: &str = "tritonserver";
const INSTALL: &str = "install Triton and set MODELMETER_ENGINE_TRITON_SERVER to its path, or pip install \
                       nvidia-pytriton and set MODELMETER_ENGINE_TRITON_PYTHON to that Python";

/// Here it listens on loopback alone.
const LOOPBACK: [&str; 3] = ["--grpc-address=127.0.0.1", "--http-address=127.0.0.1", "--metrics-address=127.0.0.1"];
/// It ends when a model does not load, and waits no longer for the last calls at its end than a worker waits for it.
const ARGUMENTS: [&str; 6] = [
    "--model-repository={model}",
    "--grpc-port={grpc_port}",
    "--http-port={http_port}",
    "--metrics-port={metrics_port}",
    "--exit-on-error=true",
    "--exit-timeout-secs=2",
];

/// What NVIDIA's image has for our formats.
const IMAGE_BACKENDS: [&str; 3] = ["onnxruntime", "python", "tensorflow"];

/// Asks a Python for the package and for what the package's Python backend needs of it.
const QUESTION: &str = r"
import importlib.metadata as m, importlib.util as u, json, os, sys, sysconfig
spec = u.find_spec('pytriton')
print(json.dumps({
    'package': os.path.dirname(spec.origin) if spec and spec.origin else None,
    'version': m.version('nvidia-pytriton') if spec else None,
    'python': '%d.%d' % sys.version_info[:2],
    'bin': os.path.dirname(sys.executable),
    'libraries': sysconfig.get_config_var('LIBDIR'),
}))
";

/// What a Python said of the package.
#[derive(Deserialize)]
struct Package {
    package: Option<PathBuf>,
    version: Option<String>,
    /// As `3.11`: the backend's helper is linked with one version of Python.
    python: String,
    /// Where the interpreter lies: the helper takes the environment of the first `python3` on PATH for its own.
    bin: PathBuf,
    /// Where its library may lie.
    libraries: Option<PathBuf>,
}

/// A server that was found.
struct Located {
    program: PathBuf,
    /// None: where the server itself looks.
    backends: Option<PathBuf>,
    package: Option<Package>,
}

/// Looks for a server; `found` is what is known without looking.
pub(super) fn look(found: Found, config: &Config) -> Found {
    match locate(config) {
        Ok(located) => {
            let version = located.package.and_then(|package| package.version);
            // Whether a model can use a GPU is its backend's to say: each was built with or without it.
            let version = version.map(|version| format!("nvidia-pytriton {version}"));
            Found { available: true, gpu: true, version, location: Some(located.program), ..found }
        }
        Err(why) => Found { reason: Some(why), hint: Some(INSTALL.into()), ..found },
    }
}

/// The configured server, the one on PATH, or the package's.
fn locate(config: &Config) -> Result<Located, String> {
    let given = &config.engine.triton;
    if let Some(program) = given.server.clone().or_else(|| on_path(PROGRAM)) {
        if !program.is_file() {
            return Err(format!("there is no {}", program.display()));
        }
        // As in its image: /opt/tritonserver/bin/tritonserver, /opt/tritonserver/backends.
        let beside = program.ancestors().nth(2).map(|folder| folder.join("backends")).filter(|folder| folder.is_dir());
        return Ok(Located { program, backends: given.backends.clone().or(beside), package: None });
    }
    let mut lacking = vec![format!("no {PROGRAM} on PATH")];
    for python in program::pythons(given.python.as_deref()) {
        match packaged(&python) {
            Ok(located) => return Ok(located),
            Err(why) => lacking.push(format!("{} {why}", python.display())),
        }
    }
    Err(lacking.join("; "))
}

fn packaged(interpreter: &Path) -> Result<Located, String> {
    let said = program::ask(interpreter, QUESTION, program::PATIENCE)?;
    let package: Package = serde_json::from_str(&said).map_err(|_| "cannot say what it has".to_owned())?;
    let folder = package.package.as_ref().ok_or("has no nvidia-pytriton")?.join("tritonserver");
    let stub = stub(&folder, &package.python);
    if !stub.is_file() {
        return Err(format!("is version {}, for which nvidia-pytriton has no backend", package.python));
    }
    Ok(Located {
        program: folder.join("bin").join(PROGRAM),
        backends: Some(folder.join("backends")),
        package: Some(package),
    })
}

/// What runs a model's Python outside the server's process.
fn stub(folder: &Path, python: &str) -> PathBuf {
    folder.join("python_backend_stubs").join(python).join(STUB)
}

const STUB: &str = "triton_python_backend_stub";

/// The engine, where [`look`] found it.
///
/// # Errors
/// `not_installed` when it is gone, `storage` when the package's backend cannot be set up below the home.
pub(super) fn spec(config: &Config) -> Result<EngineSpec, Problem> {
    let info = engine::find("triton").expect("it is in the table of engines");
    let spec = |launch, backends| EngineSpec {
        name: info.name.to_owned(),
        version: None,
        launch,
        layout: Layout::Triton(backends),
        protocol: info.protocol,
        ports: Ports::of(info),
        formats: info.formats.to_vec(),
        ready_timeout: config.engine.ready_timeout(),
    };
    if let Some(container) = config.engine.triton.docker.clone() {
        let args = std::iter::once(PROGRAM).chain(ARGUMENTS).map(str::to_owned).collect();
        let backends = IMAGE_BACKENDS.map(str::to_owned).into();
        return Ok(spec(Launch::Docker { container, args, env: BTreeMap::new() }, backends));
    }
    let located = locate(config).map_err(|why| Problem::new(Code::NotInstalled, why).with_hint(INSTALL))?;
    let args = ARGUMENTS.iter().chain(&LOOPBACK).map(|&arg| arg.to_owned());
    let (mut args, mut env) = (args.collect::<Vec<_>>(), BTreeMap::new());
    let mut backends = located.backends;
    if let (Some(package), Some(folder)) = (&located.package, &mut backends) {
        *folder = package_backends(package, folder, &config.home.join("cache")).map_err(|e| {
            let message = format!("cannot set Triton's Python backend up below {}: {e}", config.home.display());
            Problem::new(Code::Storage, message).with_field("home")
        })?;
        env = environment(package);
    }
    args.extend(backends.as_ref().map(|folder| format!("--backend-directory={}", folder.display())));
    let launch = Launch::Process { program: located.program, args, env };
    Ok(spec(launch, backends.as_deref().map(names).unwrap_or_default()))
}

/// The backends in a folder, by name.
fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The package keeps the Python backend in pieces, its helper apart, one for each Python: put together below `cache`.
fn package_backends(package: &Package, folder: &Path, cache: &Path) -> io::Result<PathBuf> {
    let root = folder.parent().unwrap_or(folder);
    let key = sha256_hex(format!("{}\n{}\n{:?}", folder.display(), package.python, package.version).as_bytes());
    let made = cache.join(format!("triton-backends-{}", &key[..12]));
    if made.join("python").join(STUB).is_file() {
        return Ok(made);
    }
    let fresh = cache.join(format!("triton-backends-{}-{}.tmp", &key[..12], std::process::id()));
    let python = fresh.join("python");
    fs::create_dir_all(&python)?;
    for file in ["libtriton_python.so", "triton_python_backend_utils.py"] {
        symlink(folder.join("python").join(file), python.join(file))?;
    }
    symlink(stub(root, &package.python), python.join(STUB))?;
    match fs::rename(&fresh, &made) {
        // Another process was faster: it made the same.
        Err(_) if made.is_dir() => fs::remove_dir_all(&fresh)?,
        renamed => renamed?,
    }
    Ok(made)
}

/// The environment of the package's Python, where the helper finds its library and what models import.
fn environment(package: &Package) -> BTreeMap<String, String> {
    let before = |folder: &Path, variable: &str| {
        let rest = std::env::var(variable).ok().filter(|rest| !rest.is_empty());
        std::iter::once(folder.display().to_string()).chain(rest).collect::<Vec<_>>().join(":")
    };
    let libraries = package.libraries.iter().map(|folder| ("LD_LIBRARY_PATH", folder));
    let folders = std::iter::once(("PATH", &package.bin)).chain(libraries);
    folders.map(|(variable, folder)| (variable.to_owned(), before(folder, variable))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_packages_backend_is_put_together_once() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path();
        let folder = home.join("site/pytriton/tritonserver");
        for file in ["backends/python/libtriton_python.so", "python_backend_stubs/3.11/triton_python_backend_stub"] {
            fs::create_dir_all(folder.join(file).parent().unwrap()).unwrap();
            fs::write(folder.join(file), "").unwrap();
        }
        fs::write(folder.join("backends/python/triton_python_backend_utils.py"), "").unwrap();
        let package = Package {
            package: Some(home.join("site/pytriton")),
            version: Some("1".into()),
            python: "3.11".into(),
            bin: "/venv/bin".into(),
            libraries: None,
        };
        let cache = home.join("cache");
        let made = package_backends(&package, &folder.join("backends"), &cache).unwrap();
        assert_eq!(names(&made), ["python".to_owned()].into());
        assert!(fs::read_dir(made.join("python")).unwrap().all(|file| file.unwrap().path().is_file()));
        assert_eq!(package_backends(&package, &folder.join("backends"), &cache).unwrap(), made);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
        assert!(environment(&package)["PATH"].starts_with("/venv/bin:"));
    }

    #[test]
    fn a_configured_server_that_is_not_there_is_said() {
        let mut config = Config::default();
        config.engine.triton.server = Some("/nowhere/tritonserver".into());
        let problem = spec(&config).unwrap_err();
        assert_eq!(problem.code, Code::NotInstalled);
        assert!(problem.message.contains("/nowhere/tritonserver"), "{problem}");
    }
}
