//! How the samples of a set of large files, such as tar shards, are divided into training
//! and validation, and what their classes are called.

use std::path::{Path, PathBuf};

use super::classes;
use super::shards::{self, Kind, Shards};
use super::source::{DatasetError, Split};

/// How shards whose names say no split are divided.
#[derive(Debug, Clone, Copy)]
pub(super) enum Division<'a> {
    /// This share of each class is for validation, chosen by this seed.
    Share(f64, u64),
    /// These shards are for validation.
    Shards(&'a Path),
    /// Everything is for validation.
    AllForValidation,
    /// Not at all: their names must say.
    None,
}

impl<'a> Division<'a> {
    /// By the keys of a config.
    pub(super) fn of(val_path: Option<&'a Path>, val_fraction: Option<f64>, seed: u64) -> Self {
        match (val_path, val_fraction) {
            (Some(val), _) => Self::Shards(val),
            (None, Some(share)) => Self::Share(share, seed),
            (None, None) => Self::None,
        }
    }
}

/// All shards, and the split of each where that is known before they are read.
pub(super) fn files(place: &Path, kind: Kind, division: Division) -> Result<(Vec<PathBuf>, Option<Vec<Split>>), DatasetError> {
    let bad = |problem: String| DatasetError::invalid(place, problem);
    let found = shards::find(place, kind)?;
    let paths = |shards: Shards| shards.into_iter().map(|(path, _)| path);
    let divided = match division {
        Division::Shards(val) => {
            let val = shards::find(val, kind)?;
            let (train, val) = (paths(found).map(|path| (path, Split::Train)), paths(val).map(|path| (path, Split::Val)));
            Some(train.chain(val).collect::<Vec<_>>())
        }
        Division::Share(..) | Division::AllForValidation | Division::None => match (shards::divide(place, &found)?, division) {
            (Some(_), Division::Share(..)) => {
                return Err(bad("has shards named by their split, which data.val_fraction would contradict: leave it out".to_owned()));
            }
            (None, Division::None) => {
                return Err(bad(format!(
                    "has no shards named by their split (train-000.{0}, val-000.{0}, or folders train/ and val/): \
                     name those for validation with data.val_path, or set data.val_fraction to, say, 0.1",
                    kind.ending()
                )));
            }
            (None, _) => return Ok((paths(found).collect(), None)),
            (Some(divided), _) => Some(divided),
        },
    };
    let divided = divided.unwrap_or_default();
    let mut seen = std::collections::HashSet::new();
    if let Some((twice, _)) = divided.iter().find(|(path, _)| !seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone()))) {
        return Err(bad(format!("names `{}` twice: a picture that is trained on must not validate", twice.display())));
    }
    let (files, splits) = divided.into_iter().unzip();
    Ok((files, Some(splits)))
}

/// The samples for training and those for validation. `samples` has the file and the label
/// of each.
pub(super) fn divide(
    place: &Path,
    splits: Option<&[Split]>,
    division: Division,
    classes: &[String],
    samples: impl Iterator<Item = (u32, u32)>,
) -> Result<(Vec<u32>, Vec<u32>), DatasetError> {
    let bad = |problem: String| DatasetError::invalid(place, problem);
    let (files, labels): (Vec<u32>, Vec<u32>) = samples.unzip();
    let all = 0..labels.len() as u32;
    let (train, val) = match (splits, division) {
        (Some(splits), _) => all.partition(|n| splits[files[*n as usize] as usize] == Split::Train),
        (None, Division::Share(share, seed)) => {
            let chosen = classes::validation(&labels, classes.len(), share, seed).map_err(|class| {
                bad(format!(
                    "has a single picture of the class `{}`: it needs at least two, one to train and one to validate",
                    classes[class]
                ))
            })?;
            all.partition(|n| !chosen[*n as usize])
        }
        (None, Division::Shards(_) | Division::AllForValidation | Division::None) => (Vec::new(), all.collect()),
    };
    for (split, numbers) in [(Split::Train, &train), (Split::Val, &val)] {
        if numbers.is_empty() && !matches!(division, Division::AllForValidation) {
            return Err(bad(format!("holds no {split} sample with a picture and a class")));
        }
    }
    Ok((train, val))
}

/// From `classes.txt` or `labels.txt` beside the shards; without either, numbers. `needed`
/// is how many classes there are at least.
pub(super) fn class_names(place: &Path, needed: usize) -> Result<Vec<String>, DatasetError> {
    let folder = if shards::is_folder(place) { place } else { place.parent().unwrap_or(Path::new("")) };
    for name in ["classes.txt", "labels.txt"] {
        let path = folder.join(name);
        match classes::named_in(&path)? {
            Some(names) if names.len() < needed => {
                let problem = format!("names {} classes, and the shards have the class {}", names.len(), needed - 1);
                return Err(DatasetError::invalid(&path, problem));
            }
            Some(names) => return Ok(names),
            None => {}
        }
    }
    Ok((0..needed.max(2)).map(|n| n.to_string()).collect())
}
