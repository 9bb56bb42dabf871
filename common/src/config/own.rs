//! `[model] kind = "own"`: a model that is not one of this project's, but a burn module in a
//! crate of the user's, whose binary is the worker.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use super::layers::{InputShape, Layer};

/// A model of one's own: see docs/own-model.md.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OwnConfig {
    /// Which of the models that the worker binary has.
    pub name: String,
    /// A file with the weights to begin with, instead of the seed's: see docs/weights.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// The model's own keys, which it alone reads.
    #[serde(skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub own: toml::Table,
    /// What the model consists of. The worker binary says it when a run starts, so that the
    /// coordinator, and whoever reads the run directory, needs no code of the model's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, serde_json::Value>>")]
    pub described: Option<Described>,
}

/// What a model of one's own consists of, for this input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    pub input: InputShape,
    /// In the order of the module's fields, which is that of the flat state.
    pub layers: Vec<Layer>,
}

impl OwnConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.name.is_empty() {
            return Err(invalid("model.name", "is empty: name one of the models that the worker binary has"));
        }
        Ok(())
    }

    /// The layers for this input.
    ///
    /// # Errors
    /// Nobody has described them, or for another input.
    pub fn described_for(&self, input: InputShape) -> Result<&[Layer], String> {
        let name = &self.name;
        match &self.described {
            Some(described) if described.input == input => Ok(&described.layers),
            Some(described) => Err(format!(
                "the model `{name}` is described for {}, and the data gives {input}: leave out model.described, and the worker binary describes it anew",
                described.input
            )),
            None => Err(format!(
                "the model `{name}` is of somebody's own, and only its worker binary knows its layers: name that binary with --worker-binary"
            )),
        }
    }
}
