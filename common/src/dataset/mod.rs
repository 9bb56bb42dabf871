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
mod division;
mod idx;
mod ilsvrc;
mod ilsvrc_names;
mod images;
mod in_parallel;
pub(crate) mod index_cache;
mod kept_index;
mod list;
mod listing;
mod matlab;
#[cfg(feature = "parquet")]
mod parquet;
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
use division::Division;
pub use idx::Idx;
pub use images::Images;
pub use passed_over::PassedOver;
use shards::Kind;
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
            Arc::new(webdataset::open(path, Division::of(val_path.as_deref(), *val_fraction, seed), progress)?)
        }
        DataSource::Parquet { path, val_path, val_fraction, image, label } => {
            let division = Division::of(val_path.as_deref(), *val_fraction, seed);
            open_parquet(path, image.as_deref(), label.as_deref(), division, progress)?
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
        DataSource::Webdataset { path, .. } => Some(Arc::new(webdataset::open(path, Division::AllForValidation, progress)?)),
        DataSource::Parquet { path, image, label, .. } => {
            Some(open_parquet(path, image.as_deref(), label.as_deref(), Division::AllForValidation, progress)?)
        }
        _ => None,
    })
}

/// Opens Parquet files with pictures and labels in these columns.
#[cfg(feature = "parquet")]
fn open_parquet(
    path: &Path,
    image: Option<&str>,
    label: Option<&str>,
    division: Division,
    progress: &dyn Fn(IndexProgress),
) -> Result<Arc<dyn SampleSource>, DatasetError> {
    Ok(Arc::new(parquet::open(path, parquet::Named { image, label }, division, progress)?))
}

/// Says how to have a program that opens them.
#[cfg(not(feature = "parquet"))]
fn open_parquet(
    path: &Path,
    _image: Option<&str>,
    _label: Option<&str>,
    _division: Division,
    _progress: &dyn Fn(IndexProgress),
) -> Result<Arc<dyn SampleSource>, DatasetError> {
    let problem = "is of the kind `parquet`, which this program was built without: build it with `--features parquet`";
    Err(DatasetError::invalid(path, problem.to_owned()))
}

/// Refuses addresses for kinds of data that are read from folders.
fn in_a_store(config: &DataConfig) -> Result<(), DatasetError> {
    let address = config.places().find(|path| objects::is_address(path));
    match (address, &config.source) {
        (None, _) | (_, DataSource::Webdataset { .. } | DataSource::Parquet { .. }) => Ok(()),
        (Some(address), _) => {
            let problem = "is an address, and data of this kind is read from folders: have `worker data pack` make shards of it, \
                 copy those there, and set data.kind = \"webdataset\"";
            Err(DatasetError::invalid(address, problem.to_owned()))
        }
    }
}

/// The kind of data at a place, as `data.kind` names it, where names of files and the
/// header of a list say it: CIFAR, ILSVRC2012, shards, Parquet files, lists.
pub fn recognised(place: &Path) -> Option<&'static str> {
    if objects::is_address(place) {
        let parquet = Kind::Parquet.is_one(place) || shards::find(place, Kind::Tar).is_err() && shards::find(place, Kind::Parquet).is_ok();
        Some(if parquet { "parquet" } else { "webdataset" })
    } else if ilsvrc::is_here(place) {
        Some("ilsvrc")
    } else if cifar::is_here(place) {
        Some("cifar")
    } else if Kind::Tar.is_one(place) || shards::are_in(place, Kind::Tar) {
        Some("webdataset")
    } else if Kind::Parquet.is_one(place) || shards::are_in(place, Kind::Parquet) {
        Some("parquet")
    } else if place.is_file() && list::is_one(place) {
        Some("list")
    } else {
        None
    }
}

/// Whether data of this kind at a place is divided by itself, so that it needs no
/// `data.val_fraction`.
pub fn is_divided(kind: &str, place: &Path) -> bool {
    let names_say_it = |kind| shards::find(place, kind).is_ok_and(|found| found.iter().any(|(_, named)| named.is_some()));
    match kind {
        "list" => list::has_splits(place),
        "webdataset" => names_say_it(Kind::Tar),
        "parquet" => names_say_it(Kind::Parquet),
        _ => true,
    }
}

/// The `[data]` section of data of which only the place is known; `label` is the label column
/// of a CSV file. Data that is not divided by itself has a tenth of it validate.
pub fn section_of(place: &Path, label: &str) -> Result<toml::Table, DatasetError> {
    expanded(place)?;
    let idx = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("train-images");
    let (kind, divided) = if let Some(kind) = recognised(place) {
        (kind, is_divided(kind, place))
    } else if place.is_dir() {
        let entries = std::fs::read_dir(place).map_err(DatasetError::io(place))?;
        if entries.flatten().any(|e| idx(&e)) { ("idx", true) } else { ("images", Images::has_splits(place)) }
    } else if place.exists() {
        ("csv", true)
    } else {
        let what = "does not exist: give a folder, a CSV file, a tar, a Parquet file or a config";
        return Err(DatasetError::invalid(place, what.to_owned()));
    };
    let mut data = toml::Table::from_iter([("kind".to_owned(), kind.into()), ("path".to_owned(), place.display().to_string().into())]);
    if !divided {
        data.insert("val_fraction".to_owned(), 0.1.into());
    }
    if kind == "csv" {
        data.insert("label".to_owned(), label.into());
    }
    Ok(data)
}

/// Refuses a path with a `~` that the shell has left as it was, unless there is a
/// folder of that name.
fn expanded(path: &Path) -> Result<(), DatasetError> {
    let tilde = path.components().next().filter(|first| first.as_os_str().as_encoded_bytes().starts_with(b"~"));
    match tilde {
        Some(first) if !Path::new(&first).exists() => Err(DatasetError::invalid(
            path,
            format!(
                "does not exist: the shell has not expanded `{0}`, as it does at the beginning of a word only: write the whole path, or \"$HOME/...\"",
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
