//! `[run]`: what becomes of a run's record.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use crate::objects;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Where checkpoints, journal, metrics and summary are copied as they are made, such as
    /// `s3://BUCKET/runs/NAME`; `--resume` goes on from there where there is no run
    /// directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
}

impl RunConfig {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match &self.mirror {
            Some(url) => objects::check_writable(url).map_err(|e| invalid("run.mirror", format!("cannot be used: {e}"))),
            None => Ok(()),
        }
    }
}
