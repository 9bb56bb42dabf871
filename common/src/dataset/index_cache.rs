//! The lists of class-folder datasets, kept in the user's cache so that a large
//! set is listed once. A list is used again while every folder that it was made
//! from still has the modification time that it had: adding, removing or
//! renaming a file changes its folder's. What cannot be read is made anew.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

use super::images::Entry;

const VERSION: u32 = 1;

/// The list of a dataset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub classes: Vec<String>,
    pub train: Vec<Entry>,
    pub val: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    root: PathBuf,
    /// Modification times of all folders, in nanoseconds.
    folders: BTreeMap<Vec<u8>, u64>,
    classes: Vec<String>,
    train: Vec<(Vec<u8>, u32, u64)>,
    val: Vec<(Vec<u8>, u32, u64)>,
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
    let text = std::fs::read(key.as_ref()?).ok()?;
    let stored: Stored = serde_json::from_slice(&text).ok()?;
    if stored.version != VERSION || stored.root != root.canonicalize().ok()? || stored.folders != folders(root)? {
        return None;
    }
    let entries = |list: Vec<(Vec<u8>, u32, u64)>| {
        list.into_iter().map(|(path, label, bytes)| Entry { path: PathBuf::from(OsString::from_vec(path)), label, bytes }).collect()
    };
    Some(Index { classes: stored.classes, train: entries(stored.train), val: entries(stored.val) })
}

/// Keeps a list. A cache that cannot be written costs time, nothing else.
pub(super) fn store(key: &Option<PathBuf>, root: &Path, index: &Index) {
    let Some(path) = key else { return };
    let attempt = || -> Option<std::io::Result<()>> {
        let list = |entries: &[Entry]| entries.iter().map(|e| (e.path.as_os_str().as_bytes().to_vec(), e.label, e.bytes)).collect();
        let stored = Stored {
            version: VERSION,
            root: root.canonicalize().ok()?,
            folders: folders(root)?,
            classes: index.classes.clone(),
            train: list(&index.train),
            val: list(&index.val),
        };
        let bytes = serde_json::to_vec(&stored).ok()?;
        let temporary = path.with_extension(std::process::id().to_string());
        Some(
            std::fs::create_dir_all(path.parent()?)
                .and_then(|()| std::fs::write(&temporary, bytes))
                .and_then(|()| std::fs::rename(&temporary, path)),
        )
    };
    if let Some(Err(e)) = attempt() {
        tracing::debug!("could not keep the index in `{}`: {e}", path.display());
    }
}

fn folders(root: &Path) -> Option<BTreeMap<Vec<u8>, u64>> {
    let mut times = BTreeMap::new();
    for entry in WalkDir::new(root).follow_links(true).into_iter().filter_entry(|e| e.file_type().is_dir()) {
        let entry = entry.ok()?;
        let modified = entry.metadata().ok()?.modified().ok()?.duration_since(UNIX_EPOCH).ok()?;
        let path = entry.path().strip_prefix(root).ok()?;
        times.insert(path.as_os_str().as_bytes().to_vec(), modified.as_nanos() as u64);
    }
    Some(times)
}
