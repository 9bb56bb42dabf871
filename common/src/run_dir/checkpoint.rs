//! Checkpoints: one folder for each step. A checkpoint exists only once its manifest
//! does.

use crate::digest::Digest;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::error::{RunDirError, damaged};

/// The files of a checkpoint, in the order in which they are written and sent.
pub const CHECKPOINT_FILES: [&str; 2] = ["model.safetensors", "optimizer.safetensors"];

pub(super) const MANIFEST: &str = "manifest.json";
pub(super) const VERSION: u32 = 1;
/// The prefix of the names of folders that are still being written.
pub(super) const UNFINISHED: &str = ".writing-";
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// The metadata of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// [`crate::config::Config::identity`] of the run.
    pub config_identity: Digest,
    pub weights_blake3: Digest,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) version: u32,
    pub(super) step: u64,
    #[serde(flatten)]
    pub(super) meta: CheckpointMeta,
    pub(super) files: Vec<ManifestFile>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ManifestFile {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) blake3: Digest,
}

/// A checkpoint whose every byte was verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub step: u64,
    pub path: PathBuf,
    pub meta: CheckpointMeta,
}

/// A file of a checkpoint that was verified through this very handle, at its beginning:
/// it can be read to its end whatever happens to the folder.
#[derive(Debug)]
pub struct VerifiedFile {
    pub name: String,
    pub bytes: u64,
    pub file: File,
}

/// The checkpoints folder of a run. Clones share what is known of it and change it one
/// at a time.
#[derive(Debug, Clone)]
pub struct CheckpointFiles {
    folder: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Held during a commit, which reads gigabytes.
    commits: Mutex<()>,
    /// The newest step whose checkpoint was verified by every byte. Held while folders
    /// are renamed, which is quick.
    verified: Mutex<Option<u64>>,
}

impl CheckpointFiles {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, shared: Arc::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn place(&self, step: u64) -> PathBuf {
        self.folder.join(Self::folder_of(step))
    }

    /// The name of the folder of a step's checkpoint.
    pub(super) fn folder_of(step: u64) -> String {
        format!("step-{step:08}")
    }

    /// Lets one commit run at a time.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.shared.commits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn verified(&self) -> MutexGuard<'_, Option<u64>> {
        self.shared.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The steps that have a folder, newest first.
    pub(super) fn steps(&self) -> Result<Vec<u64>, RunDirError> {
        let names = self.names()?;
        let mut steps: Vec<u64> = names.iter().filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
        steps.retain(|&step| self.place(step).file_name().is_some_and(|place| names.iter().any(|n| place == n.as_str())));
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// The names in the checkpoints folder; empty if there is no folder yet.
    fn names(&self) -> Result<Vec<String>, RunDirError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(RunDirError::io("list", &self.folder))?,
        };
        let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect::<Result<_, _>>().map_err(RunDirError::io("list", &self.folder))
    }

    /// The newest checkpoint that is whole, and why newer ones are not. This call
    /// remembers it, so that pruning keeps it.
    pub fn newest_valid(&self) -> Result<(Option<Checkpoint>, Vec<String>), RunDirError> {
        let (newest, broken) = self.find_newest()?;
        *self.verified() = newest.as_ref().map(|c| c.step);
        Ok((newest, broken))
    }

    fn find_newest(&self) -> Result<(Option<Checkpoint>, Vec<String>), RunDirError> {
        let mut broken = Vec::new();
        for step in self.steps()? {
            match self.verify(step) {
                Ok(checkpoint) => return Ok((Some(checkpoint), broken)),
                Err(e) => broken.push(e.to_string()),
            }
        }
        Ok((None, broken))
    }

    /// Reads all of the checkpoint of `step` and compares it with its manifest.
    pub fn verify(&self, step: u64) -> Result<Checkpoint, RunDirError> {
        self.open(step).map(|(checkpoint, _)| checkpoint)
    }

    /// Like [`CheckpointFiles::verify`], and returns the files to be read.
    pub fn open(&self, step: u64) -> Result<(Checkpoint, Vec<VerifiedFile>), RunDirError> {
        open_in(&self.place(step), step)
    }

    /// Removes all but the newest `keep` whole checkpoints (one always stays), and
    /// broken ones that are older than those. Checks manifests and sizes, not every
    /// byte; so the newest one that was verified by every byte stays too, however many
    /// seem to be newer. So does the one of the step `best`.
    pub fn prune(&self, keep: usize, best: Option<u64>) -> Result<(), RunDirError> {
        let mut verified = self.verified();
        if !verified.is_some_and(|step| self.is_whole(step)) {
            *verified = self.find_newest()?.0.map(|c| c.step);
        }
        let mut kept = 0;
        for step in self.steps()? {
            let whole = self.is_whole(step);
            // Without a newer whole checkpoint, even a broken one stays: part of it may
            // be recovered by hand.
            if kept == 0 || (whole && kept < keep.max(1)) || *verified == Some(step) {
                kept += usize::from(whole);
            } else if best != Some(step) {
                self.remove(step)?;
            }
        }
        Ok(())
    }

    /// Whether there is a checkpoint of this step, as far as its manifest and sizes tell.
    pub fn is_whole(&self, step: u64) -> bool {
        manifest_in(&self.place(step), step).is_ok()
    }

    /// Removes what killed writers left. Only for the holder of the run directory,
    /// before it writes.
    pub(super) fn remove_unfinished(&self) -> Result<(), RunDirError> {
        for name in self.names()?.into_iter().filter(|name| name.starts_with(UNFINISHED)) {
            remove_any(&self.folder.join(name))?;
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> Result<bool, RunDirError> {
        self.steps().map(|steps| steps.is_empty())
    }

    pub(super) fn remove(&self, step: u64) -> Result<(), RunDirError> {
        let path = self.place(step);
        // Without its manifest the checkpoint does not exist, even if the rest
        // survives.
        if is_folder(&path) {
            remove_any(&path.join(MANIFEST))?;
        }
        remove_any(&path)
    }
}

/// Whether there is a folder of this name itself, and not a link to one: the target of
/// a link does not belong to this run.
fn is_folder(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|m| m.is_dir())
}

/// Removes a folder with all its contents, or anything else of this name, if it exists.
/// Of a link, it removes only the link.
pub(super) fn remove_any(path: &Path) -> Result<(), RunDirError> {
    match if is_folder(path) { fs::remove_dir_all(path) } else { fs::remove_file(path) } {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(RunDirError::io("remove", path)(e)),
        _ => Ok(()),
    }
}

/// The manifest of `step` in a folder, if it is valid and its files have their sizes.
fn manifest_in(folder: &Path, step: u64) -> Result<Manifest, RunDirError> {
    let file = folder.join(MANIFEST);
    let open = File::open(&file).map_err(RunDirError::io("read", &file))?;
    let mut text = Vec::new();
    open.take(MAX_MANIFEST_BYTES).read_to_end(&mut text).map_err(RunDirError::io("read", &file))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(&file, format!("is not a manifest: {e}")))?;
    if manifest.version != VERSION || manifest.step != step {
        return Err(damaged(&file, format!("speaks of version {} and step {}", manifest.version, manifest.step)));
    }
    if manifest.files.iter().map(|f| f.name.as_str()).ne(CHECKPOINT_FILES) {
        return Err(damaged(&file, "lists other files than a checkpoint has".to_owned()));
    }
    for expected in &manifest.files {
        let file = folder.join(&expected.name);
        let bytes = fs::metadata(&file).map_err(RunDirError::io("read", &file))?.len();
        if bytes != expected.bytes {
            return Err(damaged(&file, format!("has {bytes} bytes instead of {}", expected.bytes)));
        }
    }
    Ok(manifest)
}

/// The checkpoint of `step` in a folder, verified by every byte, and its files.
pub(super) fn open_in(folder: &Path, step: u64) -> Result<(Checkpoint, Vec<VerifiedFile>), RunDirError> {
    let manifest = manifest_in(folder, step)?;
    let mut files = Vec::new();
    for expected in manifest.files {
        let path = folder.join(&expected.name);
        let mut file = File::open(&path).map_err(RunDirError::io("open", &path))?;
        if digest(&mut file, &path)? != expected.blake3 {
            return Err(damaged(&path, "differs from what was written: its BLAKE3 digest does not match".to_owned()));
        }
        file.rewind().map_err(RunDirError::io("read", &path))?;
        files.push(VerifiedFile { name: expected.name, bytes: expected.bytes, file });
    }
    Ok((Checkpoint { step, path: folder.to_owned(), meta: manifest.meta }, files))
}

/// BLAKE3 of the rest of a file, without holding it in memory.
fn digest(file: &mut File, path: &Path) -> Result<Digest, RunDirError> {
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk).map_err(RunDirError::io("read", path))?;
        if n == 0 {
            return Ok(hasher.finalize().into());
        }
        hasher.update(&chunk[..n]);
    }
}

#[cfg(test)]
impl CheckpointFiles {
    pub(super) fn steps_for_test(&self) -> Vec<u64> {
        self.steps().unwrap_or_default()
    }
}
