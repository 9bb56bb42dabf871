//! Why weights cannot be read or written.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    #[error("could not read the weights `{}`: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}` is {what}: give a state dict as torch.save writes it (.pth, .pt), a .safetensors file, or a run directory", path.display())]
    Other { path: PathBuf, what: String },
    #[error("the weights `{}` are damaged or incomplete: {problem}; fetch or write them again", path.display())]
    Damaged { path: PathBuf, problem: String },
    #[error("the tensor `{tensor}` of `{}` has numbers of type {found}: weights are f32, f64, f16 or bf16", path.display())]
    Numbers { path: PathBuf, tensor: String, found: String },
    #[error("the tensor `{tensor}` of `{}` has values that are NaN or infinite: a model cannot begin with them", path.display())]
    NotFinite { path: PathBuf, tensor: String },
    #[error(
        "the weights `{}` are those of another model: this one has {model}, the file has {file}; choose the model that they belong to, or leave out model.weights",
        path.display()
    )]
    Mismatch { path: PathBuf, model: String, file: String },
    #[error(
        "the weights `{}` have {had} outputs in the layer `{layer}`, and this model {has}: it would begin with weights drawn by the seed, and train.freeze would keep them; take `{layer}` out of train.freeze",
        path.display()
    )]
    FrozenHead { path: PathBuf, layer: String, had: usize, has: usize },
    #[error("the weights could not be written: {0}")]
    Write(String),
}
