//! One digest over the bytes of all files of a dataset, in order. It takes as long as
//! reading them, so what a class's files digest to is kept in the user's cache, under what
//! the file system says of each: path, size, inode, and the times in nanoseconds at which
//! it was modified and changed. No program can set the last one, so that a file which is
//! mended or swapped in place is read again, whatever its size and its date.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::in_parallel;
use super::index_cache::{Entry, Index, SETTLED, replace};
use super::source::DatasetError;
use crate::digest::Digest;

const VERSION: u32 = 1;

/// Files of whole classes that are looked at together: enough to keep all threads busy.
const AT_ONCE: usize = 4096;

/// What is known is stored this often while a large set is read.
const STORE_EVERY: Duration = Duration::from_secs(60);

/// How large a dataset may be whose contents are read when it is opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub files: usize,
    pub bytes: u64,
}

impl Bound {
    /// Reading this much once takes a second from memory, and 15 from a disk that turns;
    /// asking the file system about so many files, which every later start does, takes half
    /// a second.
    pub(super) const AT_OPENING: Self = Self { files: 100_000, bytes: 2 << 30 };

    pub(super) fn holds(self, index: &Index) -> bool {
        let entries = || index.train.iter().chain(&index.val);
        entries().count() <= self.files && entries().map(|e| e.bytes).sum::<u64>() <= self.bytes
    }
}

/// How to read.
pub(super) struct Reading<'a> {
    pub root: &'a Path,
    /// The file that keeps what is known.
    pub cache: Option<PathBuf>,
    pub threads: usize,
    /// Called with the number of files read so far.
    pub report: &'a dyn Fn(u64),
    /// Asked before each file.
    pub go_on: &'a (dyn Fn() -> bool + Sync),
}

impl Reading<'_> {
    /// The digest of all contents; none if it was told to stop. Errors name a file that
    /// cannot be read or no longer has its size.
    pub(super) fn digest(&self, index: &Index) -> Result<Option<Digest>, DatasetError> {
        let classes = |entries| <[Entry]>::chunk_by(entries, |a, b| a.label == b.label);
        let groups: Vec<&[Entry]> = classes(&index.train).chain(classes(&index.val)).collect();
        let mut known = Known::load(self.cache.as_deref());
        let (mut contents, mut read) = (blake3::Hasher::new(), 0);
        for groups in batches(&groups) {
            match self.batch(groups, &mut known, &mut read) {
                Ok(Some(digests)) => digests.iter().for_each(|digest| _ = contents.update(digest.to_string().as_bytes())),
                other => {
                    known.store();
                    return other.map(|_| None);
                }
            }
            if known.stored.elapsed() > STORE_EVERY {
                known.store();
            }
        }
        known.forget_others();
        known.store();
        Ok(Some(contents.finalize().into()))
    }

    /// The digest of each group, read or known.
    fn batch(&self, groups: &[&[Entry]], known: &mut Known, read: &mut u64) -> Result<Option<Vec<Digest>>, DatasetError> {
        let root = self.root;
        let files: Vec<&Entry> = groups.iter().copied().flatten().collect();
        let Some(stamps) = self.each(&files, &|_| {}, |file| Stamp::of(root, file))? else { return Ok(None) };
        let mut stamps = stamps.into_iter();
        let stamps: Vec<Stamp> = groups.iter().map(|group| Stamp::of_all(stamps.by_ref().take(group.len()))).collect();
        let found: Vec<Option<Digest>> = stamps.iter().map(|stamp| known.get(stamp)).collect();
        let unknown = groups.iter().zip(&found).filter(|(_, found)| found.is_none());
        let files: Vec<&Entry> = unknown.flat_map(|(group, _)| *group).collect();
        let before = *read;
        let Some(hashes) = self.each(&files, &|n| (self.report)(before + n), |file| hash(root, file))? else { return Ok(None) };
        *read += hashes.len() as u64;
        let mut hashes = hashes.into_iter();
        let mut digests = Vec::with_capacity(groups.len());
        for ((group, stamp), found) in groups.iter().zip(&stamps).zip(&found) {
            let digest = found.unwrap_or_else(|| {
                let mut hasher = blake3::Hasher::new();
                hashes.by_ref().take(group.len()).for_each(|hash| _ = hasher.update(hash.as_bytes()));
                hasher.finalize().into()
            });
            known.insert(stamp, digest);
            digests.push(digest);
        }
        Ok(Some(digests))
    }

    /// Does `work` for each file; none if it was told to stop.
    fn each<T: Send>(
        &self,
        files: &[&Entry],
        report: &dyn Fn(u64),
        work: impl Fn(&Entry) -> Result<T, DatasetError> + Sync,
    ) -> Result<Option<Vec<T>>, DatasetError> {
        let (go_on, done) = (self.go_on, AtomicU64::new(0));
        let results = in_parallel::each(self.threads, files, &|| report(done.load(Ordering::Relaxed)), |_, file| {
            if !go_on() {
                return Err(None);
            }
            let result = work(file).map_err(Some);
            done.fetch_add(1, Ordering::Relaxed);
            result
        });
        match results {
            Ok(results) => Ok(Some(results)),
            Err(None) => Ok(None),
            Err(Some(e)) => Err(e),
        }
    }
}

fn hash(root: &Path, file: &Entry) -> Result<blake3::Hash, DatasetError> {
    let path = root.join(&file.path);
    let mut hasher = blake3::Hasher::new();
    File::open(&path).and_then(|file| hasher.update_reader(file).map(drop)).map_err(DatasetError::io(&path))?;
    match hasher.count() {
        bytes if bytes == file.bytes => Ok(hasher.finalize()),
        bytes => Err(DatasetError::changed(&path, bytes, file.bytes)),
    }
}

/// What the file system says of a file, or of a group of files.
struct Stamp {
    digest: Digest,
    /// The newest time of a file, in nanoseconds since 1970.
    newest: i128,
}

impl Stamp {
    fn of(root: &Path, file: &Entry) -> Result<Self, DatasetError> {
        let path = root.join(&file.path);
        let about = std::fs::metadata(&path).map_err(DatasetError::io(&path))?;
        if about.len() != file.bytes {
            return Err(DatasetError::changed(&path, about.len(), file.bytes));
        }
        let times = [(about.mtime(), about.mtime_nsec()), (about.ctime(), about.ctime_nsec())];
        let times = times.map(|(seconds, nanoseconds)| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds));
        let mut hasher = blake3::Hasher::new();
        hasher.update(&about.len().to_le_bytes()).update(&about.ino().to_le_bytes());
        times.iter().for_each(|time| _ = hasher.update(&time.to_le_bytes()));
        hasher.update(file.path.as_os_str().as_bytes());
        Ok(Self { digest: hasher.finalize().into(), newest: times[0].max(times[1]) })
    }

    fn of_all(stamps: impl Iterator<Item = Self>) -> Self {
        let (mut hasher, mut newest) = (blake3::Hasher::new(), i128::MIN);
        for stamp in stamps {
            hasher.update(stamp.digest.to_string().as_bytes());
            newest = newest.max(stamp.newest);
        }
        Self { digest: hasher.finalize().into(), newest }
    }
}

/// Groups of whole classes with about [`AT_ONCE`] files.
fn batches<'g, 'e>(groups: &'g [&'e [Entry]]) -> Vec<&'g [&'e [Entry]]> {
    let (mut batches, mut start, mut files) = (Vec::new(), 0, 0);
    for (n, group) in groups.iter().enumerate() {
        files += group.len();
        if files >= AT_ONCE || n + 1 == groups.len() {
            batches.push(&groups[start..=n]);
            (start, files) = (n + 1, 0);
        }
    }
    batches
}

/// A file of the cache: the digest of each group's contents by its stamp.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    groups: BTreeMap<String, Digest>,
}

/// What is known of contents.
struct Known<'a> {
    path: Option<&'a Path>,
    earlier: BTreeMap<String, Digest>,
    now: BTreeMap<String, Digest>,
    stored: Instant,
}

impl<'a> Known<'a> {
    fn load(path: Option<&'a Path>) -> Self {
        let parsed = path.and_then(|path| serde_json::from_slice::<Stored>(&std::fs::read(path).ok()?).ok());
        let earlier = parsed.filter(|stored| stored.version == VERSION).map(|stored| stored.groups).unwrap_or_default();
        Self { path, earlier, now: BTreeMap::new(), stored: Instant::now() }
    }

    fn get(&self, stamp: &Stamp) -> Option<Digest> {
        self.earlier.get(&stamp.digest.to_string()).copied()
    }

    /// A file that has just changed may change again at the same time, as its clock tells
    /// it: it is not known.
    fn insert(&mut self, stamp: &Stamp, digest: Digest) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        if stamp.newest < now.saturating_sub(SETTLED).as_nanos() as i128 {
            self.now.insert(stamp.digest.to_string(), digest);
        }
    }

    /// Drops what is of files that are no more.
    fn forget_others(&mut self) {
        self.earlier.retain(|stamp, _| self.now.contains_key(stamp));
    }

    /// A cache that cannot be written costs time, nothing else.
    fn store(&mut self) {
        self.stored = Instant::now();
        let groups: BTreeMap<String, Digest> =
            self.earlier.iter().chain(&self.now).map(|(stamp, digest)| (stamp.clone(), *digest)).collect();
        let (Some(path), false) = (self.path, groups == self.earlier) else { return };
        let stored = Stored { version: VERSION, groups };
        let written = serde_json::to_vec(&stored).map_err(Into::into).and_then(|bytes| replace(path, &bytes));
        if let Err(e) = written {
            tracing::debug!("could not keep what the contents are in `{}`: {e}", path.display());
        }
    }
}
