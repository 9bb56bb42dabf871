//! Indexes of sets of large files, kept in the user's cache so that a set is scanned once.
//! An index is used again while every file still has the same size, modification time
//! and inode, or the same tag in its store.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::data_file::{DataFile, Stamp};
use super::index_cache::{SETTLED, replace};
use super::passed_over::PassedOver;
use super::source::DatasetError;
use crate::files::cache_folder;

/// Names of what was left out that are kept.
const EXAMPLES: usize = 3;

/// Samples without use, by the reason, and the names of some.
#[derive(Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct LeftOut(Vec<(String, u64, Vec<String>)>);

impl LeftOut {
    pub(super) fn add(&mut self, reason: &str, name: impl FnOnce() -> String) {
        let at = self.0.iter().position(|(r, ..)| r == reason).unwrap_or_else(|| {
            self.0.push((reason.to_owned(), 0, Vec::new()));
            self.0.len() - 1
        });
        let (_, count, examples) = &mut self.0[at];
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(name());
        }
    }

    /// Adds those of another part of the set, which lies behind this one.
    pub(super) fn append(&mut self, other: &Self) {
        for (reason, count, names) in &other.0 {
            match self.0.iter_mut().find(|(r, ..)| r == reason) {
                Some((_, counted, examples)) => {
                    *counted += count;
                    examples.extend(names.iter().take(EXAMPLES.saturating_sub(examples.len())).cloned());
                }
                None => self.0.push((reason.clone(), *count, names.clone())),
            }
        }
    }

    /// What a set that holds nothing else holds.
    pub(super) fn instead_of_samples(&self) -> String {
        let found: Vec<String> = self.0.iter().map(|(reason, count, names)| format!("{count} {reason} ({})", names.join(", "))).collect();
        if found.is_empty() { "it is empty".to_owned() } else { found.join("; ") }
    }

    /// `add` takes each reason, how many there are, and the names of some.
    pub(super) fn passed_over(&self, add: impl Fn(&mut PassedOver, &str, u64, &[String])) -> PassedOver {
        let mut passed_over = PassedOver::default();
        self.0.iter().for_each(|(reason, count, names)| add(&mut passed_over, reason, *count, names));
        passed_over
    }
}

/// An index that can be kept.
pub(super) trait Index: Sized {
    /// The ending of its files in the cache, and the version of what is in them.
    const KEPT: (&str, u32);

    /// Whether an index from a file can be used with this many files.
    fn is_sound(&self, files: usize) -> bool;
}

/// A file of the cache.
#[derive(Archive, Serialize, Deserialize)]
struct Stored<I> {
    version: u32,
    stamps: Vec<Stamp>,
    index: I,
}

/// The index of these files, from the cache if nothing has changed since, else made by
/// `scan`, and kept. `kind` says what the index is of: the same files may be read in
/// several ways.
pub(super) fn of<I>(kind: &str, files: &[DataFile], scan: impl FnOnce() -> Result<I, DatasetError>) -> Result<I, DatasetError>
where
    I: Index + Archive + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
    I::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<I, HighDeserializer<rancor::Error>>,
{
    let folder = cache_folder();
    kept_in(folder.map(|folder| folder.join("ringleader/index")).as_deref(), kind, files, scan)
}

/// The same with another folder of the cache.
pub(super) fn kept_in<I>(
    folder: Option<&Path>,
    kind: &str,
    files: &[DataFile],
    scan: impl FnOnce() -> Result<I, DatasetError>,
) -> Result<I, DatasetError>
where
    I: Index + Archive + for<'a> Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
    I::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<I, HighDeserializer<rancor::Error>>,
{
    let (ending, version) = I::KEPT;
    let stamps = || files.iter().map(DataFile::stamp).collect::<Result<Vec<Stamp>, _>>();
    let before = stamps()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes());
    for stamp in &before {
        hasher.update(b"\0").update(&stamp.path);
    }
    let kept = folder.map(|folder| folder.join(format!("{}.{ending}", hasher.finalize().to_hex())));
    if let Some(index) = kept.as_deref().and_then(|kept| load(kept, &before)) {
        return Ok(index);
    }
    let index = scan()?;
    let after = stamps()?;
    let Some(kept) = kept else { return Ok(index) };
    let stored = Stored { version, stamps: after, index };
    let settled = (SystemTime::now() - SETTLED).duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    let outcome = if stored.stamps != before || stored.stamps.iter().any(|stamp| stamp.modified_ns > settled) {
        Err(io::Error::other("a file has just changed"))
    } else {
        rkyv::to_bytes::<rancor::Error>(&stored).map_err(io::Error::other).and_then(|bytes| replace(&kept, &bytes))
    };
    if let Err(e) = outcome {
        tracing::debug!("could not keep the index in `{}`: {e}", kept.display());
    }
    Ok(stored.index)
}

fn load<I>(kept: &Path, stamps: &[Stamp]) -> Option<I>
where
    I: Index + Archive,
    I::Archived: for<'a> CheckBytes<HighValidator<'a, rancor::Error>> + Deserialize<I, HighDeserializer<rancor::Error>>,
{
    let mut bytes = AlignedVec::<16>::new();
    bytes.extend_from_reader(&mut File::open(kept).ok()?).ok()?;
    let stored = rkyv::from_bytes::<Stored<I>, rancor::Error>(&bytes).ok()?;
    (stored.version == I::KEPT.1 && stored.stamps == stamps && stored.index.is_sound(stamps.len())).then_some(stored.index)
}
