//! Whether a run is resumed, according to the command line.

use std::ffi::OsString;
use std::path::Path;

use super::error::RunDirError;
use super::mirror::{self, InStore};
use crate::config::Config;

/// What `--resume` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Resume {
    /// Go on with the run that is there.
    Always,
    /// Go on with the run if there is one, else start it: one command line for both.
    Auto,
}

impl Resume {
    /// Joins `--resume auto` into one argument for the parser, which would otherwise
    /// take a name that follows `--resume` for its value.
    pub fn joined(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
        let mut joined: Vec<OsString> = Vec::new();
        for argument in arguments {
            match joined.last_mut() {
                Some(last) if *last == *"--resume" && (argument == *"auto" || argument == *"always") => {
                    last.push("=");
                    last.push(argument);
                }
                _ => joined.push(argument),
            }
        }
        joined
    }

    /// Whether the run in `run_dir`, or in the mirror of `config`, is to be resumed.
    ///
    /// # Errors
    /// The mirror does not answer.
    pub fn applies(asked: Option<Self>, run_dir: Option<&Path>, config: &Config) -> Result<bool, RunDirError> {
        let there = |path: &Path| path.join("config.toml").exists();
        match (asked, run_dir, &config.run.mirror) {
            (None, ..) => Ok(false),
            (Some(Self::Always), ..) => Ok(true),
            (Some(Self::Auto), Some(path), Some(mirror)) if !there(path) => mirror::holds_run(&InStore(mirror.clone())),
            (Some(Self::Auto), run_dir, _) => Ok(run_dir.is_some_and(there)),
        }
    }
}
