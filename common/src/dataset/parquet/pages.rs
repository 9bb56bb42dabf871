//! Pages as they lie in a file, decompressed within bounds and decoded to values. The
//! decoders are those of the `parquet` crate. Some of them panic at damaged bytes, which
//! becomes an error here.

use std::collections::VecDeque;
use std::io::Read;

use bytes::Bytes;
use parquet::basic::Compression;
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::DataType;
use parquet::errors::Result as ParquetResult;
use parquet::schema::types::ColumnDescPtr;

use super::header::{Header, Kind};
use crate::contained;

/// The most bytes of a page, decompressed. Writers aim at a MiB, and some that write pictures
/// put a thousand of them into a page.
pub(super) const MAX_PAGE_BYTES: usize = 1 << 30;

/// How pages are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Codec {
    None = 0,
    Snappy = 1,
    Gzip = 2,
    Brotli = 3,
    Zstd = 4,
    Lz4 = 5,
}

impl Codec {
    const ALL: [Self; 6] = [Self::None, Self::Snappy, Self::Gzip, Self::Brotli, Self::Zstd, Self::Lz4];

    /// The error says what is compressed in another way.
    pub(super) fn of(compression: Compression) -> Result<Self, String> {
        match compression {
            Compression::UNCOMPRESSED => Ok(Self::None),
            Compression::SNAPPY => Ok(Self::Snappy),
            Compression::GZIP(_) => Ok(Self::Gzip),
            Compression::BROTLI(_) => Ok(Self::Brotli),
            Compression::ZSTD(_) => Ok(Self::Zstd),
            Compression::LZ4_RAW => Ok(Self::Lz4),
            Compression::LZ4 | Compression::LZO => Err(format!(
                "is compressed with {}, which is not read: write it with snappy, zstd, gzip, brotli, LZ4_RAW or without compression",
                if compression == Compression::LZO { "LZO" } else { "the LZ4 of Hadoop" }
            )),
        }
    }

    /// By the number under which an index keeps it.
    pub(super) fn numbered(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| *codec as u8 == number)
    }

    /// Exactly `size` bytes, and never room for more.
    fn decompress(self, packed: &[u8], size: usize) -> Result<Vec<u8>, String> {
        let failed = |e: &dyn std::fmt::Display| format!("does not decompress: {e}");
        let whole = match self {
            Self::None => packed.to_vec(),
            Self::Snappy => {
                if snap::raw::decompress_len(packed).map_err(|e| failed(&e))? != size {
                    return Err(failed(&"it has another size"));
                }
                snap::raw::Decoder::new().decompress_vec(packed).map_err(|e| failed(&e))?
            }
            Self::Zstd => zstd::bulk::decompress(packed, size).map_err(|e| failed(&e))?,
            Self::Lz4 => lz4_flex::block::decompress(packed, size).map_err(|e| failed(&e))?,
            Self::Gzip => at_most(flate2::read::MultiGzDecoder::new(packed), size).map_err(|e| failed(&e))?,
            Self::Brotli => at_most(brotli_decompressor::Decompressor::new(packed, 4096), size).map_err(|e| failed(&e))?,
        };
        if whole.len() == size { Ok(whole) } else { Err(failed(&"it has another size")) }
    }
}

/// All that can be read, or one byte more than `size`.
fn at_most(input: impl Read, size: usize) -> std::io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    input.take(size as u64 + 1).read_to_end(&mut whole)?;
    Ok(whole)
}

/// Decompresses the page that follows this header. Errors are predicates of a page.
pub(super) fn page(header: &Header, body: Bytes, codec: Codec) -> Result<Page, String> {
    let size = header.uncompressed_bytes;
    if size > MAX_PAGE_BYTES {
        return Err(format!("has {size} bytes when it is decompressed, and at most {MAX_PAGE_BYTES} are read"));
    }
    if let Some(crc) = header.crc {
        let mut found = flate2::Crc::new();
        found.update(&body);
        if found.sum() != crc {
            return Err("has another checksum than its header says".to_owned());
        }
    }
    // The levels of a page of the second version are not compressed.
    let (levels, compressed) = match header.kind {
        Kind::DataV2 { definition_bytes, repetition_bytes, is_compressed, .. } => {
            (definition_bytes as usize + repetition_bytes as usize, is_compressed)
        }
        _ => (0, true),
    };
    if levels > body.len() || levels > size {
        return Err("is shorter than its levels".to_owned());
    }
    let buf = match codec {
        Codec::None => body,
        _ if !compressed => body,
        // Nulls alone have no values, not even compressed ones.
        _ if levels == size => body.slice(..levels),
        codec if levels == 0 => codec.decompress(&body, size)?.into(),
        codec => [&body[..levels], &codec.decompress(&body[levels..], size - levels)?].concat().into(),
    };
    if buf.len() != size {
        return Err(format!("has {} bytes, and its header says {size}", buf.len()));
    }
    Ok(match header.kind {
        Kind::Data { values, encoding, definition_levels, repetition_levels } => Page::DataPage {
            buf,
            num_values: values,
            encoding,
            def_level_encoding: definition_levels,
            rep_level_encoding: repetition_levels,
            statistics: None,
        },
        Kind::DataV2 { values, nulls, rows, encoding, definition_bytes, repetition_bytes, is_compressed } => Page::DataPageV2 {
            buf,
            num_values: values,
            encoding,
            num_nulls: nulls,
            num_rows: rows,
            def_levels_byte_len: definition_bytes,
            rep_levels_byte_len: repetition_bytes,
            is_compressed,
            statistics: None,
        },
        Kind::Dictionary { values, encoding, is_sorted } => {
            // Each has at least four bytes, its length.
            if values as usize > size {
                return Err(format!("names {values} values and has {size} bytes"));
            }
            Page::DictionaryPage { buf, num_values: values, encoding, is_sorted }
        }
        Kind::Other => return Err("is of an unknown kind".to_owned()),
    })
}

/// The values of a column's pages: `rows` of them, of which some are null.
pub(super) fn values<T: DataType>(column: ColumnDescPtr, pages: Vec<Page>, rows: usize) -> Result<Vec<Option<T::T>>, String> {
    let whole = column.max_def_level();
    let decode = || -> ParquetResult<_> {
        let mut reader = ColumnReaderImpl::<T>::new(column, Box::new(Pages(pages.into())));
        let (mut levels, mut values) = (Vec::new(), Vec::new());
        reader.read_records(rows, Some(&mut levels), None, &mut values)?;
        Ok((levels, values))
    };
    let decoded = contained::run(decode).unwrap_or_else(|panic| Err(parquet::errors::ParquetError::General(panic)));
    let (levels, values) = decoded.map_err(|e| format!("does not decode: {e}"))?;
    let found: Option<Vec<Option<T::T>>> = if whole == 0 {
        Some(values.into_iter().map(Some).collect())
    } else {
        let mut values = values.into_iter();
        levels.into_iter().map(|level| if level == whole { values.next().map(Some) } else { Some(None) }).collect()
    };
    match found {
        Some(found) if found.len() == rows => Ok(found),
        _ => Err(format!("does not hold the {rows} values that it should")),
    }
}

/// Pages that are in memory, in the order of the file.
struct Pages(VecDeque<Page>);

impl Iterator for Pages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.pop_front().map(Ok)
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        Ok(self.0.pop_front())
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        Ok(self.0.front().map(|page| PageMetadata {
            num_rows: None,
            num_levels: Some(page.num_values() as usize),
            is_dict: page.is_dictionary_page(),
        }))
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.0.pop_front();
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_grows_without_end_is_given_no_more_room_than_it_claims() {
        use std::io::Write;
        let zeros = vec![0; 1 << 20];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&zeros).unwrap();
        let packed = [
            (Codec::Gzip, gzip.finish().unwrap()),
            (Codec::Zstd, zstd::bulk::compress(&zeros, 1).unwrap()),
            (Codec::Snappy, snap::raw::Encoder::new().compress_vec(&zeros).unwrap()),
            (Codec::Lz4, lz4_flex::block::compress(&zeros)),
        ];
        for (codec, packed) in packed {
            assert_eq!(codec.decompress(&packed, zeros.len()).unwrap(), zeros);
            for wrong in [0, 1000, zeros.len() - 1, zeros.len() + 1] {
                let text = codec.decompress(&packed, wrong).unwrap_err();
                assert!(text.contains("does not decompress"), "{codec:?} {wrong}: {text}");
            }
        }
        let huge = Header {
            kind: Kind::Dictionary { values: 1, encoding: parquet::basic::Encoding::PLAIN, is_sorted: false },
            header_bytes: 9,
            compressed_bytes: 1,
            uncompressed_bytes: MAX_PAGE_BYTES + 1,
            crc: None,
        };
        assert!(page(&huge, Bytes::from_static(b"x"), Codec::Zstd).unwrap_err().contains("at most"));
    }
}
