//! What each model consists of, layer by layer, computed from its config alone:
//! shapes, parameters, arithmetic. The worker builds its burn modules from the
//! same sizes, and a test compares the two.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::model::{Activation, AlexnetConfig, AlexnetPreset, ModelConfig, Pool};

/// The input of a model and its number of classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputShape {
    /// 1 (grey) or 3 (RGB); the number of features where there are no pictures.
    pub channels: usize,
    /// Height and width in pixels; 1 where there are no pictures.
    pub image_size: usize,
    pub classes: usize,
}

impl InputShape {
    /// Values of one sample.
    pub fn values(&self) -> usize {
        self.channels * self.image_size * self.image_size
    }
}

/// For messages.
impl fmt::Display for InputShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { channels, image_size, classes } = self;
        write!(f, "{channels} channels of {image_size} x {image_size} and {classes} classes")
    }
}

/// One layer of a model, for a single sample.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layer {
    /// The prefix of its parameters' names, or what it does.
    pub name: String,
    pub kind: LayerKind,
    /// `[channels, height, width]` or `[units]`; nothing where it is not known.
    pub output: Vec<u64>,
    /// Values that training changes by their gradient.
    pub parameters: u64,
    /// Values of a batch normalisation's running mean and variance.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub statistics: u64,
    /// Multiply-accumulate operations: those of convolutions and dense layers.
    pub macs: u64,
}

/// The kind of a layer; its `Display` is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerKind {
    Convolution {
        kernel: u64,
        stride: u64,
        padding: u64,
    },
    Pool {
        kind: Pool,
        kernel: u64,
        stride: u64,
    },
    /// To this many values a side, for any input size.
    AdaptivePool {
        side: u64,
    },
    Activation(Activation),
    Dense {
        inputs: u64,
        units: u64,
    },
    /// By the statistics of the batch in training, by running ones in evaluation.
    BatchNorm,
    /// Of a model of one's own: parameters of which nothing else is known.
    Other,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `pad` respects the width that a table asks for.
        f.pad(&match self {
            Self::Convolution { kernel, stride, padding } => format!("convolution {kernel}x{kernel}, stride {stride}, padding {padding}"),
            Self::Pool { kind: Pool::Max, kernel, stride } => format!("max pool {kernel}x{kernel}, stride {stride}"),
            Self::Pool { kind: _, kernel, stride } => format!("average pool {kernel}x{kernel}, stride {stride}"),
            Self::AdaptivePool { side } => format!("adaptive average pool to {side}x{side}"),
            Self::Activation(Activation::Relu) => "ReLU".to_owned(),
            Self::Activation(Activation::Sigmoid) => "sigmoid".to_owned(),
            Self::Activation(Activation::Tanh) => "tanh".to_owned(),
            Self::Activation(Activation::Identity) => "identity".to_owned(),
            Self::Dense { inputs, units } => format!("dense, {inputs} to {units}"),
            Self::BatchNorm => "batch normalisation".to_owned(),
            Self::Other => "other".to_owned(),
        })
    }
}

impl Layer {
    /// The number of its output values; 0 where it is not known.
    pub fn activations(&self) -> u64 {
        if self.output.is_empty() { 0 } else { self.output.iter().product() }
    }

    /// Values of the state: parameters and statistics.
    pub fn values(&self) -> u64 {
        self.parameters + self.statistics
    }
}

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
