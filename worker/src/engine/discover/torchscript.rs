//! The TorchScript engine: the TorchScript server, run by a Python of this machine that has torch.

use super::{Discovery, Found};
use crate::engine::{EngineSpec, Launch, Layout, Ports};
use modelmeter_common::{Code, Problem, cgroup::CpuGroups, engine, program};
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// What it is asked to do; the server's own path goes before.
const ARGUMENTS: [&str; 14] = [
    "--model",
    "{model}",
    "--model-name",
    "{model_name}",
    "--grpc-port",
    "{grpc_port}",
    "--http-port",
    "{http_port}",
    "--device",
    "{device}",
    "--settings",
    "{settings}",
    "--signature",
    "{signature}",
];

/// Looks for a Python that can run it; `found` is what is known without looking.
pub(super) fn look(found: Found, discovery: &Discovery<'_>) -> Found {
    match locate(discovery.config.engine.torchscript.python.as_deref()) {
        Ok(located) => {
            let cuda = located.cuda.as_ref().map(|cuda| format!(" (CUDA {cuda})")).unwrap_or_default();
            let version = Some(format!("torch {}{cuda}", located.torch));
            Found { available: true, gpu: located.cuda.is_some(), version, location: Some(located.python), ..found }
        }
        Err(problem) => Found { reason: Some(problem.message), hint: problem.hint, ..found },
    }
}

/// The engine, where [`look`] found it.
///
/// # Errors
/// `storage` when the server cannot be written to the home.
pub(super) fn spec(found: &Found, discovery: &Discovery<'_>) -> Result<EngineSpec, Problem> {
    let info = engine::find("torchscript").expect("it is in the table of engines");
    let Discovery { config, servers } = discovery;
    let server = (servers.torchscript)(&config.home.join("cache"))?;
    let args = std::iter::once(server.display().to_string()).chain(ARGUMENTS.map(str::to_owned)).collect();
    let ports = Ports::of(info);
    Ok(EngineSpec {
        name: info.name.to_owned(),
        version: None,
        launch: Launch::Process {
            program: found.location.clone().unwrap_or_else(|| PathBuf::from("python3")),
            args,
            env: max_threads(&CpuGroups::own()),
        },
        layout: Layout::Plain,
        protocol: info.protocol,
        // A torch for the CPU alone would serve there, and measure the wrong device.
        ports: if found.gpu { ports } else { Ports { gpu: None, ..ports } },
        formats: info.formats.to_vec(),
        ready_timeout: config.engine.ready_timeout(),
    })
}

/// What a CPU quota leaves to the threads of the Python server, which looks at the cores alone.
fn max_threads(groups: &CpuGroups) -> BTreeMap<String, String> {
    let most = groups.cores().map(|_| groups.cap(usize::MAX).to_string());
    most.map(|most| ("MODELMETER_MAX_THREADS".to_owned(), most)).into_iter().collect()
}

const INSTALL: &str = "pip install torch grpcio, and name that Python with MODELMETER_ENGINE_TORCHSCRIPT_PYTHON";

/// Asks a Python for versions as installed: importing torch takes seconds. The CUDA version is in torch's own
/// version.py, a small file without imports of torch.
const QUESTION: &str = r"
import importlib.metadata as m, importlib.util as u, json, os, re
def version(name):
    try:
        return m.version(name)
    except Exception:
        return None
torch, cuda = version('torch'), None
spec = u.find_spec('torch')
if spec and spec.origin:
    try:
        text = open(os.path.join(os.path.dirname(spec.origin), 'version.py')).read()
        found = re.search(r'''^cuda\b[^=\n]*=\s*['\x22]([^'\x22]+)''', text, re.M)
        cuda = found and found.group(1)
        found = re.search(r'''^__version__\b[^=\n]*=\s*['\x22]([^'\x22]+)''', text, re.M)
        torch = found.group(1) if found else torch
    except OSError:
        pass
print(json.dumps({'torch': torch if spec else None, 'grpcio': version('grpcio'), 'cuda': cuda}))
";

/// A Python that can run the server.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Located {
    /// The interpreter, as a path or a name on PATH.
    python: PathBuf,
    /// torch's version, such as `2.11.0+cu130`.
    torch: String,
    /// grpcio's version.
    grpcio: String,
    /// The CUDA that torch was built for; none: it runs on the CPU alone.
    cuda: Option<String>,
}

/// Looks for a Python with torch and grpcio: `configured`, which is then the last word, else the active virtual
/// environment's, then the `python3` on PATH. torch is not imported.
///
/// # Errors
/// `not_installed`, with what each Python lacks.
fn locate(configured: Option<&Path>) -> Result<Located, Problem> {
    let mut lacking = Vec::new();
    for python in program::pythons(configured) {
        match ask(&python).and_then(|answer| answer.located(&python)) {
            Ok(located) => return Ok(located),
            Err(reason) => lacking.push(format!("{} {reason}", python.display())),
        }
    }
    let message = format!("no Python here can run TorchScript: {}", lacking.join("; "));
    Err(Problem::new(Code::NotInstalled, message).with_field("torchscript").with_hint(INSTALL))
}

/// What a Python said that it has.
#[derive(Deserialize)]
struct Answer {
    torch: Option<String>,
    grpcio: Option<String>,
    cuda: Option<String>,
}

impl Answer {
    fn located(self, python: &Path) -> Result<Located, String> {
        match (self.torch, self.grpcio) {
            (Some(torch), Some(grpcio)) => Ok(Located { python: python.to_owned(), torch, grpcio, cuda: self.cuda }),
            (None, Some(_)) => Err("has no torch".into()),
            (Some(_), None) => Err("has torch, but no grpcio".into()),
            (None, None) => Err("has neither torch nor grpcio".into()),
        }
    }
}

fn ask(python: &Path) -> Result<Answer, String> {
    let said = program::ask(python, QUESTION, program::PATIENCE)?;
    serde_json::from_str(&said).map_err(|error| format!("does not answer as asked: {error}"))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::SERVERS, *};
    use modelmeter_common::{config::Config, device::DeviceKind};
    use std::{fs, os::unix::fs::PermissionsExt};

    /// A program in place of a Python; what it prints is the answer.
    fn python(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("python");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn what_a_python_lacks_is_said() {
        let folder = tempfile::tempdir().unwrap();
        for (script, reason) in [
            (r#"echo '{"torch":null,"grpcio":null,"cuda":null}'"#, "neither torch nor grpcio"),
            (r#"echo '{"torch":"2.1","grpcio":null,"cuda":null}'"#, "has torch, but no grpcio"),
            (r#"echo '{"torch":null,"grpcio":"1.6","cuda":null}'"#, "has no torch"),
            ("exit 3", "exit status: 3"),
        ] {
            let problem = locate(Some(&python(folder.path(), script))).unwrap_err();
            assert_eq!(problem.code, Code::NotInstalled);
            assert!(problem.message.contains(reason), "{problem}");
            assert!(problem.hint.unwrap().contains("pip install torch grpcio"));
        }
        let problem = locate(Some(&folder.path().join("none"))).unwrap_err();
        assert!(problem.message.contains("cannot be run"), "{problem}");
    }

    #[test]
    fn a_python_that_has_all_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = python(folder.path(), r#"echo '{"torch":"2.11.0+cu130","grpcio":"1.80.0","cuda":"13.0"}'"#);
        let located = locate(Some(&path)).unwrap();
        let expected =
            Located { python: path, torch: "2.11.0+cu130".into(), grpcio: "1.80.0".into(), cuda: Some("13.0".into()) };
        assert_eq!(located, expected);
    }

    /// The question itself, to a real Python, about a torch that was laid out by hand.
    #[test]
    fn versions_are_read_without_importing() {
        let site = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = site.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("torch/__init__.py", "raise SystemExit('imported')");
        write("torch/version.py", "__version__ = '2.11.0+cu130'\ncuda: Optional[str] = '13.0'\n");
        write("torch-2.11.0.dist-info/METADATA", "Name: torch\nVersion: 2.11.0\n");
        write("grpcio-1.80.0.dist-info/METADATA", "Name: grpcio\nVersion: 1.80.0\n");
        let folder = tempfile::tempdir().unwrap();
        let script = format!("PYTHONPATH={} exec python3 -S \"$@\"", site.path().display());
        let located = locate(Some(&python(folder.path(), &script))).unwrap();
        let got = (located.torch.as_str(), located.grpcio.as_str(), located.cuda.as_deref());
        assert_eq!(got, ("2.11.0+cu130", "1.80.0", Some("13.0")));
    }

    #[test]
    fn a_torch_without_cuda_is_not_offered_for_gpus() {
        let home = tempfile::tempdir().unwrap();
        let config = Config { home: home.path().to_owned(), ..Config::default() };
        let discovery = Discovery { config: &config, servers: SERVERS };
        let found = Found {
            name: "torchscript".into(),
            title: "",
            formats: Vec::new(),
            available: true,
            launch: "process",
            gpu: false,
            version: None,
            location: Some("/opt/venv/bin/python".into()),
            reason: None,
            hint: None,
        };
        let of = |gpu| spec(&Found { gpu, ..found.clone() }, &discovery).unwrap();
        assert!(of(false).runs_on(DeviceKind::Cpu) && !of(false).runs_on(DeviceKind::Gpu));
        assert!(of(true).runs_on(DeviceKind::Gpu));
        let Launch::Process { program, args, .. } = of(true).launch else { panic!("not a process") };
        assert_eq!(program, PathBuf::from("/opt/venv/bin/python"));
        assert!(Path::new(&args[0]).starts_with(home.path()) && args[1..] == ARGUMENTS.map(str::to_owned));
    }
}
