//! The footer of a Parquet file: its schema, row groups and page index, as the `parquet`
//! crate reads them.

use std::io::{self, Read};
use std::path::Path;

use bytes::Bytes;
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader};
use parquet::file::reader::{ChunkReader, Length};

use super::super::data_file::ReadAt;
use super::super::recognise;
use super::super::source::DatasetError;
use crate::contained;

/// An open file and its length.
pub(super) struct Input<'a> {
    file: &'a dyn ReadAt,
    pub(super) bytes: u64,
}

impl<'a> Input<'a> {
    pub(super) fn of(file: &'a dyn ReadAt) -> io::Result<Self> {
        Ok(Self { file, bytes: file.bytes()? })
    }

    /// So many bytes from this offset on; an error if the file does not have them.
    pub(super) fn read(&self, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        if offset.checked_add(bytes as u64).is_none_or(|end| end > self.bytes) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut content = vec![0; bytes];
        self.file.read_exact_at(&mut content, offset)?;
        Ok(content)
    }
}

impl Length for Input<'_> {
    fn len(&self) -> u64 {
        self.bytes
    }
}

impl<'a> ChunkReader for Input<'a> {
    type T = Reading<'a>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(Reading { file: self.file, at: start, left: self.bytes.saturating_sub(start) })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        self.read(start, length).map(Bytes::from).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

/// A file from a place on.
pub(super) struct Reading<'a> {
    file: &'a dyn ReadAt,
    at: u64,
    left: u64,
}

impl Read for Reading<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.file.read_exact_at(&mut buffer[..count], self.at)?;
        self.at += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}

/// The mark at both ends of a file, and that of one whose footer is encrypted.
const MARK: &[u8] = b"PAR1";
const ENCRYPTED: &[u8] = b"PARE";

/// The file's footer, with the places of its pages where it has them.
pub(super) fn read(path: &Path, input: &Input) -> Result<ParquetMetaData, DatasetError> {
    let bad = |problem: String| DatasetError::invalid(path, problem);
    if input.bytes == 0 {
        return Err(bad("is empty".to_owned()));
    }
    let start = input.read(0, input.bytes.min(512) as usize).map_err(DatasetError::io(path))?;
    if start.starts_with(ENCRYPTED) {
        return Err(bad("is encrypted: decrypt it, since there is no key for it here".to_owned()));
    }
    if !start.starts_with(MARK) {
        return Err(bad(format!("is no Parquet file, but {}", recognise::content(&start).unwrap_or("something else"))));
    }
    let end = input.read(input.bytes.saturating_sub(4), 4.min(input.bytes as usize)).map_err(DatasetError::io(path))?;
    if end != MARK || input.bytes < 12 {
        return Err(bad("is cut short, or still being written: a Parquet file ends with its footer".to_owned()));
    }
    let parse = || {
        ParquetMetaDataReader::new()
            .with_column_index_policy(PageIndexPolicy::Skip)
            .with_offset_index_policy(PageIndexPolicy::Optional)
            .parse_and_finish(input)
    };
    let outcome = contained::run(parse).unwrap_or_else(|panic| Err(ParquetError::General(panic)));
    outcome.map_err(|e| bad(format!("has a damaged footer: {e}")))
}
