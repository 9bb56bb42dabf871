//! The part of a column in one row group: where its pages lie, and what is in them.

use std::io;
use std::ops::Range;

use bytes::Bytes;
use parquet::column::page::Page;
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::PageLocation;

use super::super::source::Fault;
use super::footer::Input;
use super::header::{self, Header, Kind};
use super::index::{Chunk, PagePlace};
use super::pages::{self, Codec, MAX_PAGE_BYTES};

/// Bytes that are read for a page's header at first, and at most.
const HEADER_BYTES: u64 = 512;
const MAX_HEADER_BYTES: u64 = 1 << 20;

/// The place of a dictionary: where it lies and its bytes, those of its header included.
type Dictionary = Option<(u64, u32)>;

/// The bytes of a file in which a chunk lies.
pub(super) fn range(chunk: &ColumnChunkMetaData, input: &Input) -> Result<Range<u64>, Fault> {
    let wrong = || Fault::Damaged("the footer gives it a place outside the file".to_owned());
    let dictionary = chunk.dictionary_page_offset().filter(|offset| *offset > 0);
    let start = dictionary.map_or(chunk.data_page_offset(), |offset| offset.min(chunk.data_page_offset()));
    let (start, bytes) = (u64::try_from(start).map_err(|_| wrong())?, u64::try_from(chunk.compressed_size()).map_err(|_| wrong())?);
    let end = start.checked_add(bytes).filter(|end| *end <= input.bytes).ok_or_else(wrong)?;
    Ok(start..end)
}

/// The data pages of a chunk, and its dictionary. `chunk` is its number in the index,
/// `first_row` that of its first row in the file.
pub(super) struct Places {
    pub(super) chunk: u32,
    pub(super) first_row: u32,
    pub(super) rows: u32,
    pub(super) pages: Vec<PagePlace>,
    pub(super) dictionary: Dictionary,
}

impl Places {
    /// From the index of the pages that a file has.
    pub(super) fn by_index(&mut self, range: Range<u64>, locations: &[PageLocation]) -> Result<(), Fault> {
        let wrong = || Fault::Damaged("the index of its pages does not fit it".to_owned());
        let row = |number: i64| u32::try_from(number).map_err(|_| wrong());
        let mut before = range.start;
        for (n, location) in locations.iter().enumerate() {
            let offset = u64::try_from(location.offset).map_err(|_| wrong())?;
            let bytes = u32::try_from(location.compressed_page_size).map_err(|_| wrong())?;
            let first = row(location.first_row_index)?;
            let next = locations.get(n + 1).map_or(Ok(self.rows), |next| row(next.first_row_index))?;
            if offset < before || offset + u64::from(bytes) > range.end || first > next || next > self.rows || (n == 0 && first != 0) {
                return Err(wrong());
            }
            if n == 0 && offset > range.start {
                self.dictionary = Some((range.start, u32::try_from(offset - range.start).map_err(|_| wrong())?));
            }
            self.push(offset, bytes.into(), first, next - first)?;
            before = offset + u64::from(bytes);
        }
        Ok(())
    }

    /// From the headers of the pages, one after the other.
    pub(super) fn by_headers(&mut self, range: Range<u64>, input: &Input) -> Result<(), Fault> {
        let (mut at, mut row) = (range.start, 0u32);
        while at < range.end && row < self.rows {
            let header = header_at(input, at, range.end)?;
            let bytes = header.header_bytes as u64 + header.compressed_bytes as u64;
            match header.kind {
                Kind::Data { values, .. } | Kind::DataV2 { values, .. } => {
                    if values > self.rows - row {
                        return Err(Fault::Damaged("it has more values than there are rows".to_owned()));
                    }
                    self.push(at, bytes, row, values)?;
                    row += values;
                }
                Kind::Dictionary { .. } => {
                    let bytes = u32::try_from(bytes).map_err(|_| Fault::Damaged("its dictionary is too large".to_owned()))?;
                    self.dictionary = Some((at, bytes));
                }
                Kind::Other => {}
            }
            at += bytes;
        }
        if row == self.rows { Ok(()) } else { Err(Fault::Damaged(format!("it has {row} values for {} rows", self.rows))) }
    }

    fn push(&mut self, offset: u64, bytes: u64, row: u32, rows: u32) -> Result<(), Fault> {
        let fit = u32::try_from(bytes).ok().filter(|bytes| *bytes as usize <= MAX_PAGE_BYTES);
        let bytes = fit.ok_or_else(|| Fault::Damaged(format!("it has a page of {bytes} bytes, and at most {MAX_PAGE_BYTES} are read")))?;
        self.pages.push(PagePlace { offset, bytes, chunk: self.chunk, first_row: self.first_row + row, rows });
        Ok(())
    }
}

/// The header of the page at this offset of a chunk that ends at `end`.
fn header_at(input: &Input, at: u64, end: u64) -> Result<Header, Fault> {
    let mut count = HEADER_BYTES;
    loop {
        let bytes = input.read(at, count.min(end - at) as usize)?;
        match header::parse(&bytes) {
            Ok(header) if at + header.header_bytes as u64 + header.compressed_bytes as u64 <= end => return Ok(header),
            Err(header::Fault::Short) if count < end - at && count < MAX_HEADER_BYTES => count *= 8,
            Ok(_) | Err(_) => return Err(Fault::Damaged(format!("it has a damaged or encrypted page at byte {at}"))),
        }
    }
}

/// The page with which `bytes` begin, and how many of them it takes.
fn page_in(bytes: &Bytes, codec: Codec) -> Result<(Option<Page>, usize), Fault> {
    let damaged = || Fault::Damaged("it has a damaged or encrypted page".to_owned());
    let header = header::parse(bytes).map_err(|_| damaged())?;
    let end = header.header_bytes.checked_add(header.compressed_bytes).filter(|end| *end <= bytes.len()).ok_or_else(damaged)?;
    if header.kind == Kind::Other {
        return Ok((None, end));
    }
    let page = pages::page(&header, bytes.slice(header.header_bytes..end), codec);
    let page = page.map_err(|what| Fault::Damaged(format!("it has a page that {what}")))?;
    Ok((Some(page), end))
}

/// All pages of a chunk, which has so many rows. They may have as many bytes together as a
/// single page.
pub(super) fn pages_in(mut content: Bytes, codec: Codec, rows: usize) -> Result<Vec<Page>, Fault> {
    let (mut pages, mut found, mut bytes) = (Vec::new(), 0, 0);
    while found < rows && !content.is_empty() {
        let (page, end) = page_in(&content, codec)?;
        content = content.slice(end..);
        if let Some(page) = page {
            found += if page.is_data_page() { page.num_values() as usize } else { 0 };
            bytes += page.buffer().len();
            if bytes > MAX_PAGE_BYTES {
                return Err(Fault::Damaged(format!("its pages have more than {MAX_PAGE_BYTES} bytes when they are decompressed")));
            }
            pages.push(page);
        }
    }
    if found == rows { Ok(pages) } else { Err(Fault::Damaged(format!("it has {found} values for {rows} rows"))) }
}

/// The values of one page of pictures. `read` takes an offset and a number of bytes.
pub(super) fn values(
    chunk: &Chunk,
    place: &PagePlace,
    read: &dyn Fn(u64, usize) -> io::Result<Vec<u8>>,
) -> Result<Vec<Option<ByteArray>>, Fault> {
    let one = |offset: u64, bytes: u32| -> Result<Page, Fault> {
        let (page, _) = page_in(&read(offset, bytes as usize)?.into(), chunk.codec())?;
        page.ok_or_else(|| Fault::Damaged("it has a page of an unknown kind".to_owned()))
    };
    let page = one(place.offset, place.bytes)?;
    if !page.is_data_page() || page.num_values() != place.rows {
        return Err(Fault::Damaged(format!("its page at byte {} does not hold {} rows", place.offset, place.rows)));
    }
    #[allow(deprecated, reason = "the name that old files have for it")]
    let indirect = matches!(page.encoding(), parquet::basic::Encoding::RLE_DICTIONARY | parquet::basic::Encoding::PLAIN_DICTIONARY);
    let dictionary = chunk.dictionary.filter(|_| indirect).map(|(offset, bytes)| one(offset, bytes)).transpose()?;
    let column = chunk.column().map_err(Fault::Damaged)?;
    let values = pages::values::<ByteArrayType>(column, dictionary.into_iter().chain([page]).collect(), place.rows as usize);
    values.map_err(|what| Fault::Damaged(format!("its page at byte {} {what}", place.offset)))
}
