//! The pictures inside tar files: where each lies, and the index of a set of tars, which
//! is kept in the user's cache so that a large set is scanned once. An index is used
//! again while every tar still has the same size, modification time and inode.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rkyv::rancor;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use super::data_file::{DataFile, Stamp};
use super::index_cache::{SETTLED, replace};
use super::source::DatasetError;
use crate::files::cache_folder;

const VERSION: u32 = 2;

/// Names of what was passed over that are kept.
const EXAMPLES: usize = 3;

/// One picture: 24 bytes, since there may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) offset: u64,
    pub(super) bytes: u32,
    /// The number of its tar in the set.
    pub(super) tar: u32,
    pub(super) label: u32,
    /// Where its name ends among the names.
    name_end: u32,
}

/// The pictures of a set of tars, in the order in which they lie there.
#[derive(Debug, Default, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct TarIndex {
    pub(super) places: Vec<Place>,
    /// The members' names, end to end.
    names: Vec<u8>,
    /// What the labels number, where the tars say that.
    pub(super) groups: Vec<String>,
    /// Samples and files without use, by the reason, and the names of some.
    pub(super) passed_over: Vec<(String, u64, Vec<String>)>,
}

impl TarIndex {
    /// Adds a picture. The error says what cannot be indexed.
    pub(super) fn push(&mut self, tar: usize, offset: u64, bytes: u64, label: u32, name: &[u8]) -> Result<(), String> {
        self.names.extend_from_slice(name);
        let too_much = |_| format!("holds `{}`, which is too large for a picture, or too many of them", String::from_utf8_lossy(name));
        let bytes = u32::try_from(bytes).map_err(too_much)?;
        let (tar, name_end) = (u32::try_from(tar).map_err(too_much)?, u32::try_from(self.names.len()).map_err(too_much)?);
        u32::try_from(self.places.len()).map_err(too_much)?;
        self.places.push(Place { offset, bytes, tar, label, name_end });
        Ok(())
    }

    /// Adds the pictures of one tar, which were indexed by themselves. The error says what
    /// cannot be indexed.
    pub(super) fn append(&mut self, tar: usize, other: &Self) -> Result<(), String> {
        for (at, place) in other.places.iter().enumerate() {
            self.push(tar, place.offset, place.bytes.into(), place.label, other.name(at))?;
        }
        for (reason, count, examples) in &other.passed_over {
            let before = self.passed_over.iter().position(|(r, ..)| r == reason);
            match before {
                Some(before) => {
                    let (_, counted, names) = &mut self.passed_over[before];
                    *counted += count;
                    names.extend(examples.iter().take(EXAMPLES.saturating_sub(names.len())).cloned());
                }
                None => self.passed_over.push((reason.clone(), *count, examples.clone())),
            }
        }
        Ok(())
    }

    pub(super) fn pass_over(&mut self, reason: &str, name: &[u8]) {
        let at = self.passed_over.iter().position(|(r, ..)| r == reason).unwrap_or_else(|| {
            self.passed_over.push((reason.to_owned(), 0, Vec::new()));
            self.passed_over.len() - 1
        });
        let (_, count, examples) = &mut self.passed_over[at];
        *count += 1;
        if examples.len() < EXAMPLES {
            examples.push(String::from_utf8_lossy(name).into_owned());
        }
    }

    pub(super) fn name(&self, at: usize) -> &[u8] {
        let start = at.checked_sub(1).map_or(0, |before| self.places[before].name_end);
        &self.names[start as usize..self.places[at].name_end as usize]
    }

    /// Whether an index from a file can be used with this many tars.
    fn is_sound(&self, tars: usize) -> bool {
        let mut before = 0;
        self.places.iter().all(|place| {
            let ordered = before <= place.name_end;
            before = place.name_end;
            ordered && (place.tar as usize) < tars && place.offset.checked_add(place.bytes.into()).is_some()
        }) && before as usize <= self.names.len()
    }
}

/// A file of the cache.
#[derive(Archive, Serialize, Deserialize)]
struct Stored {
    version: u32,
    stamps: Vec<Stamp>,
    index: TarIndex,
}

/// The index of these tars, from the cache if nothing has changed since, else made by
/// `scan`, and kept. `kind` says what the index is of: the same tars may be read in
/// several ways.
pub(super) fn of(kind: &str, tars: &[DataFile], scan: impl FnOnce() -> Result<TarIndex, DatasetError>) -> Result<TarIndex, DatasetError> {
    let folder = cache_folder();
    kept_in(folder.map(|folder| folder.join("ringleader/index")).as_deref(), kind, tars, scan)
}

/// The same with another folder of the cache.
pub(super) fn kept_in(
    folder: Option<&Path>,
    kind: &str,
    tars: &[DataFile],
    scan: impl FnOnce() -> Result<TarIndex, DatasetError>,
) -> Result<TarIndex, DatasetError> {
    let stamps = || tars.iter().map(DataFile::stamp).collect::<Result<Vec<Stamp>, _>>();
    let before = stamps()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(kind.as_bytes());
    for stamp in &before {
        hasher.update(b"\0").update(&stamp.path);
    }
    let file = folder.map(|folder| folder.join(format!("{}.tars", hasher.finalize().to_hex())));
    if let Some(index) = file.as_deref().and_then(|file| load(file, &before)) {
        return Ok(index);
    }
    let index = scan()?;
    let after = stamps()?;
    if let Some(file) = file {
        let stored = Stored { version: VERSION, stamps: after, index };
        let outcome = if stored.stamps == before { store(&file, &stored) } else { Err(io::Error::other("a tar changed meanwhile")) };
        if let Err(e) = outcome {
            tracing::debug!("could not keep the index in `{}`: {e}", file.display());
        }
        return Ok(stored.index);
    }
    Ok(index)
}

fn load(file: &Path, stamps: &[Stamp]) -> Option<TarIndex> {
    let mut bytes = AlignedVec::<16>::new();
    bytes.extend_from_reader(&mut File::open(file).ok()?).ok()?;
    let stored = rkyv::from_bytes::<Stored, rancor::Error>(&bytes).ok()?;
    (stored.version == VERSION && stored.stamps == stamps && stored.index.is_sound(stamps.len())).then_some(stored.index)
}

fn store(file: &Path, stored: &Stored) -> io::Result<()> {
    let settled = (SystemTime::now() - SETTLED).duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
    if stored.stamps.iter().any(|stamp| stamp.modified_ns > settled) {
        return Err(io::Error::other("a tar has just changed"));
    }
    let bytes = rkyv::to_bytes::<rancor::Error>(stored).map_err(io::Error::other)?;
    replace(file, &bytes)
}
