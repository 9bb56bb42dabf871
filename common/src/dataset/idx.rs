//! MNIST's IDX format: a magic number, big-endian dimensions, bytes. Plain or
//! gzipped, as the files are published.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::read::GzDecoder;

use super::source::{DatasetError, DatasetInfo, Sample, SampleFormat, SampleSource, Split, read_each};
use super::{classes, recognise};

/// The most bytes that one file may unpack to.
const MAX_BYTES: u64 = 8 << 30;

/// How gzip files begin.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// One split: pictures end to end, and a label each.
struct Part {
    path: PathBuf,
    pixels: Bytes,
    labels: Bytes,
}

/// A folder with the four IDX files, held in memory.
pub struct Idx {
    info: DatasetInfo,
    picture_bytes: usize,
    train: Part,
    val: Part,
}

impl Idx {
    /// Reads the folder. Its `classes.txt`, if there is one, names the classes,
    /// a line each.
    pub fn open(folder: &Path) -> Result<Self, DatasetError> {
        let (train, height, width) = part(folder, "train")?;
        let (val, val_height, val_width) = part(folder, "t10k")?;
        if (height, width) != (val_height, val_width) {
            return Err(DatasetError::invalid(
                &val.path,
                format!("has pictures of {val_height}x{val_width}, the training set of {height}x{width}"),
            ));
        }
        let largest = train.labels.iter().chain(&val.labels).copied().max().unwrap_or_default();
        let classes = class_names(folder, usize::from(largest) + 1)?;
        let mut hasher = blake3::Hasher::new();
        for name in &classes {
            hasher.update(name.as_bytes()).update(b"\n");
        }
        for part in [&train, &val] {
            hasher.update(&(part.labels.len() as u64).to_le_bytes()).update(&part.labels).update(&part.pixels);
        }
        let info = DatasetInfo {
            format: SampleFormat::Raw { height, width, channels: 1 },
            classes,
            train: train.labels.len() as u32,
            val: val.labels.len() as u32,
            fingerprint: hasher.finalize().into(),
        };
        Ok(Self { info, picture_bytes: height as usize * width as usize, train, val })
    }

    fn part(&self, split: Split) -> &Part {
        match split {
            Split::Train => &self.train,
            Split::Val => &self.val,
        }
    }
}

impl SampleSource for Idx {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let part = self.part(split);
        read_each(ids, self.info.len(split), |id| {
            let at = id as usize;
            let bytes = part.pixels.slice(at * self.picture_bytes..(at + 1) * self.picture_bytes);
            Ok(Sample { id, label: part.labels[at].into(), bytes })
        })
    }

    fn size_hint(&self, _split: Split, _id: u32) -> u64 {
        self.picture_bytes as u64
    }

    fn name(&self, split: Split, id: u32) -> String {
        format!("record {id} of {}", self.part(split).path.display())
    }
}

fn part(folder: &Path, prefix: &str) -> Result<(Part, u32, u32), DatasetError> {
    let (path, pictures) = read(folder, &format!("{prefix}-images"), "idx3-ubyte")?;
    let (dimensions, pixels) = parse(&path, pictures, 3)?;
    let (label_path, labels) = read(folder, &format!("{prefix}-labels"), "idx1-ubyte")?;
    let (label_dimensions, labels) = parse(&label_path, labels, 1)?;
    let [n, height, width] = dimensions[..] else { return Err(DatasetError::invalid(&path, "has no three dimensions".to_owned())) };
    if label_dimensions != [n] {
        return Err(DatasetError::invalid(&label_path, format!("has {} labels for {n} pictures", labels.len())));
    }
    if n == 0 || height == 0 || width == 0 {
        return Err(DatasetError::invalid(&path, "holds no pictures".to_owned()));
    }
    Ok((Part { path, pixels, labels }, height, width))
}

/// Finds a file under any of its usual names, and unpacks it if its content is
/// gzipped, whatever its name says: browsers unpack files and keep their names.
fn read(folder: &Path, stem: &str, suffix: &str) -> Result<(PathBuf, Vec<u8>), DatasetError> {
    for separator in ["-", "."] {
        for ending in ["", ".gz"] {
            let path = folder.join(format!("{stem}{separator}{suffix}{ending}"));
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(DatasetError::io(&path)(e)),
            };
            let mut bytes = Vec::new();
            file.take(MAX_BYTES).read_to_end(&mut bytes).map_err(DatasetError::io(&path))?;
            if bytes.starts_with(&GZIP) {
                let zipped = std::mem::take(&mut bytes);
                let unpacked = GzDecoder::new(&zipped[..]).take(MAX_BYTES).read_to_end(&mut bytes);
                unpacked.map_err(|e| {
                    DatasetError::invalid(&path, format!("is a damaged gzip file, cut short perhaps ({e}): fetch it again"))
                })?;
            }
            return Ok((path, bytes));
        }
    }
    let path = folder.join(format!("{stem}-{suffix}"));
    Err(DatasetError::invalid(
        &path,
        "is missing (nor is there a .gz of it): `worker data get mnist` and `worker data get fashion-mnist` fetch such sets".to_owned(),
    ))
}

/// Checks the header and returns dimensions and content.
fn parse(path: &Path, bytes: Vec<u8>, rank: usize) -> Result<(Vec<u32>, Bytes), DatasetError> {
    let bad = |problem: String| DatasetError::invalid(path, problem);
    let header = 4 + 4 * rank;
    if let Some(what) = recognise::content(&bytes) {
        return Err(bad(format!("is {what}, not an IDX file: fetch it again and look at what comes")));
    }
    if bytes.len() < header {
        return Err(bad(format!("is cut short: {} bytes, and the header alone has {header}", bytes.len())));
    }
    if bytes[..3] != [0, 0, 8] || usize::from(bytes[3]) != rank {
        return Err(bad(format!("is no IDX file of bytes in {rank} dimensions: it begins with {:02x?}", &bytes[..4])));
    }
    let dimensions: Vec<u32> = bytes[4..header].as_chunks::<4>().0.iter().map(|&d| u32::from_be_bytes(d)).collect();
    let content = dimensions.iter().try_fold(1u64, |n, &d| n.checked_mul(d.into())).filter(|n| *n <= MAX_BYTES);
    let Some(content) = content else { return Err(bad(format!("claims dimensions {dimensions:?}, which no file has"))) };
    let found = (bytes.len() - header) as u64;
    match found.cmp(&content) {
        std::cmp::Ordering::Less => Err(bad(format!("is cut short: {found} bytes of content where {dimensions:?} needs {content}"))),
        std::cmp::Ordering::Greater => Err(bad(format!("is too long: {found} bytes of content where {dimensions:?} needs {content}"))),
        std::cmp::Ordering::Equal => Ok((dimensions, Bytes::from(bytes).slice(header..))),
    }
}

fn class_names(folder: &Path, at_least: usize) -> Result<Vec<String>, DatasetError> {
    let path = folder.join("classes.txt");
    match classes::named_in(&path)? {
        Some(names) if names.len() < at_least => {
            Err(DatasetError::invalid(&path, format!("names {} classes, and the labels need {at_least}", names.len())))
        }
        Some(names) => Ok(names),
        None => Ok((0..at_least).map(|n| n.to_string()).collect()),
    }
}
