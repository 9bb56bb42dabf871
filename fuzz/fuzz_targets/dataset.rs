//! Datasets that users bring: tables, IDX files plain and zipped, lists of class
//! folders, shards, lists, Parquet files, kernels. The first byte chooses.
#![no_main]

use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use common::dataset::{self, Column, SampleSource, Split, Table, Unlabelled};
use fuzz::scratch;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;
use worker::analysis::filter::Kernel;

static FOLDER: LazyLock<TempDir> = LazyLock::new(scratch);

/// What opens can be read from one end to the other, and no further.
fn read_all(source: &dyn SampleSource) {
    for split in [Split::Train, Split::Val] {
        let n = source.info().len(split);
        let ids: Vec<u32> = (0..n.min(100)).collect();
        for sample in source.read(split, &ids).expect("samples of an open dataset") {
            assert!((sample.label as usize) < source.info().classes.len());
            let _ = source.name(split, sample.id);
        }
        assert!(source.read(split, &[n]).is_err());
    }
}

fn open(data: &str) {
    if let Ok(source) = dataset::open(&fuzz::config_on(data).data, 1, &|_| {}) {
        read_all(&*source);
    }
}

fn table(folder: &Path, bytes: &[u8]) {
    let path = folder.join("table.csv");
    fs::write(&path, bytes).expect("a file in memory");
    open(&format!("kind = \"csv\"\npath = \"{}\"\nlabel = \"y\"", path.display()));
    let classes = ["0".to_owned(), "1".to_owned()];
    let column = |name: &str| Column { name: name.to_owned(), mean: 1.0, deviation: 2.0 };
    for columns in [vec![], vec![column("a"), column("b")]] {
        for unlabelled in [Unlabelled::Keep, Unlabelled::LeaveOut] {
            if let Ok(table) = Table::open_like(&path, "y", &columns, &classes, unlabelled) {
                read_all(&table);
            }
        }
    }
}

/// Four files one after the other: the length of each before it.
fn idx(folder: &Path, mut bytes: &[u8], ending: &str) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).expect("a folder in memory");
    for name in ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"] {
        let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
        let (file, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*length).into()));
        fs::write(folder.join(format!("{name}-ubyte{ending}")), file).expect("a file in memory");
        bytes = rest;
    }
    open(&format!("kind = \"idx\"\nimage_size = 28\npath = \"{}\"", folder.display()));
}

/// A tar shard, and a list of pictures.
fn shard(folder: &Path, bytes: &[u8]) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir_all(folder).expect("a folder in memory");
    fs::write(folder.join("a.tar"), bytes).expect("a file in memory");
    open(&format!("kind = \"webdataset\"\nval_fraction = 0.5\npath = \"{}\"", folder.display()));
    let list = folder.join("list.csv");
    fs::write(&list, bytes).expect("a file in memory");
    open(&format!("kind = \"list\"\nval_fraction = 0.5\npath = \"{}\"", list.display()));
}

/// A Parquet file. Its pages are read after it is opened, and may be damaged.
fn parquet(folder: &Path, bytes: &[u8]) {
    let path = folder.join("a.parquet");
    fs::write(&path, bytes).expect("a file in memory");
    let config = fuzz::config_on(&format!("kind = \"parquet\"\nval_fraction = 0.5\npath = \"{}\"", path.display()));
    let Ok(source) = dataset::open(&config.data, 1, &|_| {}) else { return };
    for split in [Split::Train, Split::Val] {
        for id in 0..source.info().len(split).min(100) {
            for sample in source.read(split, &[id]).into_iter().flatten() {
                assert!((sample.label as usize) < source.info().classes.len());
            }
            let _ = source.name(split, id);
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((&choice, bytes)) = input.split_first() else { return };
    let folder = FOLDER.path();
    match choice % 7 {
        0 => table(folder, bytes),
        1 => idx(&folder.join("plain"), bytes, ""),
        2 => idx(&folder.join("zipped"), bytes, ".gz"),
        3 => common::fuzzing::index(bytes),
        4 => shard(&folder.join("shard"), bytes),
        5 => parquet(folder, bytes),
        _ => {
            let path = folder.join("kernel.txt");
            fs::write(&path, bytes).expect("a file in memory");
            for dimensions in 1..=3 {
                let _ = Kernel::of(&path.display().to_string(), dimensions);
            }
        }
    }
});
