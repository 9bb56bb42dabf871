//! The multilayer perceptron.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use common::config::{Activation, MlpConfig};

use super::activation::activate;
use super::network::Network;
use super::pass::Pass;
use common::config::InputShape;

/// Hidden dense layers, each followed by the activation, and a dense output.
#[derive(Module, Debug)]
pub struct Mlp {
    hidden: Vec<Linear>,
    output: Linear,
    #[module(skip)]
    activation: Activation,
}

impl Mlp {
    pub(super) fn new(config: &MlpConfig, input: InputShape, device: &Device) -> Self {
        let mut inputs = input.values();
        let mut dense = |units: usize| LinearConfig::new(std::mem::replace(&mut inputs, units), units).init(device);
        let hidden = config.hidden.iter().map(|&units| dense(units as usize)).collect();
        Self { hidden, output: dense(input.classes), activation: config.activation }
    }
}

impl Network for Mlp {
    fn classifier(&self, inputs: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let x = self.hidden.iter().fold(inputs, |x, layer| activate(self.activation, pass.dense(layer, x)));
        pass.dense(&self.output, x)
    }
}
