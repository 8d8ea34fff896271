//! What a layout is made of, and the folder that it is made in, which goes with its deployment.

use crate::storage;
use modelmeter_common::{
    Problem,
    device::DeviceKind,
    model::{Format, TensorShape},
    wire::sha256_hex,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// What a layout is made of.
#[derive(Debug)]
pub(super) struct Material<'a> {
    pub engine: &'a str,
    /// The artifact in the cache, and its format.
    pub artifact: &'a Path,
    pub format: Format,
    pub model_name: &'a str,
    pub inputs: &'a [TensorShape],
    pub settings: &'a BTreeMap<String, Value>,
    pub device: DeviceKind,
    /// Where to make it; empty.
    pub folder: &'a Path,
}

/// A folder that lasts as long as its deployment, and the shared memory that goes by its name.
#[derive(Debug)]
pub(super) struct Folder(PathBuf);

impl Folder {
    /// An empty one. What a worker left that was killed is removed first.
    pub fn make(path: PathBuf) -> Result<Self, Problem> {
        let folder = Self(path);
        folder.remove().and_then(|()| fs::create_dir_all(&folder.0)).map_err(|e| storage("write", &folder.0, &e))?;
        Ok(folder)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    fn remove(&self) -> io::Result<()> {
        let prefix = shared_memory(&self.0);
        let regions = fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        for region in regions.filter(|region| region.file_name().to_string_lossy().starts_with(&prefix)) {
            fs::remove_file(region.path())?;
        }
        match fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is removed before the next deployment of this engine on this slot.
        let _ = self.remove();
    }
}

/// How the names of shared memory begin for what is deployed in a folder: an engine that is killed leaves it behind.
pub(super) fn shared_memory(folder: &Path) -> String {
    format!("modelmeter-{}-", &sha256_hex(folder.as_os_str().as_encoded_bytes())[..12])
}

/// Puts a file or a tree at `to`: hard links, which containers can mount and which cost nothing, or copies where the
/// file system has none.
pub(super) fn place(from: &Path, to: &Path) -> Result<(), Problem> {
    fn link(from: &Path, to: &Path) -> io::Result<()> {
        if !from.is_dir() {
            // A link to a symbolic link would be one, too.
            return fs::hard_link(from.canonicalize()?, to).or_else(|_| fs::copy(from, to).map(drop));
        }
        fs::create_dir_all(to)?;
        fs::read_dir(from)?.try_for_each(|entry| {
            let entry = entry?;
            link(&entry.path(), &to.join(entry.file_name()))
        })
    }
    link(from, to).map_err(|e| storage("write", to, &e))
}

/// Writes a small file.
pub(super) fn write(path: &Path, text: &str) -> Result<(), Problem> {
    fs::write(path, text).map_err(|e| storage("write", path, &e))
}

/// Makes a folder.
pub(super) fn folder(path: &Path) -> Result<(), Problem> {
    fs::create_dir_all(path).map_err(|e| storage("write", path, &e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use modelmeter_common::Code;

    #[test]
    fn a_folder_goes_with_its_deployment_and_what_a_killed_worker_left_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("run/triton-slot0");
        let region = Path::new("/dev/shm").join(format!("{}test", shared_memory(&path)));
        let leave = || {
            fs::write(path.join("leftover"), "").unwrap();
            fs::write(&region, "").unwrap();
        };
        let folder = Folder::make(path.clone()).unwrap();
        leave();
        // As after a SIGKILL: nothing is dropped.
        std::mem::forget(folder);
        let folder = Folder::make(path.clone()).unwrap();
        assert!(fs::read_dir(&path).unwrap().next().is_none() && !region.exists());
        leave();
        drop(folder);
        assert!(!path.exists() && !region.exists());
    }

    #[test]
    fn a_tree_is_placed_whole_and_costs_no_space() {
        use std::os::unix::fs::MetadataExt;
        let home = tempfile::tempdir().unwrap();
        let (from, to) = (home.path().join("from"), home.path().join("to"));
        fs::create_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a/b"), "weights").unwrap();
        place(&from, &to).unwrap();
        assert_eq!(fs::metadata(from.join("a/b")).unwrap().ino(), fs::metadata(to.join("a/b")).unwrap().ino());
        assert_eq!(place(&home.path().join("none"), &home.path().join("x")).unwrap_err().code, Code::Storage);
    }
}
