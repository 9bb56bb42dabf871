//! As much of MATLAB's level 5 MAT-files as ILSVRC's meta.mat needs: one array of
//! structures whose fields are texts and numbers ("MAT-File Format", The MathWorks).

use std::collections::HashMap;
use std::io::Read;

use flate2::read::ZlibDecoder;

/// The most bytes that a compressed element may unpack to.
const MAX_BYTES: u64 = 64 << 20;

/// Types of elements.
const INT8: u32 = 1;
const UINT8: u32 = 2;
const INT16: u32 = 3;
const UINT16: u32 = 4;
const INT32: u32 = 5;
const UINT32: u32 = 6;
const SINGLE: u32 = 7;
const DOUBLE: u32 = 9;
const MATRIX: u32 = 14;
const COMPRESSED: u32 = 15;
const UTF8: u32 = 16;
const UTF16: u32 = 17;

/// Classes of arrays.
const CELL: u8 = 1;
const STRUCT: u8 = 2;
const OBJECT: u8 = 3;
const CHAR: u8 = 4;
const SPARSE: u8 = 5;

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Text(String),
    Numbers(Vec<f64>),
    /// Something that nobody here asks for.
    Other,
}

/// The structures of the array `name`, in order. The error says what is wrong with the
/// file.
pub(super) fn structures(file: &[u8], name: &str) -> Result<Vec<HashMap<String, Value>>, String> {
    let Some((header, mut rest)) = file.split_at_checked(128) else { return Err("is cut short".to_owned()) };
    if header[126..128] != *b"IM" {
        return Err("is no MAT-file of level 5 in little-endian order".to_owned());
    }
    while !rest.is_empty() {
        let element = Element::read(&mut rest).ok_or("is damaged")?;
        let unpacked;
        let content = match element.kind {
            COMPRESSED => {
                let mut bytes = Vec::new();
                ZlibDecoder::new(element.content).take(MAX_BYTES).read_to_end(&mut bytes).map_err(|e| format!("is damaged ({e})"))?;
                unpacked = bytes;
                let inner = Element::read(&mut &unpacked[..]).ok_or("is damaged")?;
                if inner.kind != MATRIX {
                    continue;
                }
                inner.content
            }
            MATRIX => element.content,
            _ => continue,
        };
        let array = Array::read(content).ok_or("is damaged")?;
        if array.class == STRUCT && array.name == name {
            return array.structures().ok_or_else(|| "is damaged".to_owned());
        }
    }
    Err(format!("has no structures `{name}`"))
}

/// A type, and bytes of it.
#[derive(Clone, Copy)]
struct Element<'a> {
    kind: u32,
    content: &'a [u8],
}

impl<'a> Element<'a> {
    fn read(from: &mut &'a [u8]) -> Option<Self> {
        let (tag, rest) = from.split_first_chunk::<4>()?;
        let tag = u32::from_le_bytes(*tag);
        if tag >> 16 != 0 {
            // A small element: its length stands in the tag, and four bytes follow.
            let (four, rest) = rest.split_at_checked(4)?;
            *from = rest;
            return Some(Self { kind: tag & 0xffff, content: four.get(..(tag >> 16) as usize)? });
        }
        let (length, rest) = rest.split_first_chunk::<4>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let content = rest.get(..length)?;
        // All but compressed elements fill up to eight bytes.
        let padded = if tag == COMPRESSED { length } else { length.next_multiple_of(8) };
        *from = rest.get(padded..).unwrap_or_default();
        Some(Self { kind: tag, content })
    }

    /// The numbers of a numeric type.
    fn numbers(self) -> Option<Vec<f64>> {
        fn all<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks::<N>().0.iter().map(|b| one(*b)).collect()
        }
        Some(match self.kind {
            INT8 => all(self.content, |b| i8::from_le_bytes(b).into()),
            UINT8 | UTF8 => all(self.content, |b| u8::from_le_bytes(b).into()),
            INT16 => all(self.content, |b| i16::from_le_bytes(b).into()),
            UINT16 | UTF16 => all(self.content, |b| u16::from_le_bytes(b).into()),
            INT32 => all(self.content, |b| i32::from_le_bytes(b).into()),
            UINT32 => all(self.content, |b| u32::from_le_bytes(b).into()),
            SINGLE => all(self.content, |b| f32::from_le_bytes(b).into()),
            DOUBLE => all(self.content, f64::from_le_bytes),
            _ => return None,
        })
    }

    fn text(self) -> Option<String> {
        if self.kind == UTF8 {
            return Some(String::from_utf8_lossy(self.content).into_owned());
        }
        let units: Vec<u16> = self.numbers()?.into_iter().map(|n| n as u16).collect();
        Some(String::from_utf16_lossy(&units))
    }
}

/// An array: its class and name, how many values it has, and what follows.
struct Array<'a> {
    class: u8,
    name: String,
    count: usize,
    rest: &'a [u8],
}

impl<'a> Array<'a> {
    fn read(content: &'a [u8]) -> Option<Self> {
        let mut rest = content;
        let flags = Element::read(&mut rest)?.numbers()?;
        let class = (*flags.first()? as u32 & 0xff) as u8;
        let dimensions = Element::read(&mut rest)?.numbers()?;
        let count = dimensions.iter().try_fold(1usize, |n, d| n.checked_mul(*d as usize))?;
        let name = Element::read(&mut rest)?.text()?;
        Some(Self { class, name, count, rest })
    }

    fn structures(&self) -> Option<Vec<HashMap<String, Value>>> {
        let mut rest = self.rest;
        let width = *Element::read(&mut rest)?.numbers()?.first()? as usize;
        let names = Element::read(&mut rest)?.content;
        let name = |bytes: &[u8]| String::from_utf8_lossy(bytes.split(|b| *b == 0).next().unwrap_or_default()).into_owned();
        let names: Vec<String> = if width == 0 { Vec::new() } else { names.chunks(width).map(name).collect() };
        let mut all = Vec::new();
        for _ in 0..self.count {
            let mut one = HashMap::new();
            for name in &names {
                one.insert(name.clone(), value(Element::read(&mut rest)?)?);
            }
            if one.is_empty() {
                return None;
            }
            all.push(one);
        }
        Some(all)
    }
}

fn value(element: Element) -> Option<Value> {
    if element.kind != MATRIX {
        return None;
    }
    // An empty array may have no content at all.
    if element.content.is_empty() {
        return Some(Value::Other);
    }
    let mut array = Array::read(element.content)?;
    Some(match array.class {
        _ if array.count == 0 => Value::Numbers(Vec::new()),
        CELL | STRUCT | OBJECT | SPARSE => Value::Other,
        CHAR => Value::Text(Element::read(&mut array.rest)?.text()?),
        _ => Value::Numbers(Element::read(&mut array.rest)?.numbers()?),
    })
}
