//! Blocks of objects that were read before, in the user's cache: a file of an object's
//! size with holes, and beside it a checksum for each block, written after the block.
//! A block whose checksum is not there, or does not fit, is read from the store again, so
//! that neither a crash nor a second process can make a wrong one. The bound on all of it
//! is kept by not writing what would go beyond, and by removing objects that nobody has
//! open, the oldest first: those that are in use are read in full in every epoch, so that
//! none of their blocks is worth more than another.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use crate::files::cache_folder;
use crate::private_folder;

/// The size of a block. Pictures of 100 kB are read with 1.2 times as many bytes.
pub(super) const BLOCK: u64 = 16 << 10;

/// Bytes of a block's checksum.
const SUM: u64 = 8;

/// How much of the disk blocks may take, unless a user says otherwise.
const DEFAULT_BOUND: u64 = 64 << 30;

/// The space that is left free on the disk in any case.
const LEFT_FREE: u64 = 2 << 30;

/// The space taken is measured anew after so many bytes: other processes write too.
const MEASURE_EVERY: u64 = 64 << 20;

const DATA: &str = "blocks";
const SUMS: &str = "sums";

/// Where blocks are kept and how many.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    folder: PathBuf,
    bound: u64,
    /// Bytes that may still be written before the space is measured again.
    left: Arc<AtomicU64>,
}

impl Settings {
    pub(super) fn new(folder: PathBuf, bound: u64) -> Self {
        Self { folder, bound, left: Arc::default() }
    }
}

static SETTINGS: Mutex<Option<Settings>> = Mutex::new(None);

/// Keeps blocks below `folder`, `bound` bytes of them at most: none with 0.
pub fn keep_blocks(folder: &Path, bound: u64) {
    *SETTINGS.lock().unwrap_or_else(PoisonError::into_inner) = Some(Settings::new(folder.join("objects"), bound));
}

fn settings() -> Option<Settings> {
    let mut settings = SETTINGS.lock().unwrap_or_else(PoisonError::into_inner);
    if settings.is_none() {
        let folder = cache_folder()?.join("ringleader/objects");
        *settings = Some(Settings::new(folder, DEFAULT_BOUND));
    }
    settings.clone().filter(|settings| settings.bound > 0)
}

/// The blocks of one object that are on this machine.
#[derive(Debug)]
pub(super) struct Blocks {
    data: File,
    sums: File,
    settings: Settings,
}

impl Blocks {
    /// The blocks of the object with this address, tag and size; none where they cannot be
    /// kept.
    pub(super) fn open(url: &str, tag: &str, bytes: u64) -> Option<Self> {
        let settings = settings()?;
        Self::open_in(settings, url, tag, bytes).inspect_err(|e| tracing::debug!("no blocks of `{url}` are kept: {e}")).ok()
    }

    pub(super) fn open_in(settings: Settings, url: &str, tag: &str, bytes: u64) -> io::Result<Self> {
        settings.folder.parent().map_or(Ok(()), std::fs::create_dir_all)?;
        private_folder::folder(&settings.folder)?;
        let name = blake3::hash(format!("{url}\0{tag}\0{bytes}").as_bytes()).to_hex();
        let path = |ending: &str| settings.folder.join(format!("{name}.{ending}"));
        let open = |path: PathBuf| File::options().create(true).read(true).write(true).truncate(false).mode(0o600).open(path);
        let sums = open(path(SUMS))?;
        // Shared by all that use it: what nobody holds may be removed.
        sums.lock_shared()?;
        sums.set_modified(SystemTime::now())?;
        let data = open(path(DATA))?;
        Ok(Self { data, sums, settings })
    }

    /// Fills `content`, which begins at `start` of the object, a block's beginning, with
    /// the blocks that are here. Returns the ranges of the object that are not.
    pub(super) fn read(&self, start: u64, content: &mut [u8]) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        for (at, block) in (start..).step_by(BLOCK as usize).zip(content.chunks_mut(BLOCK as usize)) {
            let mut sum = [0; SUM as usize];
            let here = self.sums.read_exact_at(&mut sum, at / BLOCK * SUM).is_ok()
                && sum != [0; SUM as usize]
                && self.data.read_exact_at(block, at).is_ok()
                && checksum(block) == sum;
            if here {
                continue;
            }
            add(&mut gaps, at..at + block.len() as u64);
        }
        gaps
    }

    /// The parts of a range of whole blocks that were never written.
    pub(super) fn gaps(&self, span: Range<u64>) -> Vec<Range<u64>> {
        let mut gaps = Vec::new();
        for at in (span.start..span.end).step_by(BLOCK as usize) {
            let mut sum = [0; SUM as usize];
            if self.sums.read_exact_at(&mut sum, at / BLOCK * SUM).is_err() || sum == [0; SUM as usize] {
                add(&mut gaps, at..(at + BLOCK).min(span.end));
            }
        }
        gaps
    }

    /// Keeps blocks that begin at `start` of the object, if there is space for them.
    pub(super) fn write(&self, start: u64, content: &[u8]) {
        if !self.take(content.len() as u64) {
            return;
        }
        for (at, block) in (start..).step_by(BLOCK as usize).zip(content.chunks(BLOCK as usize)) {
            let written = self.data.write_all_at(block, at).and_then(|()| self.sums.write_all_at(&checksum(block), at / BLOCK * SUM));
            if let Err(e) = written {
                tracing::debug!("a block could not be kept: {e}");
                self.settings.left.store(0, Ordering::Relaxed);
                return;
            }
        }
    }

    /// Whether so many bytes may be written.
    fn take(&self, bytes: u64) -> bool {
        let left = &self.settings.left;
        let take = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok();
        if take() {
            return true;
        }
        let space = space(&self.settings, bytes + MEASURE_EVERY);
        self.settings.left.store(space.min(MEASURE_EVERY), Ordering::Relaxed);
        take()
    }
}

/// Adds a range behind the others, to the last one if it begins where that ends.
fn add(gaps: &mut Vec<Range<u64>>, range: Range<u64>) {
    match gaps.last_mut() {
        Some(gap) if gap.end == range.start => gap.end = range.end,
        _ => gaps.push(range),
    }
}

fn checksum(block: &[u8]) -> [u8; SUM as usize] {
    let mut sum = [0; SUM as usize];
    sum.copy_from_slice(&blake3::hash(block).as_bytes()[..SUM as usize]);
    sum
}

/// How many bytes may be written, after removing objects without a user until `wanted` may
/// be, or none is left.
fn space(settings: &Settings, wanted: u64) -> u64 {
    let mut files = kept(&settings.folder);
    files.sort_unstable_by_key(|file| file.used);
    let mut taken: u64 = files.iter().map(|file| file.bytes).sum();
    let free = || rustix::fs::statvfs(&settings.folder).map_or(0, |disk| (disk.f_bavail * disk.f_frsize).saturating_sub(LEFT_FREE));
    let left = |taken: u64| settings.bound.saturating_sub(taken).min(free());
    for file in files {
        if left(taken) >= wanted {
            break;
        }
        if file.remove() {
            taken -= file.bytes;
        }
    }
    left(taken)
}

/// An object's files.
struct Kept {
    sums: PathBuf,
    /// On the disk, without holes.
    bytes: u64,
    used: SystemTime,
}

fn kept(folder: &Path) -> Vec<Kept> {
    let on_disk = |path: &Path| path.metadata().map_or(0, |about| about.blocks() * 512);
    let sums = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let sums = sums.filter(|path| path.extension().is_some_and(|ending| ending == SUMS));
    let kept = |sums: PathBuf| Kept {
        bytes: on_disk(&sums) + on_disk(&sums.with_extension(DATA)),
        used: sums.metadata().and_then(|about| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH),
        sums,
    };
    sums.map(kept).collect()
}

impl Kept {
    /// Removes what no process has open.
    fn remove(&self) -> bool {
        let Ok(sums) = File::open(&self.sums) else { return false };
        match sums.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock | TryLockError::Error(_)) => return false,
        }
        std::fs::remove_file(self.sums.with_extension(DATA)).and_then(|()| std::fs::remove_file(&self.sums)).is_ok()
    }
}
