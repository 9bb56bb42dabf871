//! What a dataset is, its contents say: whatever its files are called, dated, or how large.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use tempfile::{TempDir, tempdir};

use super::contents::{Bound, Reading};
use super::index_cache::{Entry, Index};
use super::*;

const NOTHING: Bound = Bound { files: 0, bytes: 0 };

fn put(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

const FILES: [(&str, &[u8]); 6] = [
    ("train/cat/1.jpg", b"one"),
    ("train/cat/2.jpg", b"two"),
    ("train/dog/3.jpg", b"three"),
    ("train/dog/4.jpg", b"four"),
    ("val/cat/5.jpg", b"five"),
    ("val/dog/6.jpg", b"six"),
];

fn folders() -> TempDir {
    let dir = tempdir().unwrap();
    FILES.iter().for_each(|(path, content)| put(dir.path(), path, content));
    dir
}

fn age(path: &Path, seconds: u64) {
    File::open(path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
}

fn open(bound: Bound, root: &Path) -> Images {
    Images::open_within(bound, root, None, 1, &|_| {}).unwrap()
}

fn fingerprint(root: &Path) -> crate::digest::Digest {
    open(Bound::AT_OPENING, root).info().fingerprint
}

#[test]
fn two_copies_agree_whatever_their_dates_and_no_other_data_does() {
    let (here, there) = (folders(), folders());
    FILES.iter().for_each(|(path, _)| age(&there.path().join(path), 5000));
    let ours = fingerprint(here.path());
    assert_eq!(ours, fingerprint(there.path()));
    let path = there.path().join("train/dog/4.jpg");
    let before = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, b"4our").unwrap();
    File::open(&path).unwrap().set_modified(before).unwrap();
    assert_ne!(ours, fingerprint(there.path()), "mended in place, with the size and the date that it had");
    fs::write(&path, b"four").unwrap();
    assert_eq!(ours, fingerprint(there.path()));
    let (a, b) = (there.path().join("train/cat/1.jpg"), there.path().join("train/cat/2.jpg"));
    fs::rename(&a, there.path().join("x")).unwrap();
    fs::rename(&b, &a).unwrap();
    fs::rename(there.path().join("x"), &b).unwrap();
    assert_ne!(ours, fingerprint(there.path()), "two pictures swapped");
}

#[test]
fn a_size_that_changed_in_place_is_seen_at_the_next_start() {
    let dir = folders();
    let before = open(Bound::AT_OPENING, dir.path());
    put(dir.path(), "train/cat/1.jpg", b"a longer one");
    let text = before.read(Split::Train, &[1, 0]).unwrap_err().to_string();
    assert!(text.contains("train/cat/1.jpg") && text.contains("has 12 bytes, and had 3"), "{text}");
    let after = open(Bound::AT_OPENING, dir.path());
    assert_eq!(&after.read(Split::Train, &[0]).unwrap()[0].bytes[..], b"a longer one");
    assert_ne!(before.info().fingerprint, after.info().fingerprint);
}

#[test]
fn a_large_set_is_known_by_its_listing_until_it_has_been_read() {
    let dir = folders();
    let (small, large) = (open(Bound::AT_OPENING, dir.path()), open(NOTHING, dir.path()));
    let (read, unread) = (small.files().unwrap(), large.files().unwrap());
    assert_eq!((read.listing, unread.contents), (unread.listing, None));
    assert_eq!(large.info().fingerprint, unread.listing);
    assert_ne!(small.info().fingerprint, read.listing);
    assert_eq!(small.read_contents(&|| true).unwrap(), None, "they are known");
    assert_eq!(large.read_contents(&|| false).unwrap(), None, "told to stop");
    assert_eq!(large.read_contents(&|| true).unwrap(), read.contents);
    fs::remove_file(dir.path().join("val/dog/6.jpg")).unwrap();
    assert!(large.read_contents(&|| true).unwrap_err().to_string().contains("val/dog/6.jpg"));
}

/// A large set whose list is older than a file: the run that meets it ends, and the next
/// start lists anew.
#[test]
fn a_kept_list_that_is_older_than_a_file_is_dropped() {
    let dir = folders();
    let inside = ["", "train", "val", "train/cat", "train/dog", "val/cat", "val/dog"];
    inside.iter().for_each(|folder| age(&dir.path().join(folder), 100));
    drop(open(NOTHING, dir.path()));
    put(dir.path(), "val/cat/5.jpg", b"five and more");
    let stale = open(NOTHING, dir.path());
    assert_eq!(stale.size_hint(Split::Val, 0), 4, "its folder does not tell");
    assert!(stale.read(Split::Val, &[0]).is_err());
    assert_eq!(open(NOTHING, dir.path()).size_hint(Split::Val, 0), 13);
}

fn index(root: &Path) -> Index {
    let entry = |path: &str, label| Entry { path: path.into(), label, bytes: fs::metadata(root.join(path)).unwrap().len() };
    let labelled = |(path, _): &(&str, &[u8])| entry(path, u32::from(path.contains("dog")));
    let (train, val) = FILES.split_at(4);
    let classes = vec!["cat".to_owned(), "dog".to_owned()];
    Index {
        classes,
        train: train.iter().map(labelled).collect(),
        val: val.iter().map(labelled).collect(),
        passed_over: PassedOver::default(),
    }
}

/// Reads the set on `threads`, with the cache in `cache`, and says how many files it read.
fn read(root: &Path, cache: Option<PathBuf>, threads: usize) -> (crate::digest::Digest, u64) {
    let files = Mutex::new(0);
    let report = |n| *files.lock().unwrap() = n;
    let reading = Reading { root, cache, threads, report: &report, go_on: &|| true };
    let digest = reading.digest(&index(root)).unwrap().unwrap();
    (digest, *files.lock().unwrap())
}

#[test]
fn what_has_not_changed_is_not_read_again() {
    let dir = folders();
    let cache = Some(dir.path().join("cache/contents"));
    let (whole, files) = read(dir.path(), cache.clone(), 1);
    assert_eq!((files, read(dir.path(), cache.clone(), 1)), (6, (whole, 6)), "files that have just changed may change again");
    assert!(!cache.as_ref().unwrap().exists());
    // ctime cannot be set: only waiting makes a file old.
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(read(dir.path(), cache.clone(), 1), (whole, 6));
    assert_eq!(read(dir.path(), cache.clone(), 1), (whole, 0));
    assert_eq!(read(dir.path(), cache.clone(), 3).0, whole);
    assert_eq!(read(dir.path(), None, 7).0, whole, "on any number of threads");
    put(dir.path(), "train/dog/3.jpg", b"THREE");
    let (other, files) = read(dir.path(), cache.clone(), 1);
    assert_eq!(files, 2, "the class that changed");
    assert_ne!(other, whole);
    put(dir.path(), "train/dog/3.jpg", b"three");
    assert_eq!(read(dir.path(), cache.clone(), 1), (whole, 2));
    fs::write(cache.as_ref().unwrap(), "{").unwrap();
    assert_eq!(read(dir.path(), cache, 1).0, whole);
}
