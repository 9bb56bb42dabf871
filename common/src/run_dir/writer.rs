//! Writes one checkpoint, in a folder that only this writer knows until all of it is on
//! disk and verified by reading it back.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use super::checkpoint::{
    CHECKPOINT_FILES, CheckpointFiles, CheckpointMeta, MANIFEST, Manifest, ManifestFile, UNFINISHED, VERSION, open_in, remove_any,
};
use super::error::{RunDirError, damaged, write_whole};
use super::layout::CheckpointLayout;
use crate::files::sync_folder;

/// Distinguishes the writers of this process.
static WRITERS: AtomicU64 = AtomicU64::new(0);

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

impl CheckpointFiles {
    /// Starts to write the checkpoint of `step`. Until it is committed it does not
    /// exist; dropping the writer removes what was written. Several writers may write
    /// the same step at once: the last one to commit stays.
    pub fn begin(&self, step: u64) -> Result<CheckpointWriter, RunDirError> {
        CheckpointWriter::begin(self.clone(), step)
    }
}

impl CheckpointWriter {
    pub(super) fn begin(all: CheckpointFiles, step: u64) -> Result<Self, RunDirError> {
        fs::create_dir_all(all.folder()).map_err(RunDirError::io("create", all.folder()))?;
        loop {
            let path = unfinished(&all, step);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { all, path, step, files: Vec::new(), open: None, done: false }),
                // Left by a killed process that had the same id: the next start removes
                // it.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(RunDirError::io("create", &path)(e)),
            }
        }
    }

    /// Ends the current file and starts `name`, one of [`CHECKPOINT_FILES`].
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
            self.files.push(ManifestFile { bytes: hasher.count(), blake3: hasher.finalize().into(), name });
        }
        Ok(())
    }

    /// Refuses files that are not the state after this step according to `layout`:
    /// otherwise only the worker that loads them would notice.
    pub fn check(&mut self, layout: &CheckpointLayout) -> Result<(), RunDirError> {
        self.end_file()?;
        let [model, optimizer] = CHECKPOINT_FILES.map(|name| self.path.join(name));
        layout.check(self.step, &model, &optimizer)
    }

    /// Makes the checkpoint exist: writes the files to disk, the manifest last, reads
    /// all of it back, renames the folder.
    ///
    /// If a whole checkpoint of this very state exists already, that one stays, so that
    /// there is a checkpoint at every moment. Newer ones that are broken are removed:
    /// the run has continued from an older state, and pruning must not count them.
    pub fn commit(mut self, meta: &CheckpointMeta) -> Result<(), RunDirError> {
        self.end_file()?;
        if self.files.iter().map(|f| f.name.as_str()).ne(CHECKPOINT_FILES) {
            return Err(damaged(&self.path, format!("is no whole checkpoint: it needs {}, in this order", CHECKPOINT_FILES.join(" and "))));
        }
        let manifest = Manifest { version: VERSION, step: self.step, meta: meta.clone(), files: std::mem::take(&mut self.files) };
        let text = serde_json::to_string_pretty(&manifest).unwrap_or_else(|e| unreachable!("a manifest is plain data: {e}"));
        write_whole(&self.path.join(MANIFEST), text.as_bytes())?;
        open_in(&self.path, self.step)?;

        let all = self.all.clone();
        let _turn = all.turn();
        if !all.verify(self.step).is_ok_and(|there| there.meta == *meta) {
            self.take_place()?;
        }
        let mut newest = self.step;
        for step in all.steps()?.into_iter().take_while(|&s| s > self.step) {
            match all.verify(step) {
                Ok(_) => newest = newest.max(step),
                Err(reason) => {
                    tracing::warn!("removing the broken checkpoint of step {step}: {reason}");
                    all.remove(step)?;
                }
            }
        }
        *all.verified() = Some(newest);
        Ok(())
    }

    /// Moves the folder to the place of its step's checkpoint. An existing checkpoint
    /// is moved away first and removed afterwards: the place is empty only for a
    /// moment.
    fn take_place(&mut self) -> Result<(), RunDirError> {
        let target = self.all.place(self.step);
        // Pruning waits meanwhile: it must not remove the folder that is looked at here.
        let _alone = self.all.verified();
        let old = fs::symlink_metadata(&target).is_ok().then(|| unfinished(&self.all, self.step));
        if let Some(old) = &old {
            fs::rename(&target, old).map_err(RunDirError::io("rename", &target))?;
        }
        if let Err(e) = fs::rename(&self.path, &target) {
            let _ = old.map(|old| fs::rename(old, &target));
            return Err(RunDirError::io("rename", &self.path)(e));
        }
        self.done = true;
        if old.is_some_and(|old| remove_any(&old).is_err()) {
            tracing::debug!("what was replaced stays until the next start");
        }
        sync_folder(self.all.folder()).map_err(RunDirError::io("sync", self.all.folder()))
    }
}

/// A name that no other writer has.
fn unfinished(all: &CheckpointFiles, step: u64) -> PathBuf {
    let writer = WRITERS.fetch_add(1, Ordering::Relaxed);
    all.folder().join(format!("{UNFINISHED}{step:08}-{}-{writer}", std::process::id()))
}

impl Drop for CheckpointWriter {
    fn drop(&mut self) {
        if !self.done && remove_any(&self.path).is_err() {
            tracing::debug!("an unfinished checkpoint stays in `{}`", self.path.display());
        }
    }
}
