//! AlexNet (Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep
//! Convolutional Neural Networks", 2012), without local response normalisation
//! and without the split over two GPUs.

use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::activation::relu;
use burn::tensor::module::{adaptive_avg_pool2d, max_pool2d};
use burn::tensor::ops::MaxPoolOptions;
use burn::tensor::{Device, Tensor};
use common::config::{AlexnetConfig, AlexnetPreset};

use common::config::InputShape;

use super::network::Network;
use super::pass::Pass;
use crate::data::Dropout;

/// Five convolutions, three dense layers. Shapes below are those of the preset
/// `notes` at 224 pixels; n is the batch.
#[derive(Module, Debug)]
pub struct Alexnet {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    conv4: Conv2d,
    conv5: Conv2d,
    dense1: Linear,
    dense2: Linear,
    dense3: Linear,
    #[module(skip)]
    config: AlexnetConfig,
    /// Whether there is an adaptive pool that does something.
    pools_adaptively: bool,
}

/// Side of torchvision's adaptive pool.
const ADAPTIVE_SIZE: usize = 6;

impl Alexnet {
    pub(super) fn new(config: &AlexnetConfig, input: InputShape, device: &Device) -> Self {
        let widths = config.widths();
        let [c1, c2, c3, c4, c5] = widths.convolutions.map(|n| n as usize);
        let hidden = widths.dense as usize;
        let last = last_pool_size(input.image_size);
        let side = if is_torchvision(config) { ADAPTIVE_SIZE } else { last };
        let conv = |channels, kernel, stride, padding| {
            Conv2dConfig::new(channels, [kernel, kernel])
                .with_stride([stride, stride])
                .with_padding(PaddingConfig2d::Explicit(padding, padding, padding, padding))
                .init(device)
        };
        Self {
            conv1: conv([input.channels, c1], 11, 4, 2),
            conv2: conv([c1, c2], 5, 1, 2),
            conv3: conv([c2, c3], 3, 1, 1),
            conv4: conv([c3, c4], 3, 1, 1),
            conv5: conv([c4, c5], 3, 1, 1),
            dense1: LinearConfig::new(c5 * side * side, hidden).init(device),
            dense2: LinearConfig::new(hidden, hidden).init(device),
            dense3: LinearConfig::new(hidden, input.classes).init(device),
            config: config.clone(),
            // A pool to the size that there is would change nothing.
            pools_adaptively: last != side,
        }
    }
}

impl Network for Alexnet {
    fn features(&self, images: Tensor<4>, pass: &mut Pass) -> Tensor<2> {
        let x = relu(self.conv1.forward(images)); // [n,  96, 55, 55]
        let x = pool(x); // [n,  96, 27, 27]
        let x = relu(self.conv2.forward(x)); // [n, 256, 27, 27]
        let x = pool(x); // [n, 256, 13, 13]
        // The layers after this have five sixths of the convolutions' weights; those before it
        // take most of their arithmetic.
        let x = pass.cut(x);
        let x = relu(self.conv3.forward(x)); // [n, 384, 13, 13]
        let x = relu(self.conv4.forward(x)); // [n, 384, 13, 13]
        let x = relu(self.conv5.forward(x)); // [n, 384, 13, 13]
        let x = pool(x); // [n, 384, 6, 6]
        let x = if self.pools_adaptively { adaptive_avg_pool2d(x, [ADAPTIVE_SIZE, ADAPTIVE_SIZE]) } else { x };
        x.flatten(1, 3) // [n, 13824]
    }

    fn classifier(&self, features: Tensor<2>, pass: &mut Pass) -> Tensor<2> {
        let p = self.config.dropout;
        if is_torchvision(&self.config) {
            let x = pass.dropout(features, p); // [n, 9216]
            let x = relu(pass.dense(&self.dense1, x)); // [n, 4096]
            let x = pass.dropout(x, p);
            let x = relu(pass.dense(&self.dense2, x)); // [n, 4096]
            pass.dense(&self.dense3, x) // [n, classes]
        } else {
            let x = relu(pass.dense(&self.dense1, features)); // [n, 4096]
            let x = pass.dropout(x, p);
            let x = relu(pass.dense(&self.dense2, x)); // [n, 4096]
            let x = pass.dropout(x, p);
            pass.dense(&self.dense3, x) // [n, classes]
        }
    }

    fn dropouts(&self) -> Vec<Dropout> {
        let (widths, probability) = (self.config.widths(), self.config.dropout);
        let hidden = widths.dense as usize;
        let first = if is_torchvision(&self.config) { widths.convolutions[4] as usize * ADAPTIVE_SIZE * ADAPTIVE_SIZE } else { hidden };
        if probability == 0.0 { Vec::new() } else { [first, hidden].map(|values| Dropout { values, probability }).to_vec() }
    }

    // The backward pass of the adaptive pool.
    fn not_deterministic_on_cuda(&self) -> Option<&'static str> {
        self.pools_adaptively.then_some("adaptive average pooling")
    }
}

/// torchvision pools to 6x6 whatever the image size, and puts dropout before each hidden
/// dense layer instead of after it.
fn is_torchvision(config: &AlexnetConfig) -> bool {
    config.preset == AlexnetPreset::Torchvision
}

/// Overlapping pools: windows of 3x3 with stride 2.
fn pool(x: Tensor<4>) -> Tensor<4> {
    max_pool2d(x, MaxPoolOptions::new([3, 3]).with_stride([2, 2]))
}

/// Side of the last pool's output for images of `size` pixels.
fn last_pool_size(size: usize) -> usize {
    let pooled = |side: usize| (side - 3) / 2 + 1;
    let conv1 = (size + 2 * 2 - 11) / 4 + 1;
    pooled(pooled(pooled(conv1)))
}
