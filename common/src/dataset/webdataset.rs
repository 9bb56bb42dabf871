//! WebDataset: tars whose members belong together by their key, which is their path up
//! to the first dot of its last part. Of each sample, the picture is used and `cls`, its
//! class as a decimal number (Aizman, Maltby, Breuel, "High Performance I/O for Large
//! Scale Deep Learning", 2019).

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::classes::MAX_CLASSES;
use super::data_file::{DataFile, ReadAt};
use super::division::{self, Division};
use super::shards::Kind;
use super::source::{DatasetError, Fault, IndexProgress};
use super::tar_index::TarIndex;
use super::tar_pictures::TarPictures;
use super::tar_scan::{Member, Scanner};
use super::{in_parallel, kept_index};

/// Endings of pictures, the preferred ones first.
const PICTURES: [&str; 11] = ["jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm"];

/// The ending of a sample's class.
const CLASS: &str = "cls";

/// Bytes of a class that are looked at.
const MAX_CLASS_BYTES: usize = 64;

/// Objects that are indexed at a time: each request waits for the answer to the last.
const OBJECTS_AT_ONCE: usize = 32;

/// Indexes the shards at `place`, or takes their index from the user's cache.
pub(super) fn open(place: &Path, division: Division, progress: &dyn Fn(IndexProgress)) -> Result<TarPictures, DatasetError> {
    let (tars, splits) = division::files(place, Kind::Tar, division)?;
    let tars = DataFile::open_all(&tars)?;
    let index = kept_index::of("webdataset", &tars, || scan(&tars, progress))?;
    if index.places.is_empty() {
        let found = index.left_out.instead_of_samples();
        return Err(DatasetError::invalid(place, format!("holds no sample with a picture and a class (.cls): {found}")));
    }
    let needed = index.places.iter().map(|place| place.label as usize + 1).max().unwrap_or_default();
    let classes = division::class_names(place, needed)?;
    let samples = index.places.iter().map(|place| (place.tar, place.label));
    let (train, val) = division::divide(place, splits.as_deref(), division, &classes, samples)?;
    TarPictures::new(tars, classes, index, train, val)
}

/// Indexes all tars, several at a time.
fn scan(tars: &[DataFile], progress: &dyn Fn(IndexProgress)) -> Result<TarIndex, DatasetError> {
    let remote = tars.iter().any(DataFile::is_object);
    let threads = if remote { OBJECTS_AT_ONCE } else { in_parallel::all_threads() };
    let members = AtomicU64::new(0);
    let report = || progress(IndexProgress { files: members.load(Ordering::Relaxed) });
    let parts = in_parallel::each(threads, tars, &report, |_, tar| index_of(tar, &members))?;
    let mut index = TarIndex::default();
    for (number, part) in parts.iter().enumerate() {
        let path = tars[number].path();
        index.append(number, part).map_err(|problem| DatasetError::invalid(path, problem))?;
    }
    Ok(index)
}

fn index_of(tar: &DataFile, members: &AtomicU64) -> Result<TarIndex, DatasetError> {
    let mut index = TarIndex::default();
    let read = tar.with(|file| {
        let mut tar = Tar { index: &mut index, keys: Vec::new(), key_ends: Vec::new(), sample: Sample::default() };
        tar.scan(file, &mut || _ = members.fetch_add(1, Ordering::Relaxed))
    });
    let has_end = read.map_err(Fault::from).flatten().map_err(|fault| fault.of(tar.path()))?;
    if !has_end {
        tracing::warn!("`{}` has no end mark: it may have been cut between two members", tar.path().display());
    }
    Ok(index)
}

/// The members of one key.
#[derive(Default)]
struct Sample {
    key: Vec<u8>,
    /// The endings seen so far.
    endings: Vec<String>,
    /// A picture, its place among [`PICTURES`], and its name.
    picture: Option<(usize, Member, Vec<u8>)>,
    label: Option<u32>,
}

/// A tar that is being read.
struct Tar<'a> {
    index: &'a mut TarIndex,
    /// The keys so far, end to end.
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    sample: Sample,
}

impl Tar<'_> {
    /// Returns whether the tar has an end mark.
    fn scan(&mut self, file: &dyn ReadAt, each: &mut dyn FnMut()) -> Result<bool, Fault> {
        let mut scanner = Scanner::of_file(file)?;
        while let Some(member) = scanner.next()? {
            each();
            let name = scanner.name();
            let Some((key, ending)) = key(name) else {
                self.index.pass_over("whose names have no key and ending", name);
                continue;
            };
            if self.sample.endings.is_empty() || self.sample.key != key {
                self.finish()?;
                self.sample.key = key.to_vec();
            }
            if self.sample.endings.contains(&ending) {
                let name = String::from_utf8_lossy(name);
                return Err(Fault::Damaged(format!("holds `{name}` twice: a key stands for one sample")));
            }
            if let Some(rank) = PICTURES.iter().position(|known| *known == ending)
                && self.sample.picture.as_ref().is_none_or(|(other, ..)| rank < *other)
            {
                self.sample.picture = Some((rank, member, name.to_vec()));
            }
            if ending == CLASS {
                let name = String::from_utf8_lossy(name).into_owned();
                self.sample.label = Some(class(scanner.content(member, MAX_CLASS_BYTES)?, &name).map_err(Fault::Damaged)?);
            }
            self.sample.endings.push(ending);
        }
        self.finish()?;
        self.refuse_twins()?;
        Ok(scanner.has_end())
    }

    /// Takes up the sample that is complete.
    fn finish(&mut self) -> Result<(), Fault> {
        let Sample { key, endings, picture, label } = std::mem::take(&mut self.sample);
        if endings.is_empty() {
            return Ok(());
        }
        self.keys.extend_from_slice(&key);
        self.key_ends.push(self.keys.len());
        match (picture, label) {
            (Some((_, member, name)), Some(label)) => {
                self.index.push(0, member.offset, member.bytes, label, &name).map_err(Fault::Damaged)?;
            }
            (Some(_), None) => self.index.pass_over("without a class (.cls)", &key),
            (None, Some(_)) => self.index.pass_over("without a picture", &key),
            (None, None) => self.index.pass_over("without a picture and a class", &key),
        }
        Ok(())
    }

    /// Refuses a key that occurs in two places.
    fn refuse_twins(&self) -> Result<(), Fault> {
        let key = |n: &u32| {
            let n = *n as usize;
            &self.keys[n.checked_sub(1).map_or(0, |before| self.key_ends[before])..self.key_ends[n]]
        };
        let mut order: Vec<u32> = (0..self.key_ends.len() as u32).collect();
        order.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        match order.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            Some(pair) => {
                let key = String::from_utf8_lossy(key(&pair[0])).into_owned();
                Err(Fault::Damaged(format!("holds the key `{key}` in two places: the members of a sample must follow each other")))
            }
            None => Ok(()),
        }
    }
}

/// The key of a member and its ending in lower case; none for a name without either, or
/// with two underscores as webdataset's own files have.
fn key(name: &[u8]) -> Option<(&[u8], String)> {
    let base = name.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].iter().position(|b| *b == b'.')?;
    if dot == base || name[base..].starts_with(b"__") {
        return None;
    }
    Some((&name[..dot], String::from_utf8_lossy(&name[dot + 1..]).to_ascii_lowercase()))
}

/// A class as webdataset writes it.
fn class(content: &[u8], name: &str) -> Result<u32, String> {
    let text = String::from_utf8_lossy(content.trim_ascii());
    let number = text.parse::<u32>().ok().filter(|number| (*number as usize) < MAX_CLASSES);
    number.ok_or_else(|| format!("has the class `{text}` in `{name}`, where a decimal number below {MAX_CLASSES} is needed"))
}
