//! `[data]`: where samples come from and how they become tensors.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
}

/// From a decoded picture to the model's input: keys that every kind shares.
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

/// ImageNet's channel statistics.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Images,
    Idx,
    Synthetic,
}

/// `[data]` as it stands in the file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawData {
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    val_fraction: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_corrupt: Option<CorruptPolicy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    classes: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    train: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    val: Option<u32>,
    image_size: Option<u32>,
    augment: Option<Vec<Augment>>,
    crop_scale: Option<[f32; 2]>,
    crop_ratio: Option<[f32; 2]>,
    brightness: Option<f32>,
    contrast: Option<f32>,
    temperature: Option<f32>,
    lighting: Option<f32>,
    eval_resize: Option<f32>,
    mean: Option<[f32; 3]>,
    std: Option<[f32; 3]>,
}

impl TryFrom<RawData> for DataConfig {
    type Error = String;

    fn try_from(raw: RawData) -> Result<Self, String> {
        let foreign = |allowed: &[&str]| {
            let given = [
                ("path", raw.path.is_some()),
                ("val_fraction", raw.val_fraction.is_some()),
                ("on_corrupt", raw.on_corrupt.is_some()),
                ("classes", raw.classes.is_some()),
                ("train", raw.train.is_some()),
                ("val", raw.val.is_some()),
            ];
            match given.iter().find(|(key, there)| *there && !allowed.contains(key)) {
                Some((key, _)) => Err(format!("`data.{key}` does not go with this data.kind, which takes {}", allowed.join(", "))),
                None => Ok(()),
            }
        };
        let missing = |key: &str| format!("`data.{key}` is missing");
        let source = match raw.kind {
            Kind::Images => {
                foreign(&["path", "val_fraction", "on_corrupt"])?;
                DataSource::Images {
                    path: raw.path.ok_or_else(|| missing("path"))?,
                    val_fraction: raw.val_fraction,
                    on_corrupt: raw.on_corrupt.unwrap_or_default(),
                }
            }
            Kind::Idx => {
                foreign(&["path"])?;
                DataSource::Idx { path: raw.path.ok_or_else(|| missing("path"))? }
            }
            Kind::Synthetic => {
                foreign(&["classes", "train", "val"])?;
                DataSource::Synthetic {
                    classes: raw.classes.ok_or_else(|| missing("classes"))?,
                    train: raw.train.ok_or_else(|| missing("train"))?,
                    val: raw.val.ok_or_else(|| missing("val"))?,
                }
            }
        };
        let (mean, std) = if raw.kind == Kind::Images { IMAGENET } else { ([0.0; 3], [1.0; 3]) };
        let pixels = Pixels {
            image_size: raw.image_size.unwrap_or(224),
            augment: raw.augment.unwrap_or_default(),
            crop_scale: raw.crop_scale.unwrap_or([0.08, 1.0]),
            crop_ratio: raw.crop_ratio.unwrap_or([0.75, 4.0 / 3.0]),
            brightness: raw.brightness.unwrap_or(0.4),
            contrast: raw.contrast.unwrap_or(0.4),
            temperature: raw.temperature.unwrap_or(0.2),
            lighting: raw.lighting.unwrap_or(0.1),
            eval_resize: raw.eval_resize.unwrap_or(1.14),
            mean: raw.mean.unwrap_or(mean),
            std: raw.std.unwrap_or(std),
        };
        Ok(Self { source, pixels })
    }
}

impl From<DataConfig> for RawData {
    fn from(config: DataConfig) -> Self {
        let p = config.pixels;
        let mut raw = Self {
            kind: Kind::Idx,
            path: None,
            val_fraction: None,
            on_corrupt: None,
            classes: None,
            train: None,
            val: None,
            image_size: Some(p.image_size),
            augment: Some(p.augment),
            crop_scale: Some(p.crop_scale),
            crop_ratio: Some(p.crop_ratio),
            brightness: Some(p.brightness),
            contrast: Some(p.contrast),
            temperature: Some(p.temperature),
            lighting: Some(p.lighting),
            eval_resize: Some(p.eval_resize),
            mean: Some(p.mean),
            std: Some(p.std),
        };
        match config.source {
            DataSource::Images { path, val_fraction, on_corrupt } => {
                (raw.kind, raw.path, raw.val_fraction, raw.on_corrupt) = (Kind::Images, Some(path), val_fraction, Some(on_corrupt));
            }
            DataSource::Idx { path } => raw.path = Some(path),
            DataSource::Synthetic { classes, train, val } => {
                (raw.kind, raw.classes, raw.train, raw.val) = (Kind::Synthetic, Some(classes), Some(train), Some(val));
            }
        }
        raw
    }
}

impl DataConfig {
    /// The folder that holds the data, if it lies in one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            DataSource::Images { path, .. } | DataSource::Idx { path } => Some(path),
            DataSource::Synthetic { .. } => None,
        }
    }

    /// The same data at another place.
    pub fn set_path(&mut self, to: PathBuf) {
        match &mut self.source {
            DataSource::Images { path, .. } | DataSource::Idx { path } => *path = to,
            DataSource::Synthetic { .. } => {}
        }
    }

    pub fn on_corrupt(&self) -> CorruptPolicy {
        match &self.source {
            DataSource::Images { on_corrupt, .. } => *on_corrupt,
            DataSource::Idx { .. } | DataSource::Synthetic { .. } => CorruptPolicy::Stop,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match &self.source {
            DataSource::Images { val_fraction: Some(f), .. } if !(*f > 0.0 && *f < 1.0) => {
                return Err(invalid("data.val_fraction", format!("is {f}: it must lie between 0 and 1")));
            }
            DataSource::Synthetic { classes, train, val } if *classes < 2 || train < classes || val < classes => {
                return Err(invalid("data.classes", "needs at least 2, with at least one picture each in data.train and data.val"));
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
