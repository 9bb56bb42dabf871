//! Checkpoints: a folder a step, which exists only once its manifest does.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{RunDirError, sync_folder, write_atomically};

/// The files of a checkpoint, in the order in which they are written and sent.
pub const CHECKPOINT_FILES: [&str; 2] = ["model.safetensors", "optimizer.safetensors"];

const MANIFEST: &str = "manifest.json";
const VERSION: u32 = 1;
/// What the names of folders begin with that are still being written.
const UNFINISHED: &str = ".writing-";
const MAX_MANIFEST_BYTES: u64 = 1 << 20;

/// What a checkpoint says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// [`crate::config::Config::identity`] of the run.
    pub config_identity: String,
    pub weights_blake3: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    version: u32,
    step: u64,
    #[serde(flatten)]
    meta: CheckpointMeta,
    files: Vec<ManifestFile>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ManifestFile {
    name: String,
    bytes: u64,
    blake3: String,
}

/// A checkpoint whose every byte was verified.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    pub step: u64,
    pub path: PathBuf,
    pub meta: CheckpointMeta,
}

/// The checkpoints folder of a run.
#[derive(Debug, Clone)]
pub struct CheckpointFiles {
    folder: PathBuf,
}

impl CheckpointFiles {
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Starts to write the checkpoint of `step`. Until it is committed it does
    /// not exist; dropping the writer removes what was written.
    pub fn begin(&self, step: u64) -> Result<CheckpointWriter, RunDirError> {
        let path = self.folder.join(format!("{UNFINISHED}{step:08}"));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(RunDirError::io("remove", &path))?;
        }
        fs::create_dir_all(&path).map_err(RunDirError::io("create", &path))?;
        Ok(CheckpointWriter { all: self.clone(), path, step, files: Vec::new(), open: None, done: false })
    }

    fn place(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of which there is a folder, newest first.
    fn steps(&self) -> Result<Vec<u64>, RunDirError> {
        let names = self.names()?;
        let mut steps: Vec<u64> = names.iter().filter_map(|n| n.strip_prefix("step-")?.parse().ok()).collect();
        steps.retain(|&step| self.place(step).file_name().is_some_and(|place| names.iter().any(|n| place == n.as_str())));
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
    }

    /// What lies in the checkpoints folder; nothing if there is none yet.
    fn names(&self) -> Result<Vec<String>, RunDirError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(RunDirError::io("list", &self.folder))?,
        };
        let names = entries.map(|entry| entry.map(|e| e.file_name().to_string_lossy().into_owned()));
        names.collect::<Result<_, _>>().map_err(RunDirError::io("list", &self.folder))
    }

    /// The newest checkpoint that is whole, and why newer ones are not.
    pub fn newest_valid(&self) -> Result<(Option<Checkpoint>, Vec<String>), RunDirError> {
        let mut broken = Vec::new();
        for step in self.steps()? {
            match self.verify(step) {
                Ok(checkpoint) => return Ok((Some(checkpoint), broken)),
                Err(e) => broken.push(e.to_string()),
            }
        }
        Ok((None, broken))
    }

    /// Reads the checkpoint of `step` as a whole and compares it with its manifest.
    pub fn verify(&self, step: u64) -> Result<Checkpoint, RunDirError> {
        let path = self.place(step);
        let manifest = self.manifest(step)?;
        for expected in &manifest.files {
            let file = path.join(&expected.name);
            if digest(&file)? != expected.blake3 {
                return Err(damaged(&file, "differs from what was written: its BLAKE3 digest does not match".to_owned()));
            }
        }
        Ok(Checkpoint { step, path, meta: manifest.meta })
    }

    /// The manifest of `step`, if it is valid and its files have their sizes.
    fn manifest(&self, step: u64) -> Result<Manifest, RunDirError> {
        let path = self.place(step);
        let file = path.join(MANIFEST);
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
            let file = path.join(&expected.name);
            let bytes = fs::metadata(&file).map_err(RunDirError::io("read", &file))?.len();
            if bytes != expected.bytes {
                return Err(damaged(&file, format!("has {bytes} bytes instead of {}", expected.bytes)));
            }
        }
        Ok(manifest)
    }

    /// Removes all but the newest `keep` whole checkpoints (one always stays), and
    /// broken ones that are older than those. Looks at manifests and sizes, not at
    /// every byte: commit has removed what is newer and broken.
    pub fn prune(&self, keep: usize) -> Result<(), RunDirError> {
        let mut kept = 0;
        for step in self.steps()? {
            let whole = self.manifest(step).is_ok();
            // With no whole one that is newer, even a broken one stays: part of it may be saved by hand.
            if kept == 0 || (whole && kept < keep.max(1)) {
                kept += usize::from(whole);
            } else {
                self.remove(step)?;
            }
        }
        Ok(())
    }

    /// Removes what writers left that were killed. Only for the holder of the
    /// run directory, before it writes.
    pub(super) fn remove_unfinished(&self) -> Result<(), RunDirError> {
        for name in self.names()? {
            if name.starts_with(UNFINISHED) {
                let path = self.folder.join(name);
                fs::remove_dir_all(&path).map_err(RunDirError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> Result<bool, RunDirError> {
        self.steps().map(|steps| steps.is_empty())
    }

    fn remove(&self, step: u64) -> Result<(), RunDirError> {
        let path = self.place(step);
        // Without its manifest it does not exist, even if the rest survives.
        let manifest = path.join(MANIFEST);
        if manifest.exists() {
            fs::remove_file(&manifest).map_err(RunDirError::io("remove", &manifest))?;
        }
        fs::remove_dir_all(&path).map_err(RunDirError::io("remove", &path))
    }
}

fn damaged(path: &Path, problem: String) -> RunDirError {
    RunDirError::Damaged { path: path.to_owned(), problem }
}

/// BLAKE3 of a file, without holding it in memory.
fn digest(path: &Path) -> Result<String, RunDirError> {
    let mut file = File::open(path).map_err(RunDirError::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk).map_err(RunDirError::io("read", path))?;
        if n == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&chunk[..n]);
    }
}

/// Writes one checkpoint, file after file, chunk after chunk.
#[derive(Debug)]
pub struct CheckpointWriter {
    path: PathBuf,
    all: CheckpointFiles,
    step: u64,
    files: Vec<ManifestFile>,
    open: Option<(String, File, blake3::Hasher)>,
    done: bool,
}

impl CheckpointWriter {
    /// Ends the file before and starts `name`, one of [`CHECKPOINT_FILES`].
    pub fn start_file(&mut self, name: &str) -> Result<(), RunDirError> {
        self.end_file()?;
        let path = self.path.join(name);
        if !CHECKPOINT_FILES.contains(&name) {
            return Err(RunDirError::Damaged { path, problem: "is no file of a checkpoint".to_owned() });
        }
        let file = File::create(&path).map_err(RunDirError::io("create", &path))?;
        self.open = Some((name.to_owned(), file, blake3::Hasher::new()));
        Ok(())
    }

    /// Appends to the file that was started last.
    pub fn write(&mut self, chunk: &[u8]) -> Result<(), RunDirError> {
        match &mut self.open {
            Some((name, file, hasher)) => {
                hasher.update(chunk);
                file.write_all(chunk).map_err(RunDirError::io("write to", &self.path.join(name)))
            }
            None => Err(RunDirError::Damaged { path: self.path.clone(), problem: "has no file to write to".to_owned() }),
        }
    }

    fn end_file(&mut self) -> Result<(), RunDirError> {
        if let Some((name, file, hasher)) = self.open.take() {
            file.sync_all().map_err(RunDirError::io("sync", &self.path.join(&name)))?;
            self.files.push(ManifestFile { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string(), name });
        }
        Ok(())
    }

    /// Makes the checkpoint exist: files on disk, folder renamed, manifest last.
    /// A whole checkpoint of this very state that is there already stays instead,
    /// so that at no moment there is none. Newer ones that are broken go: the run
    /// went on from an older state, and pruning must not count them.
    pub fn commit(mut self, meta: &CheckpointMeta) -> Result<(), RunDirError> {
        self.end_file()?;
        if self.files.iter().map(|f| f.name.as_str()).ne(CHECKPOINT_FILES) {
            return Err(damaged(&self.path, format!("is no whole checkpoint: it needs {}, in this order", CHECKPOINT_FILES.join(" and "))));
        }
        if self.all.verify(self.step).is_ok_and(|there| there.meta == *meta) {
            return Ok(());
        }
        sync_folder(&self.path)?;
        let target = self.all.place(self.step);
        if target.exists() {
            self.all.remove(self.step)?;
        }
        fs::rename(&self.path, &target).map_err(RunDirError::io("rename", &self.path))?;
        sync_folder(&self.all.folder)?;
        let manifest = Manifest { version: VERSION, step: self.step, meta: meta.clone(), files: std::mem::take(&mut self.files) };
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_else(|e| unreachable!("a manifest is plain data: {e}"));
        write_atomically(&target.join(MANIFEST), text.as_bytes())?;
        self.done = true;
        for step in self.all.steps()?.into_iter().take_while(|&s| s > self.step) {
            if let Err(reason) = self.all.verify(step) {
                tracing::warn!("removing the broken checkpoint of step {step}: {reason}");
                self.all.remove(step)?;
            }
        }
        Ok(())
    }
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.done && self.path.exists() && fs::remove_dir_all(&self.path).is_err() {
            tracing::debug!("an unfinished checkpoint stays in `{}`", self.path.display());
        }
    }
}

#[cfg(test)]
impl CheckpointFiles {
    pub(super) fn steps_for_test(&self) -> Vec<u64> {
        self.steps().unwrap_or_default()
    }
}
