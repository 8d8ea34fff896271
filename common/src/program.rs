//! Other programs of this machine: where one lies, and what one says of itself, asked with a deadline.

use std::{
    ffi::OsStr,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

/// How long a Python may take to answer; a cold disk takes seconds.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The path of a program on PATH.
pub fn on_path(name: impl AsRef<Path>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|candidate| candidate.is_file())
}

/// The interpreters to look at: the configured one alone, else the active virtual environment's and the `python3` on PATH.
pub fn pythons(configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(python) = configured {
        return vec![python.to_owned()];
    }
    let active = std::env::var_os("VIRTUAL_ENV").filter(|dir| !dir.is_empty());
    active.map(|dir| Path::new(&dir).join("bin/python")).into_iter().chain([PathBuf::from("python3")]).collect()
}

/// What `python -c question` prints: far less than a pipe holds, so that it can be read once it has ended.
///
/// # Errors
/// What stood in the way, to follow the Python's name.
pub fn ask(python: impl AsRef<OsStr>, question: &str, patience: Duration) -> Result<String, String> {
    run(python, &["-c", question], patience)
}

/// What a program prints that says something short of itself and ends.
///
/// # Errors
/// What stood in the way, to follow the program's name.
pub fn run(program: impl AsRef<OsStr>, args: &[&str], patience: Duration) -> Result<String, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("cannot be run: {error}"))?;
    let deadline = Instant::now() + patience;
    let status = loop {
        match child.try_wait().map_err(|error| format!("cannot be waited for: {error}"))? {
            Some(status) => break status,
            None if Instant::now() > deadline => {
                // Failing to end it is no reason to fail: it is not waited for any longer.
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("did not say what it has within {patience:?}"));
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let mut said = String::new();
    let read = child.stdout.take().map_or(Ok(0), |mut out| out.read_to_string(&mut said));
    match read {
        Ok(_) if status.success() => Ok(said),
        _ => Err(format!("cannot say what it has ({status})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt};

    #[test]
    fn a_python_that_hangs_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let python = folder.path().join("python3");
        fs::write(&python, "#!/bin/sh\nexec sleep 60\n").unwrap();
        fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
        let began = Instant::now();
        let hangs = ask(&python, "", Duration::from_millis(50)).unwrap_err();
        assert!(hangs.contains("within 50ms") && began.elapsed() < Duration::from_secs(20), "{hangs}");
        fs::write(&python, "#!/bin/sh\necho \"$1 $2\"\n").unwrap();
        assert_eq!(ask(&python, "what?", Duration::from_secs(20)).unwrap(), "-c what?\n");
        assert!(ask(folder.path().join("none"), "", PATIENCE).unwrap_err().contains("cannot be run"));
    }
}
