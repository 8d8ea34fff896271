//! Files that are no arrays, told by how they begin and what they are called, so that nobody measures a picture's bytes.

use std::path::Path;

/// How files of other kinds begin.
const BEGINNINGS: [(&[u8], &str); 16] = [
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a RIFF file (WAV, WebP or AVI)"),
    (b"OggS", "an Ogg file"),
    (b"fLaC", "a FLAC file"),
    (b"ID3", "an MP3 file"),
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b\x08", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"PAR1", "a Parquet file"),
    (b"\x7fELF", "a program"),
];

/// Kinds that have no sure beginning, by the file's extension.
const EXTENSIONS: [(&str, &str); 18] = [
    ("jpg", "a picture"),
    ("jpeg", "a picture"),
    ("png", "a picture"),
    ("bmp", "a picture"),
    ("tif", "a picture"),
    ("tiff", "a picture"),
    ("webp", "a picture"),
    ("mp3", "a sound file"),
    ("wav", "a sound file"),
    ("mp4", "a film"),
    ("csv", "a table of text"),
    ("json", "JSON"),
    ("txt", "text"),
    ("md", "text"),
    ("html", "text"),
    ("onnx", "a model"),
    ("pt", "a model"),
    ("pkl", "a Python pickle"),
];

/// Shorter than this, numbers may look like text.
const MIN_TEXT: usize = 16;

/// What a file is that is no array of raw elements, where that can be told.
pub(super) fn what_else(path: &Path, bytes: &[u8]) -> Option<&'static str> {
    let begins = BEGINNINGS.iter().find(|(beginning, _)| bytes.starts_with(beginning)).map(|(_, what)| *what);
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    let named = || EXTENSIONS.iter().find(|(known, _)| *known == extension).map(|(_, what)| *what);
    begins.or_else(named)
}

/// Whether these are the bytes of a text: numbers of several bytes do not look like that.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    let plain = |byte: &u8| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~');
    bytes.len() >= MIN_TEXT && bytes.iter().all(plain)
}
