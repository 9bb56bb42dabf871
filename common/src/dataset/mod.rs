//! Datasets as sequences of undecoded samples. A sample is its label and the
//! bytes as they lie on disk: a JPEG or PNG file, or the raw pixels of an IDX
//! record. Decoding is the worker's business; nothing here knows a codec.

use std::path::PathBuf;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

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
    /// A whole JPEG or PNG file, of any size. Decodes to three channels.
    Encoded,
    /// `height * width * channels` bytes, row by row, channels innermost.
    Raw { height: u32, width: u32, channels: u32 },
}

impl SampleFormat {
    /// Channels of the decoded picture.
    pub fn channels(self) -> u32 {
        match self {
            Self::Encoded => 3,
            Self::Raw { channels, .. } => channels,
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
    /// Hex BLAKE3 over labels, names and sizes of all samples, in order: equal
    /// fingerprints mean that sample ids mean the same samples.
    pub fingerprint: String,
}

impl DatasetInfo {
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

/// A dataset that can be read at random, by any number of threads.
pub trait SampleSource: Send + Sync {
    fn info(&self) -> &DatasetInfo;

    /// Reads samples in the order of `ids`. Blocks.
    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError>;

    /// A name for messages: the file's path, or the record's place in its file.
    fn name(&self, split: Split, id: u32) -> String;
}

#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    #[error("could not read `{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("`{}` {problem}", path.display())]
    Invalid { path: PathBuf, problem: String },
    #[error("sample {id} of {len} does not exist")]
    NoSuchSample { id: u32, len: u32 },
    #[error("could not get samples from the coordinator: {0}")]
    Remote(String),
}

/// How far the indexing of a dataset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Files seen so far.
    pub files: u64,
}
