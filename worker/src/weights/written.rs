//! The weights of a model as other programs name and lay them out.

use std::collections::HashMap;

use common::config::ModelConfig;
use safetensors::tensor::{Dtype, TensorView};

use super::error::WeightsError;
use super::fit::transpose;
use super::names::{ORDER, exported};
use crate::models::{ParamLayout, ParamSpec};

/// A parameter for PyTorch.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    pub name: String,
    /// Convolutions: `[out, in, height, width]`; dense layers: `[out, in]`; biases: `[out]`.
    pub shape: Vec<usize>,
    /// Row-major.
    pub values: Vec<f32>,
}

/// The parameters of a model in PyTorch's names and order, from its flat weights.
pub fn named(model: &ModelConfig, layout: &ParamLayout, weights: &[f32]) -> Vec<NamedTensor> {
    let tensor = |param: &ParamSpec| {
        let own = &weights[param.range()];
        let name = exported(model, param.name());
        match *param.shape() {
            [inputs, units] => {
                let mut values = vec![0.0; own.len()];
                transpose(own, inputs, units, &mut values);
                NamedTensor { name, shape: vec![units, inputs], values }
            }
            ref shape => NamedTensor { name, shape: shape.to_vec(), values: own.to_vec() },
        }
    };
    layout.params().iter().map(tensor).collect()
}

/// A safetensors file, marked as PyTorch's in the way of Hugging Face's libraries.
///
/// # Errors
/// Serialisation failed.
pub fn safetensors_bytes(tensors: &[NamedTensor]) -> Result<Vec<u8>, WeightsError> {
    let broken = |error: safetensors::SafeTensorError| WeightsError::Write(error.to_string());
    let views = tensors.iter().map(|tensor| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytemuck::cast_slice(&tensor.values));
        view.map(|view| (tensor.name.clone(), view))
    });
    let views = views.collect::<Result<Vec<_>, _>>().map_err(broken)?;
    let metadata = [("format", "pt"), (ORDER, "out,in")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    safetensors::serialize(views, Some(HashMap::from(metadata))).map_err(broken)
}
