//! The models without a hidden layer: the perceptron and softmax regression.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};

use common::config::InputShape;

use super::network::Network;
use super::pass::Pass;

/// A score for each class, linear in the inputs.
#[derive(Module, Debug)]
pub struct Softmax {
    dense: Linear,
}

impl Softmax {
    pub(super) fn new(input: InputShape, device: &Device) -> Self {
        Self { dense: LinearConfig::new(input.values(), input.classes).init(device) }
    }
}

impl Network for Softmax {
    fn classifier(&self, inputs: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        pass.dense(&self.dense, inputs)
    }
}

/// One score s = w x + b, whose sign is the class. As a model of two classes its
/// logits are (-s, s), so that a label's logit is y s with y = -1 or 1.
#[derive(Module, Debug)]
pub struct Perceptron {
    dense: Linear,
}

impl Perceptron {
    pub(super) fn new(input: InputShape, device: &Device) -> Self {
        Self { dense: LinearConfig::new(input.values(), 1).init(device) }
    }
}

impl Network for Perceptron {
    fn classifier(&self, inputs: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let score = pass.dense(&self.dense, inputs); // [n, 1]
        Tensor::cat(vec![score.clone().neg(), score], 1)
    }
}
