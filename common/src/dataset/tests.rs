#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::Write;

use tempfile::{TempDir, tempdir};

use super::*;

fn put(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn folders() -> TempDir {
    let dir = tempdir().unwrap();
    for (path, content) in [
        ("train/b cat/1.jpg", "one"),
        ("train/b cat/deep/er/2.JPEG", "two"),
        ("train/b cat/.hidden.jpg", "no"),
        ("train/b cat/notes.txt", "no"),
        ("train/ä dog/3.PNG", "three"),
        ("val/b cat/4.png", "four"),
        ("val/ä dog/5.jpeg", "five"),
    ] {
        put(dir.path(), path, content.as_bytes());
    }
    dir
}

fn open_images(root: &Path, val_fraction: Option<f64>) -> Result<Images, DatasetError> {
    Images::open(root, val_fraction, 1, &|_| {})
}

fn problem(root: &Path, val_fraction: Option<f64>) -> String {
    open_images(root, val_fraction).err().expect("should be refused").to_string()
}

#[test]
fn class_folders_are_read_with_odd_names_nesting_and_any_case() {
    let dir = folders();
    let images = open_images(dir.path(), None).unwrap();
    assert_eq!(images.info().classes, ["b cat", "ä dog"]);
    assert_eq!((images.info().train, images.info().val), (3, 2));
    let samples = images.read(Split::Train, &[2, 0, 1]).unwrap();
    let seen: Vec<(u32, &[u8])> = samples.iter().map(|s| (s.label, &s.bytes[..])).collect();
    assert_eq!(seen, [(1, &b"three"[..]), (0, b"one"), (0, b"two")]);
    assert!(images.name(Split::Train, 1).ends_with("deep/er/2.JPEG"));
    assert!(matches!(images.read(Split::Val, &[2]), Err(DatasetError::NoSuchSample { id: 2, len: 2 })));
}

#[test]
fn a_changed_folder_is_listed_again_and_changes_the_fingerprint() {
    let dir = folders();
    let before = open_images(dir.path(), None).unwrap().info().clone();
    assert_eq!(&before, open_images(dir.path(), None).unwrap().info());
    put(dir.path(), "train/b cat/deep/new.jpg", b"new");
    let after = open_images(dir.path(), None).unwrap().info().clone();
    assert_eq!(after.train, 4);
    assert_ne!(before.fingerprint, after.fingerprint);
}

#[test]
fn one_tree_is_divided_class_by_class() {
    let dir = tempdir().unwrap();
    for class in ["x", "y"] {
        for i in 0..10 {
            put(dir.path(), &format!("{class}/{i}.png"), b"p");
        }
    }
    let images = open_images(dir.path(), Some(0.3)).unwrap();
    assert_eq!((images.info().train, images.info().val), (14, 6));
    for split in [Split::Train, Split::Val] {
        let ids: Vec<u32> = (0..images.info().len(split)).collect();
        let ones = images.read(split, &ids).unwrap().iter().filter(|s| s.label == 1).count();
        assert_eq!(ones * 2, ids.len());
    }
    assert!(problem(dir.path(), None).contains("val_fraction"));
}

#[test]
fn folders_that_cannot_be_trained_on_are_named() {
    let dir = folders();
    assert!(problem(&dir.path().join("nowhere"), None).contains("nowhere"));
    fs::remove_file(dir.path().join("val/ä dog/5.jpeg")).unwrap();
    assert!(problem(dir.path(), None).contains("val/ä dog"));
    fs::remove_dir(dir.path().join("val/ä dog")).unwrap();
    put(dir.path(), "val/fish/6.png", b"p");
    assert!(problem(dir.path(), None).contains("fish"));
    fs::remove_dir_all(dir.path().join("val")).unwrap();
    assert!(problem(dir.path(), None).contains("val/"));
}

/// Writes an IDX file.
fn idx(path: &Path, dimensions: &[u32], content: &[u8], gzip: bool) {
    let mut bytes = vec![0, 0, 8, dimensions.len() as u8];
    dimensions.iter().for_each(|d| bytes.extend(d.to_be_bytes()));
    bytes.extend(content);
    if gzip {
        let mut gz = flate2::write::GzEncoder::new(fs::File::create(path).unwrap(), flate2::Compression::fast());
        gz.write_all(&bytes).unwrap();
        gz.finish().unwrap();
    } else {
        fs::write(path, bytes).unwrap();
    }
}

fn idx_set() -> TempDir {
    let dir = tempdir().unwrap();
    idx(&dir.path().join("train-images-idx3-ubyte.gz"), &[3, 2, 2], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], true);
    idx(&dir.path().join("train-labels.idx1-ubyte"), &[3], &[0, 2, 1], false);
    idx(&dir.path().join("t10k-images-idx3-ubyte"), &[1, 2, 2], &[9, 9, 9, 9], false);
    idx(&dir.path().join("t10k-labels-idx1-ubyte.gz"), &[1], &[1], true);
    dir
}

#[test]
fn idx_files_are_read_plain_and_gzipped_under_either_name() {
    let dir = idx_set();
    let set = Idx::open(dir.path()).unwrap();
    assert_eq!(set.info().classes, ["0", "1", "2"]);
    assert_eq!(set.info().format, SampleFormat::Raw { height: 2, width: 2, channels: 1 });
    let samples = set.read(Split::Train, &[1]).unwrap();
    assert_eq!((samples[0].label, &samples[0].bytes[..]), (2, &[4, 5, 6, 7][..]));
    fs::write(dir.path().join("classes.txt"), "a\nb\nc\n").unwrap();
    assert_eq!(Idx::open(dir.path()).unwrap().info().classes, ["a", "b", "c"]);
}

#[test]
fn a_damaged_idx_file_is_named_with_its_damage() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str, &str); 5] = [
        (|d| idx(&d.join("t10k-images-idx3-ubyte"), &[1, 2, 2], &[9, 9], false), "t10k-images", "cut short"),
        (|d| idx(&d.join("t10k-images-idx3-ubyte"), &[1, 2, 2], &[9; 5], false), "t10k-images", "too long"),
        (|d| idx(&d.join("train-labels.idx1-ubyte"), &[2], &[0, 1], false), "train-labels", "2 labels for 3 pictures"),
        (|d| fs::write(d.join("t10k-images-idx3-ubyte"), b"this is not an idx file").unwrap(), "t10k-images", "no IDX file"),
        (|d| idx(&d.join("t10k-images-idx3-ubyte"), &[u32::MAX, u32::MAX, u32::MAX], &[9; 4], false), "t10k-images", "which no file has"),
    ];
    for (damage, file, word) in damages {
        let dir = idx_set();
        damage(dir.path());
        let text = Idx::open(dir.path()).err().expect("should be refused").to_string();
        assert!(text.contains(file) && text.contains(word), "{text}");
    }
    assert!(Idx::open(tempdir().unwrap().path()).err().unwrap().to_string().contains("train-images"));
}

#[test]
fn an_idx_file_is_taken_for_what_it_is_whatever_its_name() {
    let dir = idx_set();
    let zipped = dir.path().join("train-images-idx3-ubyte.gz");
    let content = fs::read(&zipped).unwrap();
    let refused = |content: &[u8]| {
        fs::write(&zipped, content).unwrap();
        Idx::open(dir.path()).err().expect("should be refused").to_string()
    };
    let page = refused(b"<!DOCTYPE html>\n<html><title>404 Not Found</title></html>");
    assert!(page.contains("train-images-idx3-ubyte.gz") && page.contains("is an HTML page, not an IDX file"), "{page}");
    let cut = refused(&content[..content.len() / 2]);
    assert!(cut.contains("damaged gzip file, cut short"), "{cut}");
    // Unpacked by a browser, under its old name; and the other way round.
    idx(&zipped, &[3, 2, 2], &[7; 12], false);
    fs::write(dir.path().join("train-labels.idx1-ubyte"), {
        idx(&dir.path().join("labels"), &[3], &[0, 2, 1], true);
        fs::read(dir.path().join("labels")).unwrap()
    })
    .unwrap();
    assert_eq!(Idx::open(dir.path()).unwrap().read(Split::Train, &[1]).unwrap()[0].bytes, [7; 4][..]);
}

#[test]
fn classes_of_one_name_are_refused_in_idx_sets() {
    let dir = idx_set();
    fs::write(dir.path().join("classes.txt"), "a\na\nb\nb\n").unwrap();
    let text = Idx::open(dir.path()).err().unwrap().to_string();
    assert!(text.contains("classes.txt") && text.contains("`a` twice, in lines 1 and 2"), "{text}");
}

#[cfg(not(feature = "parquet"))]
#[test]
fn a_build_without_parquet_says_how_to_have_it() {
    let config: DataConfig = toml::from_str("kind = 'parquet'\npath = 'x.parquet'").unwrap();
    let text = open(&config, 1, &|_| {}).err().unwrap().to_string();
    assert!(text.contains("x.parquet") && text.contains("--features parquet"), "{text}");
}

#[test]
fn a_tilde_that_no_shell_has_replaced_is_named() {
    for (path, section) in [
        ("~/data/t.csv", "kind = 'csv'\npath = '~/data/t.csv'"),
        ("~someone/t.csv", "kind = 'list'\npath = '~someone/t.csv'"),
        ("~", "kind = 'images'\npath = '~'"),
        ("~/{0..9}.tar", "kind = 'webdataset'\npath = '/'\nval_path = '~/{0..9}.tar'"),
        ("~/root", "kind = 'list'\npath = '/'\nroot = '~/root'"),
    ] {
        let config: DataConfig = toml::from_str(section).unwrap();
        let text = open(&config, 1, &|_| {}).err().unwrap().to_string();
        assert!(text.contains(path) && text.contains("the shell has not expanded `~"), "{text}");
    }
}

#[test]
fn generated_pictures_are_the_same_every_time_and_differ_by_class() {
    let (a, b) = (Synthetic::new(3, 30, 6, 16, 1), Synthetic::new(3, 30, 6, 16, 1));
    assert_eq!(a.read(Split::Train, &[0, 7]).unwrap(), b.read(Split::Train, &[0, 7]).unwrap());
    assert_ne!(a.read(Split::Train, &[0]).unwrap()[0].bytes, a.read(Split::Val, &[0]).unwrap()[0].bytes);
    assert_ne!(a.info().fingerprint, Synthetic::new(3, 30, 6, 16, 2).info().fingerprint);
    let labels: Vec<u32> = a.read(Split::Val, &[0, 1, 2, 3]).unwrap().iter().map(|s| s.label).collect();
    assert_eq!(labels, [0, 1, 2, 0]);
}

#[test]
fn other_data_under_the_same_path_is_refused_with_both_descriptions() {
    let (here, there) = (folders(), folders());
    put(there.path(), "train/b cat/extra.jpg", b"x");
    let expected = open_images(here.path(), None).unwrap().info().clone();
    let config = |root: &Path| {
        let mut config: DataConfig = toml::from_str("kind = \"images\"\npath = \"x\"").unwrap();
        config.set_path(root.to_owned());
        config
    };
    assert!(open_matching(&config(here.path()), 1, &expected).is_ok());
    let text = open_matching(&config(there.path()), 1, &expected).err().unwrap().to_string();
    assert!(text.contains("4 + 2 samples") && text.contains("3 + 2 samples") && text.contains("--data"), "{text}");
}
