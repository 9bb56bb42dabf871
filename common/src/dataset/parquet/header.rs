//! The header before each page of a column: a struct of Apache Thrift's compact protocol
//! (`PageHeader` in parquet-format's parquet.thrift). It says where the next page begins,
//! and how large the page is before anything is decompressed.

use parquet::basic::Encoding;

/// How deep structs and lists may lie in each other. A header's are two deep.
const DEPTH: u32 = 8;

/// The header of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Bytes of the header itself.
    pub(super) header_bytes: usize,
    /// Bytes of the page as it lies in the file.
    pub(super) compressed_bytes: usize,
    pub(super) uncompressed_bytes: usize,
    /// CRC-32 of the page as it lies in the file.
    pub(super) crc: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Data {
        values: u32,
        encoding: Encoding,
        definition_levels: Encoding,
        repetition_levels: Encoding,
    },
    DataV2 {
        values: u32,
        nulls: u32,
        rows: u32,
        encoding: Encoding,
        definition_bytes: u32,
        repetition_bytes: u32,
        is_compressed: bool,
    },
    Dictionary {
        values: u32,
        encoding: Encoding,
        is_sorted: bool,
    },
    /// An index page, which nothing writes.
    Other,
}

/// Why bytes do not begin with a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// They end before it does.
    Short,
    Damaged,
}

/// Reads the header with which `bytes` begin.
pub(super) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
    let mut input = Input { bytes, at: 0 };
    let mut of_page = Fields::default();
    let mut of_kind = None;
    input.fields(DEPTH, &mut |input, field| match (field.id, field.kind) {
        (5 | 7 | 8, STRUCT) => {
            let mut fields = Fields::default();
            input.fields(field.depth, &mut |input, field| fields.take(input, field))?;
            of_kind = Some((field.id, fields));
            Ok(())
        }
        _ => of_page.take(input, field),
    })?;
    let kind = match (of_page.get(1)?, of_kind) {
        (0, Some((5, fields))) => Kind::Data {
            values: fields.count(1)?,
            encoding: encoding(fields.get(2)?)?,
            definition_levels: encoding(fields.get(3)?)?,
            repetition_levels: encoding(fields.get(4)?)?,
        },
        (2, Some((7, fields))) => Kind::Dictionary {
            values: fields.count(1)?,
            encoding: encoding(fields.get(2)?)?,
            is_sorted: fields.get(3).is_ok_and(|v| v != 0),
        },
        (3, Some((8, fields))) => Kind::DataV2 {
            values: fields.count(1)?,
            nulls: fields.count(2)?,
            rows: fields.count(3)?,
            encoding: encoding(fields.get(4)?)?,
            definition_bytes: fields.count(5)?,
            repetition_bytes: fields.count(6)?,
            is_compressed: fields.get(7) != Ok(0),
        },
        (1, _) => Kind::Other,
        _ => return Err(Fault::Damaged),
    };
    Ok(Header {
        kind,
        header_bytes: input.at,
        uncompressed_bytes: of_page.count(2)? as usize,
        compressed_bytes: of_page.count(3)? as usize,
        crc: of_page.get(4).ok().map(|crc| crc as i32 as u32),
    })
}

fn encoding(number: i64) -> Result<Encoding, Fault> {
    #[allow(deprecated, reason = "old files have levels in this encoding")]
    let bit_packed = Encoding::BIT_PACKED;
    Ok(match number {
        0 => Encoding::PLAIN,
        2 => Encoding::PLAIN_DICTIONARY,
        3 => Encoding::RLE,
        4 => bit_packed,
        5 => Encoding::DELTA_BINARY_PACKED,
        6 => Encoding::DELTA_LENGTH_BYTE_ARRAY,
        7 => Encoding::DELTA_BYTE_ARRAY,
        8 => Encoding::RLE_DICTIONARY,
        9 => Encoding::BYTE_STREAM_SPLIT,
        _ => return Err(Fault::Damaged),
    })
}

const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// The numbers among a struct's first fields.
#[derive(Default)]
struct Fields([Option<i64>; 9]);

impl Fields {
    fn take(&mut self, input: &mut Input, field: Field) -> Result<(), Fault> {
        let value = match field.kind {
            TRUE => 1,
            FALSE => 0,
            4..=I64 => input.integer()?,
            _ => return input.skip(field.kind, field.depth),
        };
        if let Some(known) = usize::try_from(field.id).ok().and_then(|id| self.0.get_mut(id)) {
            *known = Some(value);
        }
        Ok(())
    }

    fn get(&self, id: usize) -> Result<i64, Fault> {
        self.0.get(id).copied().flatten().ok_or(Fault::Damaged)
    }

    /// A number of bytes or values, which the format keeps below 2^31.
    fn count(&self, id: usize) -> Result<u32, Fault> {
        i32::try_from(self.get(id)?).ok().and_then(|n| u32::try_from(n).ok()).ok_or(Fault::Damaged)
    }
}

/// A field of a struct before its value: its number, its type, and how deep structs may
/// still lie in it.
#[derive(Clone, Copy)]
struct Field {
    id: i16,
    kind: u8,
    depth: u32,
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Input<'_> {
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::Short)?;
        self.at += 1;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, Fault> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::Damaged)
    }

    /// In zigzag: the sign is the last bit.
    fn integer(&mut self) -> Result<i64, Fault> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip_bytes(&mut self, count: u64) -> Result<(), Fault> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count)).ok_or(Fault::Damaged)?;
        if end > self.bytes.len() {
            return Err(Fault::Short);
        }
        self.at = end;
        Ok(())
    }

    /// Reads a struct. `each` reads the value of a field.
    fn fields(&mut self, depth: u32, each: &mut dyn FnMut(&mut Self, Field) -> Result<(), Fault>) -> Result<(), Fault> {
        let depth = depth.checked_sub(1).ok_or(Fault::Damaged)?;
        let mut id: i16 = 0;
        loop {
            let byte = self.byte()?;
            let (step, kind) = (byte >> 4, byte & 0x0f);
            if byte == 0 {
                return Ok(());
            }
            id = match step {
                0 => i16::try_from(self.integer()?).map_err(|_| Fault::Damaged)?,
                step => id.checked_add(step.into()).ok_or(Fault::Damaged)?,
            };
            each(self, Field { id, kind, depth })?;
        }
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Result<(), Fault> {
        match kind {
            TRUE | FALSE => Ok(()),
            BYTE => self.skip_bytes(1),
            4..=I64 => self.varint().map(drop),
            DOUBLE => self.skip_bytes(8),
            BINARY => {
                let count = self.varint()?;
                self.skip_bytes(count)
            }
            LIST | SET => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                self.elements(count, &[byte & 0x0f], depth)
            }
            MAP => match self.varint()? {
                0 => Ok(()),
                count => {
                    let kinds = self.byte()?;
                    self.elements(count, &[kinds >> 4, kinds & 0x0f], depth)
                }
            },
            STRUCT => self.fields(depth, &mut |input, field| input.skip(field.kind, field.depth)),
            _ => Err(Fault::Damaged),
        }
    }

    fn elements(&mut self, count: u64, kinds: &[u8], depth: u32) -> Result<(), Fault> {
        let depth = depth.checked_sub(1).ok_or(Fault::Damaged)?;
        for _ in 0..count {
            for &kind in kinds {
                // Booleans have a byte of their own here, and so no element is free.
                self.skip(if kind == TRUE || kind == FALSE { BYTE } else { kind }, depth)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A data page of 3 values with 100 bytes, 50 of them compressed, and statistics.
    const PAGE: [u8; 27] =
        [0x15, 0, 0x15, 200, 1, 0x15, 100, 0x15, 6, 0x1c, 0x15, 6, 0x15, 0, 0x15, 6, 0x15, 6, 0x1c, 0x18, 2, b'a', b'b', 0x16, 0, 0, 0];

    #[test]
    fn a_header_says_what_its_page_is() {
        let mut bytes = PAGE.to_vec();
        bytes.extend([0, 1, 2, 3]);
        let header = parse(&bytes).unwrap();
        assert_eq!((header.header_bytes, header.compressed_bytes, header.uncompressed_bytes), (28, 50, 100));
        assert_eq!(header.crc, Some(3));
        let Kind::Data { values: 3, encoding: Encoding::PLAIN, definition_levels: Encoding::RLE, repetition_levels: Encoding::RLE } =
            header.kind
        else {
            panic!("{header:?}")
        };
        for cut in 0..28 {
            assert_eq!(parse(&bytes[..cut]), Err(Fault::Short), "{cut}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_go_on_without_end() {
        let mut rng = crate::seed::stream(1, "page headers", &[]);
        for round in 0..20_000 {
            let mut bytes = PAGE.to_vec();
            bytes.push(0);
            if round % 2 == 0 {
                bytes.iter_mut().for_each(|byte| *byte = crate::seed::below(&mut rng, 256) as u8);
            } else {
                let at = crate::seed::below(&mut rng, bytes.len() as u32) as usize;
                bytes[at] = crate::seed::below(&mut rng, 256) as u8;
            }
            if let Ok(header) = parse(&bytes) {
                assert!(header.header_bytes <= bytes.len());
            }
        }
        let nested = [[0x5c].as_slice(), &[0x1c; 100_000]].concat();
        assert_eq!(parse(&nested), Err(Fault::Damaged));
    }
}
