//! `[model]`: which network, and its own keys.

use serde::{Deserialize, Serialize};

use super::{ConfigError, invalid};

/// The network to train, chosen by `kind`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum ModelConfig {
    Alexnet(AlexnetConfig),
}

/// AlexNet (Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep
/// Convolutional Neural Networks", 2012).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlexnetConfig {
    /// The widths of its layers.
    pub preset: AlexnetPreset,
    /// Multiplies the channels of every convolution and the size of the hidden
    /// dense layers; 1 is the preset as published.
    pub width: f64,
    /// Dropout after each hidden dense layer, in training only.
    pub dropout: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
        Self { preset: AlexnetPreset::Notes, width: 1.0, dropout: 0.5 }
    }
}

/// The smallest input for which each of AlexNet's pools still sees a window.
const ALEXNET_MIN_SIZE: u32 = 63;

impl ModelConfig {
    pub(super) fn validate(&self, image_size: u32) -> Result<(), ConfigError> {
        let Self::Alexnet(m) = self;
        if !(m.width > 0.0 && m.width <= 16.0) {
            return Err(invalid("model.width", format!("is {}: it must be above 0 and at most 16", m.width)));
        }
        if !(0.0..1.0).contains(&m.dropout) {
            return Err(invalid("model.dropout", format!("is {}: it must be at least 0 and below 1", m.dropout)));
        }
        if image_size < ALEXNET_MIN_SIZE {
            return Err(invalid("data.image_size", format!("is {image_size}: AlexNet needs at least {ALEXNET_MIN_SIZE} pixels")));
        }
        Ok(())
    }

    /// The name by which summaries call the model.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Alexnet(_) => "alexnet",
        }
    }
}
