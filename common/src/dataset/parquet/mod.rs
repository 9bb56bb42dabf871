//! Parquet files of pictures, as the Hugging Face Hub has them: a row holds a picture file,
//! as bytes or as `{bytes, path}`, and its label. Rows are read at random: an index has the
//! page of each, and a reading decompresses that page and nothing else
//! (<https://parquet.apache.org/docs/file-format/>).

mod cache;
mod chunk;
mod columns;
mod footer;
mod header;
mod index;
mod pages;
mod pictures;
mod scan;
#[cfg(test)]
mod tests;

use std::path::Path;

use super::data_file::DataFile;
use super::division::{self, Division};
use super::kept_index;
use super::shards::Kind;
use super::source::{DatasetError, IndexProgress};
pub(super) use columns::Named;
pub(super) use pictures::ParquetPictures;

/// Indexes the files at `place`, or takes their index from the user's cache.
pub(super) fn open(
    place: &Path,
    named: Named,
    division: Division,
    progress: &dyn Fn(IndexProgress),
) -> Result<ParquetPictures, DatasetError> {
    let (files, splits) = division::files(place, Kind::Parquet, division)?;
    let files = DataFile::open_all(&files)?;
    let kind = format!("parquet {named:?}");
    let index = kept_index::of(&kind, &files, || scan::scan(&files, named, progress))?;
    if index.rows.is_empty() {
        let found = index.left_out.instead_of_samples();
        return Err(DatasetError::invalid(place, format!("holds no row with a picture and a label: {found}")));
    }
    let classes = match &index.classes {
        Some(classes) => classes.clone(),
        None => {
            let needed = index.rows.iter().map(|row| row.label as usize + 1).max().unwrap_or_default();
            division::class_names(place, needed)?
        }
    };
    let samples = index.rows.iter().map(|row| (index.chunk_of(row.page).file, row.label));
    let (train, val) = division::divide(place, splits.as_deref(), division, &classes, samples)?;
    Ok(ParquetPictures::new(files, classes, index, train, val))
}
