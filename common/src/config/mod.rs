//! The configuration of a run: one TOML file, `--set key=value` on top, checked
//! as a whole before anything starts.
//!
//! [`Config`] is what the file says, with every default filled in. Unknown keys
//! are refused and the nearest known key is named; validation refuses
//! what cannot work together. Nothing here touches a dataset or a device.

mod architecture;
mod data;
mod edit;
mod error;
mod freeze;
mod layers;
mod model;
mod own;
mod pixels;
mod places;
mod recipe;
mod run;
mod train;

use crate::digest::Digest;
use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use error::invalid;

pub use architecture::*;
pub use data::*;
pub use error::ConfigError;
pub use layers::*;
pub use model::*;
pub use own::*;
pub use pixels::*;
pub use recipe::*;
pub use run::*;
pub use train::*;

/// Everything that defines a run. Serialising it gives the resolved config.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Names the run in its summary and in its default run directory.
    pub name: String,
    /// Decides shards, orders, augmentation, initial weights and dropout.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Which network, and its own keys.
    pub model: ModelConfig,
    /// Where samples come from, and how they become tensors.
    pub data: DataConfig,
    /// How long, how large and how fast to train, and what to keep.
    pub train: TrainConfig,
    /// How workers talk, and how long they wait for each other.
    #[serde(default)]
    pub cluster: ClusterConfig,
    /// What becomes of the run's record.
    #[serde(default, skip_serializing_if = "RunConfig::is_default")]
    pub run: RunConfig,
}

/// The word for a choice, as a command line and messages have it.
pub fn name_of(choice: impl clap::ValueEnum) -> String {
    choice.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn default_seed() -> u64 {
    1
}

/// The keys that there are, for messages. A model's are those of all models.
fn sections() -> [(&'static str, Vec<String>); 6] {
    let model = [
        vec!["kind".to_owned()],
        edit::keys_of::<PerceptronConfig>(),
        edit::keys_of::<SoftmaxConfig>(),
        edit::keys_of::<MlpConfig>(),
        edit::keys_of::<LenetConfig>(),
        edit::keys_of::<AlexnetConfig>(),
        edit::keys_of::<OwnConfig>(),
    ];
    [
        ("", edit::keys_of::<Config>()),
        ("model.", model.concat()),
        ("data.", edit::keys_of::<DataConfig>()),
        ("train.", edit::keys_of::<TrainConfig>()),
        ("cluster.", edit::keys_of::<ClusterConfig>()),
        ("run.", edit::keys_of::<RunConfig>()),
    ]
}

impl Config {
    /// Reads `path`, lays each `key=value` of `overrides` over it, validates, and puts this
    /// machine's places where paths have `~` or `$NAME`.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let mut config = Self::parse(&text, &path.display().to_string(), overrides)?;
        places::expand(&mut config.data, &mut config.model, &mut config.run, |name| std::env::var(name).ok())?;
        Ok(config)
    }

    /// Like [`Config::load`] from text, but for the places; error messages name `origin`.
    pub fn parse(text: &str, origin: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let invalid = |e: toml::de::Error| ConfigError::Parse { origin: origin.to_owned(), message: edit::explain(&e, &sections()) };
        if overrides.is_empty() {
            // From the text itself, so that a message can show its line.
            let config: Self = toml::from_str(text).map_err(invalid)?;
            config.validate()?;
            return Ok(config);
        }
        Self::overlaid(toml::from_str(text).map_err(invalid)?, origin, overrides)
    }

    /// This config with each `key=value` of `overrides` laid over it, validated.
    pub fn with(&self, overrides: &[String]) -> Result<Self, ConfigError> {
        let table = toml::Table::try_from(self).unwrap_or_else(|e| unreachable!("a config is always representable in TOML: {e}"));
        Self::overlaid(table, "the config", overrides)
    }

    fn overlaid(table: toml::Table, origin: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        let read = |left_out: Option<usize>| {
            let mut table = table.clone();
            for (_, argument) in overrides.iter().enumerate().filter(|(n, _)| Some(*n) != left_out) {
                edit::apply(&mut table, argument).map_err(|message| ConfigError::Set { argument: argument.clone(), message })?;
            }
            Ok(table.try_into::<Self>())
        };
        let error = match read(None)? {
            Ok(config) => {
                config.validate()?;
                return Ok(config);
            }
            Err(error) => error,
        };
        // The argument without which the config reads, or else has another fault, is the
        // one that is wrong; the last of several.
        let without = |n: usize| Some((n, read(Some(n)).ok()?.err().map(|e| e.to_string())));
        let faults: Vec<(usize, Option<String>)> = (0..overrides.len()).rev().filter_map(without).collect();
        let cured = faults.iter().find(|(_, fault)| fault.is_none());
        let blamed = cured.or_else(|| faults.iter().find(|(_, fault)| fault.as_ref() != Some(&error.to_string())));
        Err(match blamed.and_then(|(n, _)| overrides.get(*n)) {
            Some(argument) => ConfigError::Set { argument: argument.clone(), message: edit::explain_set(&error, argument, &sections()) },
            None => ConfigError::Parse { origin: origin.to_owned(), message: edit::explain(&error, &sections()) },
        })
    }

    /// The resolved config as TOML: stored in the run directory and sent to workers.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).unwrap_or_else(|e| unreachable!("a config is always representable in TOML: {e}"))
    }

    /// All values by their keys, such as `train.lr`.
    pub fn values(&self) -> BTreeMap<String, toml::Value> {
        edit::single_values(&self.to_toml())
    }

    /// The JSON schema of a config's file, by which editors complete and check it.
    pub fn schema() -> String {
        let mut schema = serde_json::to_value(schemars::schema_for!(Self)).unwrap_or_default();
        // The one key that has two names.
        let keys = &mut schema["$defs"]["TrainConfig"]["properties"];
        keys["max_epochs"] = keys["epochs"].clone();
        serde_json::to_string_pretty(&schema).unwrap_or_else(|e| unreachable!("a schema is plain data: {e}"))
    }

    /// A digest of all keys that decide the weights: a run directory may only be
    /// resumed by a config with the same digest. These may change: how long to train,
    /// where data and initial weights lie, how the cluster communicates, what is recorded, evaluated
    /// and kept, and whether a picture that does not decode ends the run.
    pub fn identity(&self) -> Digest {
        let mut same = self.clone();
        same.name.clear();
        same.cluster = ClusterConfig { wire: self.cluster.wire, ..ClusterConfig::default() };
        same.run = RunConfig::default();
        same.train.epochs = 1;
        same.train.max_steps = None;
        same.train.checkpoint_steps = None;
        same.train.keep_checkpoints = 1;
        same.train.keep = Keep::Newest;
        same.train.patience = None;
        same.train.micro_batch = None;
        // Where evaluations decide the learning rate, how they are made decides the weights.
        if self.train.schedule != ScheduleKind::Plateau {
            same.train.eval_epochs = 1;
            same.train.keep_metric = Metric::Top1;
            same.data.pixels.eval_resize = 1.0;
            same.data.pixels.eval_crops = EvalCrops::Centre;
        }
        same.train.audit = false;
        // A run that stops at a damaged picture has the same weights up to it as one
        // that skips it.
        same.data.pixels.on_corrupt = CorruptPolicy::default();
        same.data.pixels.max_corrupt = 0.0;
        // Here the number of threads affects only speed.
        if !self.train.reproducible {
            same.train.threads = None;
        }
        same.data.forget_places();
        same.model.forget_places();
        Digest::of(same.to_toml().as_bytes())
    }

    /// Whether workers record which samples they put into each step.
    pub fn records_samples(&self) -> bool {
        self.train.audit || self.train.reproducible
    }

    /// Checks what only the description of a model of one's own shows, for this input.
    ///
    /// # Errors
    /// The model lacks a description, has one for another input, or cannot be trained as the
    /// config says.
    pub fn check_described(&self, input: InputShape) -> Result<(), String> {
        self.model.check_described(input)?;
        self.train.validate_freeze(&self.model, &self.data).map_err(|error| error.to_string())
    }

    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() || self.name.contains(['/', '\\']) || self.name.starts_with('.') {
            return Err(invalid(
                "name",
                format!("is `{}`: it names a folder, so it must not be empty, start with a dot or hold a slash", self.name),
            ));
        }
        self.model.validate(&self.data, &self.train)?;
        self.data.validate()?;
        self.train.validate()?;
        self.train.validate_freeze(&self.model, &self.data)?;
        if self.data.pixels.mixes() && self.train.global_batch / self.train.shards < 2 {
            return Err(invalid(
                "train.shards",
                "is the train.global_batch, so that a shard has one sample in a step, and data.augment mixes the samples that a shard has there: set fewer shards",
            ));
        }
        self.cluster.validate(self.train.shards)?;
        self.run.validate()
    }
}

#[cfg(test)]
mod tests;
