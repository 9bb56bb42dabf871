//! Weights in files: those that a model begins with, from PyTorch, safetensors or a run,
//! and those that a run gives back, for PyTorch, safetensors or ONNX.
//!
//! A model's own order of a dense layer is `[in, out]`, PyTorch's is `[out, in]`; all else
//! is the same in both: convolutions `[out, in, height, width]`, and features flattened by
//! channel, then row, then column.

mod error;
mod file;
mod fit;
mod names;
mod onnx;
mod stored;
#[cfg(test)]
mod tests;
mod torch;
mod written;

pub use error::WeightsError;
pub use file::WeightsFile;
pub use fit::{Loaded, NewHead};
pub use names::{ORDER, OWN_ORDER};
pub use onnx::{OnnxModel, Scaling, onnx_bytes};
pub use torch::pth_bytes;
pub use written::{NamedTensor, named, safetensors_bytes};
