//! A list of pictures: a CSV or TSV file with the columns `path` and `label`, and
//! `split` or not. Labels are names of classes.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};

use csv::StringRecord;

use super::classes::{self, distinct, label_of};
use super::delimited::Delimited;
use super::images::Images;
use super::index_cache::{Entry, Index};
use super::passed_over::PassedOver;
use super::source::{DatasetError, IndexProgress, Split};
use super::split_names::Named;

/// How a list without a column `split` is divided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Division {
    /// This share of each class is for validation, chosen by this seed.
    Share(f64, u64),
    /// It is all for validation.
    AllForValidation,
    /// Not at all: it must have that column.
    None,
}

/// Pictures looked at between two progress reports.
const REPORT_EVERY: usize = 512;

/// Where a column of the list stands.
struct Places {
    path: usize,
    label: usize,
    split: Option<usize>,
}

/// Reads the list and looks for each picture. Relative paths are below `root`, which is
/// below the list's folder.
pub(super) fn open(path: &Path, root: Option<&Path>, division: Division, progress: &dyn Fn(IndexProgress)) -> Result<Images, DatasetError> {
    let rows = read(path)?;
    let bad = |problem: String| DatasetError::invalid(path, problem);
    let folder = path.parent().unwrap_or(Path::new(""));
    let root = root.map_or_else(|| folder.to_owned(), |root| folder.join(root));
    let classes = distinct(rows.iter().map(|row| row.label.as_str()));
    if classes.len() < 2 || classes.len() > classes::MAX_CLASSES {
        return Err(bad(format!("names {} classes, and 2 to {} are needed", classes.len(), classes::MAX_CLASSES)));
    }
    let splits = splits(&rows, &classes, division).map_err(bad)?;
    let (mut train, mut val) = (Vec::new(), Vec::new());
    let mut missing: Vec<(u32, PathBuf, std::io::Error)> = Vec::new();
    for (n, (row, split)) in rows.iter().zip(splits).enumerate() {
        if n.is_multiple_of(REPORT_EVERY) {
            progress(IndexProgress { files: n as u64 });
        }
        let file = root.join(&row.path);
        let bytes = match std::fs::metadata(&file) {
            Ok(found) if found.is_file() => found.len(),
            Ok(_) => {
                missing.push((row.line, file, std::io::Error::other("it is no file")));
                continue;
            }
            Err(e) => {
                missing.push((row.line, file, e));
                continue;
            }
        };
        let file = Entry { path: PathBuf::from(&row.path), label: label_of(&classes, &row.label), bytes };
        match split {
            Some(Split::Train) => train.push(file),
            Some(Split::Val) => val.push(file),
            None => {}
        }
    }
    if let Some((line, file, error)) = missing.first() {
        let more = match missing.len() - 1 {
            0 => String::new(),
            n => format!(", and {n} more are missing"),
        };
        let problem = format!("names `{}` in line {line}, which cannot be read ({error}){more}", file.display());
        return Err(bad(format!("{problem}: paths are relative to the list's folder, or to data.root")));
    }
    Images::listed(path, &root, Index { classes, train, val, passed_over: PassedOver::default() }, progress)
}

/// Whether a file has the header of a list.
pub(super) fn is_one(path: &Path) -> bool {
    header(path).is_some_and(|header| places(&header, false).is_ok())
}

/// Whether a list says by itself what is for validation.
pub(super) fn has_splits(path: &Path) -> bool {
    header(path).is_some_and(|header| header.iter().any(|name| name == "split"))
}

fn header(path: &Path) -> Option<StringRecord> {
    Some(Delimited::open(path, delimiter(path)).ok()?.header().clone())
}

fn delimiter(path: &Path) -> u8 {
    if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tsv")) { b'\t' } else { b',' }
}

/// A row of the list.
struct Row {
    path: String,
    label: String,
    split: Option<Named>,
    line: u32,
}

fn read(path: &Path) -> Result<Vec<Row>, DatasetError> {
    let delimiter = delimiter(path);
    let mut file = Delimited::open(path, delimiter)?;
    file.refuse_twins(|name| matches!(name, "path" | "label" | "split"))?;
    let places = places(file.header(), delimiter == b'\t').map_err(|problem| file.invalid(problem))?;
    let mut rows = Vec::new();
    // Of each path, the row that names it first.
    let mut seen: HashMap<PathBuf, usize> = HashMap::new();
    let mut record = StringRecord::new();
    while let Some(line) = file.next(&mut record)? {
        let value = |at: usize| record.get(at).unwrap_or_default().to_owned();
        let row = Row { path: value(places.path), label: value(places.label), split: None, line };
        for (what, text) in [("path", &row.path), ("label", &row.label)] {
            if text.is_empty() {
                return Err(file.invalid(format!("has no {what} in line {line}: fill it in or leave the row out")));
            }
        }
        let split = match places.split.map(value) {
            None => None,
            Some(text) => Some(Named::of(&text).ok_or_else(|| {
                file.invalid(format!(
                    "has the split `{text}` in line {line}: train or training, val, valid, validation or test are known, in any case"
                ))
            })?),
        };
        let plain = Path::new(&row.path).components().filter(|part| *part != Component::CurDir).collect();
        if let Some(first) = seen.insert(plain, rows.len()) {
            let first: &Row = &rows[first];
            let lines = format!("names `{}` in lines {} and {line}", row.path, first.line);
            if first.label != row.label {
                return Err(
                    file.invalid(format!("{lines}, with the labels `{}` and `{}`: one picture has one label", first.label, row.label))
                );
            }
            if first.split != split || split.is_none() {
                return Err(file.invalid(format!("{lines}: a picture that is trained on must not validate")));
            }
        }
        rows.push(Row { split, ..row });
    }
    if rows.is_empty() {
        return Err(file.invalid("has a header and no rows".to_owned()));
    }
    Ok(rows)
}

fn places(header: &StringRecord, tabs: bool) -> Result<Places, String> {
    let at = |name: &str| header.iter().position(|h| h == name);
    let needed = |name: &str| {
        at(name).ok_or_else(|| {
            let names: Vec<String> = header.iter().map(|name| format!("`{name}`")).collect();
            let separator = if tabs { "tabs, since it is a .tsv" } else { "commas; a .tsv has tabs" };
            format!("has no column `{name}`, and a list of pictures has `path`, `label` and perhaps `split`, separated by {separator}; its columns are {}", names.join(", "))
        })
    };
    Ok(Places { path: needed("path")?, label: needed("label")?, split: at("split") })
}

/// The split of each row; none for a row that is left out.
fn splits(rows: &[Row], classes: &[String], division: Division) -> Result<Vec<Option<Split>>, String> {
    let said: Option<Vec<Named>> = rows.iter().map(|row| row.split).collect();
    match (said, division) {
        (None, Division::AllForValidation) => Ok(vec![Some(Split::Val); rows.len()]),
        (Some(_), Division::Share(..)) => {
            Err("has a column `split`, which data.val_fraction would contradict: leave one of the two out".to_owned())
        }
        (None, Division::None) => {
            Err("has no column `split`: add it, or set data.val_fraction to, say, 0.1 to divide the pictures".to_owned())
        }
        (None, Division::Share(share, seed)) => {
            let labels: Vec<u32> = rows.iter().map(|row| label_of(classes, &row.label)).collect();
            let chosen = classes::validation(&labels, classes.len(), share, seed).map_err(|class| {
                format!("has a single picture of the class `{}`: it needs at least two, one to train and one to validate", classes[class])
            })?;
            Ok(chosen.into_iter().map(|val| Some(if val { Split::Val } else { Split::Train })).collect())
        }
        (Some(said), Division::None | Division::AllForValidation) => {
            let val_exists = said.contains(&Named::Val);
            let splits: Vec<Option<Split>> = said.iter().map(|named| named.split(val_exists)).collect();
            for split in [Split::Train, Split::Val] {
                if !splits.contains(&Some(split)) && matches!(division, Division::None) {
                    return Err(format!("has no {split} pictures in its column `split`"));
                }
            }
            let left_out = splits.iter().filter(|split| split.is_none()).count();
            if left_out > 0 {
                tracing::warn!("{left_out} pictures of the split `test` are left out, since there is a validation set");
            }
            Ok(splits)
        }
    }
}
