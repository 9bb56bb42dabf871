//! The weights that a run begins with, where its config names some: a copy in the run
//! directory, so that the run needs nothing else to start again or to let workers in.
//! What the file holds is not known here.

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::checkpoint::CHECKPOINT_FILES;
use super::error::RunDirError;
use super::view::{RunView, Which};
use crate::config::Config;
use crate::digest::Digest;
use crate::files::sync_folder;

/// The copy's name, whatever format it has.
pub(super) const INITIAL_WEIGHTS: &str = "initial-weights";

/// Bytes that are read at once.
const CHUNK: usize = 1 << 20;

/// The copy in a run directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitialWeights {
    pub path: PathBuf,
    pub bytes: u64,
    pub blake3: Digest,
    /// What the config names, for messages.
    pub origin: PathBuf,
}

/// The file that `model.weights` names; of a run directory that of its newest checkpoint,
/// of a checkpoint's folder that of its model.
///
/// # Errors
/// There is no such file, or the run has no checkpoint.
pub fn weights_file(path: &Path) -> Result<PathBuf, RunDirError> {
    let missing = |problem: &str| RunDirError::NoWeights { path: path.to_owned(), problem: problem.to_owned() };
    if path.is_file() {
        return Ok(path.to_owned());
    }
    if !path.exists() {
        return Err(missing("does not exist"));
    }
    let model = path.join(CHECKPOINT_FILES[0]);
    if model.is_file() {
        return Ok(model);
    }
    if !path.join("config.toml").exists() {
        return Err(missing("is neither a file nor a run directory"));
    }
    Ok(RunView::open(path)?.checkpoint(Which::Last)?.path.join(CHECKPOINT_FILES[0]))
}

/// What `model.weights` of a run names, before its run directory is opened: its copy if
/// the run in `resumed` has one. None if the config names nothing, and for a run that is
/// still to be copied from its mirror, which has its copy.
///
/// # Errors
/// As [`weights_file`].
pub fn weights_to_begin_with(config: &Config, resumed: Option<&Path>) -> Result<Option<PathBuf>, RunDirError> {
    let Some(path) = config.model.weights() else { return Ok(None) };
    if resumed.is_some_and(|run| config.run.mirror.is_some() && !run.join("config.toml").exists()) {
        return Ok(None);
    }
    let copy = resumed.map(|run| run.join(INITIAL_WEIGHTS)).filter(|copy| copy.is_file());
    copy.map_or_else(|| weights_file(path), Ok).map(Some)
}

/// Keeps a copy of what `model.weights` names, `origin`, in a run directory when the run
/// starts. A run that is resumed has one, and does not need the file any more; if the file
/// is there, it must be the same.
///
/// # Errors
/// The file is missing and there is no copy, or it is another one.
pub(super) fn keep(run: &Path, origin: &Path) -> Result<InitialWeights, RunDirError> {
    let copy = run.join(INITIAL_WEIGHTS);
    let described = |(bytes, blake3)| InitialWeights { path: copy.clone(), bytes, blake3, origin: origin.to_owned() };
    let found = weights_file(origin);
    if !copy.exists() {
        return copied(run, &found?, &copy).map(described);
    }
    let kept = digest(&copy)?;
    match found {
        Ok(file) if digest(&file)? != kept => Err(RunDirError::OtherWeights { path: run.to_owned(), file: origin.to_owned(), copy }),
        Ok(_) => Ok(described(kept)),
        Err(e) => {
            tracing::info!("goes by the copy of the weights in `{}`: {e}", copy.display());
            Ok(described(kept))
        }
    }
}

/// The copy has its name once it is whole and on disk.
fn copied(run: &Path, file: &Path, copy: &Path) -> Result<(u64, Digest), RunDirError> {
    let failed = |action| RunDirError::io(action, copy);
    // As for the other files, the umask decides who may read it.
    let mut temporary = tempfile::Builder::new().permissions(Permissions::from_mode(0o666)).tempfile_in(run).map_err(failed("create"))?;
    let kept = each_chunk(file, |chunk| temporary.write_all(chunk).map_err(failed("write")))?;
    temporary.as_file().sync_all().map_err(failed("write"))?;
    temporary.persist(copy).map_err(|e| failed("write")(e.error))?;
    sync_folder(run).map_err(failed("write"))?;
    Ok(kept)
}

fn digest(file: &Path) -> Result<(u64, Digest), RunDirError> {
    each_chunk(file, |_| Ok(()))
}

/// Reads a file in turn, and returns how many bytes it has and their digest.
fn each_chunk(path: &Path, mut each: impl FnMut(&[u8]) -> Result<(), RunDirError>) -> Result<(u64, Digest), RunDirError> {
    let mut file = File::open(path).map_err(RunDirError::io("open", path))?;
    let (mut hasher, mut bytes, mut chunk) = (blake3::Hasher::new(), 0, vec![0; CHUNK]);
    loop {
        let n = file.read(&mut chunk).map_err(RunDirError::io("read", path))?;
        if n == 0 {
            return Ok((bytes, hasher.finalize().into()));
        }
        bytes += n as u64;
        hasher.update(&chunk[..n]);
        each(&chunk[..n])?;
    }
}
