//! The ids of revoked tokens, a line each, in the file `revoked` beside the run's
//! authority. It is only appended to: a revocation outlives `tokens.json`, which
//! may be damaged and removed.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::files::sync_folder;

/// More than a run ever revokes.
const MAX_BYTES: u64 = 16 << 20;

#[derive(Debug, Clone)]
pub(super) struct Revoked {
    path: PathBuf,
}

/// Whether this may be the id of a token: eight hex digits.
pub(super) fn is_id(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Revoked {
    pub(super) fn new(dir: &Path) -> Self {
        Self { path: dir.join("revoked") }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All ids. Lines that are not ids (an interrupted write) are skipped.
    pub(super) fn read(&self) -> io::Result<BTreeSet<String>> {
        Ok(self.text()?.lines().filter(|line| is_id(line)).map(str::to_owned).collect())
    }

    fn text(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        match File::open(&self.path) {
            Ok(file) => file.take(MAX_BYTES).read_to_end(&mut bytes)?,
            Err(e) if e.kind() == ErrorKind::NotFound => 0,
            Err(e) => return Err(e),
        };
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Adds an id, which is on disk when this returns.
    pub(super) fn add(&self, id: &str) -> io::Result<()> {
        let text = self.text()?;
        if text.lines().any(|line| line == id) {
            return Ok(());
        }
        let mut file = File::options().create(true).append(true).mode(0o600).open(&self.path)?;
        let start = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        file.write_all(format!("{start}{id}\n").as_bytes())?;
        file.sync_all()?;
        self.path.parent().map_or(Ok(()), sync_folder)
    }
}
