//! Class folders: `train/CLASS/...` and `val/CLASS/...`, or one tree of class folders
//! that `val_fraction` divides. JPEG and PNG, nested to any depth.

use crate::digest::Digest;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use walkdir::WalkDir;

use super::index_cache::{self, Entry, Index};
use super::source::{DatasetError, DatasetInfo, IndexProgress, Sample, SampleFormat, SampleSource, Split, check_id};
use crate::seed;

/// Files listed between two progress reports.
const REPORT_EVERY: u64 = 512;

/// A dataset of picture files.
pub struct Images {
    info: DatasetInfo,
    root: PathBuf,
    index: Index,
}

impl Images {
    /// Lists `root`, or takes the previous list from the user's cache if nothing has
    /// changed since.
    pub fn open(root: &Path, val_fraction: Option<f64>, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Self, DatasetError> {
        if !root.is_dir() {
            return Err(DatasetError::invalid(
                root,
                "is not a folder: data.path must name one with a folder per class, under train/ and val/ or not".to_owned(),
            ));
        }
        let (train, val) = (root.join("train"), root.join("val"));
        let key = index_cache::key(root, val_fraction, seed);
        let index = match index_cache::load(&key, root) {
            Some(index) => index,
            None => {
                let index = match (train.is_dir(), val.is_dir(), val_fraction) {
                    (true, true, _) => two_trees(root, &train, &val, progress)?,
                    (true, false, None) => {
                        return Err(DatasetError::invalid(
                            root,
                            "has train/ but no val/: add it, or set data.path to the train folder and data.val_fraction to, say, 0.1"
                                .to_owned(),
                        ));
                    }
                    (_, _, Some(fraction)) => one_tree(root, fraction, seed, progress)?,
                    (_, _, None) => {
                        return Err(DatasetError::invalid(
                            root,
                            "has no train/ and val/: add them, or set data.val_fraction to, say, 0.1 to divide it".to_owned(),
                        ));
                    }
                };
                index_cache::store(&key, root, &index);
                index
            }
        };
        Ok(Self::new(root, index))
    }

    /// Uses every picture below the class folders of `root` for validation: for data
    /// that has no other use.
    pub fn open_all(root: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Self, DatasetError> {
        let (classes, val) = Lister { root, progress, files: 0 }.list(root)?;
        Ok(Self::new(root, Index { classes, train: Vec::new(), val }))
    }

    fn new(root: &Path, index: Index) -> Self {
        let info = DatasetInfo {
            format: SampleFormat::Encoded,
            fingerprint: fingerprint(&index),
            classes: index.classes.clone(),
            train: index.train.len() as u32,
            val: index.val.len() as u32,
        };
        Self { info, root: root.to_owned(), index }
    }

    fn entries(&self, split: Split) -> &[Entry] {
        match split {
            Split::Train => &self.index.train,
            Split::Val => &self.index.val,
        }
    }
}

impl SampleSource for Images {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let entries = self.entries(split);
        ids.iter()
            .map(|&id| {
                check_id(id, entries.len() as u32)?;
                let entry = &entries[id as usize];
                let path = self.root.join(&entry.path);
                let bytes = std::fs::read(&path).map_err(DatasetError::io(&path))?;
                Ok(Sample { id, label: entry.label, bytes: Bytes::from(bytes) })
            })
            .collect()
    }

    fn size_hint(&self, split: Split, id: u32) -> u64 {
        self.entries(split).get(id as usize).map_or(0, |e| e.bytes)
    }

    fn labels(&self, split: Split) -> Result<Vec<u32>, DatasetError> {
        Ok(self.entries(split).iter().map(|e| e.label).collect())
    }

    fn name(&self, split: Split, id: u32) -> String {
        self.entries(split).get(id as usize).map_or_else(|| format!("picture {id}"), |e| self.root.join(&e.path).display().to_string())
    }
}

/// Hashes what two copies of a dataset must agree on: class names, and for each picture
/// its label, its path and its size.
fn fingerprint(index: &Index) -> Digest {
    let mut hasher = blake3::Hasher::new();
    for class in &index.classes {
        hasher.update(class.as_bytes()).update(b"\0");
    }
    for entries in [&index.train, &index.val] {
        hasher.update(&(entries.len() as u64).to_le_bytes());
        for e in entries {
            hasher.update(&e.label.to_le_bytes()).update(&e.bytes.to_le_bytes()).update(e.path.as_os_str().as_bytes()).update(b"\0");
        }
    }
    hasher.finalize().into()
}

fn two_trees(root: &Path, train: &Path, val: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Index, DatasetError> {
    let mut lister = Lister { root, progress, files: 0 };
    let (classes, train_entries) = lister.list(train)?;
    let (val_classes, val_entries) = lister.list(val)?;
    if let Some(odd) = val_classes.iter().find(|c| !classes.contains(c)) {
        return Err(DatasetError::invalid(val, format!("has a class `{odd}` that train/ lacks: both need the same class folders")));
    }
    if let Some(odd) = classes.iter().find(|c| !val_classes.contains(c)) {
        return Err(DatasetError::invalid(val, format!("lacks the class `{odd}` of train/: both need the same class folders")));
    }
    Ok(Index { classes, train: train_entries, val: val_entries })
}

/// Divides each class separately, so that each has the same share on both sides.
fn one_tree(root: &Path, fraction: f64, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Index, DatasetError> {
    let (classes, entries) = Lister { root, progress, files: 0 }.list(root)?;
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for (label, class) in classes.iter().enumerate() {
        let own: Vec<&Entry> = entries.iter().filter(|e| e.label as usize == label).collect();
        if own.len() < 2 {
            return Err(DatasetError::invalid(
                &root.join(class),
                "has a single picture: it needs at least two, one to train and one to validate".to_owned(),
            ));
        }
        let kept = ((own.len() as f64 * fraction).round() as usize).clamp(1, own.len() - 1);
        let mut order: Vec<usize> = (0..own.len()).collect();
        seed::shuffle(&mut order, &mut seed::stream(seed, "validation split", &[label as u64]));
        let mut chosen = vec![false; own.len()];
        order[..kept].iter().for_each(|&i| chosen[i] = true);
        for (entry, chosen) in own.into_iter().zip(chosen) {
            if chosen { val.push(entry.clone()) } else { train.push(entry.clone()) }
        }
    }
    Ok(Index { classes, train, val })
}

struct Lister<'a> {
    root: &'a Path,
    progress: &'a dyn Fn(IndexProgress),
    files: u64,
}

impl Lister<'_> {
    /// The classes below `folder`, sorted by the bytes of their names, and their
    /// pictures in the order of their paths.
    fn list(&mut self, folder: &Path) -> Result<(Vec<String>, Vec<Entry>), DatasetError> {
        let mut folders: Vec<PathBuf> = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(DatasetError::io(folder))? {
            let path = entry.map_err(DatasetError::io(folder))?.path();
            if path.is_dir() && !hidden(&path) {
                folders.push(path);
            }
        }
        folders.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        if folders.len() < 2 {
            return Err(DatasetError::invalid(
                folder,
                format!("has {} class folders: it needs a folder for each of at least two classes", folders.len()),
            ));
        }
        let (mut classes, mut entries) = (Vec::new(), Vec::new());
        for (label, class) in folders.iter().enumerate() {
            let before = entries.len();
            self.class(class, label as u32, &mut entries)?;
            if entries.len() == before {
                return Err(DatasetError::invalid(
                    class,
                    "is a class without a single JPEG or PNG picture: fill it or remove the folder".to_owned(),
                ));
            }
            classes.push(class.file_name().unwrap_or_default().to_string_lossy().into_owned());
        }
        (self.progress)(IndexProgress { files: self.files });
        Ok((classes, entries))
    }

    fn class(&mut self, folder: &Path, label: u32, entries: &mut Vec<Entry>) -> Result<(), DatasetError> {
        let walk = WalkDir::new(folder).follow_links(true).sort_by(|a, b| a.file_name().as_bytes().cmp(b.file_name().as_bytes()));
        for found in walk.into_iter().filter_entry(|e| e.depth() == 0 || !hidden(e.path())) {
            let failed = |e: walkdir::Error| {
                let path = e.path().unwrap_or(folder).to_owned();
                DatasetError::io(&path)(e.into())
            };
            let found = found.map_err(failed)?;
            if !found.file_type().is_file() || !is_picture(found.path()) {
                continue;
            }
            let bytes = found.metadata().map_err(failed)?.len();
            let path = found.path().strip_prefix(self.root).unwrap_or(found.path()).to_owned();
            entries.push(Entry { path, label, bytes });
            self.files += 1;
            if self.files.is_multiple_of(REPORT_EVERY) {
                (self.progress)(IndexProgress { files: self.files });
            }
        }
        Ok(())
    }
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_bytes().starts_with(b"."))
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}
