//! What parameters are called elsewhere.

use std::collections::BTreeMap;

use common::config::{AlexnetPreset, ModelConfig};

/// Key of the metadata of a safetensors file that says how its dense layers lie, and its
/// value in checkpoints of this project: `[in, out]`. Other files have PyTorch's order.
pub const ORDER: &str = "dense";
pub const OWN_ORDER: &str = "in,out";

/// AlexNet's layers, and what torchvision calls them (torchvision/models/alexnet.py).
const ALEXNET: [(&str, &str); 8] = [
    ("conv1", "features.0"),
    ("conv2", "features.3"),
    ("conv3", "features.6"),
    ("conv4", "features.8"),
    ("conv5", "features.10"),
    ("dense1", "classifier.1"),
    ("dense2", "classifier.4"),
    ("dense3", "classifier.6"),
];

/// Where training scripts put a state dict in a checkpoint.
const CONTAINERS: [&str; 3] = ["state_dict.", "model_state_dict.", "model."];
/// What DataParallel, DistributedDataParallel and torch.compile put before every name.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// torchvision's name of the parameter `name`, if torchvision has such a model.
fn torchvision(model: &ModelConfig, name: &str) -> Option<String> {
    let (layer, parameter) = name.rsplit_once('.')?;
    let ModelConfig::Alexnet(_) = model else { return None };
    let (_, theirs) = ALEXNET.iter().find(|(ours, _)| *ours == layer)?;
    Some(format!("{theirs}.{parameter}"))
}

/// What other programs may call the parameter `name`: torchvision, or PyTorch's norms in a
/// model of one's own.
pub(super) fn elsewhere(model: &ModelConfig, name: &str) -> Option<String> {
    match model {
        ModelConfig::Own(_) => Some(in_pytorch(name)),
        _ => torchvision(model, name),
    }
}

/// Scale and shift of a norm are gamma and beta in burn, weight and bias in PyTorch.
fn in_pytorch(name: &str) -> String {
    let renamed = |(layer, parameter): (&str, &str)| match parameter {
        "gamma" => Some(format!("{layer}.weight")),
        "beta" => Some(format!("{layer}.bias")),
        _ => None,
    };
    name.rsplit_once('.').and_then(renamed).unwrap_or_else(|| name.to_owned())
}

/// Whether a tensor of a file counts batches, as PyTorch's batch normalisation does, and says
/// nothing of the model.
pub(super) fn counts_batches(name: &str) -> bool {
    name.ends_with(".num_batches_tracked")
}

/// The name of the parameter `name` in an export: torchvision's where its model is this one
/// to the letter, PyTorch's for the norms of a model of one's own, else ours.
pub(super) fn exported(model: &ModelConfig, name: &str) -> String {
    if let ModelConfig::Own(_) = model {
        return in_pytorch(name);
    }
    let same = matches!(model, ModelConfig::Alexnet(alexnet) if alexnet.preset == AlexnetPreset::Torchvision);
    torchvision(model, name).filter(|_| same).unwrap_or_else(|| name.to_owned())
}

/// The tensors of a state dict by the names that they have in their model: those of the
/// state dict alone if there is more in the file, and without what wrappers put before them.
pub(super) fn unwrapped<T>(mut tensors: BTreeMap<String, T>) -> BTreeMap<String, T> {
    loop {
        let container = CONTAINERS.iter().find(|c| tensors.keys().any(|name| name.starts_with(**c)));
        let wrapper = || WRAPPERS.iter().find(|w| !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(**w)));
        let Some(prefix) = container.or_else(wrapper) else { return tensors };
        tensors = tensors.into_iter().filter_map(|(name, tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor))).collect();
    }
}
