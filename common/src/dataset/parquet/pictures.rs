//! A dataset of pictures inside Parquet files, read in place by any number of threads.

use std::collections::HashMap;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use bytes::Bytes;

use super::super::data_file::{self, DataFile};
use super::super::passed_over::PassedOver;
use super::super::source::{
    DatasetError, DatasetInfo, Fault, FileDigests, Sample, SampleFormat, SampleSource, Split, check_id, listing_digest,
};
use super::cache::{Cache, Values};
use super::chunk;
use super::index::{ParquetIndex, Row};
use crate::digest::Digest;

/// Pictures of two splits, by their places in the files.
pub(in crate::dataset) struct ParquetPictures {
    info: DatasetInfo,
    digests: FileDigests,
    passed_over: PassedOver,
    files: Vec<DataFile>,
    index: ParquetIndex,
    /// Of each sample, its number in the index.
    train: Vec<u32>,
    val: Vec<u32>,
    cache: Cache,
}

impl ParquetPictures {
    /// The labels of the index must be below the number of classes.
    pub(super) fn new(files: Vec<DataFile>, classes: Vec<String>, index: ParquetIndex, train: Vec<u32>, val: Vec<u32>) -> Self {
        let listing = listing(&files, &classes, &index, [&train, &val]);
        let info =
            DatasetInfo { format: SampleFormat::Encoded, fingerprint: listing, classes, train: train.len() as u32, val: val.len() as u32 };
        let passed_over = index.left_out.passed_over(PassedOver::add_rows);
        let digests = FileDigests { listing, contents: None };
        Self { info, digests, passed_over, files, index, train, val, cache: Cache::default() }
    }

    fn numbers(&self, split: Split) -> &[u32] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    fn row(&self, split: Split, id: u32) -> Option<&Row> {
        self.numbers(split).get(id as usize).map(|at| &self.index.rows[*at as usize])
    }

    /// The number of a page's file.
    fn file(&self, page: u32) -> usize {
        self.index.chunk_of(page).file as usize
    }

    /// Where pages and their dictionaries lie that are not decoded already.
    fn places(&self, pages: impl Iterator<Item = u32>) -> Vec<(&DataFile, Range<u64>)> {
        let place = |number: u32| {
            let (page, chunk) = (&self.index.pages[number as usize], self.index.chunk_of(number));
            let parts = [Some((page.offset, page.bytes)), chunk.dictionary];
            let range = |(offset, bytes)| (&self.files[chunk.file as usize], offset..offset + u64::from(bytes));
            parts.into_iter().flatten().map(range)
        };
        pages.filter(|page| self.cache.get(*page).is_none()).flat_map(place).collect()
    }

    /// The decoded values of a page.
    fn page(&self, number: u32) -> Result<Values, DatasetError> {
        if let Some(values) = self.cache.get(number) {
            return Ok(values);
        }
        let (page, file) = (&self.index.pages[number as usize], self.file(number));
        let read = |offset, bytes| {
            let mut content = vec![0; bytes];
            self.files[file].with(|open| open.read_exact_at(&mut content, offset)).flatten().map(|()| content)
        };
        let values = chunk::values(self.index.chunk_of(number), page, &read).map_err(|fault| {
            let fault = match fault {
                Fault::Damaged(what) => Fault::Damaged(format!("has a column of pictures that cannot be read: {what}")),
                io => io,
            };
            fault.of(self.files[file].path())
        })?;
        let values = Arc::new(values);
        self.cache.insert(number, &values);
        Ok(values)
    }
}

/// Hashes class names, and for each picture its label, its place, and the name and the
/// page's size in its file.
fn listing(files: &[DataFile], classes: &[String], index: &ParquetIndex, splits: [&[u32]; 2]) -> Digest {
    listing_digest(classes, splits, |hasher, &at| {
        let row = &index.rows[at as usize];
        let page = &index.pages[row.page as usize];
        let file = files[index.chunk_of(row.page).file as usize].path().file_name().unwrap_or_default();
        hasher.update(&row.label.to_le_bytes()).update(&page.bytes.to_le_bytes()).update(&(page.first_row + row.row).to_le_bytes());
        hasher.update(file.as_bytes()).update(b"\0");
    })
}

impl SampleSource for ParquetPictures {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        // Page by page, so that each is decoded once, however many rows of it are wanted.
        let mut by_page: HashMap<u32, Vec<usize>> = HashMap::new();
        for (place, &id) in ids.iter().enumerate() {
            check_id(id, self.info.len(split))?;
            let row = &self.index.rows[self.numbers(split)[id as usize] as usize];
            by_page.entry(row.page).or_default().push(place);
        }
        let mut pages: Vec<(u32, Vec<usize>)> = by_page.into_iter().collect();
        pages.sort_unstable_by_key(|(page, _)| *page);
        data_file::fetch(&self.places(pages.iter().map(|(page, _)| *page)))?;
        let mut samples: Vec<Option<Sample>> = vec![None; ids.len()];
        for (page, places) in pages {
            let values = self.page(page)?;
            for place in places {
                let id = ids[place];
                let row = &self.index.rows[self.numbers(split)[id as usize] as usize];
                let value = values.get(row.row as usize).and_then(Option::as_ref).ok_or_else(|| {
                    let row = self.index.pages[page as usize].first_row + row.row;
                    let problem = format!("has no picture in row {row}, and its footer says that no row lacks one");
                    DatasetError::invalid(self.files[self.file(page)].path(), problem)
                })?;
                // Of its own, so that a sample does not keep its page in memory.
                samples[place] = Some(Sample { id, label: row.label, bytes: Bytes::copy_from_slice(value.data()) });
            }
        }
        Ok(samples.into_iter().flatten().collect())
    }

    fn read_ahead(&self, split: Split, ids: &[u32]) {
        let mut pages: Vec<u32> = ids.iter().filter_map(|id| self.row(split, *id)).map(|row| row.page).collect();
        pages.sort_unstable();
        pages.dedup();
        data_file::read_ahead(&self.places(pages.into_iter()));
    }

    fn passed_over(&self) -> &PassedOver {
        &self.passed_over
    }

    fn files(&self) -> Option<FileDigests> {
        Some(self.digests)
    }

    /// Hashes the files, whatever lies in them beside the pictures.
    fn read_contents(&self, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Option<Digest>, DatasetError> {
        data_file::contents(&self.files, go_on)
    }

    /// Its share of its page.
    fn size_hint(&self, split: Split, id: u32) -> u64 {
        self.row(split, id).map_or(0, |row| {
            let page = &self.index.pages[row.page as usize];
            u64::from(page.bytes).div_ceil(page.rows.max(1).into())
        })
    }

    fn labels(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        Ok(self.numbers(split).iter().map(|at| self.index.rows[*at as usize].label).collect())
    }

    fn name(&self, split: Split, id: u32) -> String {
        let Some(row) = self.row(split, id) else { return format!("picture {id}") };
        let number = self.index.pages[row.page as usize].first_row + row.row;
        format!("{} row {number}", self.files[self.file(row.page)].path().display())
    }
}
