//! The tensors that an ONNX file holds, wherever the format has some, read without their data: field by field, data
//! skipped, so that a file of gigabytes costs a few reads. Source: onnx.proto, IR version 12, and "External Data" of the ONNX
//! documentation.

use crate::{artifact::datatype, model::Datatype};
use std::{
    collections::BTreeSet,
    io::{self, BufRead, Cursor, Seek, SeekFrom},
};

/// Graphs in graphs in functions deeper than this are no model.
const MAX_DEPTH: usize = 64;
/// Names, keys and values are short.
const MAX_TEXT: u64 = 1 << 16;

/// What the tensors of a file tell of it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Tensors {
    /// The element types that there are.
    pub types: BTreeSet<Datatype>,
    /// The data that lie in other files.
    pub external: Vec<External>,
}

/// A tensor of which the data lie in another file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct External {
    /// The tensor's name; empty where it has none.
    pub tensor: String,
    /// The file, relative to the model's folder.
    pub location: String,
    /// Where the data end in that file.
    pub end: u64,
    /// Whether both offset and length are told, which may be left out.
    pub is_complete: bool,
}

/// Reads them.
///
/// # Errors
/// What reading failed with; `UnexpectedEof` and `InvalidData` for a file that is cut off or no ONNX.
pub(super) fn read(file: impl BufRead + Seek) -> io::Result<Tensors> {
    let mut walker = Walker::new(file);
    let end = walker.file.seek(SeekFrom::End(0))?;
    walker.file.seek(SeekFrom::Start(0))?;
    walker.message(Kind::Model, end, 0)?;
    Ok(walker.found)
}

/// Messages in which tensors are, and those on the way to them.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Function,
    Training,
    Sparse,
}

/// Whether the outermost message, `ModelProto`, has such a field: what has none of them is no ONNX file.
pub(super) fn is_model_field(number: u64, wire: u64) -> bool {
    match number {
        1 | 5 => wire == 0,
        2..=4 | 6..=8 | 14 | 20 | 25 | 26 => wire == 2,
        _ => false,
    }
}

/// What a field of such a message holds.
enum Holds {
    Message(Kind),
    Tensor,
    Other,
}

impl Kind {
    fn field(self, number: u64) -> Holds {
        use Holds::{Message, Tensor};
        match (self, number) {
            (Self::Model, 7) | (Self::Attribute, 6 | 11) | (Self::Training, 1 | 2) => Message(Self::Graph),
            (Self::Model, 20) => Message(Self::Training),
            (Self::Model, 25) => Message(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Message(Self::Node),
            (Self::Node, 5) | (Self::Function, 11) => Message(Self::Attribute),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Message(Self::Sparse),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Tensor,
            _ => Holds::Other,
        }
    }
}

/// The same file with other locations of the data in other files, and with each offset and length told: for runtimes that
/// take only some.
///
/// # Errors
/// `UnexpectedEof` and `InvalidData` as of [`read`].
pub(super) fn relocated(file: &[u8], to: &dyn Fn(&str) -> String) -> io::Result<Vec<u8>> {
    rewritten(file, &|number, content| within(Kind::Model, number, content, to))
}

/// What becomes of a field.
enum Field {
    Stays,
    Goes,
    Becomes(Vec<u8>),
}

fn within(kind: Kind, number: u64, content: &[u8], to: &dyn Fn(&str) -> String) -> io::Result<Field> {
    match kind.field(number) {
        Holds::Message(kind) => {
            rewritten(content, &|number, inner| within(kind, number, inner, to)).map(Field::Becomes)
        }
        Holds::Tensor => relocated_tensor(content, to),
        Holds::Other => Ok(Field::Stays),
    }
}

fn relocated_tensor(content: &[u8], to: &dyn Fn(&str) -> String) -> io::Result<Field> {
    let tensor = Walker::new(Cursor::new(content)).tensor(content.len() as u64)?;
    if !tensor.is_external {
        return Ok(Field::Stays);
    }
    let without = |number, _: &[u8]| Ok(if number == EXTERNAL_DATA { Field::Goes } else { Field::Stays });
    let mut out = rewritten(content, &without)?;
    let said = [
        ("location", to(&tensor.location)),
        ("offset", tensor.offset.unwrap_or(0).to_string()),
        ("length", tensor.bytes().to_string()),
    ];
    for (key, value) in said {
        let mut entry = Vec::new();
        push_field(&mut entry, 1, key.as_bytes());
        push_field(&mut entry, 2, value.as_bytes());
        push_field(&mut out, EXTERNAL_DATA, &entry);
    }
    Ok(Field::Becomes(out))
}

/// A message with what `new` makes of its fields that have a length.
fn rewritten(message: &[u8], new: &dyn Fn(u64, &[u8]) -> io::Result<Field>) -> io::Result<Vec<u8>> {
    let mut walker = Walker::new(Cursor::new(message));
    let (end, mut out) = (message.len() as u64, Vec::with_capacity(message.len()));
    while walker.at < end {
        let start = walker.at as usize;
        let (number, wire, size) = walker.field(end)?;
        let content = walker.at as usize;
        if wire != 0 {
            walker.skip(size)?;
        }
        let after = walker.at as usize;
        let field = if wire == 2 { new(number, &message[content..after])? } else { Field::Stays };
        match field {
            Field::Stays => out.extend_from_slice(&message[start..after]),
            Field::Becomes(replaced) => push_field(&mut out, number, &replaced),
            Field::Goes => {}
        }
    }
    Ok(out)
}

fn push_field(out: &mut Vec<u8>, number: u64, content: &[u8]) {
    for mut value in [number << 3 | 2, content.len() as u64] {
        while value > 0x7f {
            out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
    out.extend_from_slice(content);
}

/// The field of a tensor that says where its data are.
const EXTERNAL_DATA: u64 = 13;

/// What is read of a tensor.
#[derive(Default)]
struct Tensor {
    name: String,
    dtype: Option<Datatype>,
    /// None: more than can be counted.
    elements: Option<u64>,
    is_external: bool,
    location: String,
    offset: Option<u64>,
    length: Option<u64>,
}

impl Tensor {
    fn times(&mut self, length: u64) {
        self.elements = self.elements.and_then(|elements| elements.checked_mul(length));
    }

    /// Of its data in another file: as many as are told, else as its shape needs.
    fn bytes(&self) -> u64 {
        let size = self.dtype.and_then(Datatype::size).unwrap_or(0) as u64;
        self.length.or_else(|| self.elements?.checked_mul(size)).unwrap_or(u64::MAX)
    }
}

impl Tensors {
    fn add(&mut self, tensor: Tensor) -> io::Result<()> {
        self.types.extend(tensor.dtype);
        if !tensor.is_external {
            return Ok(());
        }
        let end = tensor.offset.unwrap_or(0).checked_add(tensor.bytes());
        let end = end.ok_or_else(|| invalid("data beyond any file's end"))?;
        let is_complete = tensor.offset.is_some() && tensor.length.is_some();
        self.external.push(External { tensor: tensor.name, location: tensor.location, end, is_complete });
        Ok(())
    }
}

struct Walker<F> {
    file: F,
    at: u64,
    found: Tensors,
}

impl<F: BufRead + Seek> Walker<F> {
    fn new(file: F) -> Self {
        Self { file, at: 0, found: Tensors::default() }
    }

    fn message(&mut self, kind: Kind, end: u64, depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            return Err(invalid("messages in messages without end"));
        }
        while self.at < end {
            let (number, wire, length) = self.field(end)?;
            if matches!(kind, Kind::Model) && !is_model_field(number, wire) {
                return Err(invalid("unknown parts"));
            }
            match (kind.field(number), wire) {
                (Holds::Message(kind), 2) => self.message(kind, self.at + length, depth + 1)?,
                (Holds::Tensor, 2) => {
                    let tensor = self.tensor(self.at + length)?;
                    self.found.add(tensor)?;
                }
                (_, 0) => {}
                _ => self.skip(length)?,
            }
        }
        Ok(())
    }

    /// Source: `TensorProto`: dims 1, data_type 2, name 8, external_data 13 (key 1, value 2), data_location 14.
    fn tensor(&mut self, end: u64) -> io::Result<Tensor> {
        let mut tensor = Tensor { elements: Some(1), ..Tensor::default() };
        while self.at < end {
            let (number, wire, size) = self.field(end)?;
            match (number, wire) {
                (1, 0) => tensor.times(size),
                (1, 2) => {
                    let packed = self.at + size;
                    while self.at < packed {
                        let length = self.varint()?;
                        tensor.times(length);
                    }
                }
                (2, 0) => tensor.dtype = i32::try_from(size).ok().and_then(datatype),
                (14, 0) => tensor.is_external = size == 1,
                (8, 2) => tensor.name = self.text(size)?,
                (EXTERNAL_DATA, 2) => {
                    let (key, value) = self.entry(self.at + size)?;
                    let number = || value.trim().parse().map_err(|_| invalid("a place of data that is no number"));
                    match key.as_str() {
                        "location" => tensor.location = value,
                        "offset" => tensor.offset = Some(number()?),
                        "length" => tensor.length = Some(number()?),
                        _ => {}
                    }
                }
                (_, 0) => {}
                _ => self.skip(size)?,
            }
        }
        Ok(tensor)
    }

    fn entry(&mut self, end: u64) -> io::Result<(String, String)> {
        let mut entry = (String::new(), String::new());
        while self.at < end {
            let (number, wire, size) = self.field(end)?;
            match (number, wire) {
                (1, 2) => entry.0 = self.text(size)?,
                (2, 2) => entry.1 = self.text(size)?,
                (_, 0) => {}
                _ => self.skip(size)?,
            }
        }
        Ok(entry)
    }

    /// A field's number, wire type, and either its value (a varint) or how many bytes follow, which end in time.
    fn field(&mut self, end: u64) -> io::Result<(u64, u64, u64)> {
        let tag = self.varint()?;
        let (number, wire) = (tag >> 3, tag & 7);
        let size = match wire {
            0 | 2 => self.varint()?,
            1 => 8,
            5 => 4,
            _ => return Err(invalid("a field of an unknown kind")),
        };
        if wire != 0 && self.at.checked_add(size).is_none_or(|after| after > end) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok((number, wire, size))
    }

    fn varint(&mut self) -> io::Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.file.read_exact(&mut byte)?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(invalid("a number without end"))
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.file.seek_relative(i64::try_from(bytes).map_err(|_| invalid("a field beyond any file's end"))?)?;
        self.at += bytes;
        Ok(())
    }

    fn text(&mut self, bytes: u64) -> io::Result<String> {
        if bytes > MAX_TEXT {
            return Err(invalid("a name without end"));
        }
        let mut text = vec![0; bytes as usize];
        self.file.read_exact(&mut text)?;
        self.at += bytes;
        String::from_utf8(text).map_err(|_| invalid("a name that is no text"))
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("it has {what}"))
}
