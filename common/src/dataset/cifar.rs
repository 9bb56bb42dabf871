//! CIFAR-10 and CIFAR-100, the binary version (Krizhevsky, "Learning Multiple Layers of
//! Features from Tiny Images", 2009): records of a label or two and a picture of 32x32,
//! whose colours lie in three planes.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::source::{DatasetError, DatasetInfo, Sample, SampleFormat, SampleSource, Split, read_each};
use super::{classes, recognise};

const SIDE: u32 = 32;
const PLANE: usize = (SIDE * SIDE) as usize;
const PICTURE: usize = 3 * PLANE;

/// What distinguishes the two sets.
struct Kind {
    name: &'static str,
    /// The folder in the archive.
    folder: &'static str,
    train: &'static [&'static str],
    /// Records in each file of the training set.
    records: usize,
    test: &'static str,
    names: &'static str,
    classes: usize,
    /// Bytes before the picture, of which the last is the label.
    label_bytes: usize,
}

/// Records in the file of the test set.
const TEST_RECORDS: usize = 10_000;

const KINDS: [Kind; 2] = [
    Kind {
        name: "CIFAR-10",
        folder: "cifar-10-batches-bin",
        train: &["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"],
        records: 10_000,
        test: "test_batch.bin",
        names: "batches.meta.txt",
        classes: 10,
        label_bytes: 1,
    },
    // The coarse label, which is passed over, and the fine one.
    Kind {
        name: "CIFAR-100",
        folder: "cifar-100-binary",
        train: &["train.bin"],
        records: 50_000,
        test: "test.bin",
        names: "fine_label_names.txt",
        classes: 100,
        label_bytes: 2,
    },
];

/// A file of records.
struct Part {
    path: PathBuf,
    records: Bytes,
}

/// One of the two sets, held in memory.
pub struct Cifar {
    info: DatasetInfo,
    label_bytes: usize,
    /// Records in each file of the training set.
    records: usize,
    train: Vec<Part>,
    test: Part,
}

impl Cifar {
    /// Reads the set in `folder`, or in the folder that the archive unpacks to below it.
    pub fn open(folder: &Path) -> Result<Self, DatasetError> {
        let (kind, folder) = find(folder)?;
        let names = folder.join(kind.names);
        let classes = classes::named_in(&names)?.ok_or_else(|| missing(&names, kind))?;
        if classes.len() != kind.classes {
            return Err(DatasetError::invalid(&names, format!("names {} classes, and {} has {}", classes.len(), kind.name, kind.classes)));
        }
        let train: Result<Vec<Part>, DatasetError> = kind.train.iter().map(|name| part(&folder.join(name), kind, kind.records)).collect();
        let train = train?;
        let test = part(&folder.join(kind.test), kind, TEST_RECORDS)?;
        let mut hasher = blake3::Hasher::new();
        for name in &classes {
            hasher.update(name.as_bytes()).update(b"\n");
        }
        for part in train.iter().chain([&test]) {
            hasher.update(&part.records);
        }
        let info = DatasetInfo {
            format: SampleFormat::Raw { height: SIDE, width: SIDE, channels: 3 },
            classes,
            train: (train.len() * kind.records) as u32,
            val: TEST_RECORDS as u32,
            fingerprint: hasher.finalize().into(),
        };
        Ok(Self { info, label_bytes: kind.label_bytes, records: kind.records, train, test })
    }

    /// The file of a sample and its number there.
    fn place(&self, split: Split, id: u32) -> (&Part, usize) {
        match split {
            Split::Train => (&self.train[id as usize / self.records], id as usize % self.records),
            Split::Val => (&self.test, id as usize),
        }
    }

    fn label(&self, record: &[u8]) -> u32 {
        record[self.label_bytes - 1].into()
    }

    fn record(&self, split: Split, id: u32) -> &[u8] {
        let (part, at) = self.place(split, id);
        let length = self.label_bytes + PICTURE;
        &part.records[at * length..(at + 1) * length]
    }
}

impl SampleSource for Cifar {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        read_each(ids, self.info.len(split), |id| {
            let record = self.record(split, id);
            let planes = &record[self.label_bytes..];
            let bytes: Vec<u8> = (0..PLANE).flat_map(|at| [planes[at], planes[PLANE + at], planes[2 * PLANE + at]]).collect();
            Ok(Sample { id, label: self.label(record), bytes: Bytes::from(bytes) })
        })
    }

    fn size_hint(&self, _split: Split, _id: u32) -> u64 {
        PICTURE as u64
    }

    fn labels(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        Ok((0..self.info.len(split)).map(|id| self.label(self.record(split, id))).collect())
    }

    fn name(&self, split: Split, id: u32) -> String {
        if id >= self.info.len(split) {
            return format!("record {id}");
        }
        let (part, at) = self.place(split, id);
        format!("record {at} of {}", part.path.display())
    }
}

/// Whether one of the sets lies in this folder or where an archive unpacks to below it.
pub(super) fn is_here(folder: &Path) -> bool {
    !places(folder).is_empty()
}

fn places(folder: &Path) -> Vec<(&'static Kind, PathBuf)> {
    let below = |kind: &'static Kind| [folder.to_owned(), folder.join(kind.folder)].map(|place| (kind, place));
    KINDS.iter().flat_map(below).filter(|(kind, place)| place.join(kind.train[0]).is_file()).collect()
}

fn find(folder: &Path) -> Result<(&'static Kind, PathBuf), DatasetError> {
    let mut found = places(folder);
    if let [(a, at), (b, also), ..] = &found[..] {
        let problem =
            format!("holds {} in `{}` and {} in `{}`: data.path must name one of them", a.name, at.display(), b.name, also.display());
        return Err(DatasetError::invalid(folder, problem));
    }
    found.pop().ok_or_else(|| {
        let has = |names: &[&str]| names.iter().any(|name| folder.join(name).exists());
        let what = if has(&["data_batch_1", "cifar-10-batches-py", "cifar-100-python", "cifar-10-python.tar.gz", "cifar-100-python.tar.gz"]) {
            "holds the Python version of CIFAR, and the binary version is needed: cifar-10-binary.tar.gz or cifar-100-binary.tar.gz, unpacked"
        } else if has(&["cifar-10-binary.tar.gz", "cifar-100-binary.tar.gz"]) {
            "holds CIFAR as an archive: unpack it there with tar xf"
        } else {
            "holds neither data_batch_1.bin of CIFAR-10 nor train.bin of CIFAR-100, nor their usual folders: the binary version is needed"
        };
        DatasetError::invalid(folder, what.to_owned())
    })
}

fn missing(path: &Path, kind: &Kind) -> DatasetError {
    DatasetError::invalid(path, format!("is missing, and belongs to the binary version of {}: unpack its archive again", kind.name))
}

fn part(path: &Path, kind: &Kind, records: usize) -> Result<Part, DatasetError> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => Bytes::from(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(missing(path, kind)),
        Err(e) => return Err(DatasetError::io(path)(e)),
    };
    let bad = |problem: String| DatasetError::invalid(path, problem);
    let length = kind.label_bytes + PICTURE;
    if bytes.len() != records * length {
        let what = recognise::content(&bytes).map(|what| format!(" (it is {what})")).unwrap_or_default();
        let needed = records * length;
        return Err(bad(format!("has {} bytes{what}, and {records} records of {} have {needed}: fetch it again", bytes.len(), kind.name)));
    }
    let label = |record: &[u8]| usize::from(record[kind.label_bytes - 1]);
    if let Some((n, record)) = bytes.chunks_exact(length).enumerate().find(|(_, record)| label(record) >= kind.classes) {
        return Err(bad(format!(
            "has the label {} in record {n}, and {} has {} classes: it is damaged",
            label(record),
            kind.name,
            kind.classes
        )));
    }
    Ok(Part { path: path.to_owned(), records: bytes })
}
