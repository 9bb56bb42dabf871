//! Class folders as people have them: what is a picture, what is a split, what is refused.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::{TempDir, tempdir};

use super::*;

const PNG: &[u8] = b"\x89PNG\r\n\x1a\n and so on";

fn put(root: &Path, path: impl AsRef<Path>, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Two classes of two pictures in each of these folders.
fn folders(splits: &[&str]) -> TempDir {
    let dir = tempdir().unwrap();
    for split in splits {
        for (class, file) in [("cat", "1.jpg"), ("cat", "2.jpg"), ("dog", "3.jpg"), ("dog", "4.jpg")] {
            put(dir.path(), Path::new(split).join(class).join(file), b"picture");
        }
    }
    dir
}

fn open(root: &Path, val_fraction: Option<f64>) -> Result<Images, DatasetError> {
    Images::open(root, val_fraction, 1, &|_| {})
}

fn refused(root: &Path, val_fraction: Option<f64>, words: &[&str]) {
    let text = open(root, val_fraction).err().expect("should be refused").to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
}

#[test]
fn a_file_is_a_picture_by_its_usual_names_or_by_its_first_bytes() {
    let dir = folders(&["train", "val"]);
    let named =
        ["5.JFIF", "6.jpe", "7.jpg_large", "8.webp", "9.Bmp", "a.dib", "b.gif", "c.tif", "d.TIFF", "e.pbm", "f.pgm", "g.ppm", "h.pnm"];
    named.iter().for_each(|name| put(dir.path(), format!("train/cat/{name}"), b"unread"));
    for unnamed in ["5a8e1c", "0.5a8e1c", "photo.jpg~"] {
        put(dir.path(), format!("train/dog/deep/{unnamed}"), PNG);
    }
    put(dir.path(), "train/dog/README", b"These are dogs.");
    put(dir.path(), "train/dog/notes.txt", b"BMW drivers");
    let images = open(dir.path(), None).unwrap();
    assert_eq!((images.info().train as usize, images.info().val), (4 + named.len() + 3, 4));
    let expected = "2 files were passed over: 1 .txt (train/dog/notes.txt), 1 without an ending (train/dog/README)";
    assert_eq!(images.passed_over().to_string(), expected);
    assert_eq!(open(dir.path(), None).unwrap().passed_over(), images.passed_over(), "from the cache too");
}

#[test]
fn nothing_but_hidden_files_is_left_out_without_a_word() {
    let dir = folders(&["train", "val"]);
    let root = dir.path();
    (0..20).for_each(|n| put(root, format!("train/cat/{n:02}.txt"), b"text"));
    put(root, "train/cat/empty.jpg", b"");
    put(root, "train/loose.png", PNG);
    put(root, "val/loose", PNG);
    put(root, "README.md", b"text");
    symlink("nowhere.jpg", root.join("train/dog/gone.jpg")).unwrap();
    symlink("nowhere", root.join("val/gone")).unwrap();
    symlink("../dog/3.jpg", root.join("train/dog/again.jpg")).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(root.join("train/dog/pipe.jpg")).status().unwrap().success());
    for hidden in [".DS_Store", "train/.git/HEAD", "train/cat/._1.jpg", "val/dog/.thumbs/x.jpg"] {
        put(root, hidden, b"hidden");
    }
    symlink("nowhere", root.join("train/cat/.lock")).unwrap();
    let images = open(root, None).unwrap();
    assert_eq!((images.info().train, images.info().val), (5, 4), "a link to a picture is one");
    let text = images.passed_over().to_string();
    let expected = "27 files were passed over: 20 .txt (train/cat/00.txt, train/cat/01.txt, train/cat/02.txt, ...), \
        2 broken links (train/dog/gone.jpg, val/gone), 2 pictures in no class folder (train/loose.png, val/loose), 1 .md (README.md), \
        1 empty (train/cat/empty.jpg), 1 pipe or device (train/dog/pipe.jpg)";
    assert_eq!(text, expected);
    // What the link names is there now.
    put(root, "train/dog/nowhere.jpg", b"picture");
    assert_eq!(open(root, None).unwrap().info().train, 7);
}

#[test]
fn a_class_without_pictures_is_named_with_what_is_in_it() {
    let dir = folders(&["train", "val"]);
    put(dir.path(), "train/fish/a.txt", b"text");
    put(dir.path(), "train/fish/b.jpg", b"");
    refused(dir.path(), None, &["train/fish", "2 files were passed over: 1 .txt (train/fish/a.txt), 1 empty (train/fish/b.jpg)"]);
    let flat = tempdir().unwrap();
    put(flat.path(), "1.jpg", b"picture");
    refused(flat.path(), Some(0.5), &["has no class folder", "1 picture in no class folder (1.jpg)"]);
}

#[test]
fn a_folder_that_cannot_be_read_is_named() {
    use std::os::unix::fs::PermissionsExt;
    let dir = folders(&["train", "val"]);
    let closed = dir.path().join("train/cat/closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
    // Root may read everything.
    if fs::read_dir(&closed).is_err() {
        refused(dir.path(), None, &["train/cat/closed"]);
    }
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    symlink("..", dir.path().join("train/cat/closed/loop")).unwrap();
    refused(dir.path(), None, &["train/cat/closed/loop"]);
}

#[test]
fn splits_have_their_usual_names_in_any_case() {
    for [train, val] in [["train", "val"], ["Train", "VALID"], ["training", "Validation"], ["TRAINING", "val"], ["train", "test"]] {
        let dir = folders(&[train, val]);
        let images = open(dir.path(), None).unwrap();
        assert_eq!(images.info().classes, ["cat", "dog"], "{train} {val}");
        assert!(images.name(Split::Train, 0).ends_with(&format!("{train}/cat/1.jpg")) && images.passed_over().is_empty());
        assert!(images.name(Split::Val, 0).ends_with(&format!("{val}/cat/1.jpg")));
        assert!(Images::has_splits(dir.path()) && !Images::has_splits(&dir.path().join(train)));
        refused(dir.path(), Some(0.1), &[&format!("{train}/"), &format!("{val}/"), "leave out data.val_fraction"]);
    }
    let dir = folders(&["train", "valid", "Test"]);
    put(dir.path(), "docs/about.txt", b"text");
    let images = open(dir.path(), None).unwrap();
    assert!(images.name(Split::Val, 0).contains("valid/"));
    let expected = "docs/ is not used, because it holds no pictures";
    assert_eq!(images.passed_over().to_string(), format!("Test/ is not used, because valid/ is the validation set; {expected}"));
}

#[test]
fn folders_that_look_like_splits_are_never_classes() {
    let cases: [(&[&str], &[&str]); 8] = [
        (&["train"], &["has train/ but no val/", "data.val_fraction"]),
        (&["Val"], &["has Val/ but no train/"]),
        (&["test"], &["has test/ but no train/"]),
        (&["validation", "test"], &["has validation/ but no train/"]),
        (&["train", "Training", "val"], &["has Training/ and train/", "training set"]),
        (&["train", "val", "validation"], &["has val/ and validation/", "validation set"]),
        (&["train", "val", "bird"], &["bird/", "holds pictures", "train/ and val/"]),
        (&["train", "test", "extra"], &["extra/", "holds pictures", "train/ and test/"]),
    ];
    for (folders_there, words) in cases {
        let dir = folders(folders_there);
        refused(dir.path(), None, words);
        refused(dir.path(), Some(0.5), words);
    }
    let dir = folders(&["train", "val"]);
    fs::rename(dir.path().join("val"), dir.path().join("elsewhere")).unwrap();
    symlink("moved", dir.path().join("val")).unwrap();
    refused(dir.path(), None, &["val", "link to a folder that is not there"]);
}

#[test]
fn classes_whose_names_look_alike_are_refused_with_both_folders() {
    let name = |bytes: &'static [u8]| Path::new(OsStr::from_bytes(bytes));
    let dir = folders(&["train", "val"]);
    for split in ["train", "val"] {
        [b"Cat", b"DOG"].into_iter().for_each(|other| put(dir.path(), Path::new(split).join(name(other)).join("1.png"), PNG));
    }
    assert_eq!(open(dir.path(), None).unwrap().info().classes, ["Cat", "DOG", "cat", "dog"]);
    put(dir.path(), Path::new("train").join(name(b"caf\xe9")).join("1.png"), PNG);
    put(dir.path(), Path::new("val").join(name(b"caf\xe8")).join("1.png"), PNG);
    refused(dir.path(), None, &[r#""caf\xE8" too many"#]);
    put(dir.path(), Path::new("train").join(name(b"caf\xe8")).join("1.png"), PNG);
    refused(dir.path(), None, &["train", r#""caf\xE8" and "caf\xE9""#, "rename"]);
}

#[test]
fn all_pictures_of_a_tree_may_be_for_validation() {
    let dir = folders(&["pictures"]);
    put(dir.path(), "pictures/cat/notes.txt", b"text");
    let images = Images::open_all(&dir.path().join("pictures"), &|_| {}).unwrap();
    assert_eq!((images.info().train, images.info().val), (0, 4));
    assert_eq!(images.passed_over().to_string(), "1 file was passed over: 1 .txt (cat/notes.txt)");
    assert_eq!(Images::training_folder(folders(&["train", "val"]).path()).unwrap().file_name().unwrap(), "train");
    assert_eq!(Images::training_folder(dir.path()), None);
}

/// As many files as ImageNet has, in 2,000 folders: links, so that they take no space.
#[test]
#[ignore = "makes 1.3 million files, and measures"]
fn a_million_files_are_listed_in_seconds_and_known_within_one() {
    const CLASSES: u64 = 1000;
    let dir = tempdir().unwrap();
    let mut origin = dir.path().join("origin");
    for (split, files) in [("train", 1281), ("val", 50)] {
        for class in 0..CLASSES {
            let folder = dir.path().join(format!("data/{split}/n{class:08}"));
            fs::create_dir_all(&folder).unwrap();
            for file in 0..files {
                if (class * files + file).is_multiple_of(60_000) {
                    origin = dir.path().join(format!("{split}{class}"));
                    fs::write(&origin, b"picture").unwrap();
                }
                fs::hard_link(&origin, folder.join(format!("n{class:08}_{file}.JPEG"))).unwrap();
            }
            fs::File::open(&folder).unwrap().set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
        }
    }
    std::thread::sleep(std::time::Duration::from_secs(3));
    let root = dir.path().join("data");
    let timed = || {
        let start = std::time::Instant::now();
        let images = open(&root, None).unwrap();
        assert_eq!((images.info().train, images.info().val), (1_281_000, 50_000));
        start.elapsed().as_secs_f64()
    };
    let (first, later) = (timed(), timed());
    println!("listed in {first:.2} s, then known in {later:.2} s");
    assert!(first < 5.0 && later < 1.0, "{first} {later}");
}
