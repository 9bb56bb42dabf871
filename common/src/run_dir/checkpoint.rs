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
        let path = self.folder.join(format!(".writing-{step:08}"));
        if path.exists() {
            fs::remove_dir_all(&path).map_err(RunDirError::io("remove", &path))?;
        }
        fs::create_dir_all(&path).map_err(RunDirError::io("create", &path))?;
        Ok(CheckpointWriter { target: self.place(step), path, step, files: Vec::new(), open: None, done: false })
    }

    fn place(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:08}"))
    }

    /// Steps of which there is a folder, newest first.
    fn steps(&self) -> Result<Vec<u64>, RunDirError> {
        let mut steps: Vec<u64> = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(RunDirError::io("list", &self.folder))? {
            let entry = entry.map_err(RunDirError::io("list", &self.folder))?;
            if let Some(step) = entry.file_name().to_str().and_then(|n| n.strip_prefix("step-")?.parse().ok()) {
                steps.push(step);
            }
        }
        steps.sort_unstable_by(|a, b| b.cmp(a));
        Ok(steps)
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
        let file = path.join(MANIFEST);
        let damaged = |path: &Path, problem: String| RunDirError::Damaged { path: path.to_owned(), problem };
        let text = fs::read(&file).map_err(RunDirError::io("read", &file))?;
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|e| damaged(&file, format!("is not a manifest: {e}")))?;
        if manifest.version != VERSION || manifest.step != step {
            return Err(damaged(&file, format!("speaks of version {} and step {}", manifest.version, manifest.step)));
        }
        if manifest.files.iter().map(|f| f.name.as_str()).ne(CHECKPOINT_FILES) {
            return Err(damaged(&file, "lists other files than a checkpoint has".to_owned()));
        }
        for expected in &manifest.files {
            let file = path.join(&expected.name);
            let (bytes, digest) = digest(&file)?;
            if bytes != expected.bytes {
                return Err(damaged(&file, format!("has {bytes} bytes instead of {}", expected.bytes)));
            }
            if digest != expected.blake3 {
                return Err(damaged(&file, "differs from what was written: its BLAKE3 digest does not match".to_owned()));
            }
        }
        Ok(Checkpoint { step, path, meta: manifest.meta })
    }

    /// Removes all but the newest `keep`, and what interrupted writers left.
    pub fn prune(&self, keep: usize) -> Result<(), RunDirError> {
        for step in self.steps()?.into_iter().skip(keep.max(1)) {
            let path = self.place(step);
            // Without its manifest it does not exist, even if the rest survives.
            let manifest = path.join(MANIFEST);
            if manifest.exists() {
                fs::remove_file(&manifest).map_err(RunDirError::io("remove", &manifest))?;
            }
            fs::remove_dir_all(&path).map_err(RunDirError::io("remove", &path))?;
        }
        Ok(())
    }
}

/// Length and BLAKE3 of a file, without holding it in memory.
fn digest(path: &Path) -> Result<(u64, String), RunDirError> {
    let mut file = File::open(path).map_err(RunDirError::io("open", path))?;
    let mut hasher = blake3::Hasher::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk).map_err(RunDirError::io("read", path))?;
        if n == 0 {
            return Ok((hasher.count(), hasher.finalize().to_hex().to_string()));
        }
        hasher.update(&chunk[..n]);
    }
}

/// Writes one checkpoint, file after file, chunk after chunk.
#[derive(Debug)]
pub struct CheckpointWriter {
    path: PathBuf,
    target: PathBuf,
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
    pub fn commit(mut self, meta: &CheckpointMeta) -> Result<(), RunDirError> {
        self.end_file()?;
        sync_folder(&self.path)?;
        if self.target.exists() {
            fs::remove_dir_all(&self.target).map_err(RunDirError::io("replace", &self.target))?;
        }
        fs::rename(&self.path, &self.target).map_err(RunDirError::io("rename", &self.path))?;
        if let Some(folder) = self.target.parent() {
            sync_folder(folder)?;
        }
        let manifest = Manifest { version: VERSION, step: self.step, meta: meta.clone(), files: std::mem::take(&mut self.files) };
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_else(|e| unreachable!("a manifest is plain data: {e}"));
        write_atomically(&self.target.join(MANIFEST), text.as_bytes())?;
        self.done = true;
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
