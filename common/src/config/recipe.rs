//! What recipes choose from: optimizers, schedules, and what evaluations are compared by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The name of the weights' moving average among the state.
pub const AVERAGE: &str = "ema";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// SGD with momentum; weight decay joins the gradient.
    Sgd,
    /// Kingma and Ba 2014; weight decay joins the gradient.
    Adam,
    /// Loshchilov and Hutter 2017; weight decay acts on the weights.
    Adamw,
    /// You, Gitman and Ginsburg 2017: SGD with momentum, at a learning rate of its own for
    /// each layer.
    Lars,
    /// You et al. 2019: AdamW, at a learning rate of its own for each layer.
    Lamb,
}

impl OptimizerKind {
    /// The names of its state: each is as long as the weights.
    pub(super) fn state(self) -> &'static [&'static str] {
        match self {
            Self::Sgd | Self::Lars => &["momentum"],
            Self::Adam | Self::Adamw | Self::Lamb => &["m", "v"],
        }
    }

    /// Whether each layer has a learning rate of its own, which follows from norms.
    pub fn is_layerwise(self) -> bool {
        matches!(self, Self::Lars | Self::Lamb)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    Constant,
    Step,
    /// Loshchilov and Hutter 2016, without restarts.
    Cosine,
    /// Smith and Topin 2017: up to `lr` in the first 30 % of the run, and down to almost
    /// nothing, both along half a cosine; PyTorch's `OneCycleLR` with its defaults. The
    /// momentum stays as it is.
    OneCycle,
    /// Down to nothing as a power of what is left of the run: PyTorch's `PolynomialLR`.
    Polynomial,
    /// `lr` until evaluations get no better, then `decay` times that, and so on, as in
    /// Krizhevsky et al. 2012: PyTorch's `ReduceLROnPlateau`.
    Plateau,
}

/// Which checkpoints stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Keep {
    Newest,
    Best,
}

impl Keep {
    // serde hands over a reference.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn is_newest(&self) -> bool {
        *self == Self::Newest
    }
}

/// A figure of evaluations by which they are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    Top1,
    Top5,
    Loss,
}

impl Metric {
    pub fn name(self) -> &'static str {
        match self {
            Self::Top1 => "top1",
            Self::Top5 => "top5",
            Self::Loss => "loss",
        }
    }

    /// As people read it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Top1 => "top-1",
            Self::Top5 => "top-5",
            Self::Loss => "loss",
        }
    }

    /// Whether a value is better than another one by more than `threshold` times that one. NaN
    /// never is.
    pub fn is_better(self, value: f64, than: f64, threshold: f64) -> bool {
        match self {
            Self::Top1 | Self::Top5 => value > than * (1.0 + threshold),
            Self::Loss => value < than * (1.0 - threshold),
        }
    }
}
