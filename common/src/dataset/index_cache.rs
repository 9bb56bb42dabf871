//! The lists of class-folder datasets, kept in the user's cache so that a large
//! set is listed once. A list is used again while every folder that it was made
//! from still has the modification time that it had: adding, removing or
//! renaming a file changes its folder's. What cannot be read is made anew.
//! Paths that are not Unicode are not kept.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::images::Entry;

const VERSION: u32 = 1;

/// A folder that changed this recently may change again without a new
/// modification time, whose clock ticks in milliseconds.
const SETTLED: Duration = Duration::from_secs(2);

/// The list of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub classes: Vec<String>,
    pub train: Vec<Entry>,
    pub val: Vec<Entry>,
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
}

/// The file of the cache that belongs to a dataset; none without a cache folder.
pub(super) fn key(root: &Path, val_fraction: Option<f64>, seed: u64) -> Option<PathBuf> {
    let root = root.canonicalize().ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(root.as_os_str().as_bytes())
        .update(format!("\0{val_fraction:?} {}", if val_fraction.is_some() { seed } else { 0 }).as_bytes());
    let folder = match std::env::var_os("XDG_CACHE_HOME") {
        Some(cache) if !cache.is_empty() => PathBuf::from(cache),
        _ => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    Some(folder.join("ringleader/index").join(hasher.finalize().to_hex().as_str()))
}

pub(super) fn load(key: &Option<PathBuf>, root: &Path) -> Option<Index> {
    let stored = parse(&std::fs::read(key.as_ref()?).ok()?)?;
    if stored.root != root.canonicalize().ok()? || stored.folders != folders(root)? {
        return None;
    }
    let entries = |list: Vec<(PathBuf, u32, u64)>| list.into_iter().map(|(path, label, bytes)| Entry { path, label, bytes }).collect();
    Some(Index { classes: stored.classes, train: entries(stored.train), val: entries(stored.val) })
}

/// What a file of the cache holds, if this version wrote it.
pub(crate) fn parse(text: &[u8]) -> Option<Stored> {
    let stored: Stored = serde_json::from_slice(text).ok()?;
    let labelled = |list: &[(PathBuf, u32, u64)]| list.iter().all(|(_, label, _)| (*label as usize) < stored.classes.len());
    (stored.version == VERSION && labelled(&stored.train) && labelled(&stored.val)).then_some(stored)
}

/// Keeps a list. A cache that cannot be written costs time, nothing else.
pub(super) fn store(key: &Option<PathBuf>, root: &Path, index: &Index) {
    let Some(path) = key else { return };
    if let Err(e) = try_store(path, root, index) {
        tracing::debug!("could not keep the index in `{}`: {e}", path.display());
    }
}

fn try_store(path: &Path, root: &Path, index: &Index) -> io::Result<()> {
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
    };
    let bytes = serde_json::to_vec(&stored)?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let temporary = path.with_extension(std::process::id().to_string());
    std::fs::write(&temporary, bytes)?;
    std::fs::rename(&temporary, path)
}

fn folders(root: &Path) -> Option<BTreeMap<PathBuf, u64>> {
    let mut times = BTreeMap::new();
    for entry in WalkDir::new(root).follow_links(true).into_iter().filter_entry(|e| e.file_type().is_dir()) {
        let entry = entry.ok()?;
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
        let index = Index { classes: vec!["a cat".to_owned()], train: vec![entry.clone()], val: vec![] };
        store(&key, &root, &index);
        assert_eq!(load(&key, &root), None, "its folders have just been made");

        [&root, &root.join("train"), &class].into_iter().for_each(|folder| age(folder, 100));
        store(&key, &root, &index);
        assert_eq!(load(&key, &root), Some(index.clone()));
        age(&class, 50);
        assert_eq!(load(&key, &root), None);

        for bad in [Index { classes: vec![], ..index.clone() }, Index { val: vec![Entry { label: 1, ..entry }], ..index }] {
            store(&key, &root, &bad);
            assert_eq!(load(&key, &root), None, "a label without a class");
        }
        std::fs::write(dir.path().join("cache/index"), "{").unwrap();
        assert_eq!(load(&key, &root), None);
        assert_eq!(load(&None, &root), None);
    }
}
