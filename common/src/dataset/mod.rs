//! Datasets as sequences of undecoded samples. A sample is its label and the bytes as
//! they lie on disk: a picture file, the raw pixels of an IDX record, or the
//! features of a table's row. The worker decodes them; nothing here knows a codec.
//!
//! `source` defines a dataset; each format is a file beside it.

mod cifar;
mod classes;
mod contents;
mod csv;
mod data_file;
mod delimited;
mod idx;
mod ilsvrc;
mod ilsvrc_names;
mod images;
pub(crate) mod index_cache;
mod list;
mod listing;
mod matlab;
mod passed_over;
mod pictures;
mod points;
mod recognise;
mod shards;
mod source;
mod split_names;
mod splits;
mod synthetic;
mod table;
mod tar_index;
mod tar_pictures;
mod tar_scan;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_contents;
#[cfg(test)]
mod tests_of_folders;
#[cfg(test)]
mod tests_of_lists;
#[cfg(test)]
mod tests_of_tables;
#[cfg(test)]
mod tests_of_tars;
mod webdataset;

use std::path::Path;
use std::sync::Arc;

use crate::config::{DataConfig, DataSource};
use crate::objects;
pub use cifar::Cifar;
pub use csv::Unlabelled;
pub use idx::Idx;
pub use images::Images;
pub use passed_over::PassedOver;
pub use source::{Column, DatasetError, DatasetInfo, FileDigests, IndexProgress, Sample, SampleFormat, SampleSource, Split};
pub use synthetic::Synthetic;
pub use table::Table;
pub use tar_pictures::TarPictures;

/// Opens the dataset of a config. `progress` is called during a long listing.
pub fn open(config: &DataConfig, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Arc<dyn SampleSource>, DatasetError> {
    config.places().try_for_each(expanded)?;
    in_a_store(config)?;
    Ok(match &config.source {
        DataSource::Images { path, val_fraction, .. } => Arc::new(Images::open(path, *val_fraction, seed, progress)?),
        DataSource::List { path, root, val_fraction, .. } => {
            let division = val_fraction.map_or(list::Division::None, |share| list::Division::Share(share, seed));
            Arc::new(list::open(path, root.as_deref(), division, progress)?)
        }
        DataSource::Webdataset { path, val_path, val_fraction, .. } => {
            let division = match (val_path, val_fraction) {
                (Some(val), _) => webdataset::Division::Shards(val),
                (None, Some(share)) => webdataset::Division::Share(*share, seed),
                (None, None) => webdataset::Division::None,
            };
            Arc::new(webdataset::open(path, division, progress)?)
        }
        DataSource::Ilsvrc { path, .. } => ilsvrc::open(path, progress)?,
        DataSource::Idx { path } => Arc::new(Idx::open(path)?),
        DataSource::Cifar { path } => Arc::new(Cifar::open(path)?),
        DataSource::Synthetic { classes, train, val } => Arc::new(Synthetic::new(*classes, *train, *val, config.pixels.image_size, seed)),
        DataSource::Csv { path, label, val_fraction, standardize } => Arc::new(csv::open(path, label, *val_fraction, *standardize, seed)?),
        DataSource::Xor { train, val, noise } => Arc::new(points::xor(*train, *val, *noise, seed)),
        DataSource::Separable { train, val, features, margin } => Arc::new(points::separable(*train, *val, *features, *margin, seed)),
    })
}

/// Opens data that has no other use: what is not divided by itself is for validation.
/// `None` for data that must be divided.
pub fn open_for_validation(config: &DataConfig, progress: &dyn Fn(IndexProgress)) -> Result<Option<Arc<dyn SampleSource>>, DatasetError> {
    config.places().try_for_each(expanded)?;
    Ok(match &config.source {
        DataSource::Images { path, .. } if !Images::has_splits(path) => Some(Arc::new(Images::open_all(path, progress)?)),
        DataSource::List { path, root, .. } => {
            Some(Arc::new(list::open(path, root.as_deref(), list::Division::AllForValidation, progress)?))
        }
        DataSource::Webdataset { path, .. } => Some(Arc::new(webdataset::open(path, webdataset::Division::AllForValidation, progress)?)),
        _ => None,
    })
}

/// Refuses addresses for kinds of data that are read from folders.
fn in_a_store(config: &DataConfig) -> Result<(), DatasetError> {
    let address = config.places().find(|path| objects::is_address(path));
    match (address, &config.source) {
        (None, _) | (_, DataSource::Webdataset { .. }) => Ok(()),
        (Some(address), _) => {
            let problem = "is an address, and data of this kind is read from folders: have `worker data pack` make shards of it, \
                 copy those there, and set data.kind = \"webdataset\"";
            Err(DatasetError::invalid(address, problem.to_owned()))
        }
    }
}

/// The kind of data at a place, as `data.kind` names it, where names of files and the
/// header of a list say it: CIFAR, ILSVRC2012, shards, lists.
pub fn recognised(place: &Path) -> Option<&'static str> {
    if objects::is_address(place) {
        Some("webdataset")
    } else if ilsvrc::is_here(place) {
        Some("ilsvrc")
    } else if cifar::is_here(place) {
        Some("cifar")
    } else if place.extension().is_some_and(|e| e == "tar") || shards::are_in(place) {
        Some("webdataset")
    } else if place.is_file() && list::is_one(place) {
        Some("list")
    } else {
        None
    }
}

/// Whether data of this kind at a place is divided by itself, so that it needs no
/// `data.val_fraction`.
pub fn is_divided(kind: &str, place: &Path) -> bool {
    match kind {
        "list" => list::has_splits(place),
        "webdataset" => shards::find(place).is_ok_and(|found| found.iter().any(|(_, named)| named.is_some())),
        _ => true,
    }
}

/// Refuses a path with a `~` that the shell has left as it was, unless there is a
/// folder of that name.
fn expanded(path: &Path) -> Result<(), DatasetError> {
    let tilde = path.components().next().filter(|first| first.as_os_str().as_encoded_bytes().starts_with(b"~"));
    match tilde {
        Some(first) if !Path::new(&first).exists() => Err(DatasetError::invalid(
            path,
            format!(
                "does not exist: the shell has not expanded `{0}`, as it does at the beginning of a word only, and nothing does in a config: \
                 write the whole path, or \"$HOME/...\" on a command line",
                first.as_os_str().display()
            ),
        )),
        _ => Ok(()),
    }
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
