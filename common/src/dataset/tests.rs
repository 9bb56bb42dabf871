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

fn open_csv(text: &str) -> Result<Table, DatasetError> {
    let dir = tempdir().unwrap();
    let path = dir.path().join("t.csv");
    fs::write(&path, text).unwrap();
    csv::open(&path, "label", 0.25, true, 1)
}

fn rows(table: &Table, split: Split) -> Vec<(u32, Vec<f32>)> {
    let ids: Vec<u32> = (0..table.info().len(split)).collect();
    let floats = |s: &Sample| s.bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    table.read(split, &ids).unwrap().iter().map(|s| (s.label, floats(s))).collect()
}

#[test]
fn a_csv_file_becomes_standardized_rows_in_two_splits() {
    let lines: String = (0..48).map(|n| format!("{},{}, {} ,5\n", n, if n % 4 == 0 { "10" } else { "9" }, 2 * n)).collect();
    let table = open_csv(&format!("a,label,b,c\n{lines}")).unwrap();
    // Numbers are in numeric order, and each class keeps its share.
    assert_eq!(table.info().classes, ["9", "10"]);
    assert_eq!((table.info().train, table.info().val), (36, 12));
    assert_eq!(table.info().format, SampleFormat::Features { count: 3 });
    let train = rows(&table, Split::Train);
    for feature in 0..2 {
        let mean: f32 = train.iter().map(|(_, row)| row[feature]).sum::<f32>() / 36.0;
        let variance: f32 = train.iter().map(|(_, row)| row[feature].powi(2)).sum::<f32>() / 36.0;
        assert!(mean.abs() < 1e-5 && (variance - 1.0).abs() < 1e-4, "{mean} {variance}");
    }
    // The constant column is 0, not a division by 0.
    assert!(train.iter().all(|(_, row)| row[2] == 0.0));
    // Raw values come back through the columns, whatever the split.
    let (a, b) = (&table.columns()[0], &table.columns()[1]);
    for (label, row) in train.iter().chain(&rows(&table, Split::Val)) {
        let (a, b) = (row[0] * a.deviation + a.mean, row[1] * b.deviation + b.mean);
        assert!((b - 2.0 * a).abs() < 1e-3 && (a.round() as u32).is_multiple_of(4) == (*label == 1), "{a} {b} {label}");
    }
}

#[test]
fn bad_csv_files_are_refused_by_name_line_and_cause() {
    let cases = [
        ("a,lable\n1,x\n", "no label column `label`; its columns are `a`, `lable`"),
        ("a,label\n1,x\noops,y\n", "`oops` in line 3, column `a`"),
        ("a,label\n1,x\ninf,y\n", "`inf` in line 3"),
        ("a,label\n1,x\n1,2,3\n", "3 values in line 3, and its header has 2"),
        ("a,label\n", "no rows"),
        ("", "no label column"),
        ("label\nx\ny\n", "nothing to learn from"),
        ("a,label\n1,x\n2,x\n", "1 different values"),
        ("a,label\n1,x\n2,y\n3,y\n", "single row of the class `x`"),
    ];
    for (text, expected) in cases {
        let error = open_csv(text).err().expect("should be refused").to_string();
        assert!(error.contains("t.csv") && error.contains(expected), "{text:?}: {error}");
    }
    let error = csv::open(Path::new("/nowhere/x.csv"), "label", 0.2, true, 1).err().unwrap().to_string();
    assert!(error.contains("/nowhere/x.csv"), "{error}");
}

#[test]
fn xor_is_its_four_corners() {
    let table = points::xor(4, 8, 0.0, 1);
    let expected = [(0, vec![0.0, 0.0]), (1, vec![0.0, 1.0]), (1, vec![1.0, 0.0]), (0, vec![1.0, 1.0])];
    assert_eq!(rows(&table, Split::Train), expected);
    assert_eq!(rows(&table, Split::Val).len(), 8);
    let noisy = rows(&points::xor(4, 4, 0.1, 1), Split::Train);
    assert!(noisy.iter().zip(&expected).all(|(a, b)| a.0 == b.0 && a.1 != b.1 && (a.1[0] - b.1[0]).abs() < 0.5));
}

#[test]
fn separable_points_lie_in_the_ball_and_differ_by_split_and_seed() {
    for features in [1, 2, 5] {
        let table = points::separable(50, 20, features, 0.1, 3);
        let train = rows(&table, Split::Train);
        assert!(train.iter().all(|(_, p)| p.iter().map(|v| v * v).sum::<f32>() <= 1.0001));
        assert_eq!(train.iter().filter(|(label, _)| *label == 1).count(), 25);
        assert_ne!(train[..20], rows(&table, Split::Val)[..]);
        assert_ne!(train, rows(&points::separable(50, 20, features, 0.1, 4), Split::Train));
    }
}

#[test]
fn other_rows_are_scaled_as_the_training_rows_were() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("other.csv");
    let columns = [Column { name: "a".to_owned(), mean: 10.0, deviation: 2.0 }];
    let classes = ["x".to_owned(), "y".to_owned()];
    fs::write(&path, "note,label,a\nfree text,y,14\n,x,8\n").unwrap();
    let table = Table::open_like(&path, "label", &columns, &classes).unwrap();
    assert_eq!(rows(&table, Split::Val), [(1, vec![2.0]), (0, vec![-1.0])]);
    fs::write(&path, "a\n12\n").unwrap();
    assert_eq!(rows(&Table::open_like(&path, "label", &columns, &classes).unwrap(), Split::Val), [(0, vec![1.0])]);
    fs::write(&path, "a,label\n12,z\n").unwrap();
    assert!(Table::open_like(&path, "label", &columns, &classes).err().unwrap().to_string().contains("label `z` in line 2"));
    fs::write(&path, "b\n12\n").unwrap();
    assert!(Table::open_like(&path, "label", &columns, &classes).err().unwrap().to_string().contains("no column `a`"));
    assert!(Table::open_like(&path, "label", &[], &classes).err().unwrap().to_string().contains("dataset.json"));
}
