//! The TorchScript engine: finding a Python with torch, and the server that it runs.
//!
//! What belongs here: what of that engine is on this machine. The server itself is `torchscript/` beside `src`, in
//! Python, and is carried inside this program.

use crate::python;
use modelmeter_common::{Code, Problem, wire::sha256_hex};
use serde::Deserialize;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The server's files; the first is the one to run.
const FILES: [(&str, &str); 3] = [
    ("server.py", include_str!("../torchscript/server.py")),
    ("model.py", include_str!("../torchscript/model.py")),
    ("wire.py", include_str!("../../python/modelmeter/wire.py")),
];
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
pub struct Located {
    /// The interpreter, as a path or a name on PATH.
    pub python: PathBuf,
    /// torch's version, such as `2.11.0+cu130`.
    pub torch: String,
    /// grpcio's version.
    pub grpcio: String,
    /// The CUDA that torch was built for; none: it runs on the CPU alone.
    pub cuda: Option<String>,
}

/// Looks for a Python with torch and grpcio: `configured`, which is then the last word, else the active virtual
/// environment's, then the `python3` on PATH. torch is not imported.
///
/// # Errors
/// `not_installed`, with what each Python lacks.
pub fn locate(configured: Option<&Path>) -> Result<Located, Problem> {
    let candidates = match configured {
        Some(python) => vec![python.to_owned()],
        None => {
            let active = std::env::var_os("VIRTUAL_ENV").filter(|dir| !dir.is_empty());
            let active = active.map(|dir| Path::new(&dir).join("bin/python"));
            active.into_iter().chain([PathBuf::from("python3")]).collect()
        }
    };
    let mut lacking = Vec::new();
    for python in candidates {
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
    let said = python::ask(python, QUESTION, python::PATIENCE)?;
    serde_json::from_str(&said).map_err(|error| format!("does not answer as asked: {error}"))
}

/// Writes the server below `dir`, in a folder named after its content, unless it is there already; gives the path of
/// the file to run. Others may write the same at the same time.
///
/// # Errors
/// `storage` when it cannot be written.
pub fn write_server(dir: &Path) -> Result<PathBuf, Problem> {
    let all: Vec<u8> = FILES.iter().flat_map(|(_, text)| text.bytes()).collect();
    let folder = dir.join(format!("torchscript-{}", &sha256_hex(&all)[..12]));
    let failed = |error: std::io::Error| {
        Problem::new(Code::Storage, format!("cannot write the TorchScript server to {}: {error}", folder.display()))
            .with_field("home")
            .with_hint("choose a place that is writable with --home DIR or MODELMETER_HOME")
    };
    fs::create_dir_all(&folder).map_err(failed)?;
    for (name, text) in FILES {
        let path = folder.join(name);
        if fs::read(&path).is_ok_and(|there| there == text.as_bytes()) {
            continue;
        }
        let partial = folder.join(format!(".{name}-{}-{:?}", std::process::id(), std::thread::current().id()));
        fs::write(&partial, text).and_then(|()| fs::rename(&partial, &path)).map_err(failed)?;
    }
    Ok(folder.join(FILES[0].0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

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
    fn the_server_is_written_once_whole_and_mended() {
        let home = tempfile::tempdir().unwrap();
        let server = write_server(home.path()).unwrap();
        assert!(fs::read_to_string(&server).unwrap().contains("from model import"));
        fs::write(&server, "cut").unwrap();
        assert_eq!(write_server(home.path()).unwrap(), server);
        let names: Vec<_> = fs::read_dir(server.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!((names.len(), fs::read(&server).unwrap() == FILES[0].1.as_bytes()), (3, true));
        let problem = write_server(Path::new("/proc/version/x")).unwrap_err();
        assert_eq!(problem.code, Code::Storage);
    }
}
