//! What models consist of.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// The activation after a hidden layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    Relu,
    Sigmoid,
    Tanh,
    /// None: layers that follow each other are one linear map.
    Identity,
}

/// How a 2x2 window becomes one value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Pool {
    Average,
    Max,
}
