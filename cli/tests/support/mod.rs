//! The real binary, in a home of its own.

use serde_json::Value;
use std::{
    path::Path,
    process::{Command, Output},
};

/// Its own home, locks and ports: other tests measure on this machine at the same time.
pub fn command(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_modelmeter"));
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("MODELMETER_HOME", home)
        .env("MODELMETER_WORKER_LOCK_DIR", home.join("locks"))
        .env("MODELMETER_WORKER_PORTS", "auto")
        .current_dir(home)
        .args(args);
    command
}

pub fn json(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {}\n{stderr}", String::from_utf8_lossy(&output.stdout)))
}
