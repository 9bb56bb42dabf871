#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use common::dataset::{DatasetError, DatasetInfo};
use image::RgbImage;
use tempfile::tempdir;

use super::*;
use crate::data::decode;

const OPTIONS: Options = Options { short_side: 16, quality: 90, on_corrupt: CorruptPolicy::Stop };

/// Pictures of growing size; those in `damaged` are cut short.
struct Growing {
    info: DatasetInfo,
    damaged: Vec<u32>,
}

impl Growing {
    fn of(format: SampleFormat, damaged: &[u32]) -> Arc<dyn SampleSource> {
        let classes = vec!["low".to_owned(), "high".to_owned()];
        let info = DatasetInfo { format, classes, train: 7, val: 3, fingerprint: Digest::of(b"growing") };
        Arc::new(Self { info, damaged: damaged.to_vec() })
    }
}

impl SampleSource for Growing {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }
    fn read(&self, split: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        let one = |&id: &u32| {
            let shade = (id * 30 + u32::from(split == Split::Val)) as u8;
            let mut bytes = match self.info.format {
                SampleFormat::Raw { .. } => vec![shade; 12],
                _ => {
                    let picture = RgbImage::from_pixel(10 + 4 * id, 12 + 4 * id, image::Rgb([shade, 100, 200]));
                    let (width, height) = picture.dimensions();
                    jpeg_of(&Picture { width, height, channels: 3, pixels: picture.into_raw() }, 95).unwrap()
                }
            };
            if self.damaged.contains(&id) && split == Split::Train {
                bytes.truncate(bytes.len() / 2);
            }
            Sample { id, label: id % 2, bytes: Bytes::from(bytes) }
        };
        Ok(ids.iter().map(one).collect())
    }
    fn name(&self, split: Split, id: u32) -> String {
        format!("{split}/{id}")
    }
}

/// The members of a tar: names and contents.
fn members(tar: &Path) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(File::open(tar).unwrap());
    let entries = archive.entries().unwrap();
    let member = |entry: std::io::Result<tar::Entry<'_, File>>| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    };
    entries.map(member).collect()
}

#[test]
fn pictures_become_pairs_of_files_and_large_ones_smaller() {
    let (dir, source) = (tempdir().unwrap(), Growing::of(SampleFormat::Encoded, &[]));
    let out = dir.path().join("pack");
    let done = pack(&source, true, &out, OPTIONS).unwrap();
    assert_eq!((done.shards, done.kept, done.samples, done.skipped), (2, 0, 10, 0));
    assert_eq!(fs::read_to_string(out.join("classes.txt")).unwrap(), "low\nhigh\n");

    let train = members(&out.join("train-000000.tar"));
    let names: Vec<&str> = train.iter().take(4).map(|(name, _)| name.as_str()).collect();
    assert_eq!((names, train.len()), (vec!["00000000.jpg", "00000000.cls", "00000001.jpg", "00000001.cls"], 14));
    let size = |n: usize| {
        let picture = decode(SampleFormat::Encoded, &train[2 * n].1).unwrap();
        (picture.width, picture.height)
    };
    assert_eq!((size(0), size(1), size(6)), ((10, 12), (14, 16), (16, 17)), "small ones stay as they are");
    assert_eq!(train[0].1, source.read(Split::Train, &[0]).unwrap()[0].bytes);
    assert_eq!(train[3].1, b"1");
    assert_eq!(verify::pack(&out).unwrap(), verify::Report { samples: 10, bad: 0, problems: vec![] });
    // The same umask decides who may read a shard and who its index.
    let mode = |name: &str| std::os::unix::fs::MetadataExt::mode(&out.join(name).metadata().unwrap());
    assert_eq!(mode("train-000000.tar"), mode("train-000000.jsonl"));
}

#[test]
fn the_same_command_goes_on_and_another_is_refused() {
    let (dir, source) = (tempdir().unwrap(), Growing::of(SampleFormat::Encoded, &[]));
    let out = dir.path().join("pack");
    pack(&source, true, &out, OPTIONS).unwrap();
    let whole = fs::read(out.join("val-000000.tar")).unwrap();
    // As if it had been killed while it wrote the second shard.
    fs::remove_file(out.join("val-000000.jsonl")).unwrap();
    fs::write(out.join("val-000000.tar"), &whole[..700]).unwrap();
    assert!(verify::pack(&out).unwrap().problems[0].contains("goes on with it"));
    let done = pack(&source, true, &out, OPTIONS).unwrap();
    assert_eq!((done.shards, done.kept, done.samples), (2, 1, 10));
    assert_eq!(fs::read(out.join("val-000000.tar")).unwrap(), whole);

    let other = pack(&source, true, &out, Options { quality: 50, ..OPTIONS }).unwrap_err().to_string();
    assert!(other.contains("with other options"), "{other}");
    let full = pack(&source, true, dir.path(), OPTIONS).unwrap_err().to_string();
    assert!(full.contains("is not empty"), "{full}");
}

#[test]
fn a_picture_that_does_not_decode_stops_the_work_or_is_listed() {
    let (dir, source) = (tempdir().unwrap(), Growing::of(SampleFormat::Encoded, &[2, 5]));
    let error = pack(&source, true, &dir.path().join("a"), OPTIONS).unwrap_err().to_string();
    assert!(error.contains("`training/2`") && error.contains("--on-corrupt skip"), "{error}");
    let out = dir.path().join("b");
    let done = pack(&source, true, &out, Options { on_corrupt: CorruptPolicy::Skip, ..OPTIONS }).unwrap();
    assert_eq!((done.samples, done.skipped), (8, 2));
    let listed = fs::read_to_string(out.join("skipped.txt")).unwrap();
    assert!(listed.lines().count() == 2 && listed.contains("training/5"), "{listed}");
    assert!(verify::samples(&source).unwrap().problems[1].contains("training/5"));
}

#[test]
fn data_that_is_not_divided_becomes_shards_without_a_splits_name() {
    let (dir, source) = (tempdir().unwrap(), Growing::of(SampleFormat::Encoded, &[]));
    let out = dir.path().join("pack");
    assert_eq!(pack(&source, false, &out, OPTIONS).unwrap().samples, 3);
    assert_eq!(members(&out.join("pictures-000000.tar")).len(), 6);
    assert!(!out.join("train-000000.tar").exists());
    assert_eq!(verify::pack(&out).unwrap(), verify::Report { samples: 3, bad: 0, problems: vec![] });
}

#[test]
fn raw_pictures_stay_exact() {
    let (dir, source) = (tempdir().unwrap(), Growing::of(SampleFormat::Raw { height: 4, width: 3, channels: 1 }, &[]));
    let out = dir.path().join("pack");
    pack(&source, true, &out, OPTIONS).unwrap();
    let (name, png) = members(&out.join("train-000000.tar")).swap_remove(2);
    assert_eq!((name.as_str(), decode(SampleFormat::Encoded, &png).unwrap().pixels), ("00000001.png", vec![30; 36]));
}

#[test]
fn a_changed_byte_is_found_at_its_sample() {
    let (dir, source) = (tempdir().unwrap(), Growing::of(SampleFormat::Encoded, &[]));
    let out = dir.path().join("pack");
    pack(&source, true, &out, OPTIONS).unwrap();
    let tar = out.join("train-000000.tar");
    let mut bytes = fs::read(&tar).unwrap();
    let place = Shard::new(&out, "train", 0).index().unwrap().unwrap()[3].clone();
    bytes[(place.offset + place.bytes / 2) as usize] ^= 0x40;
    fs::write(&tar, &bytes).unwrap();
    let report = verify::pack(&out).unwrap();
    assert_eq!((report.bad, report.samples), (1, 10));
    assert!(report.problems[0].contains("sample 00000003") && report.problems[0].contains("not what was packed"), "{report:?}");
}
