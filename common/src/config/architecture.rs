//! What each model consists of, layer by layer, computed from its config alone:
//! shapes, parameters, arithmetic. The worker builds its burn modules from the
//! same sizes, and a test compares the two.

use super::layers::{Activation, InputShape, Layer, LayerKind, Pool};
use super::model::{AlexnetConfig, AlexnetPreset, ModelConfig};

/// The channels of AlexNet's five convolutions and the size of its two hidden dense
/// layers, with `width` applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlexnetWidths {
    pub convolutions: [u32; 5],
    pub dense: u32,
}

impl AlexnetConfig {
    pub fn widths(&self) -> AlexnetWidths {
        let published = match self.preset {
            AlexnetPreset::Notes => [96, 256, 384, 384, 384],
            AlexnetPreset::Original => [96, 256, 384, 384, 256],
            AlexnetPreset::Torchvision => [64, 192, 384, 256, 256],
        };
        let scale = |n: u32| ((f64::from(n) * self.width).round() as u32).max(1);
        AlexnetWidths { convolutions: published.map(scale), dense: scale(4096) }
    }
}

/// Builds a list of layers and tracks the shape of the values between them.
struct Stack {
    /// `[channels, height, width]`
    shape: [u64; 3],
    layers: Vec<Layer>,
}

impl Stack {
    fn new(input: InputShape) -> Self {
        let [channels, size] = [input.channels, input.image_size].map(|n| n as u64);
        Self { shape: [channels, size, size], layers: Vec::new() }
    }

    fn push(&mut self, name: &str, kind: LayerKind, output: Vec<u64>, parameters: u64, macs: u64) {
        self.layers.push(Layer { name: name.to_owned(), kind, output, parameters, statistics: 0, macs });
    }

    fn convolution(&mut self, name: &str, channels: u64, kernel: u64, stride: u64, padding: u64) {
        let [inputs, height, width] = self.shape;
        let side = |n: u64| (n + 2 * padding - kernel) / stride + 1;
        self.shape = [channels, side(height), side(width)];
        let weights = channels * inputs * kernel * kernel;
        let kind = LayerKind::Convolution { kernel, stride, padding };
        self.push(name, kind, self.shape.to_vec(), weights + channels, weights * self.shape[1] * self.shape[2]);
    }

    fn pool(&mut self, kind: Pool, kernel: u64, stride: u64) {
        let [channels, height, width] = self.shape;
        let side = |n: u64| (n - kernel) / stride + 1;
        self.shape = [channels, side(height), side(width)];
        self.push("pool", LayerKind::Pool { kind, kernel, stride }, self.shape.to_vec(), 0, 0);
    }

    fn activation(&mut self, kind: Activation) {
        if kind == Activation::Identity {
            return;
        }
        let output = self.layers.last().map_or_else(Vec::new, |l| l.output.clone());
        self.push("activation", LayerKind::Activation(kind), output, 0, 0);
    }

    /// Flattens the input if it is a picture.
    fn dense(&mut self, name: &str, units: u64) {
        let inputs: u64 = self.shape.iter().product();
        self.shape = [units, 1, 1];
        self.push(name, LayerKind::Dense { inputs, units }, vec![units], inputs * units + units, inputs * units);
    }
}

impl ModelConfig {
    /// The layers in the order in which a sample passes them. The input must be large
    /// enough for the model, as it is in a valid config. Those of a model of one's own are
    /// what [its binary has said](super::OwnConfig::described), in the order of its state.
    pub fn layers(&self, input: InputShape) -> Vec<Layer> {
        let mut stack = Stack::new(input);
        let classes = input.classes as u64;
        match self {
            // One score s; the classes' scores are -s and s.
            Self::Perceptron(_) => stack.dense("dense", 1),
            Self::Softmax(_) => stack.dense("dense", classes),
            Self::Mlp(m) => {
                for (n, units) in m.hidden.iter().enumerate() {
                    stack.dense(&format!("hidden.{n}"), u64::from(*units));
                    stack.activation(m.activation);
                }
                stack.dense("output", classes);
            }
            Self::Lenet(m) => {
                stack.convolution("conv1", 6, 5, 1, 2);
                stack.activation(m.activation);
                stack.pool(m.pool, 2, 2);
                stack.convolution("conv2", 16, 5, 1, 0);
                stack.activation(m.activation);
                stack.pool(m.pool, 2, 2);
                for (name, units) in [("dense1", 120), ("dense2", 84)] {
                    stack.dense(name, units);
                    stack.activation(m.activation);
                }
                stack.dense("dense3", classes);
            }
            Self::Alexnet(m) => alexnet(&mut stack, m, classes),
            Self::Own(m) => return m.described.as_ref().map_or_else(Vec::new, |described| described.layers.clone()),
        }
        stack.layers
    }

    /// The convolution before which the backward pass is cut once more, so that gradients of the
    /// layers from there on travel while those before it are computed. Models of one's own do
    /// not tell.
    pub fn cut(&self) -> Option<&'static str> {
        match self {
            Self::Alexnet(_) => Some("conv3"),
            Self::Perceptron(_) | Self::Softmax(_) | Self::Mlp(_) | Self::Lenet(_) | Self::Own(_) => None,
        }
    }

    /// The activation after its hidden layers, if it has any, by which initial weights go.
    pub fn activation(&self) -> Option<Activation> {
        match self {
            Self::Perceptron(_) | Self::Softmax(_) => None,
            Self::Mlp(m) => Some(m.activation),
            Self::Lenet(m) => Some(m.activation),
            Self::Alexnet(_) | Self::Own(_) => Some(Activation::Relu),
        }
    }

    /// How many parameters the model has.
    pub fn parameters(&self, input: InputShape) -> u64 {
        self.layers(input).iter().map(|l| l.parameters).sum()
    }

    /// How many values its state has: the parameters, and running statistics.
    pub fn values(&self, input: InputShape) -> u64 {
        self.layers(input).iter().map(Layer::values).sum()
    }
}

fn alexnet(stack: &mut Stack, config: &AlexnetConfig, classes: u64) {
    let widths = config.widths();
    let [c1, c2, c3, c4, c5] = widths.convolutions.map(u64::from);
    let mut convolution = |name: &str, channels, kernel, stride, padding, pooled| {
        stack.convolution(name, channels, kernel, stride, padding);
        stack.activation(Activation::Relu);
        if pooled {
            stack.pool(Pool::Max, 3, 2);
        }
    };
    convolution("conv1", c1, 11, 4, 2, true);
    convolution("conv2", c2, 5, 1, 2, true);
    convolution("conv3", c3, 3, 1, 1, false);
    convolution("conv4", c4, 3, 1, 1, false);
    convolution("conv5", c5, 3, 1, 1, true);
    if config.preset == AlexnetPreset::Torchvision {
        stack.shape = [c5, 6, 6];
        stack.push("pool", LayerKind::AdaptivePool { side: 6 }, vec![c5, 6, 6], 0, 0);
    }
    for name in ["dense1", "dense2"] {
        stack.dense(name, widths.dense.into());
        stack.activation(Activation::Relu);
    }
    stack.dense("dense3", classes);
}
