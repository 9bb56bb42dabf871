//! ILSVRC2012 as it is downloaded (Russakovsky et al., "ImageNet Large Scale Visual
//! Recognition Challenge", 2015), read where it lies: the training set is a tar of a
//! thousand tars, a class each, the validation set a tar of pictures whose labels the
//! development kit has. Or as Kaggle has it: a folder for each class, and tables.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walkdir::WalkDir;

use super::data_file::{DataFile, ReadAt};
use super::ilsvrc_names::{self, KIT, Names};
use super::images::Images;
use super::index_cache::{Entry, Index};
use super::kept_index;
use super::passed_over::PassedOver;
use super::source::{DatasetError, Fault, IndexProgress, SampleSource};
use super::tar_index::TarIndex;
use super::tar_pictures::TarPictures;
use super::tar_scan::Scanner;

const TRAIN: &str = "ILSVRC2012_img_train.tar";
const VAL: &str = "ILSVRC2012_img_val.tar";

/// Where Kaggle's archive has the pictures.
const KAGGLE: &str = "ILSVRC/Data/CLS-LOC";

/// The label of a validation picture in the index, before the labels are known.
const UNKNOWN: u32 = u32::MAX;

/// Pictures between two progress reports.
const REPORT_EVERY: u64 = 512;

/// Counts pictures, and reports some of the counts.
fn counting(progress: &dyn Fn(IndexProgress)) -> impl FnMut() {
    let mut count: u64 = 0;
    move || {
        count += 1;
        if count.is_multiple_of(REPORT_EVERY) {
            progress(IndexProgress { files: count });
        }
    }
}

/// Opens either form, whichever `folder` holds.
pub(super) fn open(folder: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Arc<dyn SampleSource>, DatasetError> {
    if folder.join(TRAIN).is_file() {
        return Ok(Arc::new(packed(folder, progress)?));
    }
    if folder.join(KAGGLE).is_dir() {
        return Ok(Arc::new(unpacked(folder, progress)?));
    }
    let problem = format!("holds neither {TRAIN}, {VAL} and {KIT}, as ILSVRC2012 is downloaded, nor {KAGGLE}, as Kaggle has it");
    Err(DatasetError::invalid(folder, problem))
}

/// Whether a folder looks like one of the two forms.
pub(super) fn is_here(folder: &Path) -> bool {
    folder.join(TRAIN).is_file() || folder.join(KAGGLE).is_dir()
}

fn packed(folder: &Path, progress: &dyn Fn(IndexProgress)) -> Result<TarPictures, DatasetError> {
    let tars = [folder.join(TRAIN), folder.join(VAL)];
    let files = DataFile::open_all(&tars)?;
    let names = ilsvrc_names::read(folder)?;
    let mut index = kept_index::of("ilsvrc", &files, || scan(&files, progress))?;
    let wnids = sorted(&tars[0], &index.groups)?;
    let classes = ilsvrc_names::human(&wnids, &names.classes).map_err(|problem| DatasetError::invalid(&tars[0], problem))?;
    // The tars need not lie in the order of their names.
    let labels: Vec<u32> = index.groups.iter().map(|wnid| label(&wnids, wnid).unwrap_or_default()).collect();
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for at in 0..index.places.len() {
        let known = index.places[at].label;
        index.places[at].label = if known == UNKNOWN {
            val.push(at as u32);
            let name = String::from_utf8_lossy(index.name(at)).into_owned();
            truth(&names, &wnids, &name).map_err(|problem| DatasetError::invalid(&tars[1], problem))?
        } else {
            train.push(at as u32);
            labels[known as usize]
        };
    }
    if val.is_empty() {
        return Err(DatasetError::invalid(&tars[1], "holds no pictures".to_owned()));
    }
    TarPictures::new(files, classes, index, train, val)
}

/// The classes in the order of their wnids.
fn sorted(path: &Path, found: &[String]) -> Result<Vec<String>, DatasetError> {
    let mut wnids = found.to_vec();
    wnids.sort();
    if let Some(pair) = wnids.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(DatasetError::invalid(path, format!("holds the class `{}` twice", pair[0])));
    }
    if wnids.len() < 2 {
        return Err(DatasetError::invalid(path, format!("holds {} classes, and two are needed", wnids.len())));
    }
    Ok(wnids)
}

fn label(wnids: &[String], wnid: &str) -> Option<u32> {
    wnids.binary_search_by(|w| w.as_str().cmp(wnid)).ok().map(|at| at as u32)
}

/// The label of a validation picture.
fn truth(names: &Names, wnids: &[String], picture: &str) -> Result<u32, String> {
    let base = picture.rsplit('/').next().unwrap_or_default();
    let stem = base.split('.').next().unwrap_or_default();
    let wnid = names.truth.get(stem).ok_or_else(|| format!("holds `{picture}`, of which nothing says the class"))?;
    label(wnids, wnid).ok_or_else(|| format!("holds `{picture}` of the class `{wnid}`, which the training set lacks"))
}

fn scan(tars: &[DataFile], progress: &dyn Fn(IndexProgress)) -> Result<TarIndex, DatasetError> {
    let mut index = TarIndex::default();
    let mut report = counting(progress);
    let (train, val) = (&tars[0], &tars[1]);
    let read = train.with(|file| nested(file, &mut index, &mut report)).map_err(Fault::from).flatten();
    read.map_err(|fault| fault.of(train.path()))?;
    let read = val.with(|file| {
        let mut scanner = Scanner::of_file(file)?;
        pictures(&mut scanner, 1, UNKNOWN, &mut index, &mut report)?;
        whole(&scanner)
    });
    read.map_err(Fault::from).flatten().map_err(|fault| fault.of(val.path()))?;
    Ok(index)
}

/// The tars of a tar, a class each.
fn nested(file: &dyn ReadAt, index: &mut TarIndex, report: &mut dyn FnMut()) -> Result<(), Fault> {
    let mut outer = Scanner::of_file(file)?;
    while let Some(member) = outer.next()? {
        let name = String::from_utf8_lossy(outer.name()).into_owned();
        let base = name.rsplit('/').next().unwrap_or_default();
        let Some(wnid) = base.strip_suffix(".tar") else {
            index.pass_over("which are no tars", outer.name());
            continue;
        };
        let (label, before) = (index.groups.len() as u32, index.places.len());
        index.groups.push(wnid.to_owned());
        let mut inner = Scanner::of_member(file, member);
        let read = pictures(&mut inner, 0, label, index, report).and_then(|()| whole(&inner));
        read.map_err(|fault| fault.within(&name))?;
        if index.places.len() == before {
            return Err(Fault::Damaged("holds no pictures".to_owned()).within(&name));
        }
    }
    whole(&outer)
}

/// These tars end with a mark; without it, one was cut between two members.
fn whole(scanner: &Scanner) -> Result<(), Fault> {
    let cut = || Fault::Damaged("is cut short: it has no end mark; fetch it again".to_owned());
    scanner.has_end().then_some(()).ok_or_else(cut)
}

fn pictures(scanner: &mut Scanner, tar: usize, label: u32, index: &mut TarIndex, report: &mut dyn FnMut()) -> Result<(), Fault> {
    while let Some(member) = scanner.next()? {
        report();
        let name = scanner.name();
        if is_picture(name) {
            index.push(tar, member.offset, member.bytes, label, name).map_err(Fault::Damaged)?;
        } else {
            index.pass_over("which are no pictures", name);
        }
    }
    Ok(())
}

fn is_picture(name: &[u8]) -> bool {
    let ending = name.rsplit(|b| *b == b'.').next().unwrap_or_default();
    [&b"jpeg"[..], b"jpg", b"png"].iter().any(|known| ending.eq_ignore_ascii_case(known))
}

/// Kaggle's folders. The validation pictures lie in one folder, or, as many have sorted
/// them, in a folder for each class.
fn unpacked(folder: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Images, DatasetError> {
    let root = folder.join(KAGGLE);
    let names = ilsvrc_names::read(folder)?;
    let mut report = counting(progress);
    let train = files(&root, "train", &mut report)?;
    let val = files(&root, "val", &mut report)?;
    let of_train: Vec<String> = train.keys().filter_map(|class| class.clone()).collect();
    let wnids = sorted(&root.join("train"), &of_train)?;
    let classes = ilsvrc_names::human(&wnids, &names.classes).map_err(|problem| DatasetError::invalid(&root.join("train"), problem))?;
    let lists = [("train", train), ("val", val)].map(|(split, found)| {
        let bad = |problem: String| DatasetError::invalid(&root.join(split), problem);
        let mut pictures = Vec::new();
        for (class, found) in found {
            for (path, bytes) in found {
                let label = match &class {
                    Some(wnid) => label(&wnids, wnid).ok_or_else(|| format!("has a class `{wnid}`, which the training set lacks")),
                    None if split == "val" => truth(&names, &wnids, &path.to_string_lossy()),
                    None => Err(format!("has `{}` beside the folders of its classes", path.display())),
                };
                pictures.push(Entry { path, label: label.map_err(bad)?, bytes });
            }
        }
        if pictures.is_empty() { Err(bad("holds no pictures".to_owned())) } else { Ok(pictures) }
    });
    let [train, val] = lists;
    let index = Index { classes, train: train?, val: val?, passed_over: PassedOver::default() };
    Images::listed(&root, &root, index, progress)
}

/// Pictures below the root with their sizes.
type Found = Vec<(PathBuf, u64)>;

/// The pictures of a split by the folder in which they lie, in the order of their paths.
fn files(root: &Path, split: &str, report: &mut dyn FnMut()) -> Result<BTreeMap<Option<String>, Found>, DatasetError> {
    let folder = root.join(split);
    let mut found: BTreeMap<Option<String>, Found> = BTreeMap::new();
    for entry in WalkDir::new(&folder).follow_links(true).sort_by_file_name() {
        let failed = |e: walkdir::Error| {
            let path = e.path().unwrap_or(&folder).to_owned();
            DatasetError::io(&path)(e.into())
        };
        let entry = entry.map_err(failed)?;
        if !entry.file_type().is_file() || !is_picture(entry.file_name().as_encoded_bytes()) {
            continue;
        }
        report();
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path()).to_owned();
        let class = if entry.depth() > 1 { path.iter().nth(1).map(|class| class.to_string_lossy().into_owned()) } else { None };
        let bytes = entry.metadata().map_err(failed)?.len();
        found.entry(class).or_default().push((path, bytes));
    }
    Ok(found)
}
