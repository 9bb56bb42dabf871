//! `[data]` as it stands in the file: flat, with the keys of every kind.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::data::{Augment, CorruptPolicy, DataConfig, DataSource, Pixels};

/// ImageNet's channel statistics.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Images,
    Idx,
    Synthetic,
    Csv,
    Xor,
    Separable,
}

/// The section. Only `kind` must be there; which other keys may be depends on it.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawData {
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
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standardize: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    noise: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    features: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    margin: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    augment: Option<Vec<Augment>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crop_scale: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crop_ratio: Option<[f32; 2]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    brightness: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    contrast: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    temperature: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lighting: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_resize: Option<f32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<[f32; 3]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    std: Option<[f32; 3]>,
}

/// The keys that go with pictures of any kind.
const PICTURES: [&str; 11] = [
    "image_size",
    "augment",
    "crop_scale",
    "crop_ratio",
    "brightness",
    "contrast",
    "temperature",
    "lighting",
    "eval_resize",
    "mean",
    "std",
];

impl Kind {
    /// The keys of its own.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Images => &["path", "val_fraction", "on_corrupt"],
            Self::Idx => &["path"],
            Self::Synthetic => &["classes", "train", "val"],
            Self::Csv => &["path", "label", "val_fraction", "standardize"],
            Self::Xor => &["train", "val", "noise"],
            Self::Separable => &["train", "val", "features", "margin"],
        }
    }

    fn is_table(self) -> bool {
        matches!(self, Self::Csv | Self::Xor | Self::Separable)
    }
}

impl RawData {
    /// The keys that were given, by name.
    fn given(&self) -> Vec<&'static str> {
        let all = [
            ("path", self.path.is_some()),
            ("val_fraction", self.val_fraction.is_some()),
            ("on_corrupt", self.on_corrupt.is_some()),
            ("classes", self.classes.is_some()),
            ("train", self.train.is_some()),
            ("val", self.val.is_some()),
            ("label", self.label.is_some()),
            ("standardize", self.standardize.is_some()),
            ("noise", self.noise.is_some()),
            ("features", self.features.is_some()),
            ("margin", self.margin.is_some()),
            ("image_size", self.image_size.is_some()),
            ("augment", self.augment.is_some()),
            ("crop_scale", self.crop_scale.is_some()),
            ("crop_ratio", self.crop_ratio.is_some()),
            ("brightness", self.brightness.is_some()),
            ("contrast", self.contrast.is_some()),
            ("temperature", self.temperature.is_some()),
            ("lighting", self.lighting.is_some()),
            ("eval_resize", self.eval_resize.is_some()),
            ("mean", self.mean.is_some()),
            ("std", self.std.is_some()),
        ];
        all.into_iter().filter(|(_, there)| *there).map(|(key, _)| key).collect()
    }

    fn pixels(&self) -> Pixels {
        if self.kind.is_table() {
            return Pixels { image_size: 1, ..Self::default().pixels() };
        }
        let (mean, std) = if self.kind == Kind::Images { IMAGENET } else { ([0.0; 3], [1.0; 3]) };
        Pixels {
            image_size: self.image_size.unwrap_or(224),
            augment: self.augment.clone().unwrap_or_default(),
            crop_scale: self.crop_scale.unwrap_or([0.08, 1.0]),
            crop_ratio: self.crop_ratio.unwrap_or([0.75, 4.0 / 3.0]),
            brightness: self.brightness.unwrap_or(0.4),
            contrast: self.contrast.unwrap_or(0.4),
            temperature: self.temperature.unwrap_or(0.2),
            lighting: self.lighting.unwrap_or(0.1),
            eval_resize: self.eval_resize.unwrap_or(1.14),
            mean: self.mean.unwrap_or(mean),
            std: self.std.unwrap_or(std),
        }
    }
}

impl TryFrom<RawData> for DataConfig {
    type Error = String;

    fn try_from(raw: RawData) -> Result<Self, String> {
        let shared: &[&str] = if raw.kind.is_table() { &[] } else { &PICTURES };
        let allowed: Vec<&str> = raw.kind.keys().iter().chain(shared).copied().collect();
        if let Some(key) = raw.given().into_iter().find(|key| !allowed.contains(key)) {
            return Err(format!("`data.{key}` does not go with this data.kind, which takes {}", allowed.join(", ")));
        }
        let pixels = raw.pixels();
        let missing = |key: &str| format!("`data.{key}` is missing");
        let path = raw.path.ok_or_else(|| missing("path"));
        let source = match raw.kind {
            Kind::Images => {
                DataSource::Images { path: path?, val_fraction: raw.val_fraction, on_corrupt: raw.on_corrupt.unwrap_or_default() }
            }
            Kind::Idx => DataSource::Idx { path: path? },
            Kind::Synthetic => DataSource::Synthetic {
                classes: raw.classes.ok_or_else(|| missing("classes"))?,
                train: raw.train.ok_or_else(|| missing("train"))?,
                val: raw.val.ok_or_else(|| missing("val"))?,
            },
            Kind::Csv => DataSource::Csv {
                path: path?,
                label: raw.label.unwrap_or_else(|| "label".to_owned()),
                val_fraction: raw.val_fraction.unwrap_or(0.2),
                standardize: raw.standardize.unwrap_or(true),
            },
            Kind::Xor => DataSource::Xor { train: raw.train.unwrap_or(4), val: raw.val.unwrap_or(4), noise: raw.noise.unwrap_or_default() },
            Kind::Separable => DataSource::Separable {
                train: raw.train.unwrap_or(200),
                val: raw.val.unwrap_or(100),
                features: raw.features.unwrap_or(2),
                margin: raw.margin.unwrap_or(0.1),
            },
        };
        Ok(Self { source, pixels })
    }
}

impl From<DataConfig> for RawData {
    fn from(config: DataConfig) -> Self {
        let mut raw = Self::default();
        if !config.is_table() {
            let p = config.pixels;
            raw = Self {
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
                ..raw
            };
        }
        match config.source {
            DataSource::Images { path, val_fraction, on_corrupt } => {
                Self { kind: Kind::Images, path: Some(path), val_fraction, on_corrupt: Some(on_corrupt), ..raw }
            }
            DataSource::Idx { path } => Self { kind: Kind::Idx, path: Some(path), ..raw },
            DataSource::Synthetic { classes, train, val } => {
                Self { kind: Kind::Synthetic, classes: Some(classes), train: Some(train), val: Some(val), ..raw }
            }
            DataSource::Csv { path, label, val_fraction, standardize } => Self {
                kind: Kind::Csv,
                path: Some(path),
                label: Some(label),
                val_fraction: Some(val_fraction),
                standardize: Some(standardize),
                ..raw
            },
            DataSource::Xor { train, val, noise } => {
                Self { kind: Kind::Xor, train: Some(train), val: Some(val), noise: Some(noise), ..raw }
            }
            DataSource::Separable { train, val, features, margin } => {
                Self { kind: Kind::Separable, train: Some(train), val: Some(val), features: Some(features), margin: Some(margin), ..raw }
            }
        }
    }
}
