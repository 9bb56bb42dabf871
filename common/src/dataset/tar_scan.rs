//! The members of a tar file and where their bytes lie in it, read header by header:
//! ustar, GNU's long names and pax records, as tar and Python's tarfile write them. A
//! tar inside a tar is scanned where it lies.

use std::io;

use tar::{Header, PaxExtensions};

use super::data_file::ReadAt;
use super::recognise;
use super::source::Fault;

const BLOCK: u64 = 512;

/// The most bytes that a long name or a set of pax records may have.
const MAX_EXTENSION: u64 = 1 << 20;

/// Bytes read at once where members follow each other closely, and where each is far
/// from the next: of large pictures, only the headers are read.
const WIDE: usize = 64 << 10;
const NARROW: usize = 4 << 10;

/// A file within a tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    /// Where its content begins, in the file that was opened.
    pub(super) offset: u64,
    pub(super) bytes: u64,
}

impl Fault {
    /// Of a tar that is a member of another.
    pub(super) fn within(self, member: &str) -> Self {
        match self {
            Self::Damaged(problem) => Self::Damaged(format!("holds `{member}`, which {problem}")),
            io => io,
        }
    }
}

/// Reads the headers of one tar in turn.
pub(super) struct Scanner<'a> {
    window: Window<'a>,
    start: u64,
    /// Of the next header.
    at: u64,
    end: u64,
    name: Vec<u8>,
    has_end: bool,
}

impl<'a> Scanner<'a> {
    /// Scans a whole file.
    pub(super) fn of_file(file: &'a dyn ReadAt) -> Result<Self, Fault> {
        Ok(Self::new(file, 0, file.bytes()?))
    }

    /// Scans a member that is a tar itself.
    pub(super) fn of_member(file: &'a dyn ReadAt, member: Member) -> Self {
        Self::new(file, member.offset, member.offset + member.bytes)
    }

    fn new(file: &'a dyn ReadAt, start: u64, end: u64) -> Self {
        Self { window: Window { file, end, buffer: Vec::new(), start }, start, at: start, end, name: Vec::new(), has_end: false }
    }

    /// The name of the member that [`Self::next`] has returned.
    pub(super) fn name(&self) -> &[u8] {
        &self.name
    }

    /// Whether the tar has the blocks of zeros that end it. One that lacks them may have
    /// been cut between two members.
    pub(super) fn has_end(&self) -> bool {
        self.has_end
    }

    /// The content of a small member, of which `most` bytes are looked at.
    pub(super) fn content(&mut self, member: Member, most: usize) -> Result<&[u8], Fault> {
        Ok(self.window.get(member.offset, member.bytes.min(most as u64) as usize)?)
    }

    /// The next file; folders and links are passed over. None after the last.
    pub(super) fn next(&mut self) -> Result<Option<Member>, Fault> {
        let (mut long, mut pax) = (None, Pax::default());
        loop {
            let Some(header) = self.header()? else { return Ok(None) };
            let at = self.at;
            let damaged = |what: &str| Fault::Damaged(format!("is damaged at byte {at}: {what}"));
            let size = header.entry_size().map_err(|_| damaged("the header of a member has no size"))?;
            let kind = header.entry_type();
            let data = self.at + BLOCK;
            if kind.is_gnu_longname() || kind.is_gnu_longlink() || kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
                if size > MAX_EXTENSION || data + size > self.end {
                    return Err(damaged("a name or a record is longer than can be"));
                }
                let content = self.window.get(data, size as usize)?;
                if kind.is_gnu_longname() {
                    let length = content.iter().position(|b| *b == 0).unwrap_or(content.len());
                    long = Some(content[..length].to_vec());
                } else if kind.is_pax_local_extensions() {
                    pax = Pax::read(content).ok_or_else(|| damaged("its pax records cannot be read"))?;
                }
                self.at = (data + size.next_multiple_of(BLOCK)).min(self.end);
                continue;
            }
            let size = pax.size.unwrap_or(size);
            self.name = pax.path.take().or(long.take()).unwrap_or_else(|| header.path_bytes().into_owned());
            let Some(after) = data.checked_add(size).filter(|after| *after <= self.end) else {
                let (name, there) = (String::from_utf8_lossy(&self.name), self.end - data);
                return Err(Fault::Damaged(format!("is cut short: `{name}` has {size} bytes, of which {there} are there; fetch it again")));
            };
            if kind.is_gnu_sparse() || pax.sparse {
                let name = String::from_utf8_lossy(&self.name);
                return Err(Fault::Damaged(format!("holds `{name}` as a sparse file: pack it again without --sparse")));
            }
            self.at = self.start + (after - self.start).next_multiple_of(BLOCK);
            if self.at > self.end {
                let name = String::from_utf8_lossy(&self.name);
                return Err(Fault::Damaged(format!("is cut short: it ends with the last byte of `{name}` or soon after; fetch it again")));
            }
            pax = Pax::default();
            if (kind.is_file() || kind.is_contiguous()) && !self.name.ends_with(b"/") {
                return Ok(Some(Member { offset: data, bytes: size }));
            }
        }
    }

    /// The header at the present place; none at the end.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let left = self.end - self.at;
        if left < BLOCK {
            if self.at > self.start && left == 0 {
                return Ok(None);
            }
            let rest = self.window.get(self.at, left as usize)?;
            if self.at > self.start && rest.iter().all(|b| *b == 0) {
                self.has_end = true;
                return Ok(None);
            }
            return Err(Fault::Damaged(match other(rest).filter(|_| self.at == self.start) {
                Some(what) => format!("is {what}, not a tar file"),
                None if self.end == self.start => "is empty, and no tar file".to_owned(),
                None => format!("is cut short: its last {left} bytes are no header; fetch it again"),
            }));
        }
        let block = self.window.get(self.at, BLOCK as usize)?;
        if block.iter().all(|b| *b == 0) {
            self.has_end = true;
            return Ok(None);
        }
        let header = Header::from_byte_slice(block).clone();
        let sum: u32 = block.iter().enumerate().map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) }).sum();
        if header.cksum().is_ok_and(|cksum| cksum == sum) {
            return Ok(Some(header));
        }
        Err(Fault::Damaged(if self.at > self.start {
            format!("is damaged at byte {}: no header of a member is there; fetch it again", self.at)
        } else {
            match other(block) {
                Some(what @ "a gzip file") => format!("is {what}, and pictures are read in place: unpack it with gunzip"),
                Some(what) => format!("is {what}, not a tar file"),
                None => "is no tar file, or damaged from its beginning".to_owned(),
            }
        }))
    }
}

/// What a file is that should be a tar.
fn other(start: &[u8]) -> Option<&'static str> {
    recognise::content(start).filter(|what| *what != recognise::TAR)
}

/// What the pax records before a member say of it.
#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    size: Option<u64>,
    sparse: bool,
}

impl Pax {
    fn read(records: &[u8]) -> Option<Self> {
        let mut pax = Self::default();
        for record in PaxExtensions::new(records) {
            let record = record.ok()?;
            match record.key_bytes() {
                b"path" => pax.path = Some(record.value_bytes().to_vec()),
                b"size" => pax.size = Some(record.value().ok()?.parse().ok()?),
                key => pax.sparse |= key.starts_with(b"GNU.sparse."),
            }
        }
        Some(pax)
    }
}

/// The part of a file that was read last.
struct Window<'a> {
    file: &'a dyn ReadAt,
    end: u64,
    buffer: Vec<u8>,
    /// Where the buffer's bytes lie in the file.
    start: u64,
}

impl Window<'_> {
    /// Bytes that must lie before `end`.
    fn get(&mut self, at: u64, length: usize) -> io::Result<&[u8]> {
        let held = self.start + self.buffer.len() as u64;
        if at < self.start || at + length as u64 > held {
            let near = at >= self.start && at < held + NARROW as u64;
            let most = usize::try_from(self.end - at).unwrap_or(usize::MAX);
            self.buffer.resize(length.max(if near { WIDE } else { NARROW }).min(most), 0);
            self.start = at;
            if let Err(e) = self.file.read_exact_at(&mut self.buffer, at) {
                self.buffer.clear();
                return Err(e);
            }
        }
        let from = (at - self.start) as usize;
        Ok(&self.buffer[from..from + length])
    }
}
