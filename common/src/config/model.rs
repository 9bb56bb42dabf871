//! `[model]`: which network, and its own keys.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::data::DataConfig;
use super::error::{ConfigError, invalid};
use super::layers::{Activation, InputShape, Pool};
use super::own::OwnConfig;
use super::train::TrainConfig;

/// The network to train, chosen by `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ModelConfig {
    Perceptron(PerceptronConfig),
    Softmax(SoftmaxConfig),
    Mlp(MlpConfig),
    Lenet(LenetConfig),
    Alexnet(AlexnetConfig),
    Own(OwnConfig),
}

/// The perceptron with its classic rule (Rosenblatt, "The Perceptron: A
/// Probabilistic Model for Information Storage and Organization in the Brain",
/// 1958): it starts at w = 0, b = 0, adds y x and y on each mistake, and stops
/// after an epoch without one. Two classes, one sample a step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PerceptronConfig {
    /// A file with the weights to begin with, instead of the seed's: see docs/weights.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

/// One dense layer from all inputs to the classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SoftmaxConfig {
    /// What is minimised.
    pub loss: LossKind,
    /// `margin`: by how much the score of the right class should beat each other one.
    pub margin: f64,
    /// A file with the weights to begin with, instead of the seed's: see docs/weights.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

impl Default for SoftmaxConfig {
    fn default() -> Self {
        Self { loss: LossKind::CrossEntropy, margin: 1.0, weights: None }
    }
}

/// What softmax regression minimises, from scores o and the label y.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// `-log softmax(o)[y]`.
    CrossEntropy,
    /// Half the squared distance between o and the one-hot vector of y.
    Mse,
    /// The sum of `max(0, margin + o[j] - o[y])` over the other classes j (Weston
    /// and Watkins, "Support Vector Machines for Multi-Class Pattern
    /// Recognition", 1999).
    Margin,
}

/// A multilayer perceptron: hidden dense layers, each followed by `activation`;
/// none on the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MlpConfig {
    /// Units of each hidden layer.
    pub hidden: Vec<u32>,
    /// The activation after each hidden layer.
    pub activation: Activation,
    /// A file with the weights to begin with, instead of the seed's: see docs/weights.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self { hidden: vec![256], activation: Activation::Relu, weights: None }
    }
}

/// LeNet-5 as the course notes give it (LeCun, Bottou, Bengio, Haffner,
/// "Gradient-Based Learning Applied to Document Recognition", 1998).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LenetConfig {
    /// How its pools make one value of each window.
    pub pool: Pool,
    /// The activation after each convolution and hidden layer.
    pub activation: Activation,
    /// A file with the weights to begin with, instead of the seed's: see docs/weights.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

impl Default for LenetConfig {
    fn default() -> Self {
        Self { pool: Pool::Average, activation: Activation::Sigmoid, weights: None }
    }
}

/// AlexNet (Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep
/// Convolutional Neural Networks", 2012).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AlexnetConfig {
    /// The widths of its layers.
    pub preset: AlexnetPreset,
    /// Multiplies the channels of every convolution and the size of the hidden
    /// dense layers; 1 is the preset as published.
    pub width: f64,
    /// Dropout after each hidden dense layer, in training only.
    pub dropout: f64,
    /// A file with the weights to begin with, instead of the seed's: see docs/weights.md.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum AlexnetPreset {
    /// Convolutions of 96, 256, 384, 384, 384 channels: the course notes.
    Notes,
    /// 96, 256, 384, 384, 256: the paper, without its split over two GPUs.
    Original,
    /// 64, 192, 384, 256, 256 with a 6x6 adaptive pool: torchvision's model,
    /// 61,100,840 parameters at 1000 classes.
    Torchvision,
}

impl Default for AlexnetConfig {
    fn default() -> Self {
        Self { preset: AlexnetPreset::Notes, width: 1.0, dropout: 0.5, weights: None }
    }
}

/// The smallest inputs for which each pool still sees a window.
const ALEXNET_MIN_SIZE: u32 = 63;
const LENET_MIN_SIZE: u32 = 12;

/// The most hidden layers, and units in one.
const MAX_HIDDEN: usize = 64;
const MAX_UNITS: u32 = 1 << 20;

impl ModelConfig {
    /// The name of the model in summaries.
    pub fn kind(&self) -> &str {
        match self {
            Self::Perceptron(_) => "perceptron",
            Self::Softmax(_) => "softmax",
            Self::Mlp(_) => "mlp",
            Self::Lenet(_) => "lenet",
            Self::Alexnet(_) => "alexnet",
            Self::Own(own) => &own.name,
        }
    }

    /// The file, or the run, whose weights this model begins with; none if the seed
    /// decides them.
    pub fn weights(&self) -> Option<&Path> {
        match self {
            Self::Perceptron(PerceptronConfig { weights })
            | Self::Softmax(SoftmaxConfig { weights, .. })
            | Self::Mlp(MlpConfig { weights, .. })
            | Self::Lenet(LenetConfig { weights, .. })
            | Self::Alexnet(AlexnetConfig { weights, .. })
            | Self::Own(OwnConfig { weights, .. }) => weights.as_deref(),
        }
    }

    pub(super) fn weights_mut(&mut self) -> Option<&mut PathBuf> {
        let (Self::Perceptron(PerceptronConfig { weights })
        | Self::Softmax(SoftmaxConfig { weights, .. })
        | Self::Mlp(MlpConfig { weights, .. })
        | Self::Lenet(LenetConfig { weights, .. })
        | Self::Alexnet(AlexnetConfig { weights, .. })
        | Self::Own(OwnConfig { weights, .. })) = self;
        weights.as_mut()
    }

    /// Forgets where the weights lie, and not that there are some.
    pub(super) fn forget_places(&mut self) {
        if let Some(path) = self.weights_mut() {
            path.clear();
        }
    }

    /// Whether training ends after an epoch in which the model classified every sample
    /// correctly when it was used.
    pub fn stops_when_right(&self) -> bool {
        matches!(self, Self::Perceptron(_))
    }

    /// Refuses a number of classes that the model cannot tell apart.
    pub fn check_classes(&self, classes: usize) -> Result<(), String> {
        match self {
            Self::Perceptron(_) if classes != 2 => {
                Err(format!("the data has {classes} classes, and a perceptron tells two apart: use model.kind = \"softmax\" instead"))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a model of one's own whose layers for this input nobody has said.
    pub fn check_described(&self, input: InputShape) -> Result<(), String> {
        if let Self::Own(own) = self { own.described_for(input).map(drop) } else { Ok(()) }
    }

    /// The smallest side of a square picture that the model can read.
    pub fn smallest_image(&self) -> u32 {
        match self {
            Self::Alexnet(_) => ALEXNET_MIN_SIZE,
            Self::Lenet(_) => LENET_MIN_SIZE,
            Self::Perceptron(_) | Self::Softmax(_) | Self::Mlp(_) | Self::Own(_) => 1,
        }
    }

    pub(super) fn validate(&self, data: &DataConfig, train: &TrainConfig) -> Result<(), ConfigError> {
        if train.label_smoothing > 0.0 && !self.uses_cross_entropy() {
            return Err(invalid("train.label_smoothing", "belongs to cross-entropy; this model has another loss: set it to 0"));
        }
        if self.weights().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(invalid("model.weights", "is empty: name a file or a run directory, or leave it out"));
        }
        match self {
            Self::Perceptron(_) => classic_rule(train),
            Self::Softmax(m) if !(m.margin > 0.0 && m.margin.is_finite()) => {
                Err(invalid("model.margin", format!("is {}: it must be above 0", m.margin)))
            }
            Self::Softmax(_) => Ok(()),
            Self::Mlp(m) if m.hidden.is_empty() || m.hidden.len() > MAX_HIDDEN || m.hidden.iter().any(|n| !(1..=MAX_UNITS).contains(n)) => {
                let message =
                    format!("is {:?}: it must be 1 to {MAX_HIDDEN} layers of 1 to {MAX_UNITS} units, for example [256]", m.hidden);
                Err(invalid("model.hidden", message))
            }
            Self::Mlp(_) => Ok(()),
            Self::Lenet(_) => wants_pictures("LeNet", self.smallest_image(), data),
            Self::Alexnet(m) if !(m.width > 0.0 && m.width <= 16.0) => {
                Err(invalid("model.width", format!("is {}: it must be above 0 and at most 16", m.width)))
            }
            Self::Alexnet(m) if !(0.0..1.0).contains(&m.dropout) => {
                Err(invalid("model.dropout", format!("is {}: it must be at least 0 and below 1", m.dropout)))
            }
            Self::Alexnet(_) => wants_pictures("AlexNet", self.smallest_image(), data),
            Self::Own(m) => m.validate(),
        }
    }

    fn uses_cross_entropy(&self) -> bool {
        match self {
            Self::Perceptron(_) => false,
            Self::Softmax(m) => m.loss == LossKind::CrossEntropy,
            Self::Mlp(_) | Self::Lenet(_) | Self::Alexnet(_) | Self::Own(_) => true,
        }
    }
}

fn wants_pictures(model: &str, least: u32, data: &DataConfig) -> Result<(), ConfigError> {
    if data.is_table() {
        return Err(invalid("data.kind", format!("gives rows of numbers, and {model} needs pictures: use model.kind = \"mlp\" for them")));
    }
    let size = data.pixels.image_size;
    if size < least {
        return Err(invalid("data.image_size", format!("is {size}: {model} needs at least {least} pixels")));
    }
    Ok(())
}

/// The perceptron's rule is SGD with a rate of 1 and one sample a step, and nothing
/// else; the convergence theorem covers no other setting.
fn classic_rule(train: &TrainConfig) -> Result<(), ConfigError> {
    use super::recipe::{OptimizerKind, ScheduleKind};
    use super::train::Precision;
    let rule = [
        ("train.optimizer", train.optimizer == OptimizerKind::Sgd, "\"sgd\""),
        ("train.lr", train.lr == 1.0, "1"),
        ("train.lr_batch", train.lr_batch.is_none(), "left out"),
        ("train.momentum", train.momentum == 0.0, "0"),
        ("train.weight_decay", train.weight_decay == 0.0, "0"),
        ("train.schedule", train.schedule == ScheduleKind::Constant, "\"constant\""),
        ("train.warmup_epochs", train.warmup_epochs == 0.0, "0"),
        ("train.global_batch", train.global_batch == 1, "1"),
        ("train.shards", train.shards == 1, "1"),
        ("train.precision", train.precision == Precision::F32, "\"f32\""),
        ("train.clip_norm", train.clip_norm.is_none(), "left out"),
    ];
    match rule.into_iter().find(|(_, right, _)| !right) {
        Some((key, _, value)) => {
            Err(invalid(key, format!("must be {value} with model.kind = \"perceptron\": its rule has no such choice")))
        }
        None => Ok(()),
    }
}
