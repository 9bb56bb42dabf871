//! The network of a run: one of the models, chosen by its config.

use burn::tensor::{Device, Tensor};
use common::config::{InputShape, ModelConfig};

use super::alexnet::Alexnet;
use super::error::ModelError;
use super::lenet::Lenet;
use super::linear::{Perceptron, Softmax};
use super::mlp::Mlp;
use super::network::{AnyNetwork, Leaf, NewLeaf};
use super::own;
use super::pass::Pass;
use crate::data::Dropout;

/// A [`Network`](super::Network) of some type.
#[derive(Debug)]
pub struct Model(Box<dyn AnyNetwork>);

impl Model {
    /// The network of `config`. Its weights must be set before they are used: see
    /// [`super::initial_weights`].
    ///
    /// # Errors
    /// It is a model of one's own that this process lacks, that cannot be built, or that has
    /// other layers than the config describes.
    pub fn new(config: &ModelConfig, input: InputShape, device: &Device) -> Result<Self, ModelError> {
        Ok(Self(match config {
            ModelConfig::Perceptron(_) => Box::new(Perceptron::new(input, device)),
            ModelConfig::Softmax(_) => Box::new(Softmax::new(input, device)),
            ModelConfig::Mlp(config) => Box::new(Mlp::new(config, input, device)),
            ModelConfig::Lenet(config) => Box::new(Lenet::new(config, input, device)),
            ModelConfig::Alexnet(config) => Box::new(Alexnet::new(config, input, device)),
            ModelConfig::Own(config) => own::build(config, input, device)?,
        }))
    }

    /// The places where dropout acts, in the order of the forward pass.
    pub fn dropouts(&self) -> Vec<Dropout> {
        self.0.dropouts()
    }

    /// What in the network has no deterministic kernel on CUDA.
    pub fn not_deterministic_on_cuda(&self) -> Option<&'static str> {
        self.0.not_deterministic_on_cuda()
    }

    /// `[n, channels, size, size]` to `[n, features]`.
    pub fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        self.0.features(images, pass)
    }

    /// `[n, features]` to logits `[n, classes]`.
    pub fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        self.0.classifier(features, pass)
    }

    /// `[n, channels, size, size]` to logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let features = self.features(images, pass);
        self.classifier(features, pass)
    }

    /// Calls `each` with every tensor, in the order of the flat state.
    pub(crate) fn visit(&self, each: &mut dyn FnMut(Leaf<'_>)) {
        self.0.visit(each);
    }

    /// Replaces every tensor, in the order of the flat state, by what `make` gives.
    pub(crate) fn map<'a>(self, make: &mut dyn FnMut() -> NewLeaf<'a>) -> Self {
        Self(self.0.map(make))
    }
}
