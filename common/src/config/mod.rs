//! The configuration of a run: one TOML file, `--set key=value` on top, checked
//! as a whole before anything starts.
//!
//! [`Config`] is what the file says, with every default filled in. Unknown keys
//! are refused and the nearest known key is named; validation refuses
//! what cannot work together. Nothing here touches a dataset or a device.

mod architecture;
mod data;
mod data_toml;
mod edit;
mod model;
mod train;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use architecture::{AlexnetWidths, InputShape, Layer};
pub use data::{Augment, CorruptPolicy, DataConfig, DataSource, Pixels};
pub use model::{
    Activation, AlexnetConfig, AlexnetPreset, LenetConfig, LossKind, MlpConfig, ModelConfig, PerceptronConfig, Pool, SoftmaxConfig,
};
pub use train::{ClusterConfig, OptimizerKind, Precision, ScheduleKind, TrainConfig, WireEncoding};

/// Everything that defines a run. Serialising it gives the resolved config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names the run in its summary and in its default run directory.
    pub name: String,
    /// Decides shards, orders, augmentation, initial weights and dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    pub model: ModelConfig,
    pub data: DataConfig,
    pub train: TrainConfig,
    #[serde(default)]
    pub cluster: ClusterConfig,
}

fn default_seed() -> u64 {
    1
}

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

impl Config {
    /// Reads `path`, lays each `key=value` of `overrides` over it, and validates.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, &path.display().to_string(), overrides)
    }

    /// Like [`Config::load`] from text; `origin` stands in error messages.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let invalid = |message: String| ConfigError::Parse { origin: origin.to_owned(), message };
        let config: Self = if overrides.is_empty() {
            toml::from_str(text).map_err(|e| invalid(edit::explain(&e)))?
        } else {
            let mut table: toml::Table = toml::from_str(text).map_err(|e| invalid(edit::explain(&e)))?;
            for argument in overrides {
                edit::apply(&mut table, argument).map_err(|message| ConfigError::Set { argument: argument.clone(), message })?;
            }
            table.try_into().map_err(|e| invalid(edit::explain(&e)))?
        };
        config.validate()?;
        Ok(config)
    }

    /// The resolved config as TOML: what the run directory keeps and what
    /// workers are sent.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| unreachable!("a config is always representable in TOML: {e}"))
    }

    /// A digest of all that decides the weights: a run directory may only be
    /// resumed by a config with the same digest. How long to train, where the
    /// data lies and how the cluster talks may change.
    pub fn identity(&self) -> String {
        let mut same = self.clone();
        same.name.clear();
        same.cluster = ClusterConfig { wire: self.cluster.wire, ..ClusterConfig::default() };
        same.train.epochs = 1;
        same.train.max_steps = None;
        same.train.checkpoint_steps = None;
        same.train.audit = false;
        // Where only speed depends on it.
        if !self.train.reproducible {
            same.train.threads = None;
        }
        same.data.set_path(PathBuf::new());
        blake3::hash(same.to_toml().as_bytes()).to_hex().to_string()
    }

    /// Whether workers record which samples they put into each step.
    pub fn records_samples(&self) -> bool {
        self.train.audit || self.train.reproducible
    }

    fn validate(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.contains(['/', '\\']) || self.name.starts_with('.') {
            return Err(invalid(
                "name",
                format!("is `{}`: it names a folder, so it must not be empty, start with a dot or hold a slash", self.name),
            ));
        }
        self.model.validate(&self.data, &self.train)?;
        self.data.validate()?;
        self.train.validate()?;
        self.cluster.validate(self.train.shards)
    }
}

/// Shorthand for a failed check.
fn invalid(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { key, problem: problem.into() }
}

#[cfg(test)]
mod tests;
