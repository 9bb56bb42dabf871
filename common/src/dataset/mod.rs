//! Datasets as sequences of undecoded samples. A sample is its label and the
//! bytes as they lie on disk: a JPEG or PNG file, the raw pixels of an IDX
//! record, or the features of a table's row. Decoding is the worker's business;
//! nothing here knows a codec.

mod csv;
mod idx;
mod images;
pub(crate) mod index_cache;
mod points;
mod synthetic;
mod table;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::{DataConfig, DataSource, InputShape};
pub use idx::Idx;
pub use images::Images;
pub use synthetic::Synthetic;
pub use table::{Column, Table};

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
    /// Hex BLAKE3 over labels, names and sizes of all samples, in order: equal
    /// fingerprints mean that sample ids mean the same samples.
    pub fingerprint: String,
}

impl DatasetInfo {
    /// What a model reads whose config renders pictures at `image_size`.
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

/// Samples that are read at once for their labels alone.
const LABELS_AT_ONCE: usize = 1024;

/// A dataset that can be read at random, by any number of threads.
pub trait SampleSource: Send + Sync {
    fn info(&self) -> &DatasetInfo;

    /// Reads samples in the order of `ids`. Blocks.
    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError>;

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

    /// What the features are, for [`SampleFormat::Features`]; empty for pictures.
    fn columns(&self) -> &[Column] {
        &[]
    }
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
    #[error(
        "`{}` does not hold the coordinator's data: {found} there, {expected} at the coordinator; copy the same data, or leave out --data to stream it", path.display()
    )]
    OtherData { path: PathBuf, found: String, expected: String },
}

impl DatasetError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    fn invalid(path: &Path, problem: String) -> Self {
        Self::Invalid { path: path.to_owned(), problem }
    }
}

/// Opens the dataset of a config. `progress` hears how far a long listing is.
pub fn open(config: &DataConfig, seed: u64, progress: &dyn Fn(Progress)) -> Result<Arc<dyn SampleSource>, DatasetError> {
    Ok(match &config.source {
        DataSource::Images { path, val_fraction, .. } => Arc::new(Images::open(path, *val_fraction, seed, progress)?),
        DataSource::Idx { path } => Arc::new(Idx::open(path)?),
        DataSource::Synthetic { classes, train, val } => Arc::new(Synthetic::new(*classes, *train, *val, config.pixels.image_size, seed)),
        DataSource::Csv { path, label, val_fraction, standardize } => Arc::new(csv::open(path, label, *val_fraction, *standardize, seed)?),
        DataSource::Xor { train, val, noise } => Arc::new(points::xor(*train, *val, *noise, seed)),
        DataSource::Separable { train, val, features, margin } => Arc::new(points::separable(*train, *val, *features, *margin, seed)),
    })
}

/// Opens a local copy and accepts it only if it is the data that `expected`
/// describes.
pub fn open_matching(config: &DataConfig, seed: u64, expected: &DatasetInfo) -> Result<Arc<dyn SampleSource>, DatasetError> {
    let source = open(config, seed, &|_| {})?;
    let found = source.info();
    if found != expected {
        let describe = |info: &DatasetInfo| {
            let print: String = info.fingerprint.chars().take(12).collect();
            format!("{} classes with {} + {} samples (fingerprint {print})", info.classes.len(), info.train, info.val)
        };
        let path = config.path().unwrap_or(Path::new("generated data")).to_owned();
        return Err(DatasetError::OtherData { path, found: describe(found), expected: describe(expected) });
    }
    Ok(source)
}

fn check_id(id: u32, len: u32) -> Result<(), DatasetError> {
    if id < len { Ok(()) } else { Err(DatasetError::NoSuchSample { id, len }) }
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "training",
            Self::Val => "validation",
        })
    }
}

/// How far the indexing of a dataset is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Files seen so far.
    pub files: u64,
}
