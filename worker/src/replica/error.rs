//! Why a replica refuses a batch, a gradient or a state.

use crate::engine::EngineError;
use crate::models::ModelError;
use crate::weights::WeightsError;

#[derive(Debug, thiserror::Error)]
pub enum ReplicaError {
    #[error("{images} image values for {labels} labels: each image has {per_image}")]
    Batch { images: usize, labels: usize, per_image: usize },
    #[error("there are masks for {masks} samples of a batch of {labels}, or they are of another model")]
    Masks { masks: usize, labels: usize },
    #[error("there are second labels for {seconds} samples of a batch of {labels}")]
    Seconds { seconds: usize, labels: usize },
    #[error("label {label} of sample {index} in the batch is not one of the {classes} classes: check the data set's class list")]
    Label { index: usize, label: i32, classes: usize },
    #[error("the gradient's buckets hold {found} values, the model has {expected} weights")]
    GradientSize { found: usize, expected: usize },
    #[error("the gradient of `{parameter}` is NaN or infinite at step {step}: lower train.lr, or set train.clip_norm or a warm-up")]
    NotFinite { parameter: String, step: u64 },
    #[error("the saved state does not fit: {0}")]
    State(String),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}
