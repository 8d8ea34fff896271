//! HPACK (RFC 7541), as much as a client needs that sends one header list over and over and reads only
//! the status of what comes back. We announce a table of size 0, so that response blocks stand alone.

/// Length of the Huffman code of each byte, and of the end of string. The code is canonical, so the lengths
/// are the whole code. Source: RFC 7541, appendix B.
#[rustfmt::skip]
const CODE_LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
/// Values of `:status` in the static table, from index 8. Source: RFC 7541, appendix A.
const STATIC_STATUS: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
const STATIC_ENTRIES: u64 = 61;
/// The table that a peer has unless its settings say otherwise.
pub(super) const DEFAULT_TABLE: u32 = 4096;

/// A block that does not follow RFC 7541, or that refers to a table we said we do not keep.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Malformed;

/// The request's header list, encoded once.
#[derive(Clone, Debug)]
pub(super) struct RequestHead {
    /// The first block of a connection: puts the fields into the server's table.
    pub first: Vec<u8>,
    /// Every later one: a byte a field.
    pub again: Vec<u8>,
    /// For servers whose table is too small.
    pub literal: Vec<u8>,
    /// The room that the fields take in a table.
    pub table: u32,
}

impl RequestHead {
    /// A gRPC call of `path` at `authority`.
    pub fn new(path: &str, authority: &str) -> Self {
        const POST_HTTP: [u8; 2] = [0x83, 0x86];
        // Name (or its static index), value.
        let fields: [(u8, &str, &str); 5] = [
            (4, ":path", path),
            (1, ":authority", authority),
            (0, "te", "trailers"),
            (31, "content-type", "application/grpc"),
            (58, "user-agent", concat!("modelmeter/", env!("CARGO_PKG_VERSION"))),
        ];
        let mut first = POST_HTTP.to_vec();
        let mut literal = POST_HTTP.to_vec();
        for (index, name, value) in fields {
            put_field(&mut first, 0x40, 6, index, name, value);
            put_field(&mut literal, 0x00, 4, index, name, value);
        }
        let mut again = POST_HTTP.to_vec();
        let newest = STATIC_ENTRIES as u8 + 1;
        again.extend((newest..newest + fields.len() as u8).rev().map(|index| 0x80 | index));
        let table = fields.iter().map(|(_, name, value)| (name.len() + value.len() + 32) as u32).sum();
        Self { first, again, literal, table }
    }
}

fn put_field(out: &mut Vec<u8>, pattern: u8, prefix_bits: u32, index: u8, name: &str, value: &str) {
    put_int(out, pattern, prefix_bits, usize::from(index));
    if index == 0 {
        put_int(out, 0, 7, name.len());
        out.extend_from_slice(name.as_bytes());
    }
    put_int(out, 0, 7, value.len());
    out.extend_from_slice(value.as_bytes());
}

fn put_int(out: &mut Vec<u8>, pattern: u8, prefix_bits: u32, value: usize) {
    let most = (1usize << prefix_bits) - 1;
    if value < most {
        out.push(pattern | value as u8);
        return;
    }
    out.push(pattern | most as u8);
    let mut rest = value - most;
    while rest >= 128 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// What we want to know of a response's header block or trailers.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub(super) struct ResponseHead {
    pub http_status: Option<u16>,
    pub grpc_status: Option<u32>,
    pub grpc_message: Option<String>,
}

impl ResponseHead {
    /// Reads a whole block.
    pub fn parse(mut block: &[u8]) -> Result<Self, Malformed> {
        let mut head = Self::default();
        while let Some(&lead) = block.first() {
            if lead & 0x80 != 0 {
                let index = take_int(&mut block, 7)?;
                head.indexed(index)?;
            } else if lead & 0xe0 == 0x20 {
                // A new size of the table: ours is 0, whatever it says.
                take_int(&mut block, 5)?;
            } else {
                let bits = if lead & 0x40 != 0 { 6 } else { 4 };
                head.literal(&mut block, bits)?;
            }
        }
        Ok(head)
    }

    fn indexed(&mut self, index: u64) -> Result<(), Malformed> {
        match index {
            8..=14 => self.http_status = Some(STATIC_STATUS[index as usize - 8]),
            1..=STATIC_ENTRIES => {}
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn literal(&mut self, block: &mut &[u8], bits: u32) -> Result<(), Malformed> {
        let index = take_int(block, bits)?;
        let name = match index {
            0 => take_string(block)?,
            8..=14 => b":status".to_vec(),
            1..=STATIC_ENTRIES => Vec::new(),
            _ => return Err(Malformed),
        };
        let value = take_string(block)?;
        let text = || std::str::from_utf8(&value).map_err(|_| Malformed);
        match name.as_slice() {
            b":status" => self.http_status = Some(text()?.parse().map_err(|_| Malformed)?),
            b"grpc-status" => self.grpc_status = Some(text()?.parse().map_err(|_| Malformed)?),
            b"grpc-message" => self.grpc_message = Some(percent_decoded(&value)),
            _ => {}
        }
        Ok(())
    }
}

/// Source: the gRPC documentation, "gRPC over HTTP2", Status-Message.
fn percent_decoded(value: &[u8]) -> String {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value;
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = (byte == b'%').then(|| tail.get(..2)).flatten().and_then(|h| std::str::from_utf8(h).ok());
        match hex.and_then(|h| u8::from_str_radix(h, 16).ok()) {
            Some(decoded) => {
                out.push(decoded);
                rest = &tail[2..];
            }
            None => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

pub(super) fn take_int(block: &mut &[u8], prefix_bits: u32) -> Result<u64, Malformed> {
    let most = (1u64 << prefix_bits) - 1;
    let mut value = u64::from(take_byte(block)?) & most;
    if value < most {
        return Ok(value);
    }
    // Five bytes hold more than any length we accept.
    for shift in [0, 7, 14, 21, 28] {
        let byte = take_byte(block)?;
        value += u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

fn take_byte(block: &mut &[u8]) -> Result<u8, Malformed> {
    let (&byte, rest) = block.split_first().ok_or(Malformed)?;
    *block = rest;
    Ok(byte)
}

pub(super) fn take_string(block: &mut &[u8]) -> Result<Vec<u8>, Malformed> {
    let huffman = block.first().ok_or(Malformed)? & 0x80 != 0;
    let len = take_int(block, 7)? as usize;
    let (text, rest) = block.split_at_checked(len).ok_or(Malformed)?;
    *block = rest;
    if huffman { unhuffman(text) } else { Ok(text.to_vec()) }
}

/// Decodes bit by bit: of two dozen bytes, in blocks that were not seen before, speed does not matter.
fn unhuffman(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut symbols: Vec<usize> = (0..CODE_LENGTHS.len()).collect();
    symbols.sort_by_key(|&s| CODE_LENGTHS[s]);
    let mut out = Vec::new();
    let (mut code, mut len) = (0u32, 0u8);
    for bit in text.iter().flat_map(|byte| (0..8).rev().map(move |i| byte >> i & 1)) {
        (code, len) = (code << 1 | u32::from(bit), len + 1);
        if len > 30 {
            return Err(Malformed);
        }
        if let Some(symbol) = symbol_of(code, len, &symbols) {
            out.push(u8::try_from(symbol).map_err(|_| Malformed)?);
            (code, len) = (0, 0);
        }
    }
    // What is left must be padding: fewer than eight ones.
    if len < 8 && code == (1 << len) - 1 { Ok(out) } else { Err(Malformed) }
}

/// The symbol of this canonical code, if there is one of this length.
fn symbol_of(code: u32, len: u8, by_length: &[usize]) -> Option<usize> {
    let (mut first, mut at) = (0u32, 0usize);
    for l in 1..=len {
        let n = by_length[at..].iter().take_while(|&&s| CODE_LENGTHS[s] == l).count();
        if l == len {
            return by_length[at..at + n].get(code.checked_sub(first)? as usize).copied();
        }
        first = (first + n as u32) << 1;
        at += n;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7541, appendix C.4.1, C.6.1 and others.
    #[test]
    fn huffman_strings_of_the_specification() {
        let decode = |hex: &str| {
            let bytes: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            unhuffman(&bytes).map(|b| String::from_utf8(b).unwrap())
        };
        assert_eq!(decode("f1e3c2e5f23a6ba0ab90f4ff").unwrap(), "www.example.com");
        assert_eq!(decode("6402").unwrap(), "302");
        assert_eq!(decode("d07abe941054d444a8200595040b8166e082a62d1bff").unwrap(), "Mon, 21 Oct 2013 20:13:21 GMT");
        assert_eq!(decode("1c"), Err(Malformed));
    }

    #[test]
    fn the_status_is_read_and_malformed_blocks_are_refused() {
        let mut block = vec![0x20, 0x88];
        put_field(&mut block, 0x00, 4, 0, "grpc-status", "5");
        put_field(&mut block, 0x10, 4, 0, "grpc-message", "no%20model %zz");
        let head = ResponseHead::parse(&block).unwrap();
        assert_eq!((head.http_status, head.grpc_status), (Some(200), Some(5)));
        assert_eq!(head.grpc_message.as_deref(), Some("no model %zz"));
        assert_eq!(ResponseHead::parse(&[0xbe]), Err(Malformed));
        for cut in 3..block.len() {
            let _ = ResponseHead::parse(&block[..cut]);
        }
        assert_eq!(ResponseHead::parse(&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Err(Malformed));
    }
}
