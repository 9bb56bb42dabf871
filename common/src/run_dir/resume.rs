//! Whether a run is resumed, according to the command line.

use std::ffi::OsString;
use std::path::Path;

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

    /// Whether the run in `run_dir` is to be resumed.
    pub fn applies(asked: Option<Self>, run_dir: Option<&Path>) -> bool {
        match asked {
            None => false,
            Some(Self::Always) => true,
            Some(Self::Auto) => run_dir.is_some_and(|path| path.join("config.toml").exists()),
        }
    }
}
