//! The TorchScript engine's server: it lies in `torchscript/` beside `src`, in Python, and this program contains it.

use modelmeter_common::{Code, Problem, wire::sha256_hex};
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
