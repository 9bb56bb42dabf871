#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;

use tempfile::{TempDir, tempdir};

use super::list::Division;
use super::*;

/// A folder with pictures a.jpg to f.jpg, of different sizes, and a list of them.
fn listed(name: &str, text: &str) -> (TempDir, std::path::PathBuf) {
    let dir = tempdir().unwrap();
    fs::create_dir(dir.path().join("deep")).unwrap();
    for (n, file) in ["a", "b", "c", "d", "e", "deep/f"].iter().enumerate() {
        fs::write(dir.path().join(format!("{file}.jpg")), vec![b'p'; n + 1]).unwrap();
    }
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    (dir, path)
}

fn open_list(name: &str, text: &str, division: Division) -> Result<Images, DatasetError> {
    let (_dir, path) = listed(name, text);
    list::open(&path, None, division, &|_| {})
}

fn labels(source: &dyn SampleSource, split: Split) -> Vec<String> {
    source.labels(split).unwrap().iter().map(|l| source.info().classes[*l as usize].clone()).collect()
}

#[test]
fn a_list_names_pictures_classes_and_splits() {
    let csv = "label, path ,split,note\nb cat,a.jpg,Train,x\n10,./b.jpg,TRAINING,\"y\nz\"\n9,deep/f.jpg,valid,\n10,c.jpg,Val,\n";
    for (name, text) in [("l.csv", csv.to_owned()), ("l.TSV", csv.replace(',', "\t"))] {
        let (_dir, path) = listed(name, &text);
        let source = list::open(&path, None, Division::None, &|_| {}).unwrap();
        assert_eq!(source.info().classes, ["9", "10", "b cat"]);
        assert_eq!(source.info().format, SampleFormat::Encoded);
        assert_eq!(labels(&source, Split::Train), ["b cat", "10"]);
        assert_eq!(labels(&source, Split::Val), ["9", "10"]);
        assert_eq!(source.read(Split::Val, &[0]).unwrap()[0].bytes.len(), 6);
        assert_eq!(source.size_hint(Split::Val, 0), 6);
        assert!(source.name(Split::Val, 0).ends_with("deep/f.jpg"));
        assert!(source.read(Split::Val, &[2]).is_err());
    }
    // Another root, and a change that the fingerprint shows.
    let text = "path,label,split\nf.jpg,x,train\n../a.jpg,y,test\n";
    let (dir, path) = listed("l.csv", text);
    let below = |root: &Path| list::open(&path, Some(root), Division::None, &|_| {}).unwrap();
    let source = below(Path::new("deep"));
    assert_eq!((source.info().train, source.info().val), (1, 1));
    assert_eq!(source.info(), below(&dir.path().join("deep")).info());
    let before = source.info().fingerprint;
    fs::write(dir.path().join("a.jpg"), b"longer").unwrap();
    assert_ne!(below(Path::new("deep")).info().fingerprint, before);
}

#[test]
fn a_test_set_beside_a_validation_set_is_left_out() {
    let text = "path,label,split\na.jpg,x,train\nb.jpg,y,val\nc.jpg,x,test\n";
    let source = open_list("l.csv", text, Division::None).unwrap();
    assert_eq!((source.info().train, source.info().val), (1, 1));
}

#[test]
fn a_list_without_splits_is_divided_or_all_for_validation() {
    let text = "path,label\na.jpg,x\nb.jpg,x\nc.jpg,x\nd.jpg,y\ne.jpg,y\n";
    let source = open_list("l.csv", text, Division::Share(0.3, 1)).unwrap();
    let mut val = labels(&source, Split::Val);
    val.sort();
    assert_eq!((source.info().train, val), (3, vec!["x".to_owned(), "y".to_owned()]));
    let all = open_list("l.csv", text, Division::AllForValidation).unwrap();
    assert_eq!((all.info().train, all.info().val), (0, 5));
    // Of a list with splits, evaluation takes what is for validation.
    let text = "path,label,split\na.jpg,x,train\nb.jpg,y,val\n";
    assert_eq!(open_list("l.csv", text, Division::AllForValidation).unwrap().info().val, 1);
}

#[test]
fn bad_lists_are_refused_by_name_line_and_cause() {
    let cases = [
        ("", Division::None, "is empty"),
        ("path,label,split\n", Division::None, "a header and no rows"),
        ("file,label\na.jpg,x\n", Division::None, "no column `path`"),
        ("path\tlabel\na.jpg\tx\n", Division::None, "separated by commas; a .tsv has tabs"),
        ("path,label,label\na.jpg,x,y\n", Division::None, "two columns named `label`, columns 2 and 3"),
        ("path,label\na.jpg,x\nb.jpg,y\n", Division::None, "data.val_fraction"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,val\n", Division::Share(0.5, 1), "data.val_fraction would contradict"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,train\n", Division::None, "no validation pictures"),
        ("path,label,split\na.jpg,x,val\nb.jpg,y,test\n", Division::None, "no training pictures"),
        ("path,label,split\na.jpg,x,train\n\nb.jpg,,val\n", Division::None, "no label in line 4"),
        ("path,label,split\n,x,train\n", Division::None, "no path in line 2"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,dev\n", Division::None, "the split `dev` in line 3"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,\n", Division::None, "the split `` in line 3"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,val\n./a.jpg,x,val\n", Division::None, "`./a.jpg` in lines 2 and 4: a picture that is"),
        ("path,label\na.jpg,x\na.jpg,x\nb.jpg,y\n", Division::Share(0.5, 1), "`a.jpg` in lines 2 and 3"),
        ("path,label,split\na.jpg,x,train\na.jpg,y,train\n", Division::None, "with the labels `x` and `y`"),
        ("path,label,split\na.jpg,x,train\nno.jpg,y,val\nnor.jpg,y,val\ndeep,y,val\n", Division::None, "no.jpg` in line 3"),
        ("path,label,split\na.jpg,x,train\nno.jpg,y,val\nnor.jpg,y,val\ndeep,y,val\n", Division::None, "and 2 more are missing"),
        ("path,label,split\na.jpg,x,train\nb.jpg,x,val\n", Division::None, "names 1 classes"),
        ("path,label\na.jpg,x\nb.jpg,y\nc.jpg,y\n", Division::Share(0.5, 1), "single picture of the class `x`"),
    ];
    for (text, division, expected) in cases {
        let error = open_list("l.csv", text, division).err().expect("should be refused").to_string();
        assert!(error.contains("l.csv") && error.contains(expected), "{text:?}: {error}");
    }
    // A picture twice in training weighs twice, and harms nothing.
    let twice = "path,label,split\na.jpg,x,train\na.jpg,x,train\nb.jpg,y,val\n";
    assert_eq!(open_list("l.csv", twice, Division::None).unwrap().info().train, 2);
}

/// Writes a file of CIFAR with records of zeros, but for the first one given.
fn batch(path: &Path, bytes: u64, first: &[u8]) {
    fs::write(path, first).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_len(bytes).unwrap();
}

fn cifar(folder: &Path, hundred: bool) {
    let lines = |n: usize| (0..n).map(|n| format!("class {n}\n")).collect::<String>() + "\n";
    let mut record = if hundred { vec![19, 7] } else { vec![7] };
    for colour in [1, 2, 3] {
        record.extend((0..1024u32).map(|at| (at % 80) as u8 + 80 * (colour - 1)));
    }
    if hundred {
        fs::write(folder.join("fine_label_names.txt"), lines(100)).unwrap();
        batch(&folder.join("train.bin"), 50_000 * 3074, &record);
        batch(&folder.join("test.bin"), 10_000 * 3074, &record);
    } else {
        fs::write(folder.join("batches.meta.txt"), lines(10)).unwrap();
        (1..6).for_each(|n| batch(&folder.join(format!("data_batch_{n}.bin")), 10_000 * 3073, if n == 2 { &record } else { &[] }));
        batch(&folder.join("test_batch.bin"), 10_000 * 3073, &record);
    }
}

#[test]
fn cifar_is_read_with_its_colours_side_by_side() {
    for (hundred, below, at) in [(false, "", 10_000), (false, "cifar-10-batches-bin", 10_000), (true, "cifar-100-binary", 0)] {
        let dir = tempdir().unwrap();
        fs::create_dir_all(dir.path().join(below)).unwrap();
        cifar(&dir.path().join(below), hundred);
        let set = Cifar::open(dir.path()).unwrap();
        let info = set.info();
        assert_eq!((info.train, info.val, info.classes.len()), (50_000, 10_000, if hundred { 100 } else { 10 }));
        assert_eq!((info.format, info.classes[7].as_str()), (SampleFormat::Raw { height: 32, width: 32, channels: 3 }, "class 7"));
        for (split, id) in [(Split::Train, at), (Split::Val, 0)] {
            let sample = set.read(split, &[id]).unwrap().remove(0);
            assert_eq!((sample.label, sample.bytes.len()), (7, 3072));
            assert_eq!(sample.bytes[..6], [0, 80, 160, 1, 81, 161]);
            assert_eq!(sample.bytes[3 * 100..3 * 100 + 3], [20, 100, 180]);
        }
        assert_eq!(set.labels(Split::Train).unwrap().iter().filter(|l| **l == 7).count(), 1);
        assert!(set.name(Split::Train, at).contains(if hundred { "record 0 of" } else { "data_batch_2.bin" }));
        assert!(set.read(Split::Val, &[10_000]).is_err());
        assert_eq!(recognised(dir.path()), Some("cifar"));
    }
}

#[test]
fn damaged_cifar_sets_are_named_with_their_damage() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str, &str); 7] = [
        (|d| batch(&d.join("data_batch_3.bin"), 9_999 * 3073, &[]), "data_batch_3.bin", "10000 records of CIFAR-10 have 30730000"),
        (|d| fs::write(d.join("test_batch.bin"), "<!doctype html>").unwrap(), "test_batch.bin", "an HTML page"),
        (|d| batch(&d.join("data_batch_1.bin"), 10_000 * 3073, &[10]), "data_batch_1.bin", "label 10 in record 0"),
        (|d| fs::remove_file(d.join("data_batch_5.bin")).unwrap(), "data_batch_5.bin", "is missing"),
        (|d| fs::remove_file(d.join("batches.meta.txt")).unwrap(), "batches.meta.txt", "is missing"),
        (|d| fs::write(d.join("batches.meta.txt"), "a\nb\n").unwrap(), "batches.meta.txt", "names 2 classes"),
        (|d| fs::write(d.join("train.bin"), "").unwrap(), "CIFAR-100", "name one of them"),
    ];
    for (damage, file, word) in damages {
        let dir = tempdir().unwrap();
        cifar(dir.path(), false);
        damage(dir.path());
        let text = Cifar::open(dir.path()).err().expect("should be refused").to_string();
        assert!(text.contains(file) && text.contains(word), "{text}");
    }
    let dir = tempdir().unwrap();
    let refused = || Cifar::open(dir.path()).err().expect("should be refused").to_string();
    assert!(refused().contains("neither data_batch_1.bin"));
    fs::write(dir.path().join("cifar-10-binary.tar.gz"), "").unwrap();
    assert!(refused().contains("unpack it"));
    fs::create_dir(dir.path().join("cifar-10-batches-py")).unwrap();
    assert!(refused().contains("Python version"));
}
