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
    /// `saturation`: factors are uniform in 1 ± this.
    pub saturation: f32,
    /// `hue`: shifts are uniform in ± this, as shares of the colour circle.
    pub hue: f32,
    /// `grey`: the share of pictures that lose their colours.
    pub grey: f32,
    /// `randaugment`: how many operations a picture gets.
    pub randaugment_operations: u32,
    /// `randaugment`: how strong they are, from 0 to 30.
    pub randaugment_magnitude: u32,
    /// `mixup`, `cutmix`: shares are of the distribution Beta(this, this).
    pub mixup_alpha: f32,
    pub cutmix_alpha: f32,
    /// `temperature`: red gains and blue loses, or the reverse, up to this share.
    pub temperature: f32,
    /// `lighting`: standard deviation of the PCA colour noise.
    pub lighting: f32,
    /// `erase`: the share of pictures that lose a part.
    pub erase: f32,
    /// `erase`: smallest and largest share of the picture's area.
    pub erase_scale: [f32; 2],
    /// `erase`: smallest and largest height / width.
    pub erase_ratio: [f32; 2],
    /// `erase`: what takes the part's place.
    pub erase_value: EraseValue,
    /// Evaluation resizes the shorter side to `image_size * eval_resize` and
    /// takes the centre.
    pub eval_resize: f32,
    /// Which parts of a picture are scored in evaluation and prediction. Of several, the
    /// predictions are averaged.
    pub eval_crops: EvalCrops,
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
    Saturation,
    Hue,
    /// A share of the pictures become grey.
    Grey,
    /// Colour temperature.
    Temperature,
    /// PCA lighting noise (Krizhevsky et al. 2012, section 4.1).
    Lighting,
    /// Some of fourteen operations of one magnitude (Cubuk et al. 2019).
    RandAugment,
    /// One of fourteen operations of any magnitude (Mueller and Hutter 2021, its wide space).
    TrivialAugment,
    /// A share of every value is another picture's (Zhang et al. 2017).
    Mixup,
    /// A part is another picture's (Yun et al. 2019).
    Cutmix,
    /// A part is replaced, by default by the mean colour (Zhong et al., "Random Erasing
    /// Data Augmentation", 2017).
    Erase,
}

/// The parts of a picture that evaluation scores.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EvalCrops {
    #[default]
    Centre,
    /// The corners and the centre of the resized picture.
    Five,
    /// These and their mirror images (Krizhevsky et al. 2012, section 4.1).
    Ten,
}

impl EvalCrops {
    /// How many they are.
    pub fn count(self) -> usize {
        match self {
            Self::Centre => 1,
            Self::Five => 5,
            Self::Ten => 10,
        }
    }
}

/// What takes the place of a part that is erased, in normalised numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "erase_value is a number, an array of three (one for each channel), or \"random\"")]
pub enum EraseValue {
    /// The same in all channels; 0 is the mean.
    Same(f32),
    Channels([f32; 3]),
    /// A standard normal number for each value.
    Random(Random),
}

/// The word for what is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Random {
    Random,
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

impl Augment {
    /// Whether it mixes pictures, and their labels with them.
    pub fn mixes(self) -> bool {
        matches!(self, Self::Mixup | Self::Cutmix)
    }
}

impl Pixels {
    /// Whether pictures are mixed.
    pub fn mixes(&self) -> bool {
        self.augment.iter().any(|augment| augment.mixes())
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=4096).contains(&self.image_size) {
            return Err(invalid("data.image_size", format!("is {}: it must be between 1 and 4096", self.image_size)));
        }
        for (key, [low, high], most) in [
            ("data.crop_scale", self.crop_scale, 1.0),
            ("data.crop_ratio", self.crop_ratio, f32::MAX),
            ("data.erase_scale", self.erase_scale, 1.0),
            ("data.erase_ratio", self.erase_ratio, f32::MAX),
        ] {
            if !(low > 0.0 && low <= high && high <= most) {
                let bound = if most == 1.0 { " and up to 1" } else { "" };
                return Err(invalid(key, format!("is [{low}, {high}]: it must be a smallest and a largest value above 0{bound}")));
            }
        }
        for (key, value, most) in [
            ("data.brightness", self.brightness, 1.0),
            ("data.contrast", self.contrast, 1.0),
            ("data.saturation", self.saturation, 1.0),
            ("data.hue", self.hue, 0.5),
            ("data.grey", self.grey, 1.0),
            ("data.temperature", self.temperature, 1.0),
            ("data.lighting", self.lighting, 1.0),
            ("data.erase", self.erase, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return Err(invalid(key, format!("is {value}: it must be between 0 and {most}")));
            }
        }
        for (key, value, most) in [
            ("data.randaugment_operations", self.randaugment_operations, 14),
            ("data.randaugment_magnitude", self.randaugment_magnitude, 30),
        ] {
            if value > most {
                return Err(invalid(key, format!("is {value}: it must be at most {most}")));
            }
        }
        for (key, alpha) in [("data.mixup_alpha", self.mixup_alpha), ("data.cutmix_alpha", self.cutmix_alpha)] {
            if !(0.01..=100.0).contains(&alpha) {
                return Err(invalid(key, format!("is {alpha}: it must be between 0.01 and 100")));
            }
        }
        let erased = match self.erase_value {
            EraseValue::Same(value) => [value; 3],
            EraseValue::Channels(values) => values,
            EraseValue::Random(_) => [0.0; 3],
        };
        if !erased.iter().all(|value| value.is_finite()) {
            return Err(invalid("data.erase_value", "must be finite"));
        }
        if !(1.0..=4.0).contains(&self.eval_resize) {
            return Err(invalid("data.eval_resize", format!("is {}: it must be between 1 and 4", self.eval_resize)));
        }
        if self.eval_crops != EvalCrops::Centre && self.eval_resize == 1.0 {
            return Err(invalid("data.eval_resize", "is 1, so that all of data.eval_crops would be the same part: set it above 1"));
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
