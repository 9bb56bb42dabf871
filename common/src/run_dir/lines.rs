//! Files of JSON lines that survive truncation at any byte.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::error::RunDirError;

/// Bytes that [`Lines::flush_large`] lets wait in memory.
const LARGE: usize = 64 << 10;

/// A file to which lines are appended.
#[derive(Debug)]
pub(super) struct Lines {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines in the file.
    whole: u64,
    waiting: Vec<u8>,
}

impl Lines {
    /// Opens or creates the file. Removes an incomplete last line, which a crash left.
    pub(super) fn open(path: &Path) -> Result<Self, RunDirError> {
        let text = read(path)?;
        let whole = text.iter().rposition(|&b| b == b'\n').map_or(0, |at| at + 1);
        let file = File::options().create(true).append(true).open(path).map_err(RunDirError::io("open", path))?;
        if whole < text.len() {
            tracing::warn!("`{}` ends in the middle of a line, which is removed", path.display());
            file.set_len(whole as u64).map_err(RunDirError::io("shorten", path))?;
        }
        Ok(Self { path: path.to_owned(), file, whole: whole as u64, waiting: Vec::new() })
    }

    /// Adds a line, in memory until [`Lines::flush`].
    pub(super) fn push(&mut self, line: &impl Serialize) {
        if serde_json::to_writer(&mut self.waiting, line).is_ok() {
            self.waiting.push(b'\n');
        }
    }

    /// Writes the waiting lines once there are [`LARGE`] bytes of them.
    pub(super) fn flush_large(&mut self) -> Result<(), RunDirError> {
        if self.waiting.len() >= LARGE { self.flush() } else { Ok(()) }
    }

    pub(super) fn flush(&mut self) -> Result<(), RunDirError> {
        if !self.waiting.is_empty() {
            if let Err(e) = self.file.write_all(&self.waiting) {
                // Half a line may have been written (a full disk): it is removed, so
                // that the next attempt starts on a new line. If that fails too, `open`
                // repairs it.
                let _ = self.file.set_len(self.whole);
                return Err(RunDirError::io("write to", &self.path)(e));
            }
            self.whole += self.waiting.len() as u64;
            self.waiting.clear();
        }
        Ok(())
    }

    pub(super) fn sync(&mut self) -> Result<(), RunDirError> {
        self.flush()?;
        self.file.sync_data().map_err(RunDirError::io("sync", &self.path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Err(e) = self.flush() {
            tracing::warn!("{e}");
        }
    }
}

/// The bytes of a file, none if it does not exist.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, RunDirError> {
    match fs::read(path) {
        Ok(bytes) => Ok(bytes),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(RunDirError::io("read", path)(e)),
    }
}

/// All lines that parse; others are skipped, and the log names them.
pub(super) fn parse<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, RunDirError> {
    let bytes = read(path)?;
    let mut values = Vec::new();
    for (n, line) in bytes.split(|&b| b == b'\n').enumerate().filter(|(_, l)| !l.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(value) => values.push(value),
            Err(e) => tracing::warn!("line {} of `{}` is passed over: {e}", n + 1, path.display()),
        }
    }
    Ok(values)
}
