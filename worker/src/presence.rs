//! Which workers of this user run on this machine, for `worker leave`. Each holds
//! a file of its own, locked for as long as it lives, so that a killed one leaves
//! nothing behind that could be taken for it.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

/// A running worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Present {
    pub pid: u32,
    pub coordinator: String,
}

/// This worker's file; it vanishes with the value.
#[derive(Debug)]
pub struct Presence {
    path: PathBuf,
    _lock: File,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Where workers announce themselves.
pub fn folder() -> PathBuf {
    dirs::runtime_dir().or_else(dirs::cache_dir).unwrap_or_else(std::env::temp_dir).join("ringleader").join("workers")
}

/// Announces this process as a worker of `coordinator`.
pub fn announce(folder: &Path, coordinator: &str) -> Result<Presence> {
    let path = folder.join(std::process::id().to_string());
    let write = || {
        std::fs::create_dir_all(folder)?;
        let mut file = File::options().create(true).write(true).truncate(true).open(&path)?;
        file.lock()?;
        writeln!(file, "{coordinator}")?;
        Ok::<File, std::io::Error>(file)
    };
    let lock = write().with_context(|| format!("could not write `{}`", path.display()))?;
    Ok(Presence { path, _lock: lock })
}

/// The workers that run, and removes what dead ones left.
pub fn present(folder: &Path) -> Vec<Present> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(file) = File::open(&path) else { continue };
        match file.try_lock() {
            Ok(()) => _ = std::fs::remove_file(&path),
            Err(_) => {
                let coordinator = std::fs::read_to_string(&path).unwrap_or_default().trim().to_owned();
                found.push(Present { pid, coordinator });
            }
        }
    }
    found.sort_by_key(|worker| worker.pid);
    found
}

/// Which of the workers are meant: the one of this process id, all, or the only
/// one that there is.
pub fn choose(present: &[Present], pid: Option<u32>, all: bool) -> Result<Vec<Present>> {
    let list = || present.iter().map(|w| format!("  {} (of {})", w.pid, w.coordinator)).collect::<Vec<_>>().join("\n");
    match (present, pid) {
        ([], _) => bail!("no worker of yours runs on this machine"),
        (_, Some(pid)) => match present.iter().find(|w| w.pid == pid) {
            Some(worker) => Ok(vec![worker.clone()]),
            None => bail!("process {pid} is no worker of yours; these are:\n{}", list()),
        },
        ([only], None) => Ok(vec![only.clone()]),
        (_, None) if all => Ok(present.to_vec()),
        _ => bail!("there are {} workers here: name the process of one, or say --all:\n{}", present.len(), list()),
    }
}

/// Asks a worker to leave its run.
pub fn ask_to_leave(worker: &Present) -> Result<()> {
    let pid = i32::try_from(worker.pid).ok().and_then(Pid::from_raw).with_context(|| format!("{} is no process", worker.pid))?;
    kill_process(pid, Signal::TERM).with_context(|| format!("could not reach worker {}", worker.pid))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_there_while_it_lives() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("4000000"), "dead").unwrap();
        std::fs::write(folder.path().join("notes"), "not a worker").unwrap();
        let here = announce(folder.path(), "10.0.0.1:4000").unwrap();
        let expected = Present { pid: std::process::id(), coordinator: "10.0.0.1:4000".to_owned() };
        assert_eq!(present(folder.path()), [expected]);
        assert!(!folder.path().join("4000000").exists());
        drop(here);
        assert_eq!(present(folder.path()), []);
        assert_eq!(present(&folder.path().join("nowhere")), []);
    }

    #[test]
    fn the_only_one_needs_no_name() {
        let worker = |pid| Present { pid, coordinator: "a:1".to_owned() };
        let pids = |chosen: Result<Vec<Present>>| chosen.unwrap().iter().map(|w| w.pid).collect::<Vec<_>>();
        let two = [worker(3), worker(5)];
        assert_eq!(pids(choose(&two[..1], None, false)), [3]);
        assert_eq!(pids(choose(&two, Some(5), false)), [5]);
        assert_eq!(pids(choose(&two, None, true)), [3, 5]);
        for (present, pid, word) in [(&two[..], None, "--all"), (&two[..], Some(9), "process 9"), (&[][..], None, "no worker of yours")] {
            let error = choose(present, pid, false).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
