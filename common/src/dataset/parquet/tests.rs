#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::{TempDir, tempdir};

use super::super::source::{Sample, SampleSource, Split};
use super::chunk::{Places, range};
use super::footer::Input;
use super::index::ParquetIndex;
use super::*;
use crate::digest::Digest;

/// A row as pyarrow reads it: the length and CRC-32 of its picture, and its label.
type Row = (Option<(usize, u32)>, serde_json::Value);

/// The folder of what `made/make_parquet.py` has made with pyarrow.
fn made() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/dataset/made/parquet")
}

fn bytes_of(name: &str) -> Vec<u8> {
    fs::read(made().join(format!("{name}.parquet"))).unwrap()
}

fn expected() -> BTreeMap<String, Vec<Row>> {
    serde_json::from_slice(&fs::read(made().join("expected.json")).unwrap()).unwrap()
}

/// A folder with these files, which are made files or others by their content.
fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn open_all(place: &Path, named: Named) -> Result<ParquetPictures, DatasetError> {
    open(place, named, Division::AllForValidation, &|_| {})
}

/// Opens one file's bytes, and reads all that it holds.
fn read_all(bytes: &[u8]) -> Result<Vec<Sample>, DatasetError> {
    let dir = folder(&[("x.parquet", bytes)]);
    let source = open_all(&dir.path().join("x.parquet"), Named::default())?;
    source.read(Split::Val, &(0..source.info().val).collect::<Vec<_>>())
}

fn crc(bytes: &[u8]) -> (usize, u32) {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    (bytes.len(), crc.sum())
}

#[test]
fn every_row_is_what_pyarrow_reads() {
    let expected = expected();
    assert_eq!(expected.len(), 11);
    for (file, rows) in expected {
        let dir = folder(&[("x.parquet", &fs::read(made().join(&file)).unwrap())]);
        let path = dir.path().join("x.parquet");
        let source = open_all(&path, Named::default()).unwrap();
        let kept: Vec<(usize, &Row)> = rows.iter().enumerate().filter(|(_, (p, l))| p.is_some() && !l.is_null() && *l != -1).collect();
        assert_eq!((source.info().val as usize, source.info().train), (kept.len(), 0), "{file}");
        let ids: Vec<u32> = (0..source.info().val).rev().collect();
        let together = source.read(Split::Val, &ids).unwrap();
        for (n, (row, (picture, label))) in kept.into_iter().enumerate() {
            let sample = &source.read(Split::Val, &[n as u32]).unwrap()[0];
            assert_eq!(Some(crc(&sample.bytes)), *picture, "{file} row {row}");
            assert_eq!(*sample, together[ids.len() - 1 - n], "{file} row {row}");
            assert_eq!(source.name(Split::Val, n as u32), format!("{} row {row}", path.display()));
            match label.as_str() {
                Some(text) => assert_eq!(source.info().classes[sample.label as usize], text, "{file} row {row}"),
                None => assert_eq!(i64::from(sample.label), *label, "{file} row {row}"),
            }
        }
        assert!(source.read(Split::Val, &[source.info().val]).is_err());
        let labels: Vec<u32> = together.iter().rev().map(|sample| sample.label).collect();
        assert_eq!(source.labels(Split::Val).unwrap(), labels);
        assert_eq!(source.read_contents(&|| true).unwrap(), Some(Digest::of(&fs::read(&path).unwrap())));
    }
}

#[test]
fn a_page_index_and_the_headers_of_pages_say_the_same() {
    let (mut indexed, mut dictionaries) = (0, 0);
    for file in expected().into_keys().filter(|file| file != "cifar100.parquet") {
        let path = made().join(&file);
        let open = File::open(&path).unwrap();
        let input = Input::of(&open).unwrap();
        let metadata = footer::read(&path, &input).unwrap();
        let columns = columns::find(&metadata, Named::default()).unwrap();
        assert_eq!(metadata.num_row_groups(), 3, "{file}");
        let mut first_row = 0;
        for (n, group) in metadata.row_groups().iter().enumerate() {
            let rows = group.num_rows() as u32;
            let empty = || Places { chunk: 7, first_row, rows, pages: Vec::new(), dictionary: None };
            let range = range(group.column(columns.image.number), &input).unwrap();
            let mut by_headers = empty();
            by_headers.by_headers(range.clone(), &input).unwrap();
            // A column of a few pictures in a dictionary is numbers, which one page holds.
            assert!(by_headers.pages.len() > 1 || file.contains("dictionary") || rows < 16, "{file} has one page");
            assert_eq!(by_headers.pages.iter().map(|page| page.rows).sum::<u32>(), rows);
            dictionaries += u32::from(by_headers.dictionary.is_some());
            if let Some(locations) = metadata.page_index_for_row_group(n).page_locations(columns.image.number) {
                let mut by_index = empty();
                by_index.by_index(range, locations).unwrap();
                assert_eq!((by_index.pages, by_index.dictionary), (by_headers.pages, by_headers.dictionary), "{file} row group {n}");
                indexed += 1;
            }
            first_row += rows;
        }
    }
    assert!(indexed >= 12 && dictionaries >= 9, "{indexed} {dictionaries}");
}

#[test]
fn classes_are_those_of_the_hub_or_of_a_file_or_texts_or_numbers() {
    let classes = |name: &str, more: &[(&str, &[u8])]| {
        let dir = folder(&[&[("data/a.parquet", &bytes_of(name)[..])], more].concat());
        open_all(dir.path(), Named::default()).map(|source| source.info().classes.clone()).map_err(|e| e.to_string())
    };
    let names: &[(&str, &[u8])] = &[("classes.txt", b"ant\nbee\ncow\nhen\n")];
    assert_eq!(classes("gzip-nulls", names).unwrap(), ["cat", "dog", "emu"]);
    assert_eq!(classes("snappy-texts", names).unwrap(), ["9", "10", "cat", "emu"]);
    assert_eq!(classes("lz4-large", &[]).unwrap(), ["0", "1", "2"]);
    assert_eq!(classes("lz4-large", names).unwrap(), ["ant", "bee", "cow", "hen"]);
    let text = classes("lz4-large", &[("classes.txt", b"ant\nbee\n")]).unwrap_err();
    assert!(text.contains("names 2 classes, and the shards have the class 2"), "{text}");
    let text = classes("lz4-large", &[("data/x.parquet", &bytes_of("snappy-texts"))]).unwrap_err();
    assert!(text.contains("x.parquet") && text.contains("texts for labels"), "{text}");
}

#[test]
fn rows_without_picture_or_label_are_counted_and_named() {
    for name in ["gzip-nulls", "none-v2-dictionary-nulls-checksums"] {
        let dir = folder(&[("x.parquet", &bytes_of(name))]);
        let source = open_all(dir.path(), Named::default()).unwrap();
        let text = source.passed_over().to_string();
        let path = dir.path().join("x.parquet").display().to_string();
        for part in [
            "15 rows were passed over: 9 without a picture",
            &format!("({path} row 3, {path} row 5, {path} row 10, ...)"),
            &format!("3 without a label ({path} row 4, {path} row 13, {path} row 22)"),
            &format!("3 with the label -1, which stands for none ({path} row 6, {path} row 19, {path} row 32)"),
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn columns_that_cannot_be_known_are_refused_with_those_that_there_are() {
    let refused = |name: &str, named: Named| {
        let dir = folder(&[("x.parquet", &bytes_of(name))]);
        let text = open_all(&dir.path().join("x.parquet"), named).err().expect(name).to_string();
        assert!(text.contains("x.parquet"), "{text}");
        text
    };
    let image = |name| Named { image: Some(name), label: None };
    let label = |name| Named { image: None, label: Some(name) };
    let struct_type = "{bytes: binary, path: string}";
    for (name, named, words) in [
        ("two", Named::default(), &["`image` and `img`", "data.image", "label: int64"][..]),
        ("none", Named::default(), &["known to hold pictures", "data.image", "size: double", "at: timestamp", struct_type]),
        ("none", image("picture"), &["known to hold labels", "data.label"]),
        ("none", Named { image: Some("picture"), label: Some("at") }, &["`at` of the type timestamp"]),
        ("list", Named::default(), &["`image` of the type list"]),
        ("decimals", Named::default(), &["`label` of the type decimal"]),
        ("outside", Named::default(), &["the label 3 in row 2", "from 0 to 2", "a column `label`"]),
        ("two", image("photo"), &["no column `photo`, which data.image names", struct_type]),
        ("two", image("label"), &["`label` of the type int64, where pictures"]),
        ("cifar100", label("img"), &["where labels"]),
        ("encrypted", Named::default(), &["is encrypted"]),
        ("encrypted-columns", Named::default(), &["encrypted"]),
    ] {
        let text = refused(name, named);
        assert!(words.iter().all(|word| text.contains(word)), "{name}: {text}");
    }
    let dir = folder(&[("x.parquet", &bytes_of("cifar100")), ("y.parquet", &bytes_of("two"))]);
    let open = |file: &str, named| open_all(&dir.path().join(file), named).unwrap();
    assert_eq!(open("x.parquet", label("coarse_label")).info().classes, ["cat", "dog", "emu"]);
    assert_eq!(open("y.parquet", image("img")).info().val, 4);
}

#[test]
fn splits_are_known_as_the_hub_names_them_or_as_the_keys_say() {
    let (a, b) = (bytes_of("snappy-dictionary-index"), bytes_of("cifar100"));
    let lens = |files: &[(&str, &[u8])], place: &str, division: Division| {
        let dir = folder(files);
        let source = open(&dir.path().join(place), Named::default(), division, &|_| {})?;
        Ok::<_, DatasetError>((source.info().train, source.info().val))
    };
    let hub: &[(&str, &[u8])] = &[
        ("README.md", b"# a set"),
        ("data/train-00000-of-00002.parquet", &a),
        ("data/train-00001-of-00002.parquet", &a),
        ("data/test-00000-of-00001.parquet", &a),
        ("data/validation-00000-of-00001.parquet", &b),
    ];
    for place in ["", "data"] {
        assert_eq!(lens(hub, place, Division::None).unwrap(), (80, 4));
    }
    assert_eq!(lens(&hub[..4], "", Division::None).unwrap(), (80, 40));
    let converted: &[(&str, &[u8])] = &[("train/0000.parquet", &a), ("train/0001.parquet", &a), ("test/0000.parquet", &b)];
    assert_eq!(lens(converted, "", Division::None).unwrap(), (80, 4));
    assert_eq!(lens(converted, "train/{0000..0001}.parquet", Division::Share(0.25, 1)).unwrap(), (59, 21));
    let dir = folder(hub);
    let val = dir.path().join("data/validation-00000-of-00001.parquet");
    let train = dir.path().join("data/train-{00000..00001}-of-00002.parquet");
    let both = open(&train, Named::default(), Division::Shards(&val), &|_| {}).unwrap();
    assert_eq!((both.info().train, both.info().val), (80, 4));
    for (files, place, word) in [
        (&hub[1..3], "", "no validation sample"),
        (&[("a.parquet", &a[..])], "", "data.val_fraction"),
        (&hub[..1], "", "holds no .parquet files"),
        (&hub[..2], "data/train-{00000..00001}-of-00002.parquet", "names 2 Parquet files, and 1 of them"),
    ] {
        let text = lens(files, place, Division::None).unwrap_err().to_string();
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn a_set_is_recognised_and_opened_by_its_config() {
    let dir = folder(&[("data/train-0.parquet", &bytes_of("cifar100")), ("data/test-0.parquet", &bytes_of("cifar100"))]);
    let recognised = |place: &Path| super::super::recognised(place);
    assert_eq!(recognised(dir.path()), Some("parquet"));
    assert_eq!(recognised(&dir.path().join("data/train-0.parquet")), Some("parquet"));
    assert!(super::super::is_divided("parquet", dir.path()));
    assert!(!super::super::is_divided("parquet", &dir.path().join("data/train-0.parquet")));
    let section = format!("kind = 'parquet'\npath = '{}'\nlabel = 'coarse_label'", dir.path().display());
    let config: crate::config::DataConfig = toml::from_str(&section).unwrap();
    assert_eq!(config, toml::from_str(&toml::to_string(&config).unwrap()).unwrap());
    let source = super::super::open(&config, 1, &|_| {}).unwrap();
    assert_eq!((source.info().train, source.info().val), (4, 4));
    assert!(toml::from_str::<crate::config::DataConfig>("kind = 'parquet'\npath = 'a'\nroot = 'b'").is_err());
}

#[test]
fn an_index_is_kept_with_the_columns_that_it_is_of() {
    let dir = folder(&[("x.parquet", &bytes_of("snappy-texts"))]);
    let (cache, path) = (dir.path().join("cache"), dir.path().join("x.parquet"));
    File::open(&path).unwrap().set_modified(SystemTime::now() - Duration::from_secs(100)).unwrap();
    let open = |kind: &str| -> (bool, ParquetIndex) {
        let mut scanned = false;
        let files = DataFile::open_all(std::slice::from_ref(&path)).unwrap();
        let index = kept_index::kept_in(Some(&cache), kind, &files, || {
            scanned = true;
            scan::scan(&files, Named::default(), &|_| {})
        });
        (scanned, index.unwrap())
    };
    let (scanned, index) = open("a");
    assert!(scanned && index.rows.len() == 39 && index.classes.is_some());
    assert_eq!(open("a"), (false, index));
    assert!(open("b").0);
}

#[test]
fn files_that_are_no_parquet_files_are_named_with_what_they_are() {
    let whole = bytes_of("snappy-texts");
    for (bytes, word) in [
        (&b""[..], "is empty"),
        (b"PAR1", "cut short"),
        (b"PAR1PAR1", "cut short"),
        (b"<html>Not Found</html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (&whole[..whole.len() - 1], "cut short"),
        (&[&whole[..whole.len() - 8], &[255, 255, 255, 127], b"PAR1"].concat(), "footer"),
    ] {
        let text = read_all(bytes).unwrap_err().to_string();
        assert!(text.contains("x.parquet") && text.contains(word), "{word}: {text}");
    }
    for cut in (0..whole.len()).step_by(7) {
        assert!(read_all(&whole[..cut]).is_err(), "cut at {cut}");
    }
}

#[test]
fn damaged_files_are_read_or_refused_by_name_and_never_panic() {
    let mut rng = crate::seed::stream(1, "damaged Parquet files", &[]);
    let (mut read, mut refused) = (0, 0);
    for file in expected().into_keys() {
        let whole = fs::read(made().join(&file)).unwrap();
        for round in 0..100 {
            let mut bytes = whole.clone();
            for _ in 0..3 {
                // Every other round in the footer, which says most.
                let from = if round % 2 == 0 { 0 } else { bytes.len() as u32 / 2 };
                let at = from + crate::seed::below(&mut rng, bytes.len() as u32 - from);
                bytes[at as usize] = crate::seed::below(&mut rng, 256) as u8;
            }
            match read_all(&bytes) {
                Ok(_) => read += 1,
                Err(e) => {
                    assert!(e.to_string().contains("x.parquet"), "{file}: {e}");
                    refused += 1;
                }
            }
        }
    }
    assert!(read > 50 && refused > 300, "{read} were read and {refused} refused");
    // A changed picture in a file with checksums is found.
    let mut bytes = bytes_of("none-v2-dictionary-nulls-checksums");
    let at = bytes.windows(9).position(|w| w == b"picture 7").unwrap();
    bytes[at] = b'P';
    let text = read_all(&bytes).unwrap_err().to_string();
    assert!(text.contains("checksum") && text.contains("`image`"), "{text}");
}

#[test]
fn threads_read_side_by_side() {
    let dir = folder(&[("x.parquet", &bytes_of("zstd-v2-index"))]);
    let source = open_all(dir.path(), Named::default()).unwrap();
    let ids: Vec<u32> = (0..source.info().val).collect();
    let whole = source.read(Split::Val, &ids).unwrap();
    std::thread::scope(|scope| {
        for first in 0..8usize {
            let (source, whole) = (&source, &whole);
            scope.spawn(move || {
                for id in (first..whole.len()).chain(0..first) {
                    assert_eq!(source.read(Split::Val, &[id as u32]).unwrap()[0], whole[id]);
                }
            });
        }
    });
}
