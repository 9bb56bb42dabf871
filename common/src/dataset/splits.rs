//! Which folders of a dataset are its splits, by their usual names in any case.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::passed_over::{PassedOver, Reason};
use super::pictures::{hidden, is_broken_link, is_named_as_picture, is_picture};
use super::source::DatasetError;
use super::split_names::Named;

/// Which split a folder of this name is.
fn role(name: &OsStr) -> Option<Named> {
    name.to_str().and_then(Named::of)
}

/// The folders of a dataset.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// A tree of class folders for each split; beside them is what was passed over.
    Splits { train: PathBuf, val: PathBuf, beside: PassedOver },
    /// One tree of class folders.
    Classes,
}

/// Whether a folder of `root` has the name of a split.
pub(super) fn has_splits(root: &Path) -> bool {
    std::fs::read_dir(root).is_ok_and(|entries| entries.flatten().any(|e| role(&e.file_name()).is_some() && e.path().is_dir()))
}

pub(super) fn training_folder(root: &Path) -> Option<PathBuf> {
    let mut found = children(root).ok()?.into_iter().filter(|path| path.file_name().and_then(role) == Some(Named::Train) && path.is_dir());
    found.next().filter(|_| found.next().is_none())
}

/// The layout of `root`. Errors where a folder with the name of a split does not have
/// the ones that belong to it beside it, and nothing else that could be a class.
pub(super) fn layout(root: &Path) -> Result<Layout, DatasetError> {
    let children = children(root)?;
    let role = |path: &Path| path.file_name().and_then(role);
    if let Some(gone) = children.iter().find(|path| role(path).is_some() && is_broken_link(path)) {
        return Err(DatasetError::invalid(gone, "is a link to a folder that is not there: mend it or remove it".to_owned()));
    }
    let folders: Vec<&PathBuf> = children.iter().filter(|path| path.is_dir()).collect();
    if folders.iter().all(|path| role(path).is_none()) {
        return Ok(Layout::Classes);
    }
    let one = |wanted: Named| {
        let found: Vec<&PathBuf> = folders.iter().copied().filter(|path| role(path) == Some(wanted)).collect();
        match found[..] {
            [first, second, ..] => Err(DatasetError::invalid(
                root,
                format!(
                    "has {} and {}, and both are names of its {} set: merge them, or move one of them elsewhere",
                    named(first),
                    named(second),
                    wanted.name()
                ),
            )),
            [found] => Ok(Some(found)),
            [] => Ok(None),
        }
    };
    let (train, val, test) = (one(Named::Train)?, one(Named::Val)?, one(Named::Test)?);
    let mut beside = PassedOver::default();
    let (train, val) = match (train, val, test) {
        (Some(train), Some(val), test) => {
            if let Some(test) = test {
                beside.add_folder(format!("{} is not used, because {} is the validation set", named(test), named(val)));
            }
            (train, val)
        }
        (Some(train), None, Some(test)) => (train, test),
        (Some(train), None, None) => {
            let train = named(train);
            return Err(DatasetError::invalid(
                root,
                format!("has {train} but no val/: add it, or set data.path to the folder {train} and data.val_fraction to, say, 0.1"),
            ));
        }
        (None, val, test) => {
            let lone = val.or(test).map_or_else(String::new, |path| named(path));
            return Err(DatasetError::invalid(
                root,
                format!(
                    "has {lone} but no train/: add it, or, to divide {lone}, set data.path to that folder and data.val_fraction to, say, 0.1"
                ),
            ));
        }
    };
    for path in &children {
        let relative = path.strip_prefix(root).unwrap_or(path);
        if path.is_dir() {
            if role(path).is_some() {
                continue;
            }
            if holds_pictures(path)? {
                return Err(DatasetError::invalid(
                    root,
                    format!(
                        "has {}, which holds pictures and has no split's name, beside {} and {}: move it into them if it is a class, or elsewhere",
                        named(path),
                        named(train),
                        named(val)
                    ),
                ));
            }
            beside.add_folder(format!("{} is not used, because it holds no pictures", named(path)));
        } else {
            beside.add(reason_beside(path), relative);
        }
    }
    Ok(Layout::Splits { train: train.clone(), val: val.clone(), beside })
}

/// What is in `folder` and not hidden, in the order of names.
pub(super) fn children(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DatasetError::io(folder))? {
        let path = entry.map_err(DatasetError::io(folder))?.path();
        if !hidden(&path) {
            found.push(path);
        }
    }
    found.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(found)
}

/// Why a file beside class folders, or beside splits, is no sample.
pub(super) fn reason_beside(path: &Path) -> Reason {
    match std::fs::metadata(path) {
        Err(_) if is_broken_link(path) => Reason::BrokenLink,
        Err(_) => Reason::Unreadable,
        Ok(about) if !about.is_file() => Reason::NoFile,
        Ok(about) if about.len() == 0 => Reason::Empty,
        Ok(_) => match is_picture(path) {
            Ok(true) => Reason::NoClass,
            Ok(false) => Reason::of_ending(path),
            Err(_) => Reason::Unreadable,
        },
    }
}

/// Goes by names alone: such a folder may hold a million annotations.
fn holds_pictures(folder: &Path) -> Result<bool, DatasetError> {
    for found in WalkDir::new(folder).follow_links(true).into_iter().filter_entry(|e| e.depth() == 0 || !hidden(e.path())) {
        match found {
            Ok(found) if found.file_type().is_file() && is_named_as_picture(found.path()) => return Ok(true),
            Err(e) if !e.path().is_some_and(is_broken_link) => return Err(DatasetError::walk(folder, e)),
            _ => {}
        }
    }
    Ok(false)
}

/// A folder's name, as messages show folders.
fn named(folder: &Path) -> String {
    format!("{}/", folder.file_name().unwrap_or_default().to_string_lossy())
}
