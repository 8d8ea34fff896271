//! What tests of engines need: a Python with the frameworks, the stand-in for TensorFlow Serving, and models in every
//! format.

use anyhow::{Context, Result};
use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// `MODELMETER_TEST_PYTHON`, or the one that `scripts/setup` made.
pub fn python() -> Result<PathBuf> {
    let python = env::var_os("MODELMETER_TEST_PYTHON")
        .map_or_else(|| repository().join(".deps/python/bin/python"), PathBuf::from);
    anyhow::ensure!(python.exists(), "{} is missing: run scripts/setup, which makes it", python.display());
    Ok(python)
}

/// Tells modelmeter, in its home's configuration, where the engines are. TensorFlow Serving is the stand-in.
pub fn configure(home: &Path) -> Result<()> {
    configure_with(home, &[])
}

/// The same with other programs for some engines: keys such as `tfs.server`.
pub fn configure_with(home: &Path, others: &[(&str, &Path)]) -> Result<()> {
    fs::create_dir_all(home)?;
    let (python, ort) = (python()?, ort()?);
    let standin = repository().join("tests/standins/tensorflow_model_server").canonicalize()?;
    let tfs = script(
        &home.join("tensorflow_model_server"),
        &format!("exec {} {} \"$@\"", quoted(&python), quoted(&standin)),
    )?;
    let mut settings = vec![
        ("onnx.library", ort.as_path()),
        ("torchscript.python", python.as_path()),
        ("triton.python", python.as_path()),
        ("tfs.server", tfs.as_path()),
    ];
    settings.retain(|(key, _)| others.iter().all(|(other, _)| other != key));
    let lines =
        settings.iter().chain(others).map(|(key, path)| format!("engine.{key} = {:?}\n", path.display().to_string()));
    let text: String = std::iter::once("engine.ready_timeout = '60s'\n".to_owned()).chain(lines).collect();
    fs::write(
        home.join("modelmeter.toml"),
        format!("worker.lock_dir = {:?}\n{text}", home.join("locks").display().to_string()),
    )?;
    Ok(())
}

fn ort() -> Result<PathBuf> {
    let ort =
        env::var_os("ORT_DYLIB_PATH").map_or_else(|| repository().join(".deps/bin/libonnxruntime.so"), PathBuf::from);
    ort.canonicalize().with_context(|| format!("{} is missing: run scripts/setup", ort.display()))
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// An executable shell script.
pub fn script(path: &Path, body: &str) -> Result<PathBuf> {
    fs::write(path, format!("#!/bin/sh\n{body}\n"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(path.to_owned())
}

/// A reference model in all four formats.
#[derive(Clone, Debug)]
pub struct Formats {
    pub onnx: PathBuf,
    pub torchscript: PathBuf,
    pub savedmodel: PathBuf,
    pub triton: PathBuf,
}

impl Formats {
    /// Writes a built-in model and converts it below `folder`.
    pub fn make(folder: &Path, name: &str) -> Result<Self> {
        let onnx = folder.join(format!("{name}.onnx"));
        let written = Command::new(crate::modelmeter::binary()?).args(["model", "write", name]).arg(&onnx).status()?;
        anyhow::ensure!(written.success(), "modelmeter model write {name}: {written}");
        convert(&onnx, folder, &[])?;
        let of = |suffix: &str| folder.join(format!("{name}.{suffix}"));
        Ok(Self { torchscript: of("pt"), savedmodel: of("savedmodel"), triton: of("triton"), onnx })
    }

    /// The flags that name them all.
    pub fn flags(&self) -> Vec<String> {
        let named = [
            ("onnx", &self.onnx),
            ("torchscript", &self.torchscript),
            ("savedmodel", &self.savedmodel),
            ("triton", &self.triton),
        ];
        named.iter().flat_map(|(flag, path)| [format!("--{flag}"), path.display().to_string()]).collect()
    }
}

/// Runs `scripts/convert.py`.
pub fn convert(onnx: &Path, folder: &Path, flags: &[&str]) -> Result<()> {
    let mut command = Command::new(python()?);
    command.arg(repository().join("scripts/convert.py")).args([onnx, folder]).args(flags);
    let output = command.env("TF_CPP_MIN_LOG_LEVEL", "3").stdin(Stdio::null()).output()?;
    anyhow::ensure!(output.status.success(), "convert.py: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
