//! The network of a run: one of the models, chosen by its config.

use burn::module::{Module, ModuleMapper, ModuleVisitor};
use burn::tensor::{Device, Tensor};
use common::config::{InputShape, ModelConfig};

use super::alexnet::Alexnet;
use super::lenet::Lenet;
use super::linear::{Perceptron, Softmax};
use super::mlp::Mlp;
use super::pass::Pass;
use crate::data::Dropout;

/// A network in two parts, so that the backward pass can be cut between them and
/// the gradients of the classifier (most of the bytes of AlexNet) can travel
/// while those of the features are still being computed.
#[derive(Debug)]
pub enum Model {
    Perceptron(Perceptron),
    Softmax(Softmax),
    Mlp(Mlp),
    Lenet(Box<Lenet>),
    Alexnet(Box<Alexnet>),
}

/// What in the network of `config` has no deterministic kernel on CUDA.
pub fn not_deterministic_on_cuda(config: &ModelConfig, input: InputShape) -> Option<&'static str> {
    match config {
        ModelConfig::Alexnet(config) if super::alexnet::pools_adaptively(config, input) => Some("adaptive average pooling"),
        _ => None,
    }
}

impl Model {
    /// The network of `config`. Its weights must be set before they are used: see
    /// [`super::initial_weights`].
    pub fn new(config: &ModelConfig, input: InputShape, device: &Device) -> Self {
        match config {
            ModelConfig::Perceptron(_) => Self::Perceptron(Perceptron::new(input, device)),
            ModelConfig::Softmax(_) => Self::Softmax(Softmax::new(input, device)),
            ModelConfig::Mlp(config) => Self::Mlp(Mlp::new(config, input, device)),
            ModelConfig::Lenet(config) => Self::Lenet(Box::new(Lenet::new(config, input, device))),
            ModelConfig::Alexnet(config) => Self::Alexnet(Box::new(Alexnet::new(config, input, device))),
        }
    }

    /// The places where dropout acts in the network of `config`, in the order of its
    /// forward pass.
    pub fn dropouts(config: &ModelConfig) -> Vec<Dropout> {
        match config {
            ModelConfig::Alexnet(config) => super::alexnet::dropouts(config),
            ModelConfig::Perceptron(_) | ModelConfig::Softmax(_) | ModelConfig::Mlp(_) | ModelConfig::Lenet(_) => Vec::new(),
        }
    }

    /// `[n, channels, size, size]` to `[n, features]`. Models without
    /// convolutions take the pixels, row by row, as they are.
    pub fn features(&self, images: Tensor<4>, _pass: &mut Pass) -> Tensor<2> {
        match self {
            Self::Perceptron(_) | Self::Softmax(_) | Self::Mlp(_) => images.flatten(1, 3),
            Self::Lenet(model) => model.features(images),
            Self::Alexnet(model) => model.features(images),
        }
    }

    /// `[n, features]` to logits `[n, classes]`.
    pub fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        match self {
            Self::Perceptron(model) => model.classifier(features, pass),
            Self::Softmax(model) => model.classifier(features, pass),
            Self::Mlp(model) => model.classifier(features, pass),
            Self::Lenet(model) => model.classifier(features, pass),
            Self::Alexnet(model) => model.classifier(features, pass),
        }
    }

    /// `[n, channels, size, size]` to logits `[n, classes]`.
    pub fn forward(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let features = self.features(images, pass);
        self.classifier(features, pass)
    }

    /// Calls `visitor` with every parameter, in the order of the flat state.
    pub fn visit(&self, visitor: &mut impl ModuleVisitor) {
        match self {
            Self::Perceptron(model) => model.visit(visitor),
            Self::Softmax(model) => model.visit(visitor),
            Self::Mlp(model) => model.visit(visitor),
            Self::Lenet(model) => model.visit(visitor),
            Self::Alexnet(model) => model.visit(visitor),
        }
    }

    /// Replaces every parameter with the result of `mapper`.
    pub fn map(self, mapper: &mut impl ModuleMapper) -> Self {
        match self {
            Self::Perceptron(model) => Self::Perceptron(model.map(mapper)),
            Self::Softmax(model) => Self::Softmax(model.map(mapper)),
            Self::Mlp(model) => Self::Mlp(model.map(mapper)),
            Self::Lenet(model) => Self::Lenet(Box::new(model.map(mapper))),
            Self::Alexnet(model) => Self::Alexnet(Box::new(model.map(mapper))),
        }
    }
}
