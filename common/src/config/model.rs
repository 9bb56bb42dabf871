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

/// The channels of AlexNet's five convolutions and the size of its two hidden
/// dense layers, after `width`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlexnetWidths {
    pub convolutions: [u32; 5],
    pub dense: u32,
    /// Side of the picture that enters the first dense layer.
    pub side: u32,
}

impl AlexnetConfig {
    /// The layer sizes for a square input of `image_size` pixels.
    pub fn widths(&self, image_size: u32) -> AlexnetWidths {
        let published = match self.preset {
            AlexnetPreset::Notes => [96, 256, 384, 384, 384],
            AlexnetPreset::Original => [96, 256, 384, 384, 256],
            AlexnetPreset::Torchvision => [64, 192, 384, 256, 256],
        };
        let scale = |n: u32| ((f64::from(n) * self.width).round() as u32).max(1);
        let pool = |side: u32| (side - 3) / 2 + 1;
        let side = match self.preset {
            // Its adaptive pool makes any input 6x6.
            AlexnetPreset::Torchvision => 6,
            AlexnetPreset::Notes | AlexnetPreset::Original => pool(pool(pool((image_size + 4 - 11) / 4 + 1))),
        };
        AlexnetWidths { convolutions: published.map(scale), dense: scale(4096), side }
    }
}

impl ModelConfig {
    /// How many parameters the model has.
    pub fn parameters(&self, image_size: u32, channels: u32, classes: u32) -> u64 {
        let Self::Alexnet(m) = self;
        let w = m.widths(image_size);
        let [c1, c2, c3, c4, c5] = w.convolutions.map(u64::from);
        let (dense, flat) = (u64::from(w.dense), c5 * u64::from(w.side) * u64::from(w.side));
        let layer = |inputs: u64, outputs: u64| inputs * outputs + outputs;
        layer(u64::from(channels) * 121, c1)
            + layer(c1 * 25, c2)
            + layer(c2 * 9, c3)
            + layer(c3 * 9, c4)
            + layer(c4 * 9, c5)
            + layer(flat, dense)
            + layer(dense, dense)
            + layer(dense, u64::from(classes))
    }
}
