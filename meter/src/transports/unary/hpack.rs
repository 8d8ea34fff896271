//! HPACK (RFC 7541), as far as a client needs it that sends one header list over and over and reads only the status of
//! responses. The client announces a table of size 0, so that each response block can be read by itself.

use std::{borrow::Cow, str::FromStr};

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
/// Content type of gRPC messages; a suffix may name their encoding.
const CONTENT_TYPE: &str = "application/grpc";
/// Characters of the server's words that are kept.
const MAX_WORDS: usize = 400;
/// Size of a peer's table unless its settings say otherwise.
pub(super) const DEFAULT_TABLE: u32 = 4096;

/// A block that does not follow RFC 7541, or that refers to a table we said we do not keep.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub(super) struct Malformed;

/// The request's header list, encoded once.
#[derive(Clone, Debug)]
pub(super) struct RequestHead {
    /// The first block of a connection: puts the fields into the server's table.
    pub first: Vec<u8>,
    /// Every later block: one byte a field.
    pub again: Vec<u8>,
    /// The block for servers whose table is too small.
    pub literal: Vec<u8>,
    /// The room that the fields take in a table.
    pub table: u32,
}

impl RequestHead {
    /// A gRPC call of `path` at `authority`, within TLS or not.
    pub fn new(path: &str, authority: &str, is_tls: bool) -> Self {
        // Entries of the static table: `:method: POST`, and `:scheme: http` or `https`.
        let begin: [u8; 2] = [0x83, if is_tls { 0x87 } else { 0x86 }];
        // Name (or its static index), value.
        let fields: [(u8, &str, &str); 5] = [
            (4, ":path", path),
            (1, ":authority", authority),
            (0, "te", "trailers"),
            (31, "content-type", CONTENT_TYPE),
            (58, "user-agent", concat!("modelmeter/", env!("CARGO_PKG_VERSION"))),
        ];
        let mut first = begin.to_vec();
        let mut literal = begin.to_vec();
        for (index, name, value) in fields {
            put_field(&mut first, 0x40, 6, index, name, value);
            put_field(&mut literal, 0x00, 4, index, name, value);
        }
        let mut again = begin.to_vec();
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

/// The fields that the client reads of a response's header block or trailers.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
pub(super) struct ResponseHead {
    pub http_status: Option<u16>,
    pub grpc_status: Option<u32>,
    /// One line, without control characters, of [`MAX_WORDS`] characters: the beginning and the end of a longer one.
    pub grpc_message: Option<String>,
    /// The content type, where it is not gRPC's; one line as well.
    pub foreign_type: Option<String>,
    /// How the messages are compressed, in gRPC's or in HTTP's header.
    pub encoding: Option<String>,
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
                // An update of the table's size, which changes nothing: the client's table has size 0.
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

    /// Only the fields that are read are decoded: behind a proxy each block has values of its own.
    fn literal(&mut self, block: &mut &[u8], bits: u32) -> Result<(), Malformed> {
        let name = match take_int(block, bits)? {
            0 => take_string(block)?.decoded()?,
            8..=14 => Cow::Borrowed(&b":status"[..]),
            26 => Cow::Borrowed(&b"content-encoding"[..]),
            31 => Cow::Borrowed(&b"content-type"[..]),
            1..=STATIC_ENTRIES => Cow::Borrowed(&b""[..]),
            _ => return Err(Malformed),
        };
        let value = take_string(block)?;
        match &*name {
            // A status without three digits is not a status.
            b":status" => self.http_status = Some(number(value)?).filter(|status| (100..=999).contains(status)),
            b"grpc-status" => self.grpc_status = Some(number(value)?),
            b"grpc-message" => self.grpc_message = Some(in_a_line(&percent_decoded(&value.decoded()?))),
            b"content-type" => {
                let kind = value.decoded()?;
                let is_ours =
                    kind.get(..CONTENT_TYPE.len()).is_some_and(|k| k.eq_ignore_ascii_case(CONTENT_TYPE.as_bytes()));
                self.foreign_type = (!is_ours).then(|| in_a_line(&String::from_utf8_lossy(&kind)));
            }
            b"grpc-encoding" | b"content-encoding" => {
                let how = value.decoded()?;
                self.encoding = (&*how != b"identity").then(|| in_a_line(&String::from_utf8_lossy(&how)));
            }
            _ => {}
        }
        Ok(())
    }
}

fn number<T: FromStr>(text: Text<'_>) -> Result<T, Malformed> {
    let digits = text.decoded()?;
    std::str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok()).ok_or(Malformed)
}

impl ResponseHead {
    /// The fields that this block adds to an earlier one.
    pub fn after(self, before: Self) -> Self {
        Self {
            http_status: self.http_status.or(before.http_status),
            grpc_status: self.grpc_status.or(before.grpc_status),
            grpc_message: self.grpc_message.or(before.grpc_message),
            foreign_type: self.foreign_type.or(before.foreign_type),
            encoding: self.encoding.or(before.encoding),
        }
    }

    /// Whether the response is gRPC's, as far as this block shows.
    pub fn is_grpc(&self) -> bool {
        self.grpc_status.is_some() || self.http_status == Some(200) && self.foreign_type.is_none()
    }
}

/// What a server says goes into reports and to terminals.
pub(super) fn in_a_line(words: &str) -> String {
    let spaced = words.chars().map(|c| if c.is_whitespace() { ' ' } else { c });
    let plain: Vec<char> = spaced.filter(|c| !c.is_control()).collect();
    if plain.len() <= MAX_WORDS {
        return plain.into_iter().collect();
    }
    // The failure usually stands at the beginning of a message, its cause at the end.
    let (beginning, end) = (&plain[..MAX_WORDS / 4], &plain[plain.len() - (MAX_WORDS - MAX_WORDS / 4)..]);
    beginning.iter().chain(&['…']).chain(end).collect()
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

/// A string as it was received.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    bytes: &'a [u8],
    huffman: bool,
}

impl<'a> Text<'a> {
    pub fn decoded(self) -> Result<Cow<'a, [u8]>, Malformed> {
        if self.huffman { unhuffman(self.bytes).map(Cow::Owned) } else { Ok(Cow::Borrowed(self.bytes)) }
    }
}

pub(super) fn take_string<'a>(block: &mut &'a [u8]) -> Result<Text<'a>, Malformed> {
    let huffman = block.first().ok_or(Malformed)? & 0x80 != 0;
    let len = take_int(block, 7)? as usize;
    let (bytes, rest) = block.split_at_checked(len).ok_or(Malformed)?;
    *block = rest;
    Ok(Text { bytes, huffman })
}

const SHORTEST: usize = 5;
const LONGEST: usize = 30;
static CODE: Code = Code::new();

/// The Huffman code to decode with. Codes are compared as the first of 32 bits: those of one length follow each other,
/// and come after all shorter ones.
struct Code {
    /// The first code of each length, and the place of its symbol.
    first: [(u64, usize); LONGEST + 1],
    /// The end of the codes of each length.
    end: [u64; LONGEST + 1],
    /// Symbols in the order of their codes.
    symbols: [u16; CODE_LENGTHS.len()],
}

impl Code {
    const fn new() -> Self {
        let mut code = Self { first: [(0, 0); LONGEST + 1], end: [0; LONGEST + 1], symbols: [0; CODE_LENGTHS.len()] };
        let (mut next, mut place, mut len) = (0, 0, SHORTEST);
        while len <= LONGEST {
            code.first[len] = (next, place);
            let mut symbol = 0;
            while symbol < CODE_LENGTHS.len() {
                if CODE_LENGTHS[symbol] as usize == len {
                    code.symbols[place] = symbol as u16;
                    place += 1;
                    next += 1 << (32 - len);
                }
                symbol += 1;
            }
            code.end[len] = next;
            len += 1;
        }
        code
    }

    /// The symbol that 32 bits begin with, and the length of its code.
    fn symbol(&self, bits: u64) -> (u16, usize) {
        let len = (SHORTEST..LONGEST).find(|&len| bits < self.end[len]).unwrap_or(LONGEST);
        let (first, place) = self.first[len];
        (self.symbols[place + ((bits - first) >> (32 - len)) as usize], len)
    }
}

fn unhuffman(text: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut out = Vec::with_capacity(text.len() * 8 / SHORTEST);
    let mut rest = text.iter();
    // Bits that were read and not decoded, the first of 64 first, and how many they are.
    let (mut bits, mut n) = (0u64, 0);
    loop {
        while n < 32
            && let Some(&byte) = rest.next()
        {
            bits |= u64::from(byte) << (56 - n);
            n += 8;
        }
        // Padding is the beginning of the longest code, which is all ones.
        let ahead = (bits | u64::MAX >> n) >> 32;
        let (symbol, len) = CODE.symbol(ahead);
        if len > n {
            let is_padding = n < 8 && ahead == u64::from(u32::MAX);
            return if is_padding { Ok(out) } else { Err(Malformed) };
        }
        out.push(u8::try_from(symbol).map_err(|_| Malformed)?);
        (bits, n) = (bits << len, n - len);
    }
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

    /// A string in the Huffman code, encoded from the lengths in another way than it is decoded.
    fn huffman(text: &[u8]) -> Vec<u8> {
        let mut by_length: Vec<usize> = (0..CODE_LENGTHS.len()).collect();
        by_length.sort_by_key(|&symbol| CODE_LENGTHS[symbol]);
        let (mut codes, mut next, mut before) = ([0u32; 257], 0, CODE_LENGTHS[by_length[0]]);
        for symbol in by_length {
            next <<= CODE_LENGTHS[symbol] - before;
            (codes[symbol], next, before) = (next, next + 1, CODE_LENGTHS[symbol]);
        }
        let bits_of = |&symbol: &u8| {
            let (code, len) = (codes[usize::from(symbol)], CODE_LENGTHS[usize::from(symbol)]);
            (0..len).rev().map(move |i| (code >> i & 1) as u8)
        };
        let bits: Vec<u8> = text.iter().flat_map(bits_of).collect();
        bits.chunks(8).map(|byte| (0..8).fold(0, |out, i| out << 1 | byte.get(i).unwrap_or(&1))).collect()
    }

    #[test]
    fn every_byte_is_read_in_the_huffman_code() {
        let text: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
        assert_eq!(unhuffman(&huffman(&text)), Ok(text));
        for byte in 0..=255 {
            assert_eq!(unhuffman(&huffman(&[byte; 3])), Ok(vec![byte; 3]));
        }
        assert_eq!(unhuffman(b""), Ok(Vec::new()));
        // Padding of a whole byte, the end of string, and a code that is cut off.
        for bad in [&[0xff][..], &[0x1f, 0xff], &[0xff; 4], &[0x18]] {
            assert_eq!(unhuffman(bad), Err(Malformed), "{bad:x?}");
        }
    }

    fn put_huffman(out: &mut Vec<u8>, text: &[u8]) {
        let coded = huffman(text);
        put_int(out, 0x80, 7, coded.len());
        out.extend(coded);
    }

    #[test]
    fn only_the_values_of_wanted_names_are_decoded() {
        let mut block = vec![0x08];
        put_huffman(&mut block, b"200");
        for (name, value) in [("x-request-id", "3f8a-11"), ("grpc-status", "13"), ("grpc-message", "not%20now")] {
            // Some proxies ask for what we do not keep.
            block.push(0x40);
            put_huffman(&mut block, name.as_bytes());
            put_huffman(&mut block, value.as_bytes());
        }
        // A value that nobody can decode, of a name that nobody asked for.
        block.extend([0x0f, 32 - 15, 0x81, 0x00]);
        let head = ResponseHead::parse(&block).unwrap();
        assert_eq!((head.http_status, head.grpc_status), (Some(200), Some(13)));
        assert_eq!(head.grpc_message.as_deref(), Some("not now"));
    }

    #[test]
    fn a_servers_words_are_one_short_line() {
        let message = |text: &str| {
            let mut block = Vec::new();
            put_field(&mut block, 0x00, 4, 0, "grpc-message", text);
            ResponseHead::parse(&block).unwrap().grpc_message.unwrap()
        };
        assert_eq!(message("no%0Amodel\there%1b[2J%00 \u{9b}ü"), "no model here[2J ü");
        let long = message(&format!("in node If_0: {}: 3 dims expected", "ü".repeat(10_000)));
        assert_eq!((long.chars().count(), long.contains("ü…ü")), (MAX_WORDS + 1, true));
        assert!(long.starts_with("in node If_0: ü") && long.ends_with("ü: 3 dims expected"), "{long}");
        assert_eq!(message(&"x".repeat(MAX_WORDS)).len(), MAX_WORDS);
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
        assert_eq!(ResponseHead::parse(b"\x08\x0565535").unwrap().http_status, None);
        for cut in 3..block.len() {
            let _ = ResponseHead::parse(&block[..cut]);
        }
        assert_eq!(ResponseHead::parse(&[0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), Err(Malformed));
    }
}
