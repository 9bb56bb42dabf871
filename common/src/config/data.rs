//! `[data]`: where samples come from and how they become tensors.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{ConfigError, invalid};
use super::pixels::{Augment, CorruptPolicy, EraseValue, EvalCrops, Pixels};

/// Where samples come from, and how they become tensors. In TOML this is one
/// flat section whose `kind` says which keys belong.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "RawData", into = "RawData")]
pub struct DataConfig {
    pub source: DataSource,
    pub pixels: Pixels,
}

/// The source of samples, chosen by `data.kind`.
#[derive(Debug, Clone, PartialEq)]
pub enum DataSource {
    /// A folder of picture files per class, under `train/` and `val/`, or one tree
    /// that `val_fraction` divides.
    Images {
        /// Relative paths are relative to the working directory.
        path: PathBuf,
        /// For a folder without train/ and val/: the share of each class that
        /// is kept for validation.
        val_fraction: Option<f64>,
    },
    /// A CSV or TSV file that names pictures: `path`, `label`, and `split` or not.
    List {
        path: PathBuf,
        /// The folder below which the pictures lie, if not the list's own; if it is
        /// relative, it is so to that.
        root: Option<PathBuf>,
        /// For a list without splits.
        val_fraction: Option<f64>,
    },
    /// Tar shards with a picture and a class for each key.
    Webdataset {
        /// A folder, a tar, or a pattern such as `shards/{000..146}.tar`.
        path: PathBuf,
        /// The same for validation, where `path` does not hold both.
        val_path: Option<PathBuf>,
        /// For shards without splits.
        val_fraction: Option<f64>,
    },
    /// Parquet files whose rows hold a picture and its label, as the Hugging Face Hub has
    /// them.
    Parquet {
        /// A folder, a file, or a pattern such as `train-{00000..00013}-of-00014.parquet`.
        path: PathBuf,
        /// The same for validation, where `path` does not hold both.
        val_path: Option<PathBuf>,
        /// For files without splits.
        val_fraction: Option<f64>,
        /// The columns of pictures and labels, where the files do not say them.
        image: Option<String>,
        label: Option<String>,
    },
    /// A folder with ILSVRC2012 as it is downloaded: its tars and development kit, or
    /// Kaggle's folders.
    Ilsvrc { path: PathBuf },
    /// A folder with MNIST's four IDX files, plain or gzipped.
    Idx { path: PathBuf },
    /// A folder with CIFAR-10 or CIFAR-100, the binary version.
    Cifar { path: PathBuf },
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

impl DataConfig {
    /// The folder or file that holds the data, or the pattern of several, if there is one.
    pub fn path(&self) -> Option<&Path> {
        match &self.source {
            DataSource::Images { path, .. }
            | DataSource::List { path, .. }
            | DataSource::Webdataset { path, .. }
            | DataSource::Parquet { path, .. }
            | DataSource::Ilsvrc { path, .. }
            | DataSource::Idx { path }
            | DataSource::Cifar { path }
            | DataSource::Csv { path, .. } => Some(path),
            DataSource::Synthetic { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => None,
        }
    }

    /// Every path that the section names.
    pub fn places(&self) -> impl Iterator<Item = &Path> {
        let second = match &self.source {
            DataSource::List { root, .. } => root.as_deref(),
            DataSource::Webdataset { val_path, .. } | DataSource::Parquet { val_path, .. } => val_path.as_deref(),
            _ => None,
        };
        self.path().into_iter().chain(second)
    }

    /// The same, by their keys, to be changed.
    pub(super) fn places_mut(&mut self) -> impl Iterator<Item = (&'static str, &mut PathBuf)> {
        let (path, second) = match &mut self.source {
            DataSource::List { path, root, .. } => (Some(path), root.as_mut().map(|root| ("data.root", root))),
            DataSource::Webdataset { path, val_path, .. } | DataSource::Parquet { path, val_path, .. } => {
                (Some(path), val_path.as_mut().map(|path| ("data.val_path", path)))
            }
            DataSource::Images { path, .. }
            | DataSource::Ilsvrc { path, .. }
            | DataSource::Idx { path }
            | DataSource::Cifar { path }
            | DataSource::Csv { path, .. } => (Some(path), None),
            DataSource::Synthetic { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => (None, None),
        };
        path.map(|path| ("data.path", path)).into_iter().chain(second)
    }

    /// Moves the data to another path, which holds all of it: both splits of shards.
    pub fn set_path(&mut self, to: PathBuf) {
        match &mut self.source {
            DataSource::Webdataset { path, .. } | DataSource::Parquet { path, .. } if *path == to => {}
            DataSource::Webdataset { path, val_path, .. } | DataSource::Parquet { path, val_path, .. } => (*path, *val_path) = (to, None),
            DataSource::Images { path, .. }
            | DataSource::List { path, .. }
            | DataSource::Ilsvrc { path, .. }
            | DataSource::Idx { path }
            | DataSource::Cifar { path }
            | DataSource::Csv { path, .. } => *path = to,
            DataSource::Synthetic { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => {}
        }
    }

    /// The same data in no place: what is left decides which samples there are.
    pub(super) fn forget_places(&mut self) {
        self.set_path(PathBuf::new());
        if let DataSource::List { root, .. } = &mut self.source {
            *root = None;
        }
    }

    /// Whether a sample is a row of numbers, not a picture.
    pub fn is_table(&self) -> bool {
        match &self.source {
            DataSource::Images { .. }
            | DataSource::List { .. }
            | DataSource::Webdataset { .. }
            | DataSource::Parquet { .. }
            | DataSource::Ilsvrc { .. }
            | DataSource::Idx { .. }
            | DataSource::Cifar { .. }
            | DataSource::Synthetic { .. } => false,
            DataSource::Csv { .. } | DataSource::Xor { .. } | DataSource::Separable { .. } => true,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match &self.source {
            DataSource::Images { val_fraction: Some(f), .. }
            | DataSource::List { val_fraction: Some(f), .. }
            | DataSource::Webdataset { val_fraction: Some(f), .. }
            | DataSource::Parquet { val_fraction: Some(f), .. }
            | DataSource::Csv { val_fraction: f, .. }
                if !(*f > 0.0 && *f < 1.0) =>
            {
                return Err(invalid("data.val_fraction", format!("is {f}: it must lie between 0 and 1")));
            }
            DataSource::Webdataset { val_path: Some(_), val_fraction: Some(_), .. }
            | DataSource::Parquet { val_path: Some(_), val_fraction: Some(_), .. } => {
                return Err(invalid("data.val_fraction", "divides data.path, and data.val_path is for validation already: leave one out"));
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

/// ImageNet's channel statistics.
const IMAGENET: ([f32; 3], [f32; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Kind {
    #[default]
    Images,
    List,
    Webdataset,
    Parquet,
    Ilsvrc,
    Idx,
    Cifar,
    Synthetic,
    Csv,
    Xor,
    Separable,
}

/// Declares the section as it stands in the file: flat, with the keys of every kind.
/// These are the keys of sources, and the keys shared by all kinds of pictures, each
/// with its default. Only `kind` is required; it decides which other keys are allowed.
/// Those of `added` are left out of a resolved config where they have their default, so
/// that runs of versions without them are still the same runs.
macro_rules! raw_data {
    (
        sources { $($(#[$source_doc:meta])* $source:ident: $source_type:ty,)* }
        pixels($kind:ident) { $($(#[$pixel_doc:meta])* $pixel:ident: $pixel_type:ty = $default:expr,)* }
        added { $($(#[$added_doc:meta])* $added:ident: $added_type:ty = $added_default:expr,)* }
    ) => {
        /// Where samples come from, and how they become tensors.
        #[derive(Clone, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        struct RawData {
            /// What the data is, which decides the other keys.
            kind: Kind,
            $($(#[$source_doc])* #[serde(skip_serializing_if = "Option::is_none")] $source: Option<$source_type>,)*
            $($(#[$pixel_doc])* #[serde(skip_serializing_if = "Option::is_none")] $pixel: Option<$pixel_type>,)*
            $($(#[$added_doc])* #[serde(skip_serializing_if = "Option::is_none")] $added: Option<$added_type>,)*
        }

        /// The keys shared by all kinds of pictures.
        const PICTURES: &[&str] = &[$(stringify!($pixel),)* $(stringify!($added),)*];

        impl RawData {
            /// The keys that were given, by name.
            fn given(&self) -> Vec<&'static str> {
                let all = [
                    $((stringify!($source), self.$source.is_some()),)*
                    $((stringify!($pixel), self.$pixel.is_some()),)*
                    $((stringify!($added), self.$added.is_some()),)*
                ];
                all.into_iter().filter(|(_, there)| *there).map(|(key, _)| key).collect()
            }

            fn pixels(&self) -> Pixels {
                if self.kind.is_table() {
                    return Pixels { image_size: 1, ..Self::default().pixels() };
                }
                let $kind = self.kind;
                Pixels {
                    $($pixel: self.$pixel.clone().unwrap_or_else(|| $default),)*
                    $($added: self.$added.clone().unwrap_or($added_default),)*
                }
            }

            fn with_pixels(pixels: Pixels) -> Self {
                Self {
                    $($pixel: Some(pixels.$pixel),)*
                    $($added: (pixels.$added != $added_default).then_some(pixels.$added),)*
                    ..Self::default()
                }
            }
        }
    };
}

raw_data! {
    sources {
        /// The folder, file or pattern that holds the data; for shards and Parquet files also an
        /// address such as `s3://bucket/folder`. `~` and `$NAME` are the shell's.
        path: PathBuf,
        /// `webdataset`, `parquet`: the same for validation, where `path` does not hold both.
        val_path: PathBuf,
        /// `list`: the folder below which the pictures lie, if not the list's own.
        root: PathBuf,
        /// The share of each class that is kept for validation, where the data is not divided
        /// by itself.
        val_fraction: f64,
        /// `synthetic`: how many classes there are.
        classes: u32,
        /// Generated data: how many training samples there are.
        train: u32,
        /// Generated data: how many validation samples there are.
        val: u32,
        /// `parquet`: the column of pictures, where the files do not say it.
        image: String,
        /// `csv`, `parquet`: the column of labels.
        label: String,
        /// `csv`: shifts and scales each feature to mean 0 and deviation 1.
        standardize: bool,
        /// `xor`: the deviation of the normal noise on each coordinate.
        noise: f32,
        /// `separable`: how many features a point has.
        features: u32,
        /// `separable`: how far from the separating hyperplane all points are.
        margin: f32,
    }
    pixels(kind) {
        /// Side of the model's square input, in pixels.
        image_size: u32 = 224,
        /// What to do to training pictures, in this order. Evaluation never augments.
        augment: Vec<Augment> = Vec::new(),
        /// `crop`: smallest and largest share of the picture's area.
        crop_scale: [f32; 2] = [0.08, 1.0],
        /// `crop`: smallest and largest width / height.
        crop_ratio: [f32; 2] = [0.75, 4.0 / 3.0],
        /// `brightness`: factors are uniform in 1 ± this.
        brightness: f32 = 0.4,
        /// `contrast`: factors are uniform in 1 ± this.
        contrast: f32 = 0.4,
        /// `temperature`: red gains and blue loses, or the reverse, up to this share.
        temperature: f32 = 0.2,
        /// `lighting`: standard deviation of the PCA colour noise.
        lighting: f32 = 0.1,
        /// `erase`: the share of pictures that lose a part.
        erase: f32 = 0.5,
        /// Evaluation resizes the shorter side to `image_size * eval_resize` and takes the
        /// centre.
        eval_resize: f32 = 1.14,
        /// Channel means of the normalisation, in 0..1 units. By default ImageNet's for picture
        /// files, and 0 for the other kinds. A single-channel set uses the first.
        mean: [f32; 3] = kind.statistics().0,
        /// Channel deviations of the normalisation, in 0..1 units. By default ImageNet's for
        /// picture files, and 1 for the other kinds. A single-channel set uses the first.
        std: [f32; 3] = kind.statistics().1,
        /// What to do about a picture that does not decode.
        on_corrupt: CorruptPolicy = CorruptPolicy::default(),
        /// With `on_corrupt = "skip"`: the share of a split that may be left out. A run that
        /// meets more pictures that do not decode ends.
        max_corrupt: f64 = 0.01,
    }
    added {
        /// `saturation`: factors are uniform in 1 ± this.
        saturation: f32 = 0.4,
        /// `hue`: shifts are uniform in ± this, as shares of the colour circle.
        hue: f32 = 0.1,
        /// `grey`: the share of pictures that lose their colours.
        grey: f32 = 0.1,
        /// `randaugment`: how many operations a picture gets.
        randaugment_operations: u32 = 2,
        /// `randaugment`: how strong they are, from 0 to 30.
        randaugment_magnitude: u32 = 9,
        /// Which parts of a picture are scored in evaluation and prediction. Of several, the
        /// predictions are averaged.
        eval_crops: EvalCrops = EvalCrops::Centre,
        /// `mixup`: shares are of the distribution Beta(this, this).
        mixup_alpha: f32 = 0.2,
        /// `cutmix`: shares are of the distribution Beta(this, this).
        cutmix_alpha: f32 = 1.0,
        /// `erase`: smallest and largest share of the picture's area.
        erase_scale: [f32; 2] = [0.02, 0.33],
        /// `erase`: smallest and largest height / width.
        erase_ratio: [f32; 2] = [0.3, 3.3],
        /// `erase`: what takes the part's place: one number, one for each channel, or "random".
        erase_value: EraseValue = EraseValue::Same(0.0),
    }
}

impl Kind {
    /// The source keys of this kind.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Images => &["path", "val_fraction"],
            Self::List => &["path", "root", "val_fraction"],
            Self::Webdataset => &["path", "val_path", "val_fraction"],
            Self::Parquet => &["path", "val_path", "val_fraction", "image", "label"],
            Self::Ilsvrc => &["path"],
            Self::Idx | Self::Cifar => &["path"],
            Self::Synthetic => &["classes", "train", "val"],
            Self::Csv => &["path", "label", "val_fraction", "standardize"],
            Self::Xor => &["train", "val", "noise"],
            Self::Separable => &["train", "val", "features", "margin"],
        }
    }

    fn is_table(self) -> bool {
        match self {
            Self::Images | Self::List | Self::Webdataset | Self::Parquet | Self::Ilsvrc | Self::Idx | Self::Cifar | Self::Synthetic => {
                false
            }
            Self::Csv | Self::Xor | Self::Separable => true,
        }
    }

    /// The means and deviations that normalise pictures of this kind.
    fn statistics(self) -> ([f32; 3], [f32; 3]) {
        match self {
            Self::Images | Self::List | Self::Webdataset | Self::Parquet | Self::Ilsvrc => IMAGENET,
            Self::Idx | Self::Cifar | Self::Synthetic | Self::Csv | Self::Xor | Self::Separable => ([0.0; 3], [1.0; 3]),
        }
    }
}

impl TryFrom<RawData> for DataConfig {
    type Error = String;

    fn try_from(raw: RawData) -> Result<Self, String> {
        let shared: &[&str] = if raw.kind.is_table() { &[] } else { PICTURES };
        let allowed: Vec<&str> = raw.kind.keys().iter().chain(shared).copied().collect();
        if let Some(key) = raw.given().into_iter().find(|key| !allowed.contains(key)) {
            return Err(format!("`data.{key}` does not go with this data.kind, which takes {}", allowed.join(", ")));
        }
        let pixels = raw.pixels();
        let missing = |key: &str| format!("`data.{key}` is missing");
        let path = raw.path.ok_or_else(|| missing("path"));
        let val_fraction = raw.val_fraction;
        let source = match raw.kind {
            Kind::Images => DataSource::Images { path: path?, val_fraction },
            Kind::List => DataSource::List { path: path?, root: raw.root, val_fraction },
            Kind::Webdataset => DataSource::Webdataset { path: path?, val_path: raw.val_path, val_fraction },
            Kind::Parquet => DataSource::Parquet { path: path?, val_path: raw.val_path, val_fraction, image: raw.image, label: raw.label },
            Kind::Ilsvrc => DataSource::Ilsvrc { path: path? },
            Kind::Idx => DataSource::Idx { path: path? },
            Kind::Cifar => DataSource::Cifar { path: path? },
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
        let raw = if config.is_table() { Self::default() } else { Self::with_pixels(config.pixels) };
        match config.source {
            DataSource::Images { path, val_fraction } => Self { kind: Kind::Images, path: Some(path), val_fraction, ..raw },
            DataSource::List { path, root, val_fraction } => Self { kind: Kind::List, path: Some(path), root, val_fraction, ..raw },
            DataSource::Webdataset { path, val_path, val_fraction } => {
                Self { kind: Kind::Webdataset, path: Some(path), val_path, val_fraction, ..raw }
            }
            DataSource::Parquet { path, val_path, val_fraction, image, label } => {
                Self { kind: Kind::Parquet, path: Some(path), val_path, val_fraction, image, label, ..raw }
            }
            DataSource::Ilsvrc { path } => Self { kind: Kind::Ilsvrc, path: Some(path), ..raw },
            DataSource::Idx { path } => Self { kind: Kind::Idx, path: Some(path), ..raw },
            DataSource::Cifar { path } => Self { kind: Kind::Cifar, path: Some(path), ..raw },
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
