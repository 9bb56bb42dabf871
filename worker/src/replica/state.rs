//! Weights and optimizer state as safetensors bytes, and back.

use common::config::AVERAGE;
use common::digest::Digest;
use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use super::error::ReplicaError;
use crate::models::{ParamLayout, ParamSpec};

/// The whole state after some step, as it is sent to other workers and saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Steps that were applied.
    pub step: u64,
    /// safetensors: each parameter by its name, f32; the metadata says that dense layers
    /// are `[in, out]`.
    pub model: Vec<u8>,
    /// safetensors: `SLOT/PARAMETER`, f32; in the metadata `step` and, where training follows
    /// evaluations, `progress`.
    pub optimizer: Vec<u8>,
}

/// Keys of the optimizer's metadata.
pub(super) const STEP: &str = "step";
pub(super) const PROGRESS: &str = "progress";

/// Flat vectors cut into named tensors, one for each of these parameters: a prefix (empty, or
/// ending in `/`) and its values.
pub(super) fn write<'a>(
    params: impl Iterator<Item = &'a ParamSpec> + Clone,
    parts: &[(String, Cow<'_, [f32]>)],
    metadata: HashMap<String, String>,
) -> Result<Vec<u8>, ReplicaError> {
    let broken = |error: safetensors::SafeTensorError| ReplicaError::State(error.to_string());
    let mut views = Vec::new();
    for (prefix, values) in parts {
        for param in params.clone() {
            let bytes = bytemuck::cast_slice(&values[param.range()]);
            let view = TensorView::new(Dtype::F32, param.shape().to_vec(), bytes).map_err(broken)?;
            views.push((format!("{prefix}{}", param.name()), view));
        }
    }
    safetensors::serialize(views, Some(metadata)).map_err(broken)
}

/// An optimizer's metadata.
pub(super) fn metadata(bytes: &[u8]) -> Result<HashMap<String, String>, ReplicaError> {
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|error| ReplicaError::State(error.to_string()))?;
    Ok(metadata.metadata().clone().unwrap_or_default())
}

/// The step in it.
pub(super) fn step_of(metadata: &HashMap<String, String>) -> Result<u64, ReplicaError> {
    let step = metadata.get(STEP).and_then(|step| step.parse().ok());
    step.ok_or_else(|| ReplicaError::State("the optimizer's metadata has no step".to_owned()))
}

/// Flat vectors as they lie in a state's bytes. Since states have gigabytes, nothing is
/// copied until all of it is known to fit, and then only once, to its place.
pub(super) struct Parts<'a> {
    params: Vec<&'a ParamSpec>,
    /// The values of each parameter in turn, for each prefix.
    tensors: Vec<Vec<&'a [u8]>>,
}

impl Parts<'_> {
    /// Copies the vector of prefix number `part` into `flat`.
    pub(super) fn copy_to(&self, part: usize, flat: &mut [f32]) {
        for (param, bytes) in self.params.iter().zip(&self.tensors[part]) {
            bytemuck::cast_slice_mut(&mut flat[param.range()]).copy_from_slice(bytes);
        }
    }
}

/// The flat vectors of `prefixes` (as given to `write`), checked by name, type and shape.
pub(super) fn read<'a>(
    params: impl Iterator<Item = &'a ParamSpec>,
    prefixes: &[String],
    bytes: &'a [u8],
) -> Result<Parts<'a>, ReplicaError> {
    let params: Vec<&ParamSpec> = params.collect();
    let tensors = SafeTensors::deserialize(bytes).map_err(|error| ReplicaError::State(error.to_string()))?;
    let expected = prefixes.len() * params.len();
    if tensors.len() != expected {
        return Err(ReplicaError::State(format!("it has {} tensors, this model needs {expected}", tensors.len())));
    }
    let mut parts = Vec::with_capacity(prefixes.len());
    for prefix in prefixes {
        let mut values = Vec::with_capacity(params.len());
        for param in &params {
            let name = format!("{prefix}{}", param.name());
            let tensor = tensors.tensor(&name).map_err(|_| ReplicaError::State(format!("it has no tensor `{name}`")))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape() != param.shape() {
                let (dtype, shape) = (tensor.dtype(), tensor.shape());
                return Err(ReplicaError::State(format!(
                    "tensor `{name}` is {dtype:?} {shape:?}, this model needs F32 {:?}",
                    param.shape()
                )));
            }
            values.push(tensor.data());
        }
        parts.push(values);
    }
    Ok(Parts { params, tensors: parts })
}

/// BLAKE3 over the parameters in name order: the name's length and bytes, the
/// number of dimensions and each of them, the values; integers as u64, all
/// little-endian. After them those of the moving average, if there is one, with
/// `ema/` before the name, of parameters that are trained.
pub(super) fn weights_blake3(layout: &ParamLayout, weights: &[f32], average: Option<&[f32]>) -> Digest {
    let mut params: Vec<_> = layout.params().iter().collect();
    params.sort_by_key(|p| p.name());
    let mut hasher = blake3::Hasher::new();
    let all = [("".to_owned(), Some(weights)), (format!("{AVERAGE}/"), average)];
    let vectors = all.iter().filter_map(|(prefix, values)| values.map(|values| (prefix, values)));
    for ((prefix, weights), param) in vectors.flat_map(|vector| params.iter().map(move |param| (vector, param))) {
        if !prefix.is_empty() && param.is_frozen() {
            continue;
        }
        hasher.update(&((prefix.len() + param.name().len()) as u64).to_le_bytes());
        hasher.update(prefix.as_bytes());
        hasher.update(param.name().as_bytes());
        hasher.update(&(param.shape().len() as u64).to_le_bytes());
        for &dimension in param.shape() {
            hasher.update(&(dimension as u64).to_le_bytes());
        }
        hasher.update(bytemuck::cast_slice(&weights[param.range()]));
    }
    hasher.finalize().into()
}

// The formats above are little-endian; so is every device that libtorch runs on.
#[cfg(target_endian = "big")]
compile_error!("weights are saved and hashed as they lie in memory, which must be little-endian");
