//! What a run knows of the contents of its data, and how it goes on with other data.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::{TempDir, tempdir};

use super::tests::config;
use super::tests_of_resume::data;
use super::*;
use crate::dataset::{DatasetError, DatasetInfo, FileDigests, Sample, SampleFormat, SampleSource, Split};
use crate::digest::Digest;

/// Pictures with this listing and, if they are known, these contents.
fn pictures(listing: &str, contents: Option<&str>) -> DataDescription {
    let files = FileDigests { listing: Digest::of(listing.as_bytes()), contents: contents.map(|c| Digest::of(c.as_bytes())) };
    let fingerprint = contents.map_or(files.listing, |contents| Digest::of(format!("{listing} {contents}").as_bytes()));
    let mut described = data(&["cat", "dog"]);
    described.info = DatasetInfo { format: SampleFormat::Encoded, fingerprint, ..described.info };
    DataDescription { columns: Vec::new(), files: Some(files), ..described }
}

/// As an older version described them.
fn as_before(listing: &str) -> DataDescription {
    DataDescription { files: None, ..pictures(listing, None) }
}

fn run_with(described: &DataDescription) -> (TempDir, PathBuf) {
    let dir = tempdir().unwrap();
    let path = dir.path().join("run");
    RunDir::create(&path, &config(&[])).unwrap().write_dataset(described).unwrap();
    (dir, path)
}

fn recorded(path: &Path) -> DataDescription {
    serde_json::from_slice(&fs::read(path.join("dataset.json")).unwrap()).unwrap()
}

#[test]
fn contents_are_compared_where_both_sides_know_them() {
    let cases = [
        (pictures("a", Some("x")), pictures("a", Some("x")), true),
        (pictures("a", Some("x")), pictures("a", Some("y")), false),
        (pictures("a", Some("x")), pictures("b", Some("x")), false),
        (pictures("a", Some("x")), pictures("a", None), true),
        (pictures("a", None), pictures("b", None), false),
        (as_before("a"), pictures("a", Some("x")), true),
        (as_before("a"), pictures("a", None), true),
        (as_before("a"), pictures("b", Some("x")), false),
    ];
    for (kept, found, goes_on) in cases {
        let (_dir, path) = run_with(&kept);
        let before = fs::read(path.join("dataset.json")).unwrap();
        let run = RunDir::resume(&path, &config(&[])).unwrap();
        assert_eq!(run.write_dataset(&found).is_ok(), goes_on, "{kept:?} {found:?}");
        // Nothing that is known is forgotten, and what becomes known is kept.
        let expected =
            if !goes_on || kept.contents().is_some() || (kept.files.is_some() && found.contents().is_none()) { &kept } else { &found };
        assert_eq!(&recorded(&path), expected);
        assert!(expected != &kept || fs::read(path.join("dataset.json")).unwrap() == before);
    }
    let (_dir, path) = run_with(&pictures("a", Some("x")));
    let refused = RunDir::resume(&path, &config(&[])).unwrap().check_dataset(&pictures("a", Some("y"))).unwrap_err().to_string();
    let contents = format!("contents of the files {}, was {}", Digest::of(b"y").short(), Digest::of(b"x").short());
    assert!(refused.contains(&contents) && refused.contains("--accept-data"), "{refused}");
}

#[test]
fn a_run_goes_on_with_other_data_where_its_user_accepts_it() {
    let (_dir, path) = run_with(&pictures("a", Some("x")));
    let mut run = RunDir::resume(&path, &config(&[])).unwrap();
    run.accept_dataset(&pictures("a", Some("x"))).unwrap();
    assert!(run.events().unwrap().is_empty(), "there is nothing to accept");
    let mut found = pictures("b", None);
    found.info.classes[1] = "zebra".to_owned();
    found.info.train = 7;
    run.accept_dataset(&found).unwrap();
    run.write_dataset(&found).unwrap();
    assert_eq!(recorded(&path), found);
    let events = run.events().unwrap();
    let [Event::DataAccepted { differences }] = &events[..] else { panic!("{events:?}") };
    for word in ["`zebra`", "`dog`", "training samples 7, was 100"] {
        assert!(differences.contains(word), "{differences}");
    }
    drop(run);

    let mut run = RunDir::resume(&path, &config(&["train.epochs=99"])).unwrap();
    let mut unfit = found.clone();
    unfit.info.classes.push("bird".to_owned());
    let refused = run.accept_dataset(&unfit).unwrap_err();
    assert!(matches!(refused, RunDirError::UnfitData { .. }) && refused.to_string().contains("`bird`"), "{refused}");
    assert_eq!((recorded(&path), run.events().unwrap().len()), (found, 1));
    assert_eq!(Config::load(&path.join("config.toml"), &[]).unwrap(), config(&[]), "a refusal changes nothing");
}

/// A dataset that is too large to be read before a run starts.
struct Large {
    described: DataDescription,
    contents: Result<Digest, &'static str>,
}

impl SampleSource for Large {
    fn info(&self) -> &DatasetInfo {
        &self.described.info
    }

    fn read(&self, _: Split, _: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        Ok(Vec::new())
    }

    fn name(&self, _: Split, _: u32) -> String {
        String::new()
    }

    fn files(&self) -> Option<FileDigests> {
        self.described.files
    }

    fn read_contents(&self, go_on: &(dyn Fn() -> bool + Sync)) -> Result<Option<Digest>, DatasetError> {
        let contents = self.contents.map_err(|problem| DatasetError::Remote(problem.to_owned()))?;
        Ok(go_on().then_some(contents))
    }
}

/// Has contents of a run's data read in the background to the end. Returns whether the run
/// was told that they are other.
fn check(path: &Path, contents: Result<&str, &'static str>, accept: bool) -> (Result<(), RunDirError>, bool) {
    let told = Arc::new(AtomicBool::new(false));
    let (telling, contents) = (Arc::clone(&told), contents.map(|c| Digest::of(c.as_bytes())));
    let source: Arc<dyn SampleSource> = Arc::new(Large { described: pictures("a", None), contents });
    let check = ContentsCheck::start(path, Arc::clone(&source), accept, move || telling.store(true, Ordering::Relaxed)).unwrap();
    // The thread lets go of the source at its end.
    while Arc::strong_count(&source) > 1 {
        std::thread::yield_now();
    }
    (check.finish(), told.load(Ordering::Relaxed))
}

#[test]
fn contents_that_are_read_while_a_run_trains_are_recorded_and_compared() {
    let (_dir, path) = run_with(&pictures("a", None));
    assert!(matches!(check(&path, Err("the disk is gone"), false), (Ok(()), false)));
    assert_eq!(recorded(&path), pictures("a", None));
    assert!(matches!(check(&path, Ok("x"), false), (Ok(()), false)));
    let known = recorded(&path);
    assert_eq!((known.contents(), known.info), (Some(Digest::of(b"x")), pictures("a", None).info));
    assert!(matches!(check(&path, Ok("x"), false), (Ok(()), false)));
    let (refused, told) = check(&path, Ok("y"), false);
    assert!(told && refused.unwrap_err().to_string().contains("contents of the files"));
    assert_eq!(recorded(&path).contents(), Some(Digest::of(b"x")));
    assert!(matches!(check(&path, Ok("y"), true), (Ok(()), false)));
    assert_eq!(recorded(&path).contents(), Some(Digest::of(b"y")));
}

#[test]
fn what_was_read_at_the_start_is_not_read_again() {
    let (_dir, path) = run_with(&pictures("a", Some("x")));
    let source = Large { described: pictures("a", Some("x")), contents: Ok(Digest::of(b"y")) };
    let check = ContentsCheck::start(&path, Arc::new(source), false, || panic!("nothing is other")).unwrap();
    check.finish().unwrap();
    assert_eq!(recorded(&path), pictures("a", Some("x")));
}
