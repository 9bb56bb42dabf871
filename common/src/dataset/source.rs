//! Defines a dataset: samples of two splits with random access.

use crate::digest::Digest;
use std::fmt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::passed_over::PassedOver;
use crate::config::InputShape;
use crate::objects::ObjectError;

/// Which of the two disjoint sets of a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Val,
}

/// What a sample's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SampleFormat {
    /// A whole picture file, of any size. Decodes to three channels.
    Encoded,
    /// `height * width * channels` bytes, row by row, channels innermost.
    Raw { height: u32, width: u32, channels: u32 },
    /// No picture: `count` little-endian f32 values.
    Features { count: u32 },
}

impl SampleFormat {
    /// Channels of the decoded picture. Features are a picture of one pixel with
    /// a channel each.
    pub fn channels(self) -> u32 {
        match self {
            Self::Encoded => 3,
            Self::Raw { channels, .. } => channels,
            Self::Features { count } => count,
        }
    }
}

/// What all readers of one dataset agree on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetInfo {
    pub format: SampleFormat,
    /// Class names; a label is an index into them.
    pub classes: Vec<String>,
    /// Samples in each split.
    pub train: u32,
    pub val: u32,
    /// BLAKE3 over labels, names, sizes and contents of all samples, in order: equal
    /// fingerprints mean that sample ids mean the same samples. Without contents where
    /// [`FileDigests::contents`] is not known when the dataset is opened.
    pub fingerprint: Digest,
}

/// Digests of a dataset of files, which may be too large to be read when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigests {
    /// Of labels, names and sizes.
    pub listing: Digest,
    /// Of all bytes, once they have been read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contents: Option<Digest>,
}

impl FileDigests {
    /// What two copies of a dataset must agree on: their lists, and contents that are known.
    pub(super) fn fingerprint(&self) -> Digest {
        let Self { listing, contents } = self;
        contents.map_or(*listing, |contents| Digest::of(format!("{listing} {contents}").as_bytes()))
    }
}

/// Hashes class names, and of the samples of both splits what `add` says of each.
pub(super) fn listing_digest<T>(classes: &[String], splits: [&[T]; 2], add: impl Fn(&mut blake3::Hasher, &T)) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for class in classes {
        hasher.update(class.as_bytes()).update(b"\0");
    }
    for samples in splits {
        hasher.update(&(samples.len() as u64).to_le_bytes());
        samples.iter().for_each(|sample| add(&mut hasher, sample));
    }
    hasher.finalize().into()
}

impl DatasetInfo {
    /// The input of a model whose config renders pictures at `image_size`.
    pub fn input(&self, image_size: u32) -> InputShape {
        let table = matches!(self.format, SampleFormat::Features { .. });
        let image_size = if table { 1 } else { image_size as usize };
        InputShape { channels: self.format.channels() as usize, image_size, classes: self.classes.len() }
    }

    pub fn len(&self, split: Split) -> u32 {
        match split {
            Split::Train => self.train,
            Split::Val => self.val,
        }
    }
}

/// One undecoded sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Its place in its split, from 0.
    pub id: u32,
    pub label: u32,
    pub bytes: Bytes,
}

/// Samples that are read at a time when only their labels are needed.
const LABELS_AT_ONCE: usize = 1024;

/// A dataset that can be read at random, by any number of threads.
pub trait SampleSource: Send + Sync {
    fn info(&self) -> &DatasetInfo;

    /// Reads samples in the order of `ids`. Blocks.
    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError>;

    /// Says that these samples will be read soon, so that what lies far away can be on its
    /// way. Does not block.
    fn read_ahead(&self, _split: Split, _ids: &[u32]) {}

    /// The size of the sample in bytes, as far as it is known without reading it: to
    /// plan memory. A sample of unknown size may be of any size.
    fn size_hint(&self, _split: Split, _id: u32) -> u64 {
        u64::MAX
    }

    /// A name for messages: the file's path, or the record's place in its file.
    fn name(&self, split: Split, id: u32) -> String;

    /// The label of every sample of a split, in order. Blocks.
    fn labels(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        let ids: Vec<u32> = (0..self.info().len(split)).collect();
        let mut labels = Vec::with_capacity(ids.len());
        for part in ids.chunks(LABELS_AT_ONCE) {
            labels.extend(self.read(split, part)?.iter().map(|s| s.label));
        }
        Ok(labels)
    }

    /// The parts of the fingerprint, if the samples are files.
    fn files(&self) -> Option<FileDigests> {
        None
    }

    /// Reads all samples for [`FileDigests::contents`], on one thread: for one in the
    /// background. None if the fingerprint covers contents, or once `go_on` says false.
    fn read_contents(&self, _go_on: &(dyn Fn() -> bool + Sync)) -> Result<Option<Digest>, DatasetError> {
        Ok(None)
    }

    /// The files that are no samples, if this was made from a listing of files.
    fn passed_over(&self) -> &PassedOver {
        PassedOver::none()
    }

    /// Describes the features, for [`SampleFormat::Features`]; empty for pictures.
    fn columns(&self) -> &[Column] {
        &[]
    }
}

#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("could not read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error("`{}` {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("sample {id} of {len} does not exist")]
    NoSuchSample { id: u32, len: u32 },
    #[error("could not get samples from the coordinator: {0}")]
    Remote(String),
    #[error(
        "`{}` does not hold the coordinator's data: {found} there, {expected} at the coordinator; copy the same data, or leave out --data to stream it", path.display()
    )]
    OtherData { path: PathBuf, found: String, expected: String },
}

impl DatasetError {
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// An error on the way through the folders below `root`.
    pub(super) fn walk(root: &Path, error: walkdir::Error) -> Self {
        let path = error.path().unwrap_or(root).to_owned();
        Self::io(&path)(error.into())
    }

    /// A file whose size is not that of the listing.
    pub(super) fn changed(path: &Path, bytes: u64, listed: u64) -> Self {
        let problem = format!(
            "has {bytes} bytes, and had {listed} when the dataset was listed: it was changed since; restore it, or start again, which lists the dataset anew"
        );
        Self::invalid(path, problem)
    }

    pub(super) fn invalid(path: &Path, problem: String) -> Self {
        Self::Invalid { path: path.to_owned(), problem }
    }
}

/// Why a file whose path is not at hand cannot be read to its end.
#[derive(Debug)]
pub(super) enum Fault {
    Io(std::io::Error),
    /// What it is or does: a predicate.
    Damaged(String),
}

impl Fault {
    pub(super) fn of(self, path: &Path) -> DatasetError {
        match self {
            Self::Io(source) => DatasetError::io(path)(source),
            Self::Damaged(problem) => DatasetError::invalid(path, problem),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

pub(super) fn check_id(id: u32, len: u32) -> Result<(), DatasetError> {
    if id < len { Ok(()) } else { Err(DatasetError::NoSuchSample { id, len }) }
}

/// Reads samples one after the other, with `one` for those that exist.
pub(super) fn read_each(ids: &[u32], len: u32, one: impl Fn(u32) -> Result<Sample, DatasetError>) -> Result<Vec<Sample>, DatasetError> {
    ids.iter().map(|&id| check_id(id, len).and_then(|()| one(id))).collect()
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Val => "validation",
        })
    }
}

/// The progress of indexing a dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexProgress {
    /// Files seen so far.
    pub files: u64,
}

/// One feature: its name, and how a raw value becomes the model's input:
/// `(value - mean) / deviation`, computed in f64.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Column {
    pub name: String,
    pub mean: f64,
    pub deviation: f64,
}
