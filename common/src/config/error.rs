//! Why a config is refused.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("could not read the config `{}`: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{origin}` is not a valid config: {message}")]
    Parse { origin: String, message: String },
    #[error("`--set {argument}`: {message}")]
    Set { argument: String, message: String },
    #[error("`{key}` {problem}")]
    Invalid { key: &'static str, problem: String },
}

/// Shorthand for a failed check.
pub(super) fn invalid(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key, problem: problem.into() }
}
