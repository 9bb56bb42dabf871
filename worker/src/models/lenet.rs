//! LeNet-5 as the course notes give it, after LeCun, Bottou, Bengio, Haffner,
//! "Gradient-Based Learning Applied to Document Recognition", 1998: without its
//! partial connections and its Gaussian output.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::module::{avg_pool2d, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, MaxPoolOptions};
use burn::tensor::{Device, Tensor};
use common::config::{Activation, LenetConfig, Pool};

use super::activation::activate;
use super::network::Network;
use super::pass::Pass;
use common::config::InputShape;

/// Two convolutions, three dense layers. Shapes below are those for 28x28 grey
/// pictures of ten classes; n is the batch.
#[derive(Module, Debug)]
pub struct Lenet {
    conv1: Conv2d,
    conv2: Conv2d,
    dense1: Linear,
    dense2: Linear,
    dense3: Linear,
    #[module(skip)]
    pool: Pool,
    #[module(skip)]
    activation: Activation,
}

impl Lenet {
    pub(super) fn new(config: &LenetConfig, input: InputShape, device: &Device) -> Self {
        let conv = |channels, padding| {
            Conv2dConfig::new(channels, [5, 5]).with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding)).init(device)
        };
        let side = (input.image_size / 2 - 4) / 2;
        Self {
            conv1: conv([input.channels, 6], 2),
            conv2: conv([6, 16], 0),
            dense1: LinearConfig::new(16 * side * side, 120).init(device),
            dense2: LinearConfig::new(120, 84).init(device),
            dense3: LinearConfig::new(84, input.classes).init(device),
            pool: config.pool,
            activation: config.activation,
        }
    }
}

impl Network for Lenet {
    fn features(&self, images: Tensor<4>, _pass: &mut Pass) -> Tensor<2> {
        let x = activate(self.activation, self.conv1.forward(images)); // [n,  6, 28, 28]
        let x = self.pool(x); // [n,  6, 14, 14]
        let x = activate(self.activation, self.conv2.forward(x)); // [n, 16, 10, 10]
        let x = self.pool(x); // [n, 16, 5, 5]
        x.flatten(1, 3) // [n, 400]
    }

    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let x = activate(self.activation, pass.dense(&self.dense1, features)); // [n, 120]
        let x = activate(self.activation, pass.dense(&self.dense2, x)); // [n, 84]
        pass.dense(&self.dense3, x) // [n, classes]
    }
}

impl Lenet {
    fn pool(&self, x: Tensor<4>) -> Tensor<4> {
        match self.pool {
            Pool::Average => avg_pool2d(x, AvgPoolOptions::new([2, 2])),
            Pool::Max => max_pool2d(x, MaxPoolOptions::new([2, 2])),
        }
    }
}
