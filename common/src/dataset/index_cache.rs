//! The lists of large class-folder datasets, kept in the user's cache so that such a set
//! is listed once; small ones are listed whenever they are opened. A list is used again while
//! every folder of the dataset still has the same modification time: adding, removing or
//! renaming a file or a folder changes that of the folder in which it lies. A list that cannot
//! be read is made anew. What may change without its folder is not kept: lists with empty,
//! unreadable or missing files. Nor are paths that are not Unicode.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::with::AsString;
use rkyv::{Archive, Deserialize, Serialize};
use walkdir::WalkDir;

use super::in_parallel;
use super::passed_over::PassedOver;
use super::pictures::{hidden, is_broken_link};
use crate::files::cache_folder;

const VERSION: u32 = 3;

/// A folder, or a file, that changed this recently may change again without a new
/// modification time, whose clock ticks in milliseconds.
pub(super) const SETTLED: Duration = Duration::from_secs(2);

/// One picture file.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Relative to the dataset's root.
    #[rkyv(with = AsString)]
    pub path: PathBuf,
    pub label: u32,
    pub bytes: u64,
}

/// The list of a dataset.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Index {
    pub classes: Vec<String>,
    pub train: Vec<Entry>,
    pub val: Vec<Entry>,
    /// What lies between them and is no sample.
    pub passed_over: PassedOver,
}

/// A file of the cache.
#[derive(Archive, Serialize, Deserialize)]
pub(crate) struct Stored {
    version: u32,
    #[rkyv(with = AsString)]
    root: PathBuf,
    folders: Vec<Folder>,
    index: Index,
}

/// A folder of the dataset.
#[derive(Archive, Serialize, Deserialize)]
struct Folder {
    /// Relative to the root.
    #[rkyv(with = AsString)]
    path: PathBuf,
    /// Nanoseconds since 1970.
    modified: u64,
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
    let mut bytes = AlignedVec::<16>::new();
    bytes.extend_from_reader(&mut File::open(key.as_ref()?).ok()?).ok()?;
    let stored = parse(&bytes)?;
    let unchanged = |folder: &Folder| modified(&root.join(&folder.path)).is_ok_and(|modified| modified == folder.modified);
    (stored.root == root.canonicalize().ok()? && stored.folders.iter().all(unchanged)).then_some(stored.index)
}

/// The content of a cache file, if this version wrote it.
pub(crate) fn parse(bytes: &[u8]) -> Option<Stored> {
    let stored = rkyv::from_bytes::<Stored, rancor::Error>(bytes).ok()?;
    let Index { classes, train, val, .. } = &stored.index;
    let labelled = train.iter().chain(val).all(|entry| (entry.label as usize) < classes.len());
    (stored.version == VERSION && labelled).then_some(stored)
}

/// Stores a list that was begun at this time, and gives it back. A cache that cannot be written
/// costs time, nothing else.
pub(super) fn store(key: &Option<PathBuf>, root: &Path, index: Index, began: SystemTime) -> Index {
    let Some(path) = key else { return index };
    let (root, folders) = match what_to_keep(root, &index, began) {
        Ok(kept) => kept,
        Err(e) => {
            not_kept(path, &e);
            return index;
        }
    };
    let stored = Stored { version: VERSION, root, folders, index };
    let bytes = rkyv::to_bytes::<rancor::Error>(&stored).map_err(io::Error::other);
    if let Err(e) = bytes.and_then(|bytes| replace(path, &bytes)) {
        not_kept(path, &e);
    }
    stored.index
}

fn not_kept(path: &Path, e: &io::Error) {
    tracing::debug!("could not keep the index in `{}`: {e}", path.display());
}

/// The root and all folders of a list that may be kept.
fn what_to_keep(root: &Path, index: &Index, began: SystemTime) -> io::Result<(PathBuf, Vec<Folder>)> {
    if index.passed_over.may_mend() {
        return Err(io::Error::other("a file that is empty, unreadable or a broken link may be mended"));
    }
    let folders = folders(root)?;
    // A folder that changed while it was listed, or just before, may hold what the list lacks.
    let settled = began - SETTLED;
    if folders.iter().any(|folder| UNIX_EPOCH + Duration::from_nanos(folder.modified) > settled) {
        return Err(io::Error::other("a folder has just changed"));
    }
    Ok((root.canonicalize()?, folders))
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

/// All folders from `root` down that are not hidden, relative to it, and when each was modified.
fn folders(root: &Path) -> io::Result<Vec<Folder>> {
    let all = |folders: &[PathBuf], work: fn(&Path) -> io::Result<Vec<PathBuf>>| -> io::Result<Vec<PathBuf>> {
        let found = in_parallel::each(in_parallel::all_threads(), folders, &|| {}, |_, folder| work(folder))?;
        Ok(found.into_iter().flatten().collect())
    };
    // Class folders are the children, or below folders of splits the grandchildren.
    let children = folders_in(root)?;
    let below = all(&all(&children, folders_in)?, folders_from)?;
    let timed = |folder: PathBuf| {
        let path = folder.strip_prefix(root).map_err(io::Error::other)?.to_owned();
        Ok(Folder { path, modified: modified(&folder)? })
    };
    [root.to_owned()].into_iter().chain(children).chain(below).map(timed).collect()
}

/// The folders in one.
fn folders_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    folders_within(WalkDir::new(folder).min_depth(1).max_depth(1))
}

/// A folder and all below it.
fn folders_from(folder: &Path) -> io::Result<Vec<PathBuf>> {
    folders_within(WalkDir::new(folder))
}

fn folders_within(walk: WalkDir) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let visible = |e: &walkdir::DirEntry| e.file_type().is_dir() && (e.depth() == 0 || !hidden(e.path()));
    for entry in walk.follow_links(true).into_iter().filter_entry(visible) {
        match entry {
            Ok(entry) => found.push(entry.into_path()),
            // In a folder that is not used; elsewhere there is no list to keep.
            Err(e) if e.path().is_some_and(is_broken_link) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(found)
}

/// Nanoseconds since 1970.
fn modified(folder: &Path) -> io::Result<u64> {
    let time = std::fs::metadata(folder)?.modified()?;
    Ok(time.duration_since(UNIX_EPOCH).map_err(io::Error::other)?.as_nanos() as u64)
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
        store(&key, &root, index.clone(), SystemTime::now());
        assert_eq!(load(&key, &root), None, "its folders have just been made");

        [&root, &root.join("train"), &class].into_iter().for_each(|folder| age(folder, 100));
        store(&key, &root, index.clone(), SystemTime::now());
        assert_eq!(load(&key, &root), Some(index.clone()));
        age(&class, 50);
        assert_eq!(load(&key, &root), None);
        let before_that = SystemTime::now() - Duration::from_secs(60);
        store(&key, &root, index.clone(), before_that);
        assert_eq!(load(&key, &root), None, "a folder changed while the list was made");
        // A broken link may become whole at any time, and its folder does not say so.
        for (reason, kept) in [(Reason::NoFile, true), (Reason::BrokenLink, false), (Reason::Empty, false), (Reason::Unreadable, false)] {
            std::fs::remove_file(dir.path().join("cache/index")).unwrap();
            let mut other = index.clone();
            other.passed_over.add(reason, Path::new("train/a cat/2.png"));
            store(&key, &root, other.clone(), SystemTime::now());
            assert_eq!(load(&key, &root), kept.then_some(other.clone()), "{other:?}");
            store(&key, &root, index.clone(), SystemTime::now());
        }

        for bad in [Index { classes: vec![], ..index.clone() }, Index { val: vec![Entry { label: 1, ..entry }], ..index }] {
            store(&key, &root, bad, SystemTime::now());
            assert_eq!(load(&key, &root), None, "a label without a class");
        }
        std::fs::write(dir.path().join("cache/index"), "{").unwrap();
        assert_eq!(load(&key, &root), None);
        assert_eq!(load(&None, &root), None);
    }
}
