//! Several files as one artifact, directories and models with their data beside them: a tar that is the same to the byte
//! for the same content, so that its sha256 names it.
//!
//! Entries are the regular files alone, sorted by path, without times, owners or modes. Links are followed.

use super::external;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};
use tar::{Archive, Builder, EntryType, Header};

/// More levels than this are a loop of links.
const MAX_DEPTH: usize = 16;

/// Writes what travels of an artifact: a file's bytes; the archive of a directory, or of an ONNX file and the files that
/// hold its data.
///
/// # Errors
/// What reading or writing failed with.
pub fn write_to(path: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut files = BTreeMap::new();
    if path.is_dir() {
        collect(path, Path::new(""), 0, &mut files)?;
    } else {
        match external::members(path) {
            Ok(members) if members.len() > 1 => files = members,
            // Whatever is not an ONNX file travels as it is.
            _ => return io::copy(&mut File::open(path)?, out).map(drop),
        }
    }
    let mut archive = Builder::new(out);
    for (name, file) in files {
        let file = File::open(file)?;
        let size = file.metadata()?.len();
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(0);
        // A file that grows meanwhile must not run into the next entry.
        archive.append_data(&mut header, name, file.take(size))?;
    }
    archive.finish()
}

fn collect(folder: &Path, name: &Path, depth: usize, files: &mut BTreeMap<PathBuf, PathBuf>) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{} is too deep: do links go in a circle?", folder.display())));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), name.join(entry.file_name()));
        match fs::metadata(&path)? {
            kind if kind.is_dir() => collect(&path, &name, depth + 1, files)?,
            kind if kind.is_file() => drop(files.insert(name, path)),
            _ => return Err(io::Error::other(format!("{} is neither a file nor a folder", path.display()))),
        }
    }
    Ok(())
}

/// Whether the file is an archive. No ONNX file begins like one.
///
/// # Errors
/// What reading failed with.
pub fn is_archive(path: &Path) -> io::Result<bool> {
    let mut head = [0; 512];
    match File::open(path)?.read_exact(&mut head) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
        Err(error) => return Err(error),
    }
    let header = Header::from_byte_slice(&head);
    // The sum of the header's bytes, its own field as spaces. Source: POSIX.1-2017, pax, "ustar Interchange Format".
    let sum = head.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { 32 } else { u32::from(byte) });
    Ok(header.as_gnu().is_some() && header.cksum().is_ok_and(|said| said == sum.sum::<u32>()))
}

/// Unpacks an archive below `folder`. Regular files alone, and none outside it.
///
/// # Errors
/// `InvalidData` for an archive that [`write_to`] did not make; what reading or writing failed with.
pub fn unpack(archive: impl Read, folder: &Path) -> io::Result<()> {
    let foreign = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    fs::create_dir_all(folder)?;
    for entry in Archive::new(archive).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        if entry.header().entry_type() != EntryType::Regular {
            return Err(foreign(format!("'{name}' in the archive is not a file")));
        }
        if !entry.unpack_in(folder)? {
            return Err(foreign(format!("'{name}' in the archive lies outside it")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(folder: &Path) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_to(folder, &mut bytes).unwrap();
        bytes
    }

    fn put(folder: &Path, name: &str, content: &str) {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    #[test]
    fn the_same_content_is_the_same_bytes_and_comes_back() {
        let [one, two, back] = [(); 3].map(|()| tempfile::tempdir().unwrap());
        let long = format!("variables/{}", "x".repeat(150));
        for (folder, names) in [(&one, ["saved_model.pb", &long, "a/b/c"]), (&two, ["a/b/c", "saved_model.pb", &long])]
        {
            names.iter().for_each(|name| put(folder.path(), name, name));
        }
        assert_eq!(archive(one.path()), archive(two.path()));
        unpack(archive(one.path()).as_slice(), back.path()).unwrap();
        assert_eq!(archive(back.path()), archive(one.path()));
        put(two.path(), "a/b/c", "other");
        assert_ne!(archive(one.path()), archive(two.path()));
    }

    #[test]
    fn links_are_followed_and_circles_end() {
        let [model, blobs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        put(blobs.path(), "blob", "weights");
        std::os::unix::fs::symlink(blobs.path().join("blob"), model.path().join("linked")).unwrap();
        let linked = archive(model.path());
        fs::remove_file(model.path().join("linked")).unwrap();
        put(model.path(), "linked", "weights");
        assert_eq!(linked, archive(model.path()));
        std::os::unix::fs::symlink(model.path(), model.path().join("circle")).unwrap();
        assert!(write_to(model.path(), &mut Vec::new()).is_err());
    }

    #[test]
    fn nothing_is_written_outside_and_only_files() {
        let folder = tempfile::tempdir().unwrap();
        let with = |name: &[u8], kind: EntryType| {
            let mut header = Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            header.set_entry_type(kind);
            header.set_size(0);
            header.set_cksum();
            let mut builder = Builder::new(Vec::new());
            builder.append(&header, io::empty()).unwrap();
            builder.into_inner().unwrap()
        };
        let below = folder.path().join("below");
        for (name, kind) in [(&b"../out"[..], EntryType::Regular), (b"link", EntryType::Symlink)] {
            let problem = unpack(with(name, kind).as_slice(), &below).unwrap_err();
            assert_eq!(problem.kind(), io::ErrorKind::InvalidData, "{problem}");
        }
        assert!(!folder.path().join("out").exists());
    }
}
