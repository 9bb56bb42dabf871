//! A dataset of pictures inside tar files, read in place: any number of threads read at
//! their own offsets, and nothing is unpacked.

use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::data_file::{self, DataFile};
use super::passed_over::PassedOver;
use super::source::{DatasetError, DatasetInfo, FileDigests, Sample, SampleFormat, SampleSource, Split, check_id, listing_digest};
use super::tar_index::{Place, TarIndex};
use crate::digest::Digest;

/// Indexes that are in memory at a time: each has a line for each of 5,000 pictures.
const INDEXES_AT_ONCE: usize = 16;

/// Pictures of two splits, by their places in the tars.
pub struct TarPictures {
    info: DatasetInfo,
    digests: FileDigests,
    passed_over: PassedOver,
    tars: Vec<DataFile>,
    index: TarIndex,
    /// Of each sample, its number in the index.
    train: Vec<u32>,
    val: Vec<u32>,
}

impl TarPictures {
    /// The labels of the index must be below the number of classes.
    pub(super) fn new(
        tars: Vec<DataFile>,
        classes: Vec<String>,
        index: TarIndex,
        train: Vec<u32>,
        val: Vec<u32>,
    ) -> Result<Self, DatasetError> {
        let listing = listing(&tars, &classes, &index, [&train, &val]);
        // A pack's indexes have hashes of its pictures.
        let digests = FileDigests { listing, contents: hashes_beside(&tars)? };
        let info = DatasetInfo {
            format: SampleFormat::Encoded,
            fingerprint: digests.fingerprint(),
            classes,
            train: train.len() as u32,
            val: val.len() as u32,
        };
        let passed_over = index.left_out.passed_over(PassedOver::add_members);
        Ok(Self { info, digests, passed_over, tars, index, train, val })
    }

    fn numbers(&self, split: Split) -> &[u32] {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }

    /// Where samples lie; those that do not exist are left out.
    fn ranges(&self, split: Split, ids: &[u32]) -> Vec<(&DataFile, Range<u64>)> {
        let range = |place: &Place| (&self.tars[place.tar as usize], place.offset..place.offset + u64::from(place.bytes));
        ids.iter().filter_map(|&id| self.place(split, id)).map(range).collect()
    }

    fn place(&self, split: Split, id: u32) -> Option<&Place> {
        self.numbers(split).get(id as usize).map(|at| &self.index.places[*at as usize])
    }
}

/// What the indexes that `worker data pack` writes beside its shards say of their contents;
/// none if a tar has no index.
fn hashes_beside(tars: &[DataFile]) -> Result<Option<Digest>, DatasetError> {
    let mut hasher = blake3::Hasher::new();
    for tars in tars.chunks(INDEXES_AT_ONCE) {
        let paths: Vec<PathBuf> = tars.iter().map(|tar| tar.path().with_extension("jsonl")).collect();
        for index in data_file::small_files(&paths)? {
            let Some(index) = index else { return Ok(None) };
            hasher.update(blake3::hash(&index).as_bytes());
        }
    }
    Ok(Some(hasher.finalize().into()))
}

/// Hashes class names, and for each picture its label, its size, and the names of its
/// tar and of itself.
fn listing(tars: &[DataFile], classes: &[String], index: &TarIndex, splits: [&[u32]; 2]) -> Digest {
    listing_digest(classes, splits, |hasher, &at| {
        let place = &index.places[at as usize];
        let tar = tars[place.tar as usize].path().file_name().unwrap_or_default();
        hasher.update(&place.label.to_le_bytes()).update(&place.bytes.to_le_bytes()).update(tar.as_bytes()).update(b"/");
        hasher.update(index.name(at as usize)).update(b"\0");
    })
}

impl SampleSource for TarPictures {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        ids.iter().try_for_each(|&id| check_id(id, self.info.len(split)))?;
        let label = |id: u32| self.index.places[self.numbers(split)[id as usize] as usize].label;
        let sample = |(&id, bytes)| Sample { id, label: label(id), bytes };
        Ok(ids.iter().zip(data_file::read(&self.ranges(split, ids))?).map(sample).collect())
    }

    fn read_ahead(&self, split: Split, ids: &[u32]) {
        data_file::read_ahead(&self.ranges(split, ids));
    }

    fn passed_over(&self) -> &PassedOver {
        &self.passed_over
    }

    fn files(&self) -> Option<FileDigests> {
        Some(self.digests)
    }

    /// Hashes the tars, whatever lies in them beside the pictures.
    fn read_contents(&self, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Option<Digest>, DatasetError> {
        if self.digests.contents.is_some() {
            return Ok(None);
        }
        data_file::contents(&self.tars, go_on)
    }

    fn size_hint(&self, split: Split, id: u32) -> u64 {
        self.place(split, id).map_or(0, |place| place.bytes.into())
    }

    fn labels(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        Ok(self.numbers(split).iter().map(|at| self.index.places[*at as usize].label).collect())
    }

    fn name(&self, split: Split, id: u32) -> String {
        let Some(&at) = self.numbers(split).get(id as usize) else { return format!("picture {id}") };
        let tar = &self.tars[self.index.places[at as usize].tar as usize];
        format!("{}/{}", tar.path().display(), String::from_utf8_lossy(self.index.name(at as usize)))
    }
}
