//! Datasets as sequences of undecoded samples. A sample is its label and the bytes as
//! they lie on disk: a JPEG or PNG file, the raw pixels of an IDX record, or the
//! features of a table's row. The worker decodes them; nothing here knows a codec.
//!
//! `source` defines a dataset; each format is a file beside it.

mod csv;
mod idx;
mod images;
pub(crate) mod index_cache;
mod points;
mod source;
mod synthetic;
mod table;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use crate::config::{DataConfig, DataSource};
pub use idx::Idx;
pub use images::Images;
pub use source::{Column, DatasetError, DatasetInfo, IndexProgress, Sample, SampleFormat, SampleSource, Split};
pub use synthetic::Synthetic;
pub use table::Table;

/// Opens the dataset of a config. `progress` is called during a long listing.
pub fn open(config: &DataConfig, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Arc<dyn SampleSource>, DatasetError> {
    Ok(match &config.source {
        DataSource::Images { path, val_fraction, .. } => Arc::new(Images::open(path, *val_fraction, seed, progress)?),
        DataSource::Idx { path } => Arc::new(Idx::open(path)?),
        DataSource::Synthetic { classes, train, val } => Arc::new(Synthetic::new(*classes, *train, *val, config.pixels.image_size, seed)),
        DataSource::Csv { path, label, val_fraction, standardize } => Arc::new(csv::open(path, label, *val_fraction, *standardize, seed)?),
        DataSource::Xor { train, val, noise } => Arc::new(points::xor(*train, *val, *noise, seed)),
        DataSource::Separable { train, val, features, margin } => Arc::new(points::separable(*train, *val, *features, *margin, seed)),
    })
}

/// Opens a local copy and accepts it only if it matches `expected`.
pub fn open_matching(config: &DataConfig, seed: u64, expected: &DatasetInfo) -> Result<Arc<dyn SampleSource>, DatasetError> {
    let source = open(config, seed, &|_| {})?;
    let found = source.info();
    if found != expected {
        let describe = |info: &DatasetInfo| {
            format!("{} classes with {} + {} samples (fingerprint {})", info.classes.len(), info.train, info.val, info.fingerprint.short())
        };
        let path = config.path().unwrap_or(Path::new("generated data")).to_owned();
        return Err(DatasetError::OtherData { path, found: describe(found), expected: describe(expected) });
    }
    Ok(source)
}
