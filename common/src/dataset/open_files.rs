//! The files of a set, read at any place by any number of threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Files that stay open. A process may have a thousand files open, and sets of more
/// exist: the others are opened for each reading.
const KEPT_OPEN: usize = 256;

/// Fills `bytes` from this offset on.
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

/// How many bytes the file has.
#[cfg(feature = "parquet")]
pub(super) fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Files by their number. They are opened when they are first read.
pub(super) struct OpenFiles {
    paths: Vec<PathBuf>,
    open: Vec<OnceLock<File>>,
}

impl OpenFiles {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let open = paths.iter().take(KEPT_OPEN).map(|_| OnceLock::new()).collect();
        Self { paths, open }
    }

    pub(super) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    pub(super) fn path(&self, number: usize) -> &Path {
        &self.paths[number]
    }

    /// So many bytes of a file, from this offset on.
    pub(super) fn read(&self, number: usize, offset: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; bytes];
        match self.open.get(number) {
            Some(kept) => match kept.get() {
                Some(file) => read_exact_at(file, &mut content, offset)?,
                None => {
                    let file = File::open(&self.paths[number])?;
                    read_exact_at(kept.get_or_init(|| file), &mut content, offset)?;
                }
            },
            None => read_exact_at(&File::open(&self.paths[number])?, &mut content, offset)?,
        }
        Ok(content)
    }
}
