#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tempfile::tempdir;

use super::*;
use crate::run_dir::CheckpointMeta;

/// A store in memory, which can fail.
#[derive(Clone, Default)]
struct InMemory {
    objects: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    fails: Arc<AtomicBool>,
    /// Writes, in their order.
    written: Arc<Mutex<Vec<String>>>,
    tries: Arc<AtomicUsize>,
}

impl InMemory {
    fn names(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    fn answer(&self) -> Result<(), ObjectError> {
        self.tries.fetch_add(1, Ordering::SeqCst);
        match self.fails.load(Ordering::SeqCst) {
            true => Err(ObjectError::Failed { action: "write", url: "s3://b/run".to_owned(), cause: "no route".to_owned() }),
            false => Ok(()),
        }
    }
}

impl Target for InMemory {
    fn put(&self, name: &str, bytes: Bytes) -> Result<(), ObjectError> {
        self.answer()?;
        self.written.lock().unwrap().push(name.to_owned());
        self.objects.lock().unwrap().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn put_file(&self, name: &str, path: &Path) -> Result<(), ObjectError> {
        let cannot = |e: std::io::Error| ObjectError::Failed { action: "copy", url: path.display().to_string(), cause: e.to_string() };
        self.put(name, fs::read(path).map_err(cannot)?.into())
    }

    fn get(&self, name: &str) -> Result<Option<Bytes>, ObjectError> {
        self.answer()?;
        Ok(self.objects.lock().unwrap().get(name).cloned().map(Bytes::from))
    }

    fn get_file(&self, name: &str, path: &Path) -> Result<bool, ObjectError> {
        let found = self.get(name)?;
        found.inspect(|bytes| fs::write(path, bytes).unwrap()).map_or(Ok(false), |_| Ok(true))
    }

    fn remove(&self, name: &str) -> Result<(), ObjectError> {
        self.answer()?;
        self.objects.lock().unwrap().remove(name);
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, ObjectError> {
        self.answer().map(|()| self.names())
    }
}

fn meta() -> CheckpointMeta {
    CheckpointMeta { config_identity: Digest::of(b"config"), weights_blake3: Digest::of(b"weights") }
}

fn write_checkpoint(run: &Path, step: u64) {
    let mut writer = CheckpointFiles::new(run.join("checkpoints")).begin(step).unwrap();
    for name in CHECKPOINT_FILES {
        writer.start_file(name).unwrap();
        writer.write(format!("{name} of {step}").as_bytes()).unwrap();
    }
    writer.commit(&meta()).unwrap();
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < Duration::from_secs(30), "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A run directory with these files and nothing else.
fn run_of(files: &[&str]) -> tempfile::TempDir {
    let run = tempdir().unwrap();
    files.iter().for_each(|name| fs::write(run.path().join(name), format!("{name}\n")).unwrap());
    run
}

#[test]
fn a_run_is_copied_and_restored_with_its_newest_whole_checkpoint() {
    let store = InMemory::default();
    let run = run_of(&["config.toml", "dataset.json", "initial-weights", "journal.jsonl", "metrics.jsonl"]);
    let mirror = Mirror::start(store.clone(), "s3://b/run", run.path()).unwrap();
    for step in [5, 10] {
        write_checkpoint(run.path(), step);
        mirror.checkpoint(step);
    }
    // On disk, but the journal does not name it: its metrics may not be on disk yet.
    write_checkpoint(run.path(), 15);
    fs::write(run.path().join("summary.json"), "{}").unwrap();
    mirror.changed();
    drop(mirror);
    assert!(store.names().contains(&"summary.json".to_owned()));
    assert_eq!(whole_checkpoints(&store.names()), BTreeSet::from([5, 10]));
    let written = store.written.lock().unwrap().clone();
    let place = |name: &str| written.iter().rposition(|w| w == name).unwrap();
    let manifest = place("checkpoints/step-00000010/manifest.json");
    assert!(place("metrics.jsonl") > written.iter().position(|w| w == "writer.json").unwrap());
    assert!(written.iter().position(|w| w == "metrics.jsonl").unwrap() < manifest);
    assert!(place("checkpoints/step-00000010/optimizer.safetensors") < manifest);

    let other = tempdir().unwrap();
    let path = other.path().join("new/run");
    assert!(restore(&store, &path).unwrap());
    assert_eq!(CheckpointFiles::new(path.join("checkpoints")).newest_valid().unwrap().0.unwrap().step, 10);
    for name in ["config.toml", "dataset.json", "initial-weights", "journal.jsonl", "metrics.jsonl"] {
        assert_eq!(fs::read(path.join(name)).unwrap(), fs::read(run.path().join(name)).unwrap(), "{name}");
    }
    // The newest one is damaged at the store: the one before it is taken.
    store.objects.lock().unwrap().insert("checkpoints/step-00000010/model.safetensors".to_owned(), b"?".to_vec());
    let path = other.path().join("damaged");
    assert!(restore(&store, &path).unwrap());
    assert_eq!(CheckpointFiles::new(path.join("checkpoints")).newest_valid().unwrap().0.unwrap().step, 5);
    assert!(!restore(&InMemory::default(), &other.path().join("none")).unwrap());
}

#[test]
fn a_store_that_fails_holds_nothing_up_and_gets_everything_later() {
    let store = InMemory::default();
    let run = run_of(&["config.toml", "journal.jsonl"]);
    let mirror = Mirror::start(store.clone(), "s3://b/run", run.path()).unwrap();
    wait_until("the first pass", || store.names().contains(&"journal.jsonl".to_owned()));
    store.fails.store(true, Ordering::SeqCst);
    write_checkpoint(run.path(), 5);
    let began = Instant::now();
    mirror.checkpoint(5);
    assert!(began.elapsed() < Duration::from_secs(1));
    let before = store.tries.load(Ordering::SeqCst);
    wait_until("a try", || store.tries.load(Ordering::SeqCst) > before);
    store.fails.store(false, Ordering::SeqCst);
    drop(mirror);
    assert_eq!(whole_checkpoints(&store.names()), BTreeSet::from([5]));
}

#[test]
fn a_run_that_has_gone_on_elsewhere_is_not_overwritten() {
    let store = InMemory::default();
    let run = run_of(&["config.toml"]);
    write_checkpoint(run.path(), 5);
    drop(Mirror::start(store.clone(), "s3://b/run", run.path()).unwrap());
    // On another machine.
    let other = tempdir().unwrap();
    restore(&store, other.path()).unwrap();
    let elsewhere = Mirror::start(store.clone(), "s3://b/run", other.path()).unwrap();
    write_checkpoint(other.path(), 10);
    elsewhere.checkpoint(10);
    wait_until("the checkpoint", || whole_checkpoints(&store.names()).contains(&10));
    let refused = Mirror::start(store.clone(), "s3://b/run", run.path()).unwrap_err().to_string();
    assert!(refused.contains("step 10") && refused.contains("step 5"), "{refused}");
    // One that writes at the same time is given up, and what it wrote stays.
    store.put(WRITER, "{\"writer\":\"another\"}".into()).unwrap();
    write_checkpoint(other.path(), 15);
    elsewhere.checkpoint(15);
    drop(elsewhere);
    assert_eq!(whole_checkpoints(&store.names()), BTreeSet::from([5, 10]));
}

#[test]
fn checkpoints_follow_those_of_the_run() {
    let set = |steps: &[u64]| steps.iter().copied().collect::<BTreeSet<u64>>();
    let moved = |here: &[u64], recorded: &[u64], there: &[u64]| moves(&set(here), &set(recorded), &set(there));
    assert_eq!(moved(&[5, 10], &[5, 10], &[]), Moves { copy: vec![5, 10], remove: vec![] });
    assert_eq!(moved(&[10, 15], &[5, 10], &[5, 10]), Moves { copy: vec![], remove: vec![5] });
    assert_eq!(moved(&[], &[5], &[5]), Moves::default(), "one stays");
    assert_eq!(moved(&[15], &[], &[5]), Moves::default(), "what replaces it is not yet recorded");
}

#[test]
fn a_config_names_a_place_that_can_be_written() {
    let config = |mirror: &str| crate::run_dir::tests::config(&[&format!("run.mirror=\"{mirror}\"")]);
    let plain = crate::run_dir::tests::config(&[]);
    let mirrored = config("s3://b/runs/x");
    assert_eq!(mirrored.identity(), plain.identity(), "where the record is copied decides no weight");
    assert!(!plain.to_toml().contains("[run]"));
    for (wrong, word) in [("https://h/x", "web server"), ("s3://b", "whole bucket"), ("runs/x", "no address")] {
        let error = plain.with(&[format!("run.mirror=\"{wrong}\"")]).unwrap_err().to_string();
        assert!(error.contains("run.mirror") && error.contains(word), "{error}");
    }
}
