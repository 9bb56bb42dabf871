//! What a run's checkpoint files must hold according to its config: compared with their
//! headers, without a tensor library and without reading their values.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata};

use super::error::{RunDirError, damaged};
use crate::config::{Config, InputShape};

/// Names and shapes take no more: the header is read before it is known to be valid.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// An optimizer keeps at most this many vectors as long as the weights, with their moving
/// average.
const MAX_SLOTS: usize = 3;

/// Key of the step in the optimizer's metadata.
const STEP: &str = "step";

/// The layers of a model and their numbers of values.
#[derive(Debug, Clone)]
pub struct CheckpointLayout {
    layers: BTreeMap<String, u64>,
    /// Those that are trained.
    trained: BTreeSet<String>,
}

/// Shape of each tensor, by its name.
type Shapes = BTreeMap<String, Vec<usize>>;

impl CheckpointLayout {
    pub fn of(config: &Config, input: InputShape) -> Self {
        let all = config.model.layers(input);
        let trained = config.train.trained_layers(&all).map(|layer| layer.name.clone()).collect();
        let mut layers = BTreeMap::new();
        for layer in all.into_iter().filter(|layer| layer.values() > 0) {
            *layers.entry(layer.name).or_default() += layer.values();
        }
        Self { layers, trained }
    }

    /// Refuses files that are not the state after `step` of this model: the model's
    /// tensors belong to its layers, which have their numbers of parameters; the
    /// optimizer has `SLOT/TENSOR` for each of them that is trained and up to three slots, and
    /// names the step.
    pub(super) fn check(&self, step: u64, model: &Path, optimizer: &Path) -> Result<(), RunDirError> {
        let (shapes, _) = header(model)?;
        let mut found: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, shape) in &shapes {
            let layer = layer_of(name);
            *found.entry(layer).or_default() += shape.iter().map(|&n| n as u64).product::<u64>();
        }
        if let Some((layer, expected)) = self.layers.iter().find(|(layer, n)| found.get(layer.as_str()) != Some(n)) {
            let has = found.get(layer.as_str()).copied().unwrap_or_default();
            return Err(damaged(model, format!("has {has} parameters for the layer `{layer}`, and the run's model {expected}")));
        }
        if let Some(odd) = found.keys().find(|layer| !self.layers.contains_key(**layer)) {
            return Err(damaged(model, format!("has a layer `{odd}`, which the run's model lacks")));
        }
        let (state, metadata) = header(optimizer)?;
        let shapes: Shapes = shapes.into_iter().filter(|(name, _)| self.trained.contains(layer_of(name))).collect();
        let mut slots: BTreeMap<&str, usize> = BTreeMap::new();
        for (name, shape) in &state {
            let Some((slot, _)) = name.split_once('/').filter(|(_, tensor)| shapes.get(*tensor) == Some(shape)) else {
                return Err(damaged(optimizer, format!("has a tensor `{name}` of shape {shape:?}, which belongs to none that is trained")));
            };
            *slots.entry(slot).or_default() += 1;
        }
        if slots.len() > MAX_SLOTS || slots.values().any(|&n| n != shapes.len()) {
            return Err(damaged(optimizer, format!("has {} tensors for a model that trains {}", state.len(), shapes.len())));
        }
        let named = metadata.get(STEP);
        if named.and_then(|s| s.parse::<u64>().ok()) != Some(step) {
            let named = named.map_or("none", String::as_str);
            return Err(damaged(optimizer, format!("names the step {named}, and not {step}")));
        }
        Ok(())
    }
}

/// The layer that a tensor belongs to.
fn layer_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or("", |(layer, _)| layer)
}

/// The tensors of a safetensors file and its metadata. The values must be there,
/// and all of them f32.
fn header(path: &Path) -> Result<(Shapes, HashMap<String, String>), RunDirError> {
    let mut file = File::open(path).map_err(RunDirError::io("open", path))?;
    let bytes = file.metadata().map_err(RunDirError::io("read", path))?.len();
    let mut length = [0; 8];
    let whole = file.read_exact(&mut length).is_ok();
    let length = u64::from_le_bytes(length);
    if !whole || length > MAX_HEADER_BYTES || length > bytes - 8 {
        return Err(damaged(path, "has no safetensors header".to_owned()));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(RunDirError::io("read", path))?;
    let parsed: Metadata = serde_json::from_slice(&text).map_err(|e| damaged(path, format!("has no valid safetensors header: {e}")))?;
    if parsed.data_len() as u64 != bytes - 8 - length {
        return Err(damaged(path, format!("has values in {} bytes, and its header speaks of {}", bytes - 8 - length, parsed.data_len())));
    }
    let tensors = parsed.tensors();
    if let Some((name, _)) = tensors.iter().find(|(_, info)| info.dtype != Dtype::F32) {
        return Err(damaged(path, format!("has a tensor `{name}` that is not f32")));
    }
    let shapes = tensors.into_iter().map(|(name, info)| (name, info.shape.clone())).collect();
    Ok((shapes, parsed.metadata().clone().unwrap_or_default()))
}
