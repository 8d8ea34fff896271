//! NumPy's `.npy` files. Source: NEP 1, "A Simple File Format for NumPy Arrays", and `numpy.lib.format`.

use super::Array;
use crate::model::Datatype;
use bytes::Bytes;

const MAGIC: &[u8] = b"\x93NUMPY";

/// Reads one array.
pub(super) fn parse(file: &Bytes) -> Result<Array, String> {
    let cut = || "the file is cut off".to_owned();
    let version = match file.strip_prefix(MAGIC) {
        Some(rest) => *rest.first().ok_or_else(cut)?,
        None => return Err("not a .npy file".into()),
    };
    let after = MAGIC.len() + 2;
    let (length, start) = match version {
        1 => (file.get(after..after + 2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]]))), after + 2),
        2 | 3 => (file.get(after..after + 4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])), after + 4),
        other => return Err(format!("version {other} of the .npy format is not known")),
    };
    let end = start + length.ok_or_else(cut)? as usize;
    let header = String::from_utf8_lossy(file.get(start..end).ok_or_else(cut)?);
    let header = Header::read(&header).ok_or("its header cannot be read")?;
    if header.fortran_order {
        return Err("the array is in Fortran order: save np.ascontiguousarray(array)".into());
    }
    let elements =
        header.shape.iter().try_fold(1u64, |n, &axis| n.checked_mul(axis)).ok_or("its shape is too large")?;
    let data = file.slice(end..);
    let (dtype, width) = element(&header.descr)?;
    let wanted = elements.checked_mul(width as u64);
    if wanted != Some(data.len() as u64) {
        return Err(format!("{} bytes of data do not fill shape {:?} of {}", data.len(), header.shape, header.descr));
    }
    let raw = match header.descr.as_bytes() {
        [_, b'S', ..] => strings(&data, width, |item| item.to_vec()),
        [_, b'U', ..] => strings(&data, width, utf8),
        _ => data,
    };
    Ok(Array { dtype, shape: header.shape, raw })
}

/// The Python literal of the header: a dictionary of three keys.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<u64>,
}

impl Header {
    fn read(text: &str) -> Option<Self> {
        let after = |key: &str| text.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
        let (descr, _) = after("descr")?.strip_prefix('\'').unwrap_or("O'").split_once('\'')?;
        let axes = after("shape")?.strip_prefix('(')?.split_once(')')?.0;
        let axes = axes.split(',').map(str::trim).filter(|axis| !axis.is_empty());
        Some(Self {
            descr: descr.to_owned(),
            fortran_order: after("fortran_order")?.starts_with("True"),
            shape: axes.map(|axis| axis.parse().ok()).collect::<Option<_>>()?,
        })
    }
}

/// The element type of a NumPy type string, and the bytes that one takes in the file.
fn element(descr: &str) -> Result<(Datatype, usize), String> {
    let unsupported = || {
        format!(
            "elements of NumPy type '{descr}' are not supported: booleans, integers, floats and strings are, little-endian"
        )
    };
    let (order, kind) = descr.split_at_checked(1).ok_or_else(unsupported)?;
    if order == ">" {
        return Err(format!("the array is big-endian: save array.astype('<{kind}')"));
    }
    let dtype = match kind {
        "b1" => Datatype::Bool,
        "u1" => Datatype::Uint8,
        "u2" => Datatype::Uint16,
        "u4" => Datatype::Uint32,
        "u8" => Datatype::Uint64,
        "i1" => Datatype::Int8,
        "i2" => Datatype::Int16,
        "i4" => Datatype::Int32,
        "i8" => Datatype::Int64,
        "f2" => Datatype::Fp16,
        "f4" => Datatype::Fp32,
        "f8" => Datatype::Fp64,
        // How bfloat16 of ml_dtypes is saved.
        "V2" => Datatype::Bf16,
        _ => {
            let letters = |unit: usize| kind[1..].parse::<usize>().ok().and_then(|n| n.checked_mul(unit));
            let width = match kind.as_bytes().first() {
                Some(b'S') => letters(1),
                Some(b'U') => letters(4),
                _ => None,
            };
            return width.filter(|&width| width > 0).map(|width| (Datatype::Bytes, width)).ok_or_else(unsupported);
        }
    };
    Ok((dtype, dtype.size().expect("a type of fixed size")))
}

/// Strings of a fixed width, padded with zeros, as KServe v2 has them.
fn strings(data: &[u8], width: usize, text: impl Fn(&[u8]) -> Vec<u8>) -> Bytes {
    let mut out = Vec::with_capacity(data.len());
    for item in data.chunks_exact(width) {
        let mut text = text(item);
        text.truncate(text.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1));
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text);
    }
    out.into()
}

/// Code points of four bytes as UTF-8.
fn utf8(item: &[u8]) -> Vec<u8> {
    let points = item.as_chunks::<4>().0.iter().map(|point| u32::from_le_bytes(*point));
    let text: String = points.map(|point| char::from_u32(point).unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    text.into_bytes()
}
