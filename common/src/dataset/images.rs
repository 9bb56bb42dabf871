//! Picture files: in class folders, `train/CLASS/...` and `val/CLASS/...`, or one tree of
//! class folders that `val_fraction` divides; or named by a list.

use crate::digest::Digest;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use bytes::Bytes;

use super::contents::{Bound, Reading};
use super::index_cache::{self, Entry, Index};
use super::passed_over::PassedOver;
use super::source::{
    DatasetError, DatasetInfo, FileDigests, IndexProgress, Sample, SampleFormat, SampleSource, Split, listing_digest, read_each,
};
use super::{in_parallel, listing, splits};

/// A dataset of picture files.
pub struct Images {
    info: DatasetInfo,
    root: PathBuf,
    index: Index,
    digests: FileDigests,
    /// Its file in the user's cache.
    cached: Option<PathBuf>,
}

impl Images {
    /// Lists `root` and reads it, but for files that are known from an earlier time. What
    /// is too large for that is not read, and the list is taken from the user's cache if no
    /// folder has changed since.
    pub fn open(root: &Path, val_fraction: Option<f64>, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Self, DatasetError> {
        Self::open_within(Bound::AT_OPENING, root, val_fraction, seed, progress)
    }

    pub(super) fn open_within(
        bound: Bound,
        root: &Path,
        val_fraction: Option<f64>,
        seed: u64,
        progress: &dyn Fn(IndexProgress),
    ) -> Result<Self, DatasetError> {
        if !root.is_dir() {
            return Err(DatasetError::invalid(
                root,
                "is not a folder: data.path must name one with a folder per class, under train/ and val/ or not".to_owned(),
            ));
        }
        let cached = index_cache::key(root, val_fraction, seed);
        let index = match index_cache::load(&cached, root) {
            Some(index) => index,
            None => {
                let began = SystemTime::now();
                let index = listing::list(root, val_fraction, seed, progress)?;
                if bound.holds(&index) { index } else { index_cache::store(&cached, root, index, began) }
            }
        };
        Self::new(root, index, cached).read_if_small(bound, progress)
    }

    /// The files of `index`, which lie below `root`: `list` names them.
    pub(super) fn listed(list: &Path, root: &Path, index: Index, progress: &dyn Fn(IndexProgress)) -> Result<Self, DatasetError> {
        let cached = index_cache::key(list, None, 0);
        Self::new(root, index, cached).read_if_small(Bound::AT_OPENING, progress)
    }

    /// Reads all contents, but for files that are known from an earlier time, if the bound
    /// allows it.
    fn read_if_small(mut self, bound: Bound, progress: &dyn Fn(IndexProgress)) -> Result<Self, DatasetError> {
        if bound.holds(&self.index) {
            let contents =
                self.reading(in_parallel::all_threads(), &|files| progress(IndexProgress { files }), &|| true).digest(&self.index)?;
            self.digests.contents = contents;
            self.info.fingerprint = self.digests.fingerprint();
        }
        Ok(self)
    }

    /// Uses every picture below the class folders of `root` for validation: for data
    /// that has no other use.
    pub fn open_all(root: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Self, DatasetError> {
        Ok(Self::new(root, listing::list_all(root, progress)?, None))
    }

    /// Whether `root` has a folder with the name of a split, such as train/, val/ or test/
    /// in any case: then its folders are no classes.
    pub fn has_splits(root: &Path) -> bool {
        splits::has_splits(root)
    }

    /// The training folder of `root`, if there is exactly one.
    pub fn training_folder(root: &Path) -> Option<PathBuf> {
        splits::training_folder(root)
    }

    fn new(root: &Path, index: Index, cached: Option<PathBuf>) -> Self {
        let digests = FileDigests { listing: listing(&index), contents: None };
        let info = DatasetInfo {
            format: SampleFormat::Encoded,
            fingerprint: digests.fingerprint(),
            classes: index.classes.clone(),
            train: index.train.len() as u32,
            val: index.val.len() as u32,
        };
        Self { info, root: root.to_owned(), index, digests, cached }
    }

    fn reading<'a>(&'a self, threads: usize, report: &'a dyn Fn(u64), go_on: &'a (dyn Fn() -> bool + Sync)) -> Reading<'a> {
        let cache = self.cached.as_ref().map(|path| path.with_extension("contents"));
        Reading { root: &self.root, cache, threads, report, go_on }
    }

    fn entries(&self, split: Split) -> &[Entry] {
        match split {
            Split::Train => &self.index.train,
            Split::Val => &self.index.val,
        }
    }
}

impl SampleSource for Images {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let entries = self.entries(split);
        read_each(ids, entries.len() as u32, |id| {
            let entry = &entries[id as usize];
            let path = self.root.join(&entry.path);
            let bytes = std::fs::read(&path).map_err(DatasetError::io(&path))?;
            if bytes.len() as u64 != entry.bytes {
                index_cache::forget(&self.cached);
                return Err(DatasetError::changed(&path, bytes.len() as u64, entry.bytes));
            }
            Ok(Sample { id, label: entry.label, bytes: Bytes::from(bytes) })
        })
    }

    fn size_hint(&self, split: Split, id: u32) -> u64 {
        self.entries(split).get(id as usize).map_or(0, |e| e.bytes)
    }

    fn labels(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        Ok(self.entries(split).iter().map(|e| e.label).collect())
    }

    fn files(&self) -> Option<FileDigests> {
        Some(self.digests)
    }

    fn read_contents(&self, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Option<Digest>, DatasetError> {
        if self.digests.contents.is_some() {
            return Ok(None);
        }
        let read = self.reading(1, &|_| {}, go_on).digest(&self.index);
        if read.is_err() {
            // The list may be older than the files.
            index_cache::forget(&self.cached);
        }
        read
    }

    fn passed_over(&self) -> &PassedOver {
        &self.index.passed_over
    }

    fn name(&self, split: Split, id: u32) -> String {
        self.entries(split).get(id as usize).map_or_else(|| format!("picture {id}"), |e| self.root.join(&e.path).display().to_string())
    }
}

/// Hashes class names, and for each picture its label, its path and its size.
fn listing(index: &Index) -> Digest {
    listing_digest(&index.classes, [&index.train, &index.val], |hasher, e| {
        hasher.update(&e.label.to_le_bytes()).update(&e.bytes.to_le_bytes()).update(e.path.as_os_str().as_bytes()).update(b"\0");
    })
}
