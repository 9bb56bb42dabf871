//! `[data]`: where samples come from and how they become tensors.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::data_toml::RawData;
use super::{ConfigError, invalid};

/// Where samples come from, and how they become tensors. In TOML this is one
/// flat section whose `kind` says which keys belong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawData", into = "RawData")]
pub struct DataConfig {
    pub source: DataSource,
    pub pixels: Pixels,
}

/// The source of samples, chosen by `data.kind`.
#[derive(Debug, Clone, PartialEq)]
pub enum DataSource {
    /// A folder per class, JPEG and PNG, under `train/` and `val/`, or one tree
    /// that `val_fraction` divides.
    Images {
        /// Relative paths are relative to the working directory.
        path: PathBuf,
        /// For a folder without train/ and val/: the share of each class that
        /// is kept for validation.
        val_fraction: Option<f64>,
        on_corrupt: CorruptPolicy,
    },
    /// A folder with MNIST's four IDX files, plain or gzipped.
    Idx { path: PathBuf },
    /// Generated pictures: each class a pattern of its own under noise.
    Synthetic { classes: u32, train: u32, val: u32 },
    /// A CSV file with a header; every column but `label` is a feature.
    Csv {
        path: PathBuf,
        label: String,
        /// The share of each class that is kept for validation.
        val_fraction: f64,
        /// Shifts and scales each feature to mean 0 and deviation 1.
        standardize: bool,
    },
    /// Generated: the corners of the unit square and their exclusive or, with
    /// normal noise of this deviation on each coordinate.
    Xor { train: u32, val: u32, noise: f32 },
    /// Generated: points of the unit ball, at least `margin` from a hyperplane
    /// that separates the two classes.
    Separable { train: u32, val: u32, features: u32, margin: f32 },
}

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
    /// Evaluation resizes the shorter side to `image_size * eval_resize` and
    /// takes the centre.
    pub eval_resize: f32,
    /// Channel means and deviations of the normalisation, in 0..1 units. By
    /// default ImageNet's for `images`, and none (0 and 1) for the other kinds.
    /// A single-channel set uses the first of each.
    pub mean: [f32; 3],
    pub std: [f32; 3],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// What to do about a picture that does not decode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CorruptPolicy {
    /// End the run and name the file.
    #[default]
    Stop,
    /// Leave it out of the step, count it and list it.
    Skip,
}

impl DataConfig {
    /// The folder that holds the data, if it lies in one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            DataSource::Images { path, .. } | DataSource::Idx { path } | DataSource::Csv { path, .. } => Some(path),
            DataSource::Synthetic { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => None,
        }
    }

    /// The same data at another place.
    pub fn set_path(&mut self, to: PathBuf) {
        match &mut self.source {
            DataSource::Images { path, .. } | DataSource::Idx { path } | DataSource::Csv { path, .. } => *path = to,
            DataSource::Synthetic { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => {}
        }
    }

    pub fn on_corrupt(&self) -> CorruptPolicy {
        match &self.source {
            DataSource::Images { on_corrupt, .. } => *on_corrupt,
            _ => CorruptPolicy::Stop,
        }
    }

    /// Whether a sample is a row of numbers, not a picture.
    pub fn is_table(&self) -> bool {
        match &self.source {
            DataSource::Images { .. } | DataSource::Idx { .. } | DataSource::Synthetic { .. } => false,
            DataSource::Csv { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => true,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match &self.source {
            DataSource::Images { val_fraction: Some(f), .. } | DataSource::Csv { val_fraction: f, .. } if !(*f > 0.0 && *f < 1.0) => {
                return Err(invalid("data.val_fraction", format!("is {f}: it must lie between 0 and 1")));
            }
            DataSource::Synthetic { classes, train, val } if *classes < 2 || train < classes || val < classes => {
                return Err(invalid("data.classes", "needs at least 2, with at least one picture each in data.train and data.val"));
            }
            DataSource::Xor { train, val, .. } | DataSource::Separable { train, val, .. } if *train < 4 || *val < 4 => {
                return Err(invalid("data.train", "and data.val need at least 4 points each"));
            }
            DataSource::Xor { noise, .. } if !(0.0..=1.0).contains(noise) => {
                return Err(invalid("data.noise", format!("is {noise}: it must be between 0 and 1")));
            }
            DataSource::Separable { features, .. } if !(1..=32).contains(features) => {
                return Err(invalid("data.features", format!("is {features}: it must be between 1 and 32")));
            }
            DataSource::Separable { margin, .. } if !(*margin > 0.0 && *margin <= 0.3) => {
                return Err(invalid("data.margin", format!("is {margin}: it must be above 0 and at most 0.3")));
            }
            _ => {}
        }
        self.pixels.validate()
    }
}

impl Pixels {
    fn validate(&self) -> Result<(), ConfigError> {
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
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(invalid(key, format!("is {value}: it must be between 0 and 1")));
            }
        }
        if !(1.0..=4.0).contains(&self.eval_resize) {
            return Err(invalid("data.eval_resize", format!("is {}: it must be between 1 and 4", self.eval_resize)));
        }
        if !self.std.iter().all(|&s| s > 0.0 && s.is_finite()) || !self.mean.iter().all(|m| m.is_finite()) {
            return Err(invalid("data.std", "must be three positive numbers, and data.mean three finite ones"));
        }
        Ok(())
    }
}
