//! Lists class folders: the classes, their pictures in order, and what is none.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use walkdir::WalkDir;

use super::index_cache::{Entry, Index};
use super::passed_over::{PassedOver, Reason};
use super::pictures::{hidden, is_broken_link, is_picture};
use super::source::{DatasetError, IndexProgress};
use super::splits::{Layout, children, layout, reason_beside};
use super::{classes, in_parallel};

/// Lists `root` and divides it as its folders, or `val_fraction` and `seed`, say.
pub(super) fn list(root: &Path, val_fraction: Option<f64>, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Index, DatasetError> {
    match (layout(root)?, val_fraction) {
        (Layout::Splits { train, val, beside }, None) => two_trees(root, &train, &val, beside, progress),
        (Layout::Splits { train, val, .. }, Some(_)) => {
            let [train, val] = [&train, &val].map(|folder| folder.file_name().unwrap_or_default().to_string_lossy().into_owned());
            Err(DatasetError::invalid(
                root,
                format!(
                    "has {train}/ and {val}/, and data.val_fraction would divide one tree: leave out data.val_fraction to validate on {val}/, or set data.path to the folder {train}/ to divide that"
                ),
            ))
        }
        (Layout::Classes, Some(fraction)) => one_tree(root, fraction, seed, progress),
        (Layout::Classes, None) => Err(DatasetError::invalid(
            root,
            "has no train/ and val/: add them, or set data.val_fraction to, say, 0.1 to divide it".to_owned(),
        )),
    }
}

/// Lists the class folders of `root`, all for validation.
pub(super) fn list_all(root: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Index, DatasetError> {
    let tree = Lister::new(root).list(root, progress)?;
    Ok(Index { classes: names(&tree.classes), train: Vec::new(), val: tree.entries, passed_over: tree.passed_over })
}

fn two_trees(root: &Path, train: &Path, val: &Path, beside: PassedOver, progress: &dyn Fn(IndexProgress)) -> Result<Index, DatasetError> {
    let lister = Lister::new(root);
    let (of_train, of_val) = (lister.list(train, progress)?, lister.list(val, progress)?);
    // Both lists are sorted.
    let lacking = |list: &[OsString], of: &[OsString]| list.iter().find(|class| of.binary_search(class).is_err()).cloned();
    let both = format!("both need the same class folders as `{}`", train.display());
    if let Some(odd) = lacking(&of_val.classes, &of_train.classes) {
        return Err(DatasetError::invalid(val, format!("has a class {} too many: {both}", quoted(&odd))));
    }
    if let Some(odd) = lacking(&of_train.classes, &of_val.classes) {
        return Err(DatasetError::invalid(val, format!("lacks the class {}: {both}", quoted(&odd))));
    }
    let mut passed_over = beside;
    passed_over.merge(of_train.passed_over);
    passed_over.merge(of_val.passed_over);
    Ok(Index { classes: names(&of_train.classes), train: of_train.entries, val: of_val.entries, passed_over })
}

/// Divides each class separately, so that each has the same share on both sides.
fn one_tree(root: &Path, fraction: f64, seed: u64, progress: &dyn Fn(IndexProgress)) -> Result<Index, DatasetError> {
    let tree = Lister::new(root).list(root, progress)?;
    let labels: Vec<u32> = tree.entries.iter().map(|entry| entry.label).collect();
    let chosen = classes::validation(&labels, tree.classes.len(), fraction, seed).map_err(|class| {
        let problem = "has a single picture: it needs at least two, one to train and one to validate";
        DatasetError::invalid(&root.join(&tree.classes[class]), problem.to_owned())
    })?;
    let (mut train, mut val) = (Vec::new(), Vec::new());
    for (entry, chosen) in tree.entries.into_iter().zip(chosen) {
        if chosen { val.push(entry) } else { train.push(entry) }
    }
    Ok(Index { classes: names(&tree.classes), train, val, passed_over: tree.passed_over })
}

/// Names as they are shown: bytes that are not UTF-8 are replaced.
fn names(classes: &[OsString]) -> Vec<String> {
    classes.iter().map(|class| class.to_string_lossy().into_owned()).collect()
}

/// A name in which bytes that are not UTF-8 can be told apart.
fn quoted(name: &OsStr) -> String {
    if name.to_str().is_some() { format!("`{}`", name.display()) } else { format!("{name:?}") }
}

/// What is below one folder.
struct Tree {
    /// Sorted by their bytes; a label is an index into them.
    classes: Vec<OsString>,
    /// By label, then in the order of their paths.
    entries: Vec<Entry>,
    passed_over: PassedOver,
}

/// What is below a class's folder.
struct Class {
    entries: Vec<Entry>,
    passed_over: PassedOver,
}

struct Lister<'a> {
    root: &'a Path,
    files: AtomicU64,
}

impl<'a> Lister<'a> {
    fn new(root: &'a Path) -> Self {
        Self { root, files: AtomicU64::new(0) }
    }

    /// The classes below `folder` and their pictures.
    fn list(&self, folder: &Path, progress: &dyn Fn(IndexProgress)) -> Result<Tree, DatasetError> {
        let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = children(folder)?.into_iter().partition(|path| path.is_dir());
        let mut passed_over = PassedOver::default();
        files.iter().for_each(|path| passed_over.add(reason_beside(path), self.relative(path)));
        if folders.len() < 2 {
            let there = match &folders[..] {
                [] => "no class folder".to_owned(),
                [one, ..] => format!("a single class folder, {}", quoted(one.file_name().unwrap_or_default())),
            };
            let what = format!("has {there}: it needs a folder for each of at least two classes");
            return Err(DatasetError::invalid(folder, with(what, &passed_over)));
        }
        let classes: Vec<OsString> = folders.iter().map(|class| class.file_name().unwrap_or_default().to_owned()).collect();
        check_names(folder, &classes)?;
        // The kernel takes longer to say what a file is than all else here.
        let report = || progress(IndexProgress { files: self.files.load(Ordering::Relaxed) });
        let listed = in_parallel::each(in_parallel::all_threads(), &folders, &report, |label, class| self.class(class, label as u32))?;
        let mut entries = Vec::with_capacity(listed.iter().map(|class| class.entries.len()).sum());
        for class in listed {
            entries.extend(class.entries);
            passed_over.merge(class.passed_over);
        }
        Ok(Tree { classes, entries, passed_over })
    }

    fn class(&self, folder: &Path, label: u32) -> Result<Class, DatasetError> {
        let (mut entries, mut passed_over) = (Vec::new(), PassedOver::default());
        let walk = WalkDir::new(folder).follow_links(true).sort_by(|a, b| a.file_name().as_bytes().cmp(b.file_name().as_bytes()));
        for found in walk.into_iter().filter_entry(|e| e.depth() == 0 || !hidden(e.path())) {
            let found = match found {
                Ok(found) => found,
                Err(e) => match e.path().filter(|path| is_broken_link(path)) {
                    Some(path) => {
                        if !hidden(path) {
                            passed_over.add(Reason::BrokenLink, self.relative(path));
                        }
                        continue;
                    }
                    None => return Err(DatasetError::walk(folder, e)),
                },
            };
            if found.file_type().is_dir() {
                continue;
            }
            let (path, relative) = (found.path(), self.relative(found.path()));
            if !found.file_type().is_file() {
                passed_over.add(Reason::NoFile, relative);
                continue;
            }
            let bytes = found.metadata().map_err(|e| DatasetError::walk(folder, e))?.len();
            let picture = if bytes == 0 { Ok(false) } else { is_picture(path) };
            match picture {
                Ok(true) => entries.push(Entry { path: relative.to_owned(), label, bytes }),
                Ok(false) if bytes == 0 => passed_over.add(Reason::Empty, relative),
                Ok(false) => passed_over.add(Reason::of_ending(path), relative),
                Err(_) => passed_over.add(Reason::Unreadable, relative),
            }
            self.files.fetch_add(1, Ordering::Relaxed);
        }
        if entries.is_empty() {
            let what = "is a class without a single picture: fill it or remove the folder".to_owned();
            return Err(DatasetError::invalid(folder, with(what, &passed_over)));
        }
        Ok(Class { entries, passed_over })
    }

    fn relative<'p>(&self, path: &'p Path) -> &'p Path {
        path.strip_prefix(self.root).unwrap_or(path)
    }
}

/// A problem, and what was passed over where it is.
fn with(problem: String, passed_over: &PassedOver) -> String {
    if passed_over.is_empty() { problem } else { format!("{problem}; {passed_over}") }
}

/// Refuses two class folders of one name: a model would answer with it for both.
fn check_names(folder: &Path, classes: &[OsString]) -> Result<(), DatasetError> {
    let mut shown: Vec<(String, &OsString)> = names(classes).into_iter().zip(classes).collect();
    shown.sort_unstable();
    match shown.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        Some(pair) => Err(DatasetError::invalid(
            folder,
            format!(
                "has the class folders {:?} and {:?}, which both are the class `{}`, because their names are not UTF-8: rename one",
                pair[0].1, pair[1].1, pair[0].0
            ),
        )),
        None => Ok(()),
    }
}
