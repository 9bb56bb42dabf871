//! Beginning a run with weights from a file.

use std::path::Path;

use common::config::ModelConfig;

use crate::replica::{Replica, ReplicaError};
use crate::weights::WeightsFile;

/// Has a replica begin with the weights in `path`, which `origin` names in messages.
///
/// # Errors
/// The file cannot be read or does not fit the model, or the device failed.
pub fn begin_with(replica: &mut Replica, model: &ModelConfig, path: &Path, origin: &Path) -> Result<(), ReplicaError> {
    let loaded = replica.begin_with(model, &WeightsFile::open(path, origin)?)?;
    tracing::info!("begins with the weights of `{}`: {}", origin.display(), loaded.describe());
    if let Some(head) = loaded.new_head {
        tracing::info!("{}", head.describe());
    }
    Ok(())
}
