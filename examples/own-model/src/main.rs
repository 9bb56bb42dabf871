//! A worker with a model of its own: the residual network for CIFAR of He, Zhang, Ren and Sun,
//! "Deep Residual Learning for Image Recognition", 2015, section 4.2, with 6n + 2 layers.
//!
//! ```text
//! cargo build --release -p own-model -p coordinator
//! target/release/coordinator local examples/own-model/resnet.toml --worker-binary target/release/own-model
//! ```

use std::process::ExitCode;

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use worker::models::{InputShape, Network, Own, Pass};

fn main() -> ExitCode {
    worker::cli::run([Own::new("resnet", ResNet::new)])
}

/// `[model.own]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    /// Blocks in each of the three stages: n.
    blocks: usize,
    /// Channels of the first stage; each later one has twice as many at half the size.
    width: usize,
}

#[derive(Module, Debug)]
struct ResNet {
    conv: Conv2d,
    bn: BatchNorm,
    blocks: Vec<Block>,
    head: Linear,
}

/// Two convolutions, beside which the input goes on. Where the shape changes, the shortcut is
/// a convolution of 1x1.
#[derive(Module, Debug)]
struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    shortcut: Option<Conv2d>,
}

impl ResNet {
    fn new(keys: Keys, input: InputShape, device: &Device) -> Result<Self, String> {
        let Keys { blocks, width } = keys;
        if blocks == 0 || width == 0 {
            return Err(format!("blocks = {blocks} and width = {width} must both be at least 1"));
        }
        let (mut stack, mut channels) = (Vec::new(), width);
        for (stage, width) in [width, 2 * width, 4 * width].into_iter().enumerate() {
            for block in 0..blocks {
                let stride = if stage > 0 && block == 0 { 2 } else { 1 };
                stack.push(Block::new(channels, width, stride, device));
                channels = width;
            }
        }
        Ok(Self {
            conv: convolution([input.channels, width], 3, 1, device),
            bn: BatchNormConfig::new(width).init(device),
            blocks: stack,
            head: LinearConfig::new(channels, input.classes).init(device),
        })
    }
}

impl Block {
    fn new(from: usize, to: usize, stride: usize, device: &Device) -> Self {
        Self {
            conv1: convolution([from, to], 3, stride, device),
            bn1: BatchNormConfig::new(to).init(device),
            conv2: convolution([to, to], 3, 1, device),
            bn2: BatchNormConfig::new(to).init(device),
            shortcut: (from != to).then(|| convolution([from, to], 1, stride, device)),
        }
    }

    fn forward(&self, x: Tensor<4>, pass: &mut Pass) -> Tensor<4> {
        let y = pass.convolution(&self.conv1, x.clone());
        let y = relu(pass.batch_norm(&self.bn1, y));
        let y = pass.convolution(&self.conv2, y);
        let y = pass.batch_norm(&self.bn2, y);
        let x = self.shortcut.as_ref().map_or_else(|| x.clone(), |shortcut| pass.convolution(shortcut, x.clone()));
        relu(y + x)
    }
}

impl Network for ResNet {
    fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let x = pass.convolution(&self.conv, images); // [n, width, 32, 32]
        let x = relu(pass.batch_norm(&self.bn, x));
        let x = self.blocks.iter().fold(x, |x, block| block.forward(x, pass)); // [n, 4 width, 8, 8]
        x.mean_dim(3).mean_dim(2).flatten(1, 3) // [n, 4 width]
    }

    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        pass.dense(&self.head, features) // [n, classes]
    }
}

fn convolution(channels: [usize; 2], kernel: usize, stride: usize, device: &Device) -> Conv2d {
    let around = kernel / 2;
    let config = Conv2dConfig::new(channels, [kernel, kernel]).with_stride([stride, stride]).with_bias(false);
    config.with_padding(PaddingConfig2d::Explicit(around, around, around, around)).init(device)
}
