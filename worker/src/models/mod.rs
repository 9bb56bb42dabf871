//! The networks, as ordinary burn modules that know no backend, no loss and no
//! optimizer.
//!
//! A model is added in three places: its own file, a variant of [`Model`] (with
//! its arms in the methods below) and a variant of `common::config::ModelConfig`.

mod alexnet;
mod initial;
mod pass;
#[cfg(test)]
mod tests;

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};
use common::config::ModelConfig;

pub use alexnet::Alexnet;
pub use initial::initial_weights;
pub use pass::{DropoutGroup, Pass};

/// What a model reads and how many classes it tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputShape {
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Height and width in pixels.
    pub image_size: usize,
    pub classes: usize,
}

impl InputShape {
    /// Values of one image.
    pub fn values(&self) -> usize {
        self.channels * self.image_size * self.image_size
    }
}

/// A network in two parts, so that the backward pass can be cut between them and
/// the gradients of the classifier (most of the bytes of AlexNet) can travel
/// while those of the features are still being computed.
#[derive(Debug)]
pub enum Model {
    Alexnet(Alexnet),
}

impl Model {
    /// The network of `config`. Its weights are not meant to be used before they
    /// were set: see [`initial_weights`].
    pub fn new(config: &ModelConfig, input: InputShape, device: &Device) -> Self {
        match config {
            ModelConfig::Alexnet(config) => Self::Alexnet(Alexnet::new(config, input, device)),
        }
    }

    /// `[n, channels, size, size]` to `[n, features]`.
    pub fn features(&self, images: Tensor<4>, _pass: &mut Pass) -> Tensor<2> {
        match self {
            Self::Alexnet(model) => model.features(images),
        }
    }

    /// `[n, features]` to logits `[n, classes]`.
    pub fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        match self {
            Self::Alexnet(model) => model.classifier(features, pass),
        }
    }

    /// `[n, channels, size, size]` to logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let features = self.features(images, pass);
        self.classifier(features, pass)
    }

    /// How many parameters, from the first, belong to [`features`](Self::features).
    pub fn feature_parameters(&self) -> usize {
        match self {
            Self::Alexnet(_) => Alexnet::FEATURE_PARAMETERS,
        }
    }

    /// Shows every parameter to `visitor`, in the order of the flat state.
    pub fn visit(&self, visitor: &mut impl ModuleVisitor) {
        match self {
            Self::Alexnet(model) => model.visit(visitor),
        }
    }

    /// Replaces every parameter by what `mapper` makes of it.
    pub fn map(self, mapper: &mut impl ModuleMapper) -> Self {
        match self {
            Self::Alexnet(model) => Self::Alexnet(model.map(mapper)),
        }
    }
}
