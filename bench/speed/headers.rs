//! Which method a header block calls: HPACK (RFC 7541) with its table, as far as a server needs it.

use crate::{hpack, kserve::Method};
use anyhow::{Result, anyhow, ensure};

const STATIC_ENTRIES: usize = 61;
/// What a table holds at most unless settings say otherwise (RFC 9113, 6.5.2).
const TABLE: usize = 4096;
/// At least what an entry takes besides its value: 32 (RFC 7541, 4.1), and a name as long as any of gRPC's.
const ENTRY: usize = 32 + 32;

/// The table of one connection's client, of which only paths matter.
#[derive(Default)]
pub struct Headers {
    /// Oldest first: the method, where it is a path.
    entries: Vec<Option<Method>>,
    size: usize,
    /// A block that called `ModelInfer` and changed nothing: until the table changes, the same bytes do it again.
    again: Vec<u8>,
}

impl Headers {
    /// The method that this block calls.
    pub fn method(&mut self, block: &[u8]) -> Result<Method> {
        if block == self.again {
            return Ok(Method::ModelInfer);
        }
        let before = self.entries.len();
        let method = self.decode(block)?;
        if self.entries.len() > before {
            self.again.clear();
        } else if method == Method::ModelInfer {
            self.again = block.to_vec();
        }
        Ok(method)
    }

    fn decode(&mut self, mut block: &[u8]) -> Result<Method> {
        let mut method = None;
        while let Some(&lead) = block.first() {
            if lead & 0x80 != 0 {
                method = method.or(self.entry(int(&mut block, 7)?)?);
            } else if lead & 0xe0 == 0x20 {
                ensure!(int(&mut block, 5)? == TABLE, "the client changed the size of its table");
            } else {
                let kept = lead & 0x40 != 0;
                let index = int(&mut block, if kept { 6 } else { 4 })?;
                // `:path` has the static indices 4 and 5.
                let is_path = match index {
                    0 => string(&mut block)? == b":path",
                    4 | 5 => true,
                    _ => self.entry(index)?.is_some(),
                };
                let value = string(&mut block)?;
                let path = is_path.then(|| Method::at(&value));
                method = method.or(path);
                if kept {
                    self.size += ENTRY + value.len();
                    ensure!(self.size <= TABLE, "the client keeps more headers than this responder follows");
                    self.entries.push(path);
                }
            }
        }
        Ok(method.unwrap_or(Method::Unknown))
    }

    fn entry(&self, index: usize) -> Result<Option<Method>> {
        if index <= STATIC_ENTRIES {
            return Ok(None);
        }
        let nth = self.entries.len().checked_sub(index - STATIC_ENTRIES);
        nth.map(|i| self.entries[i]).ok_or_else(|| anyhow!("a header outside the table"))
    }
}

fn int(block: &mut &[u8], prefix_bits: u32) -> Result<usize> {
    let value = hpack::take_int(block, prefix_bits).map_err(|_| anyhow!("a malformed header block"))?;
    Ok(value as usize)
}

fn string(block: &mut &[u8]) -> Result<Vec<u8>> {
    let text = hpack::take_string(block).and_then(hpack::Text::decoded);
    Ok(text.map_err(|_| anyhow!("a malformed header string"))?.into_owned())
}
