//! The files beside an ONNX file that hold data of its tensors. With it they are one artifact: an archive in which the model
//! is called [`MODEL`], whatever it is called where it was found.

use super::tensors::{self, Tensors};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufReader},
    path::{Component, Path, PathBuf},
};

/// The model's own name among its files.
pub const MODEL: &str = "model.onnx";

/// A file that holds data of a model's tensors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataFile {
    /// The file as the model names it, relative to its own folder.
    pub location: String,
    /// Where it lies.
    pub path: PathBuf,
    /// Whether each tensor tells its place in it, which may be left out.
    pub is_complete: bool,
}

/// The data files of the ONNX file at `path`, each once; none where it holds all its data itself. That they are there is
/// not looked at.
///
/// # Errors
/// What reading failed with; `InvalidData` for what is not an ONNX file, and for data outside the model's folder.
pub fn files(path: &Path) -> io::Result<Vec<DataFile>> {
    let tensors = tensors::read(BufReader::new(File::open(path)?))?;
    let found = located(path, &tensors).map_err(|what| io::Error::new(io::ErrorKind::InvalidData, what))?;
    Ok(found.into_values().map(|(file, _)| file).collect())
}

/// The files of the model at `path` by the names that they have in its archive, the model included; a folder has been
/// made of such an archive.
///
/// # Errors
/// As [`files`].
pub fn members(path: &Path) -> io::Result<BTreeMap<PathBuf, PathBuf>> {
    let path = model_file(path);
    let mut members: BTreeMap<PathBuf, PathBuf> =
        files(&path)?.into_iter().map(|file| (plain(Path::new(&file.location)), file.path)).collect();
    members.insert(MODEL.into(), path);
    Ok(members)
}

/// The ONNX file itself, where `path` may be the folder that an archive of it was unpacked to.
pub fn model_file(path: &Path) -> PathBuf {
    if path.is_dir() { path.join(MODEL) } else { path.to_owned() }
}

/// An ONNX file with other names for its data files, and with each tensor's place in them told: for runtimes that take
/// only some.
///
/// # Errors
/// `UnexpectedEof` and `InvalidData` for what is not an ONNX file.
pub fn renamed(model: &[u8], to: impl Fn(&str) -> String) -> io::Result<Vec<u8>> {
    tensors::relocated(model, &to)
}

/// That the data files are there, whole.
///
/// # Errors
/// What is wrong, in words that name the tensor and the file, with what to do.
pub(super) fn check(path: &Path, tensors: &Tensors) -> Result<(), (String, &'static str)> {
    const LOST: &str = "keep the file beside the model: exporters write both, and both must be copied";
    const MOVED: &str =
        "save it with all data in the model's own folder: onnx.save_model(…, save_as_external_data=True)";
    for (file, (tensor, end)) in located(path, tensors).map_err(|what| (what, MOVED))?.into_values() {
        let shown = file.path.display();
        let of = format!("the data of tensor '{tensor}'");
        match fs::metadata(&file.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err((format!("{of} is in {shown}, which is not there"), LOST));
            }
            Err(error) => return Err((format!("{of} is in {shown}, which cannot be read: {error}"), LOST)),
            Ok(found) if !found.is_file() => return Err((format!("{of} is in {shown}, which is no file"), LOST)),
            Ok(found) if found.len() < end => {
                let message = format!("{of} ends at byte {end} of {shown}, which is cut off: it has {}", found.len());
                return Err((message, "copy or export both files again, and compare their sizes with the originals'"));
            }
            Ok(_) => {}
        }
    }
    Ok(())
}

/// By location: the file, and of the tensor whose data end last in it the name and that end.
type Located = BTreeMap<String, (DataFile, (String, u64))>;

fn located(path: &Path, tensors: &Tensors) -> Result<Located, String> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut found = Located::new();
    for one in &tensors.external {
        let (tensor, location) = (&one.tensor, &one.location);
        if location.is_empty() {
            return Err(format!("tensor '{tensor}' does not say in which file its data are"));
        }
        let name = Path::new(location);
        if !name.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(format!("the data of tensor '{tensor}' are in '{location}', outside the model's folder"));
        }
        let name = plain(name);
        let is_model = name.as_os_str() == MODEL || Some(name.as_os_str()) == path.file_name();
        if is_model {
            return Err(format!("the data of tensor '{tensor}' are in '{location}', which is the model's own name"));
        }
        let file = || DataFile { location: location.clone(), path: folder.join(&name), is_complete: true };
        let (data, last) = found.entry(location.clone()).or_insert_with(|| (file(), (tensor.clone(), one.end)));
        data.is_complete &= one.is_complete;
        if one.end > last.1 {
            *last = (tensor.clone(), one.end);
        }
    }
    Ok(found)
}

/// The same path without its `.`.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}
