//! A file that is read at offsets by any number of threads: on this machine, or an object
//! in a store.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use rkyv::{Archive, Deserialize, Serialize};

use super::source::DatasetError;
use crate::digest::Digest;
use crate::objects::{self, Object};

/// Files that stay open. A process may have a thousand files open, and sets of more exist:
/// the others are opened for each reading.
const KEPT_OPEN: usize = 256;

/// Bytes that are hashed at a time.
const CHUNK: usize = 1 << 20;

/// Reads at offsets.
pub(super) trait ReadAt: Sync {
    fn bytes(&self) -> io::Result<u64>;

    /// Fills `buffer` from the bytes at `offset`, which must be there.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for File {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for Object {
    fn bytes(&self) -> io::Result<u64> {
        Ok(self.bytes())
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range = offset..offset + buffer.len() as u64;
        for bytes in objects::read(&[(self, range)]).map_err(io::Error::other)? {
            buffer.copy_from_slice(&bytes);
        }
        Ok(())
    }
}

/// One of several files of a dataset.
#[derive(Debug)]
pub(super) struct DataFile {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// Without a cell it is opened for each reading.
    File(Option<OnceLock<File>>),
    Object(Box<Object>),
}

/// What says that a file is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub(super) struct Stamp {
    /// Of a file, without links.
    pub(super) path: Vec<u8>,
    bytes: u64,
    /// 0 for an object.
    pub(super) modified_ns: u64,
    inode: u64,
    /// Of an object.
    tag: String,
}

impl DataFile {
    /// Files that lie on this machine or all in stores, in this order.
    pub(super) fn open_all(paths: &[PathBuf]) -> Result<Vec<Self>, DatasetError> {
        if let Some(urls) = addresses(paths) {
            let opened = objects::open(&urls)?;
            let file = |(path, object): (&PathBuf, Object)| Self { path: path.clone(), place: Place::Object(Box::new(object)) };
            return Ok(paths.iter().zip(opened).map(file).collect());
        }
        let file = |(n, path): (usize, &PathBuf)| Self { path: path.clone(), place: Place::File((n < KEPT_OPEN).then(OnceLock::new)) };
        Ok(paths.iter().enumerate().map(file).collect())
    }

    /// The path or the address.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_object(&self) -> bool {
        matches!(self.place, Place::Object(_))
    }

    pub(super) fn stamp(&self) -> Result<Stamp, DatasetError> {
        let path = &self.path;
        Ok(match &self.place {
            Place::File(_) => {
                let whole = path.canonicalize().map_err(DatasetError::io(path))?;
                let about = path.metadata().map_err(DatasetError::io(path))?;
                let modified = about.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
                Stamp {
                    path: whole.as_os_str().as_bytes().to_vec(),
                    bytes: about.len(),
                    modified_ns: modified.as_nanos() as u64,
                    inode: about.ino(),
                    tag: String::new(),
                }
            }
            Place::Object(object) => Stamp {
                path: path.as_os_str().as_bytes().to_vec(),
                bytes: object.bytes(),
                modified_ns: 0,
                inode: 0,
                tag: object.tag().to_owned(),
            },
        })
    }

    /// Has `work` read the file, which is open meanwhile.
    pub(super) fn with<T>(&self, work: impl FnOnce(&dyn ReadAt) -> T) -> io::Result<T> {
        Ok(match &self.place {
            Place::File(Some(kept)) => match kept.get() {
                Some(file) => work(file),
                None => {
                    let file = File::open(&self.path)?;
                    work(kept.get_or_init(|| file))
                }
            },
            Place::File(None) => work(&File::open(&self.path)?),
            Place::Object(object) => work(&**object),
        })
    }

    fn object(&self) -> Option<&Object> {
        match &self.place {
            Place::Object(object) => Some(object),
            Place::File(_) => None,
        }
    }
}

/// Reads ranges of files, in this order; those of objects many at a time. The error has the
/// place of the range that could not be read.
pub(super) fn read(ranges: &[(&DataFile, Range<u64>)]) -> Result<Vec<Bytes>, DatasetError> {
    if let Some(objects) = objects_of(ranges) {
        return Ok(objects::read(&objects)?);
    }
    let one = |(file, range): &(&DataFile, Range<u64>)| {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let outcome = file.with(|open| open.read_exact_at(&mut bytes, range.start)).flatten();
        outcome.map_err(DatasetError::io(file.path()))?;
        Ok(Bytes::from(bytes))
    };
    ranges.iter().map(one).collect()
}

/// The addresses that these paths are, if they lie in stores: all do or none.
fn addresses(paths: &[PathBuf]) -> Option<Vec<String>> {
    paths.first().filter(|path| objects::is_address(path))?;
    Some(paths.iter().map(|path| path.display().to_string()).collect())
}

/// The ranges as those of objects, if all of them are.
fn objects_of<'a>(ranges: &[(&'a DataFile, Range<u64>)]) -> Option<Vec<(&'a Object, Range<u64>)>> {
    ranges.iter().map(|(file, range)| Some((file.object()?, range.clone()))).collect()
}

/// Has ranges of objects fetched, many at a time, so that reading them one by one does not
/// wait for each. Files on this machine are left alone.
#[cfg(feature = "parquet")]
pub(super) fn fetch(ranges: &[(&DataFile, Range<u64>)]) -> Result<(), DatasetError> {
    match objects_of(ranges) {
        Some(objects) if objects.len() > 1 => read(ranges).map(drop),
        _ => Ok(()),
    }
}

/// Has ranges of objects fetched, which will be read soon.
pub(super) fn read_ahead(ranges: &[(&DataFile, Range<u64>)]) {
    if let Some(objects) = objects_of(ranges) {
        objects::read_ahead(&objects);
    }
}

/// A small file whole, on this machine or in a store; none if there is none.
pub(super) fn small_file(path: &Path) -> Result<Option<Bytes>, DatasetError> {
    Ok(small_files(std::slice::from_ref(&path.to_owned()))?.into_iter().flatten().next())
}

/// Several of them, in this order.
pub(super) fn small_files(paths: &[PathBuf]) -> Result<Vec<Option<Bytes>>, DatasetError> {
    if let Some(urls) = addresses(paths) {
        return Ok(objects::get_all(&urls)?);
    }
    let one = |path: &PathBuf| match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes.into())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(DatasetError::io(path)(e)),
    };
    paths.iter().map(one).collect()
}

/// Hashes all bytes of files on this machine, one after the other; of objects, whose bytes
/// lie elsewhere, what their stores say of them. None once `go_on` says false.
pub(super) fn contents(files: &[DataFile], go_on: &(dyn Fn() -> bool + Sync)) -> Result<Option<Digest>, DatasetError> {
    let (mut hasher, mut chunk) = (blake3::Hasher::new(), vec![0; CHUNK]);
    for file in files {
        if let Some(object) = file.object() {
            hasher.update(format!("{} {}\0", object.bytes(), object.tag()).as_bytes());
            continue;
        }
        let path = file.path();
        let mut file = File::open(path).map_err(DatasetError::io(path))?;
        loop {
            if !go_on() {
                return Ok(None);
            }
            match file.read(&mut chunk).map_err(DatasetError::io(path))? {
                0 => break,
                n => _ = hasher.update(&chunk[..n]),
            }
        }
    }
    Ok(Some(hasher.finalize().into()))
}
