//! The lists of large class-folder datasets, kept in the user's cache so that such a set
//! is listed once; small ones are listed whenever they are opened. A list is reused while every folder from which it was made still has
//! the same modification time: adding, removing or renaming a file changes that of its
//! folder. A list that cannot be read is made anew. What may change without its folder
//! is not kept: lists with empty, unreadable or missing files. Nor are paths that are not
//! Unicode.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::passed_over::PassedOver;
use super::pictures::{hidden, is_broken_link};
use crate::files::cache_folder;

const VERSION: u32 = 2;

/// A folder, or a file, that changed this recently may change again without a new
/// modification time, whose clock ticks in milliseconds.
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// One picture file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the dataset's root.
    pub path: PathBuf,
    pub label: u32,
    pub bytes: u64,
}

/// The list of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub classes: Vec<String>,
    pub train: Vec<Entry>,
    pub val: Vec<Entry>,
    /// What lies between them and is no sample.
    pub passed_over: PassedOver,
}

/// A file of the cache.
#[derive(Serialize, Deserialize)]
pub(crate) struct Stored {
    version: u32,
    root: PathBuf,
    /// Modification times of all folders, in nanoseconds.
    folders: BTreeMap<PathBuf, u64>,
    classes: Vec<String>,
    train: Vec<(PathBuf, u32, u64)>,
    val: Vec<(PathBuf, u32, u64)>,
    passed_over: PassedOver,
}

/// The cache file of a dataset; none without a cache folder.
pub(super) fn key(root: &Path, val_fraction: Option<f64>, seed: u64) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(root.as_os_str().as_bytes())
        .update(format!("\0{val_fraction:?} {}", if val_fraction.is_some() { seed } else { 0 }).as_bytes());
    let folder = cache_folder()?;
    Some(folder.join("ringleader/index").join(hasher.finalize().to_hex().as_str()))
}

pub(super) fn load(key: &Option<PathBuf>, root: &Path) -> Option<Index> {
    let stored = parse(&std::fs::read(key.as_ref()?).ok()?)?;
    if stored.root != root.canonicalize().ok()? || stored.folders != folders(root)? {
        return None;
    }
    let entries = |list: Vec<(PathBuf, u32, u64)>| list.into_iter().map(|(path, label, bytes)| Entry { path, label, bytes }).collect();
    Some(Index { classes: stored.classes, train: entries(stored.train), val: entries(stored.val), passed_over: stored.passed_over })
}

/// The content of a cache file, if this version wrote it.
pub(crate) fn parse(text: &[u8]) -> Option<Stored> {
    let stored: Stored = serde_json::from_slice(text).ok()?;
    let labelled = |list: &[(PathBuf, u32, u64)]| list.iter().all(|(_, label, _)| (*label as usize) < stored.classes.len());
    (stored.version == VERSION && labelled(&stored.train) && labelled(&stored.val)).then_some(stored)
}

/// Stores a list. A cache that cannot be written costs time, nothing else.
pub(super) fn store(key: &Option<PathBuf>, root: &Path, index: &Index) {
    let Some(path) = key else { return };
    if let Err(e) = try_store(path, root, index) {
        tracing::debug!("could not keep the index in `{}`: {e}", path.display());
    }
}

fn try_store(path: &Path, root: &Path, index: &Index) -> io::Result<()> {
    if index.passed_over.may_mend() {
        return Err(io::Error::other("a file that is empty, unreadable or a broken link may be mended"));
    }
    let folders = folders(root).ok_or_else(|| io::Error::other("a folder cannot be read"))?;
    let settled = SystemTime::now() - SETTLED;
    if folders.values().any(|&nanoseconds| UNIX_EPOCH + Duration::from_nanos(nanoseconds) > settled) {
        return Err(io::Error::other("a folder has just changed"));
    }
    let list = |entries: &[Entry]| entries.iter().map(|e| (e.path.clone(), e.label, e.bytes)).collect();
    let stored = Stored {
        version: VERSION,
        root: root.canonicalize()?,
        folders,
        classes: index.classes.clone(),
        train: list(&index.train),
        val: list(&index.val),
        passed_over: index.passed_over.clone(),
    };
    replace(path, &serde_json::to_vec(&stored)?)
}

/// Replaces a file of the cache.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("the cache has no folder"))?;
    std::fs::create_dir_all(folder)?;
    // A unique name: in containers, several processes may have the same id and share
    // this folder.
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    temporary.write_all(bytes)?;
    temporary.persist(path)?;
    Ok(())
}

/// Has the dataset listed anew when it is opened next.
pub(super) fn forget(key: &Option<PathBuf>) {
    if let Some(path) = key {
        // There may be none; one that cannot be removed is as old as it was.
        let _ = std::fs::remove_file(path);
    }
}

fn folders(root: &Path) -> Option<BTreeMap<PathBuf, u64>> {
    let mut times = BTreeMap::new();
    let visible = |e: &walkdir::DirEntry| e.file_type().is_dir() && (e.depth() == 0 || !hidden(e.path()));
    for entry in WalkDir::new(root).follow_links(true).into_iter().filter_entry(visible) {
        let entry = match entry {
            Ok(entry) => entry,
            // In a folder that is not used; elsewhere there is no list to keep.
            Err(e) if e.path().is_some_and(is_broken_link) => continue,
            Err(_) => return None,
        };
        let modified = entry.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let path = entry.path().strip_prefix(root).ok()?;
        times.insert(path.to_owned(), modified.as_nanos() as u64);
    }
    Some(times)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::dataset::passed_over::Reason;

    /// Makes a folder look as if it had last changed at this time.
    fn age(folder: &Path, seconds: u64) {
        std::fs::File::open(folder).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn a_list_is_kept_until_a_folder_changes_or_the_file_is_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let (root, key) = (dir.path().join("data"), Some(dir.path().join("cache/index")));
        let class = root.join("train/a cat");
        std::fs::create_dir_all(&class).unwrap();
        let entry = Entry { path: "train/a cat/1.png".into(), label: 0, bytes: 10 };
        let mut index =
            Index { classes: vec!["a cat".to_owned()], train: vec![entry.clone()], val: vec![], passed_over: PassedOver::default() };
        index.passed_over.add(Reason::NoEnding, Path::new("train/a cat/notes"));
        store(&key, &root, &index);
        assert_eq!(load(&key, &root), None, "its folders have just been made");

        [&root, &root.join("train"), &class].into_iter().for_each(|folder| age(folder, 100));
        store(&key, &root, &index);
        assert_eq!(load(&key, &root), Some(index.clone()));
        age(&class, 50);
        assert_eq!(load(&key, &root), None);
        // A broken link may become whole at any time, and its folder does not say so.
        for (reason, kept) in [(Reason::NoFile, true), (Reason::BrokenLink, false), (Reason::Empty, false), (Reason::Unreadable, false)] {
            std::fs::remove_file(dir.path().join("cache/index")).unwrap();
            let mut other = index.clone();
            other.passed_over.add(reason, Path::new("train/a cat/2.png"));
            store(&key, &root, &other);
            assert_eq!(load(&key, &root), kept.then_some(other.clone()), "{other:?}");
            store(&key, &root, &index);
        }

        for bad in [Index { classes: vec![], ..index.clone() }, Index { val: vec![Entry { label: 1, ..entry }], ..index }] {
            store(&key, &root, &bad);
            assert_eq!(load(&key, &root), None, "a label without a class");
        }
        std::fs::write(dir.path().join("cache/index"), "{").unwrap();
        assert_eq!(load(&key, &root), None);
        assert_eq!(load(&None, &root), None);
    }
}
