//! A disk that is slow for a while: the flushes of one process are delayed by a
//! small library that is compiled here and loaded into it.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::project;

/// The library, and the file that says how slow the disk is.
pub struct SlowDisk {
    folder: TempDir,
}

impl SlowDisk {
    /// Compiles the library into a folder of its own; `None` where there is no C compiler.
    pub fn build() -> Option<Self> {
        let folder = TempDir::new().unwrap_or_else(|e| panic!("no temporary folder: {e}"));
        let disk = Self { folder };
        let source = project().join("tests/slow_disk.c");
        let compiled = Command::new("cc").args(["-O1", "-Wall", "-shared", "-fPIC", "-o"]).arg(disk.library()).arg(&source).output();
        match compiled {
            Ok(output) if output.status.success() => {}
            Ok(output) => panic!("`{}` does not compile: {}", source.display(), String::from_utf8_lossy(&output.stderr)),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                println!("there is no C compiler `cc` here: faults of a slow disk are left out");
                return None;
            }
            Err(e) => panic!("cc: {e}"),
        }
        disk.slow_by(0);
        Some(disk)
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("slow_disk.so")
    }

    fn control(&self) -> PathBuf {
        self.folder.path().join("ms")
    }

    /// The environment variables that give a process this disk.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        [("LD_PRELOAD", self.library().into()), ("SLOW_DISK", self.control().into())]
    }

    /// Delays every flush from now on by this many milliseconds; 0 is a disk without
    /// faults.
    pub fn slow_by(&self, ms: u64) {
        // The file is replaced as a whole: a process that reads it now must not find
        // half of a number.
        let (new, control) = (self.folder.path().join("new"), self.control());
        let written = std::fs::write(&new, ms.to_string()).and_then(|()| std::fs::rename(&new, &control));
        written.unwrap_or_else(|e| panic!("{}: {e}", control.display()));
    }

    /// Flushes that were delayed so far.
    pub fn delayed(&self) -> u64 {
        std::fs::metadata(self.folder.path().join("ms.delayed")).map_or(0, |m| m.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_flush_takes_as_long_as_told_while_the_process_runs() {
        let Some(disk) = SlowDisk::build() else { return };
        let flush = || {
            let start = Instant::now();
            let file = disk.folder.path().join("flushed");
            let done = Command::new("dd")
                .args(["if=/dev/zero", "bs=1", "count=1", "conv=fsync"])
                .arg(format!("of={}", file.display()))
                .envs(disk.environment())
                .output()
                .unwrap_or_else(|e| panic!("dd: {e}"));
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            start.elapsed()
        };
        flush();
        assert_eq!(disk.delayed(), 0);
        disk.slow_by(700);
        assert!(flush().as_millis() >= 700);
        assert_eq!(disk.delayed(), 1);
        disk.slow_by(0);
        flush();
        assert_eq!(disk.delayed(), 1);
    }
}
