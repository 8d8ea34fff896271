//! The built modelmeter binary: as servers in the background, and as commands whose output is read.

use crate::Child;
use anyhow::{Context, Result};
use serde_json::Value;
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

/// For a command that only reads.
const QUESTION: Duration = Duration::from_secs(60);

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// The exit code; none after a signal.
    pub code: Option<i32>,
    /// Standard output: results.
    pub out: String,
    /// Standard error: progress and errors.
    pub err: String,
}

impl Output {
    /// Standard output as JSON, of a command that succeeded.
    pub fn json(&self) -> Result<Value> {
        anyhow::ensure!(self.code == Some(0), "exit code {:?}\n{}{}", self.code, self.out, self.err);
        serde_json::from_str(&self.out).with_context(|| format!("not JSON: {}", self.out))
    }
}

/// `MODELMETER_TEST_BINARY`, or the one that was built beside this test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("MODELMETER_TEST_BINARY") {
        return Ok(path.into());
    }
    let test = env::current_exe()?;
    let built = test.parent().and_then(Path::parent).context("the test lies in no build folder")?.join("modelmeter");
    anyhow::ensure!(
        built.exists(),
        "{} is missing: build it first with cargo build --release, or run scripts/test",
        built.display()
    );
    Ok(built)
}

/// The binary with a home of its own and nothing of the user's configuration.
pub fn command(home: &Path, args: &[&str]) -> Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("MODELMETER_")) {
        command.env_remove(name);
    }
    command.env("MODELMETER_HOME", home).args(args).current_dir(home);
    Ok(command)
}

/// Starts it in the background; its log is `<name>.log` in its home.
pub fn spawn(name: &str, home: &Path, args: &[&str]) -> Result<Child> {
    std::fs::create_dir_all(home)?;
    let mut command = command(home, args)?;
    command.env("RUST_LOG", env::var("MODELMETER_TEST_LOG").unwrap_or_else(|_| "info".into()));
    Child::spawn(name, command, &home.join(format!("{name}.log")))
}

/// Runs it to its end, or kills it at the limit.
pub async fn run(home: &Path, args: &[&str], limit: Duration) -> Result<Output> {
    std::fs::create_dir_all(home)?;
    output(command(home, args)?, limit).await
}

/// Runs a command of the binary to its end, or kills it at the limit.
pub async fn output(command: Command, limit: Duration) -> Result<Output> {
    let mut command = tokio::process::Command::from(command);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.with_context(|| format!("{:?} did not end within {limit:?}", command.as_std()))??;
    Ok(Output {
        code: output.status.code(),
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// Whether the only cell of the only request in this home is being measured, for the nth time.
pub async fn is_measuring(home: &Path, attempt: u64) -> bool {
    let json = async |args: &[&str]| match run(home, args, QUESTION).await {
        Ok(output) => output.json().unwrap_or_default(),
        Err(_) => Value::Null,
    };
    let requests = json(&["requests", "--json"]).await;
    let Some(id) = requests[0]["_id"].as_str() else { return false };
    let cell = &json(&["status", id, "--json"]).await["cells"][0];
    let reason = cell["reason"].as_str().unwrap_or_default();
    cell["attempts"] == attempt && reason.contains("measuring")
}
