#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs::{self, File};
use std::io::Read;
use std::time::{Duration, SystemTime};

use tempfile::{TempDir, tempdir};

use super::data_file::DataFile;
use super::kept_index;
use super::tar_index::TarIndex;
use super::tar_scan::Scanner;
use super::*;

/// What `made/make.py` has made with Python's tarfile, webdataset and scipy.
fn made(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dataset/made").join(name);
    let bytes = fs::read(path).unwrap();
    if !name.ends_with(".gz") {
        return bytes;
    }
    let mut unpacked = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut unpacked).unwrap();
    unpacked
}

/// A tar of these files.
fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// A shard of samples `NNN` with these labels.
fn shard(labels: std::ops::Range<u32>) -> Vec<u8> {
    let names: Vec<(String, String)> = labels.clone().map(|n| (format!("{n:03}.jpg"), format!("{n:03}.cls"))).collect();
    let contents: Vec<(Vec<u8>, String)> = labels.map(|n| (vec![n as u8; 700 + n as usize], (n % 3).to_string())).collect();
    let pairs = names.iter().zip(&contents);
    let files: Vec<(&str, &[u8])> = pairs.flat_map(|((a, b), (p, c))| [(a.as_str(), &p[..]), (b.as_str(), c.as_bytes())]).collect();
    tar_of(&files)
}

fn put(root: &Path, path: &str, content: &[u8]) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

fn scanned(bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let dir = tempdir().unwrap();
    put(dir.path(), "a.tar", bytes);
    let path = dir.path().join("a.tar");
    let file = File::open(&path).unwrap();
    let mut scanner = Scanner::of_file(&file).map_err(|e| e.of(&path).to_string())?;
    let mut found = Vec::new();
    while let Some(member) = scanner.next().map_err(|e| e.of(&path).to_string())? {
        let name = String::from_utf8_lossy(scanner.name()).into_owned();
        found.push((name, bytes[member.offset as usize..][..member.bytes as usize].to_vec()));
    }
    Ok(found)
}

#[test]
fn every_dialect_of_tar_is_scanned_as_the_tar_crate_reads_it() {
    for name in ["pax", "gnu", "ustar", "webdataset"] {
        let bytes = made(&format!("{name}.tar.gz"));
        let mut expected = Vec::new();
        for entry in tar::Archive::new(&bytes[..]).entries().unwrap() {
            let mut entry = entry.unwrap();
            if entry.header().entry_type().is_file() {
                let mut content = Vec::new();
                let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                entry.read_to_end(&mut content).unwrap();
                expected.push((path, content));
            }
        }
        assert!(expected.len() >= 6, "{name}");
        assert_eq!(scanned(&bytes).unwrap(), expected, "{name}");
    }
    let long = made("gnu.tar.gz");
    assert!(scanned(&long).unwrap()[2].0.len() > 150);
    assert_eq!(scanned(&made("pax.tar.gz")).unwrap()[4].0, "é2.PNG");
}

#[test]
fn damaged_tars_are_named_and_never_panic() {
    let whole = shard(0..4);
    let members = scanned(&whole).unwrap().len();
    assert_eq!(members, 8);
    // Cut anywhere, it is refused, or lacks nothing but what follows its last member.
    for cut in 0..whole.len() {
        match scanned(&whole[..cut]) {
            Ok(_) => assert!(cut % 512 == 0 || cut > whole.len() - 1024, "cut at {cut}"),
            Err(e) => assert!(e.contains("a.tar") && (e.contains("cut short") || e.contains("is empty")), "cut at {cut}: {e}"),
        }
    }
    for (bytes, word) in
        [(&b"<html>Not Found</html>"[..], "an HTML page"), (b"", "is empty"), (&[7; 4096], "no tar file"), (b"\x1f\x8b\x08", "a gzip file")]
    {
        let error = scanned(bytes).unwrap_err();
        assert!(error.contains(word), "{error}");
    }
    let mut rng = crate::seed::stream(1, "damaged tars", &[]);
    for source in [whole, made("pax.tar.gz"), made("gnu.tar.gz")] {
        for _ in 0..3000 {
            let mut bytes = source.clone();
            for _ in 0..3 {
                let at = crate::seed::below(&mut rng, bytes.len() as u32) as usize;
                bytes[at] = crate::seed::below(&mut rng, 256) as u8;
            }
            let _ = scanned(&bytes);
        }
    }
}

fn open_shards(place: &Path, division: Division) -> Result<TarPictures, DatasetError> {
    webdataset::open(place, division, &|_| {})
}

#[test]
fn what_pythons_webdataset_writes_is_read() {
    let dir = tempdir().unwrap();
    put(dir.path(), "a.tar", &made("webdataset.tar.gz"));
    let source = open_shards(dir.path(), Division::Share(0.5, 1)).unwrap();
    assert_eq!(source.info().classes, ["0", "1"]);
    let mut seen: Vec<(String, u32, Vec<u8>)> = Vec::new();
    for split in [Split::Train, Split::Val] {
        assert_eq!(source.info().len(split), 2);
        for sample in source.read(split, &[0, 1]).unwrap() {
            assert_eq!(source.size_hint(split, sample.id), sample.bytes.len() as u64);
            seen.push((source.name(split, sample.id), sample.label, sample.bytes.to_vec()));
        }
    }
    seen.sort();
    for (n, (name, label, bytes)) in (0u32..).zip(seen) {
        assert!(name.ends_with(&format!("a.tar/{n:06}.jpg")), "{name}");
        assert_eq!((label, bytes), (n % 2, format!("\u{ff}\u{d8}\u{ff} picture {n}").chars().map(|c| c as u8).collect()));
    }
    put(dir.path(), "classes.txt", b"cat\ndog\n");
    assert_eq!(open_shards(dir.path(), Division::AllForValidation).unwrap().info().classes, ["cat", "dog"]);
    for (names, word) in [("cat\n", "names 1 classes, and the shards have the class 1"), ("cat\ncat\n", "twice, in lines 1 and 2")] {
        put(dir.path(), "classes.txt", names.as_bytes());
        let error = open_shards(dir.path(), Division::AllForValidation).err().unwrap().to_string();
        assert!(error.contains("classes.txt") && error.contains(word), "{error}");
    }
}

#[test]
fn shards_are_divided_by_their_names_their_folders_or_a_second_path() {
    let counts = |place: &Path, division: Division| {
        let info = open_shards(place, division).unwrap().info().clone();
        (info.train, info.val)
    };
    let dir = tempdir().unwrap();
    for (name, samples) in [("set-Train-0.tar", 0..5), ("set-Train-1.tar", 5..9), ("set-valid-0.tar", 0..3), ("set-test-0.tar", 0..6)] {
        put(dir.path(), name, &shard(samples));
    }
    assert_eq!(counts(dir.path(), Division::None), (9, 3));
    let pattern = dir.path().join("set-Train-{0..1}.tar");
    let test = dir.path().join("set-test-0.tar");
    assert_eq!(counts(&pattern, Division::Shards(&test)), (9, 6));
    assert_eq!(counts(&pattern, Division::AllForValidation), (0, 9));
    assert_eq!(counts(&pattern, Division::Share(0.34, 1)), (6, 3));
    let refused = |place: &Path, division: Division| open_shards(place, division).err().expect("should be refused").to_string();
    assert!(refused(dir.path(), Division::Share(0.2, 1)).contains("data.val_fraction would contradict"));
    assert!(refused(&pattern, Division::None).contains("data.val_path"));
    assert!(refused(&pattern, Division::Shards(&dir.path().join("set-Train-{0,1}.tar"))).contains("twice"));
    let missing = refused(&dir.path().join("set-Train-{0..3}.tar"), Division::None);
    assert!(missing.contains("names 4 tars, and 2 of them are not there") && missing.contains("set-Train-2.tar"), "{missing}");
    assert!(refused(&dir.path().join("*.tar"), Division::None).contains("name the folder"));
    put(dir.path(), "other.tar", &shard(0..3));
    assert!(refused(dir.path(), Division::None).contains("other.tar"));

    let dir = tempdir().unwrap();
    put(dir.path(), "train/0.tar", &shard(0..6));
    put(dir.path(), "Validation/0.tar", &shard(0..3));
    assert_eq!(counts(dir.path(), Division::None), (6, 3));
    assert_eq!(recognised(dir.path()), Some("webdataset"));
    assert_eq!(recognised(&dir.path().join("train")), Some("webdataset"));
    // A tar that was left beside the class folders that it held.
    put(dir.path(), "train/cats/1.jpg", b"p");
    put(dir.path(), "all.tar", &shard(0..3));
    assert_eq!(recognised(dir.path()), None);
    let dir = tempdir().unwrap();
    assert!(refused(dir.path(), Division::None).contains("no .tar files"));
    put(dir.path(), "a.tar.gz", b"");
    assert!(refused(dir.path(), Division::None).contains("gunzip"));
}

#[test]
fn samples_without_a_picture_or_a_class_are_counted() {
    let files: [(&str, &[u8]); 12] = [
        ("a/1.jpg", b"one"),
        ("a/1.cls", b" 1 \n"),
        ("a/2.cls", b"0"),
        ("a/2.txt", b"no picture"),
        ("a/3.JPG", b"no class"),
        ("b/1.png", b"the same base name in another folder"),
        ("b/1.CLS", b"0"),
        ("b/1.webp", b"less liked"),
        ("README", b""),
        ("._4.jpg", b"of a Mac"),
        ("__meta__.json", b"{}"),
        ("5.seg.png", b"no class, and no picture"),
    ];
    let dir = tempdir().unwrap();
    put(dir.path(), "a.tar", &tar_of(&files));
    let source = open_shards(dir.path(), Division::AllForValidation).unwrap();
    assert_eq!(source.labels(Split::Val).unwrap(), [1, 0]);
    assert!(source.name(Split::Val, 1).ends_with("b/1.png"));
    let lone = tempdir().unwrap();
    put(lone.path(), "a.tar", &tar_of(&files[2..5]));
    let error = open_shards(lone.path(), Division::AllForValidation).err().unwrap().to_string();
    assert!(error.contains("1 without a picture (a/2); 1 without a class (.cls) (a/3)"), "{error}");
}

#[test]
fn bad_shards_are_named_with_their_damage() {
    for (files, word) in [
        (&[("1.jpg", &b"a"[..]), ("1.cls", b"cat")][..], "has the class `cat` in `1.cls`"),
        (&[("1.jpg", b"a"), ("1.cls", b"-1")], "where a decimal number"),
        (&[("1.jpg", b"a"), ("1.cls", b"4000000")], "where a decimal number"),
        (&[("1.jpg", b"a"), ("1.cls", b"")], "has the class `` in"),
        (&[("1.jpg", b"a"), ("1.cls", b"1"), ("1.jpg", b"a")], "holds `1.jpg` twice"),
        (&[("1.jpg", b"a"), ("1.cls", b"1"), ("2.jpg", b"a"), ("2.cls", b"1"), ("1.png", b"b")], "holds the key `1` in two places"),
        (&[("1.jpg", b"a"), ("2.jpg", b"a"), ("1.cls", b"1"), ("2.cls", b"1")], "must follow each other"),
    ] {
        let dir = tempdir().unwrap();
        put(dir.path(), "a.tar", &tar_of(files));
        let error = open_shards(dir.path(), Division::AllForValidation).err().expect("should be refused").to_string();
        assert!(error.contains("a.tar") && error.contains(word), "{error}");
    }
    let dir = tempdir().unwrap();
    let whole = shard(0..3);
    put(dir.path(), "a.tar", &whole[..whole.len() / 2]);
    let error = open_shards(dir.path(), Division::AllForValidation).err().unwrap().to_string();
    assert!(error.contains("a.tar") && error.contains("cut short"), "{error}");
}

#[test]
fn the_fingerprint_tells_names_labels_and_sizes_apart() {
    let of = |name: &str, files: &[(&str, &[u8])]| {
        let dir = tempdir().unwrap();
        put(dir.path(), name, &tar_of(files));
        open_shards(dir.path(), Division::AllForValidation).unwrap().info().fingerprint
    };
    let base: [(&str, &[u8]); 2] = [("1.jpg", b"one"), ("1.cls", b"1")];
    let first = of("a.tar", &base);
    assert_eq!(first, of("a.tar", &base));
    for other in [
        of("b.tar", &base),
        of("a.tar", &[("2.jpg", b"one"), ("2.cls", b"1")]),
        of("a.tar", &[("1.jpg", b"one"), ("1.cls", b"0")]),
        of("a.tar", &[("1.jpg", b"once"), ("1.cls", b"1")]),
    ] {
        assert_ne!(first, other);
    }
}

#[test]
fn an_index_is_kept_until_a_tar_changes_or_the_file_is_damaged() {
    let dir = tempdir().unwrap();
    let (cache, tar) = (dir.path().join("cache"), dir.path().join("a.tar"));
    let age = |seconds| File::open(&tar).unwrap().set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
    let open = |kind: &str| {
        let mut scans = 0;
        let files = DataFile::open_all(std::slice::from_ref(&tar)).unwrap();
        let index = kept_index::kept_in(Some(&cache), kind, &files, || {
            scans += 1;
            let mut index = TarIndex::default();
            index.push(0, 512, 7, 3, b"name").unwrap();
            index.pass_over("without use", b"other");
            Ok(index)
        });
        (scans, index.unwrap())
    };
    fs::write(&tar, b"first").unwrap();
    assert_eq!((open("x").0, open("x").0), (1, 1), "it has just changed");
    age(100);
    let (scans, index) = open("x");
    assert_eq!((scans, index.name(0)), (1, &b"name"[..]));
    assert_eq!(open("x"), (0, index));
    assert_eq!(open("y").0, 1, "an index of another kind");
    age(50);
    assert_eq!((open("x").0, open("x").0), (1, 0), "another time");
    fs::write(&tar, b"longer").unwrap();
    age(50);
    assert_eq!((open("x").0, open("x").0), (1, 0), "another size");
    fs::rename(&tar, dir.path().join("old.tar")).unwrap();
    let modified = fs::metadata(dir.path().join("old.tar")).unwrap().modified().unwrap();
    fs::write(&tar, b"Longer").unwrap();
    File::open(&tar).unwrap().set_modified(modified).unwrap();
    assert_eq!((open("x").0, open("x").0), (1, 0), "another file of the same size and time");
    for entry in fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let half = bytes.len() / 2;
        bytes.truncate(half);
        fs::write(&path, bytes).unwrap();
    }
    assert_eq!((open("x").0, open("x").0), (1, 0), "a damaged file");
}

/// The training and validation set of three classes, as ILSVRC2012 is packed.
fn ilsvrc_tars(root: &Path) {
    let class = |wnid: &str, n: usize| {
        let names: Vec<String> = (0..n).map(|n| format!("{wnid}_{n}.JPEG")).collect();
        let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
        tar_of(&files)
    };
    // Not in the order of their names.
    let (crane, machine, tench) = (class("n02012849", 2), class("n03126707", 3), class("n01440764", 4));
    let outer = tar_of(&[("n02012849.tar", &crane), ("n01440764.tar", &tench), ("n03126707.tar", &machine)]);
    put(root, "ILSVRC2012_img_train.tar", &outer);
    let names: Vec<String> = (1..4).rev().map(|n| format!("ILSVRC2012_val_{n:08}.JPEG")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), name.as_bytes())).collect();
    put(root, "ILSVRC2012_img_val.tar", &tar_of(&files));
}

fn kit(meta: &[u8], truth: &[u8]) -> Vec<u8> {
    let files = [
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth),
        ("ILSVRC2012_devkit_t12/data/meta.mat", meta),
        ("ILSVRC2012_devkit_t12/readme.txt", b"text"),
    ];
    let mut zipped = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut zipped, &tar_of(&files)).unwrap();
    zipped.finish().unwrap()
}

fn packed() -> TempDir {
    let dir = tempdir().unwrap();
    ilsvrc_tars(dir.path());
    // 1 is the tench, 3 the crane that lifts, 2 the bird.
    put(dir.path(), "ILSVRC2012_devkit_t12.tar.gz", &kit(&made("meta.mat"), b"1\n3\n2\n"));
    dir
}

/// Checks what both forms of the three classes must hold.
fn has_three_classes(source: &dyn SampleSource) {
    let info = source.info();
    assert_eq!(info.classes, ["tench", "crane (n02012849)", "crane (n03126707)"]);
    assert_eq!((info.train, info.val, info.format), (9, 3, SampleFormat::Encoded));
    for split in [Split::Train, Split::Val] {
        let ids: Vec<u32> = (0..info.len(split)).collect();
        let labels = source.labels(split).unwrap();
        for sample in source.read(split, &ids).unwrap() {
            let name = String::from_utf8_lossy(&sample.bytes).into_owned();
            let expected = match &name[..] {
                "ILSVRC2012_val_00000001.JPEG" => 0,
                "ILSVRC2012_val_00000002.JPEG" => 2,
                "ILSVRC2012_val_00000003.JPEG" => 1,
                other => ["n01440764", "n02012849", "n03126707"].iter().position(|wnid| other.starts_with(wnid)).unwrap() as u32,
            };
            assert_eq!((sample.label, labels[sample.id as usize]), (expected, expected), "{name}");
            assert!(source.name(split, sample.id).ends_with(&name), "{name}");
        }
    }
}

#[test]
fn ilsvrc_is_read_from_its_tars_and_its_kit() {
    let dir = packed();
    assert_eq!(recognised(dir.path()), Some("ilsvrc"));
    has_three_classes(&*ilsvrc::open(dir.path(), &|_| {}).unwrap());
    // A kit that is unpacked, and whose meta.mat is not compressed.
    let inside = "ILSVRC2012_devkit_t12/data";
    fs::remove_file(dir.path().join("ILSVRC2012_devkit_t12.tar.gz")).unwrap();
    put(dir.path(), &format!("{inside}/meta.mat"), &made("meta-plain.mat"));
    put(dir.path(), &format!("{inside}/ILSVRC2012_validation_ground_truth.txt"), b"1\r\n3\r\n2\r\n");
    has_three_classes(&*ilsvrc::open(dir.path(), &|_| {}).unwrap());
    // Kaggle's tables in its place.
    fs::remove_dir_all(dir.path().join("ILSVRC2012_devkit_t12")).unwrap();
    kaggle_tables(dir.path());
    has_three_classes(&*ilsvrc::open(dir.path(), &|_| {}).unwrap());
}

fn kaggle_tables(root: &Path) {
    let mapping = "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn09999999 something else\n";
    put(root, "LOC_synset_mapping.txt", mapping.as_bytes());
    let solution = "ImageId,PredictionString\nILSVRC2012_val_00000003,n02012849 85 1 499 272 \nILSVRC2012_val_00000001,n01440764 1 2 3 4 n01440764 1 2 3 4 \nILSVRC2012_val_00000002,n03126707 1 2 3 4 \n";
    put(root, "LOC_val_solution.csv", solution.as_bytes());
}

#[test]
fn ilsvrc_is_read_from_kaggles_folders() {
    let dir = tempdir().unwrap();
    for (wnid, n) in [("n01440764", 4), ("n02012849", 2), ("n03126707", 3)] {
        for n in 0..n {
            let name = format!("{wnid}_{n}.JPEG");
            put(dir.path(), &format!("ILSVRC/Data/CLS-LOC/train/{wnid}/{name}"), name.as_bytes());
        }
    }
    let val = "ILSVRC/Data/CLS-LOC/val";
    for n in 1..4 {
        let name = format!("ILSVRC2012_val_{n:08}.JPEG");
        put(dir.path(), &format!("{val}/{name}"), name.as_bytes());
    }
    let refused = || ilsvrc::open(dir.path(), &|_| {}).err().expect("should be refused").to_string();
    assert!(refused().contains("LOC_synset_mapping.txt"));
    kaggle_tables(dir.path());
    has_three_classes(&*ilsvrc::open(dir.path(), &|_| {}).unwrap());
    // As many have sorted them.
    for (n, wnid) in [(1, "n01440764"), (2, "n03126707"), (3, "n02012849")] {
        let name = format!("ILSVRC2012_val_{n:08}.JPEG");
        fs::remove_file(dir.path().join(val).join(&name)).unwrap();
        put(dir.path(), &format!("{val}/{wnid}/{name}"), name.as_bytes());
    }
    has_three_classes(&*ilsvrc::open(dir.path(), &|_| {}).unwrap());
    put(dir.path(), &format!("{val}/n05555555/x.JPEG"), b"x");
    assert!(refused().contains("`n05555555`, which the training set lacks"));
}

#[test]
fn damaged_ilsvrc_sets_are_named_with_their_damage() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str, &str); 9] = [
        (|d| fs::remove_file(d.join("ILSVRC2012_img_val.tar")).unwrap(), "ILSVRC2012_img_val.tar", "could not read"),
        (|d| fs::remove_file(d.join("ILSVRC2012_devkit_t12.tar.gz")).unwrap(), "ILSVRC2012_devkit_t12.tar.gz", "holds neither"),
        (|d| put(d, "ILSVRC2012_devkit_t12.tar.gz", &kit(&made("meta.mat"), b"1\n3\n9\n")), "ground_truth.txt", "`9` in line 3"),
        (|d| put(d, "ILSVRC2012_devkit_t12.tar.gz", &kit(&made("meta.mat"), b"1\n3\n")), "img_val.tar", "nothing says the class"),
        (|d| put(d, "ILSVRC2012_devkit_t12.tar.gz", &kit(&made("meta.mat")[..300], b"1\n3\n2\n")), "meta.mat", "damaged"),
        (|d| put(d, "ILSVRC2012_devkit_t12.tar.gz", &kit(b"text", b"1\n3\n2\n")), "meta.mat", "cut short"),
        (|d| put(d, "LOC_synset_mapping.txt", b"n01440764 tench\n"), "img_train.tar", "`n02012849`, which has no name"),
        (|d| put(d, "ILSVRC2012_img_train.tar", &tar_of(&[("n1.tar", b"not a tar at all")])), "img_train.tar", "holds `n1.tar`, which"),
        (
            |d| {
                let whole = fs::read(d.join("ILSVRC2012_img_train.tar")).unwrap();
                fs::write(d.join("ILSVRC2012_img_train.tar"), &whole[..whole.len() - 4000]).unwrap();
            },
            "img_train.tar",
            "cut short",
        ),
    ];
    for (damage, file, word) in damages {
        let dir = packed();
        damage(dir.path());
        let text = ilsvrc::open(dir.path(), &|_| {}).err().expect("should be refused").to_string();
        assert!(text.contains(file) && text.contains(word), "{word}: {text}");
    }
    assert!(ilsvrc::open(tempdir().unwrap().path(), &|_| {}).err().unwrap().to_string().contains("as Kaggle has it"));
    // A MAT-file with any three bytes changed is read or refused.
    let mut rng = crate::seed::stream(1, "damaged MAT-files", &[]);
    let whole = made("meta-plain.mat");
    assert_eq!(matlab::structures(&whole, "synsets").unwrap(), matlab::structures(&made("meta.mat"), "synsets").unwrap());
    for _ in 0..3000 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            let at = crate::seed::below(&mut rng, bytes.len() as u32) as usize;
            bytes[at] = crate::seed::below(&mut rng, 256) as u8;
        }
        let _ = matlab::structures(&bytes, "synsets");
        let _ = matlab::structures(&bytes[..bytes.len() / 2], "synsets");
    }
}
