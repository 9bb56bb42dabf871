//! Which files a set of shards consists of: a folder of them, one file, or a pattern with
//! braces, as shells and Python's webdataset expand it.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::source::{DatasetError, Split};
use super::split_names::Named;
use crate::objects;

/// The most files that a pattern may name.
const MAX_FILES: usize = 100_000;

/// Files in the order of their names, and what their names say of the split of each.
pub(super) type Shards = Vec<(PathBuf, Option<Named>)>;

/// What shards are, known by the ending of their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Tar,
    Parquet,
}

impl Kind {
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Tar => "tar",
            Self::Parquet => "parquet",
        }
    }

    /// Several of them, for messages.
    fn files(self) -> &'static str {
        match self {
            Self::Tar => "tars",
            Self::Parquet => "Parquet files",
        }
    }

    /// Endings of the same files as a whole compressed once more.
    fn zipped(self) -> &'static [&'static str] {
        match self {
            Self::Tar => &[".tar.gz", ".tgz"],
            Self::Parquet => &[".parquet.gz"],
        }
    }

    /// The folder below the one that is named in which the Hugging Face Hub has the files.
    fn inner(self) -> Option<&'static str> {
        match self {
            Self::Tar => None,
            Self::Parquet => Some("data"),
        }
    }

    pub(super) fn is_one(self, path: &Path) -> bool {
        path.extension().is_some_and(|e| e.eq_ignore_ascii_case(self.ending()))
    }
}

/// The files that a path or pattern names.
pub(super) fn find(place: &Path, kind: Kind) -> Result<Shards, DatasetError> {
    let bad = |problem: String| DatasetError::invalid(place, problem);
    if objects::is_address(place) {
        return in_store(place, kind);
    }
    if place.is_dir() {
        let inner = kind.inner().map(|name| place.join(name)).filter(|inner| !lie_in(place, kind) && lie_in(inner, kind));
        return in_folder(inner.as_deref().unwrap_or(place), kind);
    }
    if place.is_file() {
        return Ok(vec![(place.to_owned(), None)]);
    }
    let pattern = place.to_str().filter(|text| text.contains('{'));
    let Some(pattern) = pattern else {
        let hint = if place.as_os_str().as_bytes().contains(&b'*') { ": name the folder, or {000..146} for numbers" } else { "" };
        return Err(bad(format!("does not exist, and is no pattern such as shards/{{000..146}}.{} either{hint}", kind.ending())));
    };
    let paths: Vec<PathBuf> = expand(pattern).map_err(bad)?.into_iter().map(PathBuf::from).collect();
    let mut missing = paths.iter().filter(|path| !path.is_file());
    if let Some(first) = missing.next() {
        let lacking = 1 + missing.count();
        return Err(bad(format!(
            "names {} {}, and {lacking} of them are not there, the first is `{}`",
            paths.len(),
            kind.files(),
            first.display()
        )));
    }
    Ok(paths.into_iter().map(|path| (path, None)).collect())
}

/// Whether a place is a folder, or the beginning of the addresses of several objects.
pub(super) fn is_folder(place: &Path) -> bool {
    if objects::is_address(place) {
        ![Kind::Tar, Kind::Parquet].iter().any(|kind| kind.is_one(place)) && !place.as_os_str().as_bytes().contains(&b'{')
    } else {
        place.is_dir()
    }
}

/// The same in an object store.
fn in_store(place: &Path, kind: Kind) -> Result<Shards, DatasetError> {
    let bad = |problem: String| DatasetError::invalid(place, problem);
    let url = place.to_str().unwrap_or_default();
    if url.contains('{') {
        return Ok(expand(url).map_err(bad)?.into_iter().map(|url| (PathBuf::from(url), None)).collect());
    }
    if kind.is_one(place) {
        return Ok(vec![(place.to_owned(), None)]);
    }
    let mut shards = Vec::new();
    let found = objects::list(url)?;
    let inner = kind.inner().map(|name| format!("{name}/")).unwrap_or_default();
    for found in found {
        // The Hub's folder is not a split's.
        let key = found.strip_prefix(&inner).unwrap_or(&found);
        let named = match key.split_once('/') {
            None => Named::within(key),
            Some((folder, name)) => match Named::of(folder).filter(|_| !name.contains('/')) {
                Some(named) => Some(named),
                None => continue,
            },
        };
        let path = place.join(&found);
        if kind.is_one(&path) && !hidden(&path) {
            shards.push((path, named));
        }
    }
    if shards.is_empty() {
        return Err(bad(format!("holds no .{} files: data.path must name what shards lie under, or a pattern", kind.ending())));
    }
    Ok(shards)
}

/// All shards of a folder, and of its folders with the names of splits.
fn in_folder(folder: &Path, kind: Kind) -> Result<Shards, DatasetError> {
    let mut shards = Vec::new();
    let mut zipped = None;
    for entry in std::fs::read_dir(folder).map_err(DatasetError::io(folder))? {
        let path = entry.map_err(DatasetError::io(folder))?.path();
        if hidden(&path) {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if let Some(named) = Named::of(&name) {
                shards.extend(files(&path, kind)?.into_iter().map(|file| (file, Some(named))));
            }
        } else if kind.is_one(&path) {
            shards.push((path, Named::within(&name)));
        } else if kind.zipped().iter().any(|ending| name.ends_with(ending)) {
            zipped = Some(name);
        }
    }
    if let (Some(zipped), true) = (zipped, shards.is_empty()) {
        let problem = format!("holds `{zipped}`, and pictures are read in place: unpack it with gunzip, to a .{}", kind.ending());
        return Err(DatasetError::invalid(folder, problem));
    }
    if shards.is_empty() {
        return Err(DatasetError::invalid(
            folder,
            format!("holds no .{} files: data.path must name a folder with shards, or a pattern", kind.ending()),
        ));
    }
    shards.sort_by(|(a, _), (b, _)| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
    Ok(shards)
}

/// Whether a folder holds shards and nothing that looks like classes, itself or in the
/// folder where the Hub has them.
pub(super) fn are_in(folder: &Path, kind: Kind) -> bool {
    lie_in(folder, kind) || kind.inner().is_some_and(|inner| lie_in(&folder.join(inner), kind))
}

/// Whether a folder has no other folders than those of splits, with shards and no folders
/// in them.
fn lie_in(folder: &Path, kind: Kind) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    let visible = entries.flatten().map(|entry| entry.path()).filter(|path| !hidden(path));
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = visible.partition(|path| path.is_dir());
    let of_split = |path: &PathBuf| path.file_name().is_some_and(|name| Named::of(&name.to_string_lossy()).is_some()) && lie_in(path, kind);
    folders.iter().all(of_split) && (!folders.is_empty() || files.iter().any(|path| kind.is_one(path)))
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_bytes().starts_with(b"."))
}

fn files(folder: &Path, kind: Kind) -> Result<Vec<PathBuf>, DatasetError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(DatasetError::io(folder))? {
        let path = entry.map_err(DatasetError::io(folder))?.path();
        if kind.is_one(&path) && path.is_file() && !hidden(&path) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Divides shards by what their names say; none if they say nothing. Shards named as a
/// test set are left out beside a validation set.
pub(super) fn divide(place: &Path, shards: &Shards) -> Result<Option<Vec<(PathBuf, Split)>>, DatasetError> {
    if shards.iter().all(|(_, named)| named.is_none()) {
        return Ok(None);
    }
    let val_exists = shards.iter().any(|(_, named)| *named == Some(Named::Val));
    let (mut divided, mut left_out) = (Vec::new(), 0);
    for (path, named) in shards {
        let Some(named) = named else {
            let problem = format!(
                "holds shards named by their split, and `{}`, whose name says none: rename it, or name the shards with data.path and data.val_path",
                path.display()
            );
            return Err(DatasetError::invalid(place, problem));
        };
        match named.split(val_exists) {
            Some(split) => divided.push((path.clone(), split)),
            None => left_out += 1,
        }
    }
    if left_out > 0 {
        tracing::warn!("{left_out} shards of a test set in `{}` are left out, since there is a validation set", place.display());
    }
    Ok(Some(divided))
}

/// Replaces `{000..146}` and `{a,b}`; several in one pattern give every combination.
pub(super) fn expand(pattern: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = pattern.split_once('{') else { return Ok(vec![pattern.to_owned()]) };
    let (inner, after) = rest.split_once('}').ok_or("has a brace that is not closed")?;
    let choices: Vec<String> = match inner.split_once("..") {
        Some((from, to)) => numbers(from, to).ok_or_else(|| format!("has `{{{inner}}}`, which is no range such as {{000..146}}"))?,
        None if inner.contains(',') => inner.split(',').map(str::to_owned).collect(),
        None => return Err(format!("has `{{{inner}}}`, which is neither a range such as {{000..146}} nor a choice such as {{a,b}}")),
    };
    let ends = expand(after)?;
    if choices.len().saturating_mul(ends.len()) > MAX_FILES {
        return Err(format!("names more than {MAX_FILES} files"));
    }
    Ok(choices.iter().flat_map(|choice| ends.iter().map(move |end| format!("{before}{choice}{end}"))).collect())
}

/// A range with both ends, as wide as the wider of them if either begins with a zero.
fn numbers(from: &str, to: &str) -> Option<Vec<String>> {
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse::<usize>().ok()).flatten();
    let (first, last) = (digits(from)?, digits(to)?);
    let padded = [from, to].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { from.len().max(to.len()) } else { 0 };
    if first.abs_diff(last) >= MAX_FILES {
        return None;
    }
    let range: Vec<usize> = if first <= last { (first..=last).collect() } else { (last..=first).rev().collect() };
    Some(range.into_iter().map(|n| format!("{n:0width$}")).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_as_in_a_shell() {
        assert_eq!(expand("a.tar").unwrap(), ["a.tar"]);
        assert_eq!(expand("x/{008..011}.tar").unwrap(), ["x/008.tar", "x/009.tar", "x/010.tar", "x/011.tar"]);
        assert_eq!(expand("{9..11}").unwrap(), ["9", "10", "11"]);
        assert_eq!(expand("{2..0}").unwrap(), ["2", "1", "0"]);
        assert_eq!(expand("{a,b}-{0..1}").unwrap(), ["a-0", "a-1", "b-0", "b-1"]);
        for (wrong, word) in [
            ("{0..", "not closed"),
            ("{x}", "neither"),
            ("{}", "neither"),
            ("{a..b}", "no range"),
            ("{0..999999}", "no range"),
            ("{0..9999}{0..9999}", "more than"),
            ("{99999999999999999999999..1}", "no range"),
        ] {
            assert!(expand(wrong).unwrap_err().contains(word), "{wrong}");
        }
    }
}
