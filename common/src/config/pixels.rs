//! The keys of `[data]` that all kinds of pictures share: from a decoded picture to the
//! model's input.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};

/// From a decoded picture to the model's input: keys that all kinds of pictures
/// share. Tables of numbers have one pixel, with a channel for each feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Pixels {
    /// Side of the model's square input.
    pub image_size: u32,
    /// What to do to training pictures, in this order. Evaluation never augments.
    pub augment: Vec<Augment>,
    /// `crop`: smallest and largest share of the picture's area.
    pub crop_scale: [f32; 2],
    /// `crop`: smallest and largest width / height.
    pub crop_ratio: [f32; 2],
    /// `brightness`, `contrast`: factors are uniform in 1 ± this.
    pub brightness: f32,
    pub contrast: f32,
    /// `temperature`: red gains and blue loses, or the reverse, up to this share.
    pub temperature: f32,
    /// `lighting`: standard deviation of the PCA colour noise.
    pub lighting: f32,
    /// `erase`: the share of pictures that lose a part.
    pub erase: f32,
    /// Evaluation resizes the shorter side to `image_size * eval_resize` and
    /// takes the centre.
    pub eval_resize: f32,
    /// Channel means and deviations of the normalisation, in 0..1 units. By
    /// default ImageNet's for picture files, and none (0 and 1) for the other kinds.
    /// A single-channel set uses the first of each.
    pub mean: [f32; 3],
    pub std: [f32; 3],
    /// What to do about a picture that does not decode.
    pub on_corrupt: CorruptPolicy,
    /// With `on_corrupt = "skip"`: the share of a split that may be left out. A run that
    /// meets more pictures that do not decode ends.
    pub max_corrupt: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Augment {
    /// Random resized crop (Szegedy et al. 2015).
    Crop,
    /// Horizontal flip of every second picture.
    Flip,
    Brightness,
    Contrast,
    /// Colour temperature.
    Temperature,
    /// PCA lighting noise (Krizhevsky et al. 2012, section 4.1).
    Lighting,
    /// A part is covered by the mean colour (Zhong et al., "Random Erasing Data
    /// Augmentation", 2017).
    Erase,
}

/// What to do about a picture that does not decode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CorruptPolicy {
    /// End the run and name the file.
    #[default]
    Stop,
    /// Leave it out of the step, count it and list it.
    Skip,
}

impl Pixels {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=4096).contains(&self.image_size) {
            return Err(invalid("data.image_size", format!("is {}: it must be between 1 and 4096", self.image_size)));
        }
        for (key, [low, high], most) in [("data.crop_scale", self.crop_scale, 1.0), ("data.crop_ratio", self.crop_ratio, f32::MAX)] {
            if !(low > 0.0 && low <= high && high <= most) {
                return Err(invalid(key, format!("is [{low}, {high}]: it must be a smallest and a largest value above 0")));
            }
        }
        for (key, value) in [
            ("data.brightness", self.brightness),
            ("data.contrast", self.contrast),
            ("data.temperature", self.temperature),
            ("data.lighting", self.lighting),
            ("data.erase", self.erase),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(invalid(key, format!("is {value}: it must be between 0 and 1")));
            }
        }
        if !(1.0..=4.0).contains(&self.eval_resize) {
            return Err(invalid("data.eval_resize", format!("is {}: it must be between 1 and 4", self.eval_resize)));
        }
        if !(0.0..=1.0).contains(&self.max_corrupt) {
            return Err(invalid("data.max_corrupt", format!("is {}: it must be a share between 0 and 1", self.max_corrupt)));
        }
        if !self.std.iter().all(|&s| s > 0.0 && s.is_finite()) || !self.mean.iter().all(|m| m.is_finite()) {
            return Err(invalid("data.std", "must be three positive numbers, and data.mean three finite ones"));
        }
        Ok(())
    }
}
