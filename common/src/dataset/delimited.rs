//! Files of records with a header: CSV, and TSV with tabs. Errors name the line that an
//! editor shows, which is not the number of the record: values in quotes may span
//! lines, and empty lines hold no record.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use csv::{Reader, ReaderBuilder, StringRecord};

use super::recognise;
use super::source::DatasetError;

/// A file with a header, read record by record. Spaces around values and names are not
/// part of them.
pub(super) struct Delimited {
    path: PathBuf,
    header: StringRecord,
    reader: Reader<Cursor<Bytes>>,
    lines: Lines,
}

impl Delimited {
    /// Reads the file into memory, and its header.
    pub(super) fn open(path: &Path, delimiter: u8) -> Result<Self, DatasetError> {
        let text = Bytes::from(std::fs::read(path).map_err(DatasetError::io(path))?);
        let bad = |problem: &str| DatasetError::invalid(path, problem.to_owned());
        if text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text).trim_ascii().is_empty() {
            return Err(bad("is empty: it needs a header that names its columns, and rows"));
        }
        if let Some(what) = recognise::content(&text) {
            return Err(bad(&format!("is {what}, not a text of rows: save it as CSV in UTF-8")));
        }
        let mut file = Self {
            path: path.to_owned(),
            header: StringRecord::new(),
            reader: ReaderBuilder::new().delimiter(delimiter).trim(csv::Trim::All).from_reader(Cursor::new(text.clone())),
            lines: Lines { text, at: 0, line: 1 },
        };
        file.header = match file.reader.headers() {
            Ok(header) => header.clone(),
            Err(e) => return Err(file.broken(e)),
        };
        Ok(file)
    }

    pub(super) fn header(&self) -> &StringRecord {
        &self.header
    }

    /// Refuses a name that two columns have, if it matters: which of them is meant?
    pub(super) fn refuse_twins(&self, matters: impl Fn(&str) -> bool) -> Result<(), DatasetError> {
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for (at, name) in self.header.iter().enumerate().filter(|(_, name)| matters(name)) {
            if let Some(first) = seen.insert(name, at) {
                let (first, second) = (first + 1, at + 1);
                return Err(self.invalid(if name.is_empty() {
                    format!("has two columns without a name, columns {first} and {second}: name them or leave them out")
                } else {
                    format!("has two columns named `{name}`, columns {first} and {second}: rename one or leave it out")
                }));
            }
        }
        Ok(())
    }

    /// The next record and its line; false after the last.
    pub(super) fn next(&mut self, row: &mut StringRecord) -> Result<Option<u32>, DatasetError> {
        match self.reader.read_record(row) {
            Ok(true) => Ok(Some(self.lines.of(row.position()))),
            Ok(false) => Ok(None),
            Err(e) => Err(self.broken(e)),
        }
    }

    pub(super) fn invalid(&self, problem: String) -> DatasetError {
        DatasetError::invalid(&self.path, problem)
    }

    fn broken(&mut self, error: csv::Error) -> DatasetError {
        match error.into_kind() {
            csv::ErrorKind::Io(source) => DatasetError::io(&self.path)(source),
            csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
                let line = self.lines.of(pos.as_ref());
                self.invalid(format!("has {len} values in line {line}, and its header has {expected_len}"))
            }
            csv::ErrorKind::Utf8 { pos, .. } => {
                let line = self.lines.of(pos.as_ref());
                self.invalid(format!("is not UTF-8 in line {line}: save it as UTF-8"))
            }
            other => self.invalid(format!("is no CSV file: {other:?}")),
        }
    }
}

/// Counts the lines of a text, from its beginning to its end.
struct Lines {
    text: Bytes,
    at: usize,
    /// The line in which `at` lies, from 1.
    line: u32,
}

impl Lines {
    /// The line in which a record begins. The reader's position may lie before line
    /// ends and empty lines that it is still to pass over.
    fn of(&mut self, position: Option<&csv::Position>) -> u32 {
        let start = position.map_or(0, |p| p.byte() as usize).min(self.text.len());
        let blank = self.text[start..].iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
        while self.at < start + blank {
            let ends = match self.text[self.at] {
                b'\n' => true,
                b'\r' => self.text.get(self.at + 1) != Some(&b'\n'),
                _ => false,
            };
            self.line += u32::from(ends);
            self.at += 1;
        }
        self.line
    }
}
