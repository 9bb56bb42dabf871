//! What can go wrong with a run directory. Every message names the path, the
//! cause and what to do about it.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::files::replace;
use crate::objects::ObjectError;

#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    #[error("could not {action} `{}`: {source}{}", path.display(), remedy(source))]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("`{}` already holds a run: go on with --resume, or choose another --run-dir", .0.display())]
    Taken(PathBuf),
    #[error("`{}` holds no run to resume: leave out --resume to start one there", .0.display())]
    NothingToResume(PathBuf),
    #[error("the run directory `{}` is in use by {holder}: wait for it or stop it, or choose another --run-dir", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error(
        "the run in `{}` cannot go on with another {keys}, because its weights would be those of neither: restore what its config.toml says, or choose another --run-dir",
        path.display()
    )]
    OtherConfig { path: PathBuf, keys: String },
    #[error(
        "the run in `{}` cannot go on with other data than it was started with: {differences}; restore that data, name its place with --set data.path=..., go on with this data by --accept-data, or choose another --run-dir for a new run",
        path.display()
    )]
    OtherData { path: PathBuf, differences: String },
    #[error(
        "the run in `{}` cannot go on with this data, --accept-data or not, because its model has other inputs or another number of classes: {differences}; choose another --run-dir for a new run",
        path.display()
    )]
    UnfitData { path: PathBuf, differences: String },
    #[error("`{}`, which says what data the run was started with, is damaged: {problem}; restore it, or remove it if the data is the same", path.display())]
    DamagedData { path: PathBuf, problem: String },
    #[error("`{}` holds no run: it has no config.toml; give the run directory that `worker train` named at its end", .0.display())]
    NoRun(PathBuf),
    #[error("the run in `{}` has no checkpoint yet: wait for its first one, or lower train.checkpoint_steps", .0.display())]
    NoCheckpoint(PathBuf),
    #[error("the mirror of the run (run.mirror) cannot be used: {0}")]
    Mirror(#[from] ObjectError),
    #[error("the mirror `{url}` already holds a run: go on with it by --resume, or give this run another run.mirror")]
    MirrorTaken { url: String },
    #[error(
        "the mirror `{url}` has a checkpoint of step {there}, and `{}` none after step {here}: the run has gone on elsewhere; resume it in an empty --run-dir, or give this run another run.mirror",
        path.display()
    )]
    MirrorAhead { url: String, path: PathBuf, there: u64, here: u64 },
    #[error("the run in `{}` has no checkpoint of step {step}: it has those of {there}", path.display())]
    NoSuchCheckpoint { path: PathBuf, step: u64, there: String },
    #[error("the run in `{}` has no checkpoint whose state was evaluated: take the last one, or train with train.keep = \"best\"", .0.display())]
    NoneEvaluated(PathBuf),
    #[error("model.weights: `{}` {problem}; give a file of PyTorch or safetensors, or a run directory", path.display())]
    NoWeights { path: PathBuf, problem: String },
    #[error(
        "the run in `{}` did not begin with what is in `{}` now: restore that file, name the copy with --set model.weights={}, or choose another --run-dir for a new run",
        path.display(), file.display(), copy.display()
    )]
    OtherWeights { path: PathBuf, file: PathBuf, copy: PathBuf },
    #[error("`{}` {problem}", path.display())]
    Damaged { path: PathBuf, problem: String },
}

impl RunDirError {
    /// For `map_err`: names the action and the path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }
}

/// Replaces a file of the run directory as a whole.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), RunDirError> {
    replace(path, bytes).map_err(RunDirError::io("write", path))
}

pub(super) fn damaged(path: &Path, problem: String) -> RunDirError {
    RunDirError::Damaged { path: path.to_owned(), problem }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "; free some space there (fewer train.keep_checkpoints need less) and continue with --resume"
        }
        ErrorKind::ReadOnlyFilesystem => "; that disk is read-only: name a directory on a writable one with --run-dir",
        ErrorKind::PermissionDenied => "; name a directory that this user may write with --run-dir",
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "; a file stands where a directory should be: name another one with --run-dir"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_and_a_read_only_disk_say_what_to_do() {
        let text = |kind: ErrorKind| RunDirError::io("write", Path::new("runs/a/config.toml"))(kind.into()).to_string();
        assert!(text(ErrorKind::StorageFull).contains("free some space"));
        assert!(text(ErrorKind::ReadOnlyFilesystem).contains("writable"));
        assert!(text(ErrorKind::PermissionDenied).starts_with("could not write `runs/a/config.toml`: permission denied; name"));
    }
}
