//! `worker bench data`: the input pipeline alone, as training uses it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use common::config::{Augment, CorruptPolicy, DataSource, Pixels, TrainConfig};
use common::dataset::{DatasetError, DatasetInfo, Images, Sample, SampleSource, Split};
use common::plan::Plan;
use common::ui::index_progress;
use serde::Serialize;

use super::report::{cores, show};
use crate::analysis::show::{guess, open_as_it_lies};
use crate::data::{Input, LoaderOptions, TrainLoader};
use crate::training::job::PREFETCH_STEPS;

#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// A folder with class folders (under train/ and val/ or not), or with IDX files.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
    /// The size in pixels to which pictures are brought.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub size: u32,
    /// Decoding threads [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: Option<u32>,
    /// What to do to the pictures, in this order.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "crop,flip")]
    pub augment: Vec<Change>,
    /// Pictures in one step.
    #[arg(long, default_value_t = TrainConfig::default().global_batch, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// The least number of pictures to time; a smaller folder is read several times.
    /// Some more are read first and not counted.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    pub images: u64,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// A config's `augment`, with a word for all changes of colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Change {
    /// A random part of the picture, scaled to the full size.
    Crop,
    /// Mirror half of the pictures, left to right.
    Flip,
    Brightness,
    Contrast,
    Saturation,
    Hue,
    Grey,
    Temperature,
    Lighting,
    Randaugment,
    Trivialaugment,
    Mixup,
    Cutmix,
    Erase,
    /// Brightness, contrast, temperature and lighting.
    Colour,
    /// Nothing.
    None,
}

impl Change {
    fn augments(self) -> &'static [Augment] {
        match self {
            Self::Crop => &[Augment::Crop],
            Self::Flip => &[Augment::Flip],
            Self::Brightness => &[Augment::Brightness],
            Self::Contrast => &[Augment::Contrast],
            Self::Saturation => &[Augment::Saturation],
            Self::Hue => &[Augment::Hue],
            Self::Grey => &[Augment::Grey],
            Self::Temperature => &[Augment::Temperature],
            Self::Lighting => &[Augment::Lighting],
            Self::Randaugment => &[Augment::RandAugment],
            Self::Trivialaugment => &[Augment::TrivialAugment],
            Self::Mixup => &[Augment::Mixup],
            Self::Cutmix => &[Augment::Cutmix],
            Self::Erase => &[Augment::Erase],
            Self::Colour => &[Augment::Brightness, Augment::Contrast, Augment::Temperature, Augment::Lighting],
            Self::None => &[],
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataResult {
    pub images_per_second: f64,
    pub images: u64,
    pub seconds: f64,
    /// Pictures that do not decode and were left out.
    pub skipped: u64,
}

/// `worker bench data`.
///
/// # Errors
/// The folder is no dataset of pictures, or cannot be read.
pub fn run(args: &DataArgs) -> Result<()> {
    show(args.json, &measure(args)?, |r| {
        let left_out = if r.skipped > 0 { format!("; {} do not decode", r.skipped) } else { String::new() };
        format!("{:.1} images/s: {} in {:.2} s{left_out}", r.images_per_second, r.images, r.seconds)
    })
}

fn measure(args: &DataArgs) -> Result<DataResult> {
    if !args.folder.is_dir() {
        bail!("`{}` is not a folder: give one with a folder of pictures for each class, or with IDX files", args.folder.display());
    }
    let (source, mut pixels) = open(&args.folder, args.json)?;
    let defaults = TrainConfig::default();
    pixels.image_size = args.size;
    pixels.augment = args.augment.iter().flat_map(|change| change.augments()).copied().collect();
    // As many shards as in training, but not more than pictures.
    let pictures = source.info().train;
    let shards = defaults.shards.min(pictures);
    let plan = Plan::new(1, pictures, shards, args.batch.next_multiple_of(shards));
    let threads = args.threads.unwrap_or_else(cores) as usize;
    let options = LoaderOptions { threads, prefetch_steps: PREFETCH_STEPS };
    pixels.on_corrupt = CorruptPolicy::Skip;
    let input = Input { source, pixels };
    let mut loader = TrainLoader::start(input, plan, 0..shards, 1, 0..u64::MAX, options, Vec::new())?;
    // Each thread allocates memory for its first batch, which is not counted. Batches
    // that were begun before the count make up for those that are unfinished at its
    // end.
    for _ in 0..threads {
        let batch = loader.next_batch()?;
        loader.recycle(batch);
    }
    let (start, mut images, mut skipped) = (Instant::now(), 0, 0);
    while images < args.images {
        let batch = loader.next_batch()?;
        images += batch.labels.len() as u64;
        skipped += batch.skipped.len() as u64;
        if let (true, Some(last)) = (images == 0 && skipped >= u64::from(pictures), batch.skipped.last()) {
            bail!("no picture in `{}` decodes; `{}` {}", args.folder.display(), last.name, last.problem);
        }
        loader.recycle(batch);
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(DataResult { images_per_second: images as f64 / seconds, images, seconds, skipped })
}

/// The training pictures of a folder: those under train/ if there is one, else all of them.
fn open(folder: &Path, quiet: bool) -> Result<(Arc<dyn SampleSource>, Pixels)> {
    let progress = index_progress(quiet);
    if let (DataSource::Images { .. }, Some(train)) = (&guess(folder, "")?.source, Images::training_folder(folder)) {
        let pictures = Arc::new(Images::open_all(&train, &progress)?);
        return Ok((Arc::new(Unsplit::new(pictures)), guess(&train, "")?.pixels));
    }
    let (source, config, undivided) = open_as_it_lies(folder, "", &progress)?;
    Ok((if undivided { Arc::new(Unsplit::new(source)) } else { source }, config.pixels))
}

/// Pictures without a validation set: all of them are training samples.
struct Unsplit {
    info: DatasetInfo,
    /// All of them are in its validation set.
    pictures: Arc<dyn SampleSource>,
}

impl Unsplit {
    fn new(pictures: Arc<dyn SampleSource>) -> Self {
        let info = pictures.info().clone();
        Self { info: DatasetInfo { train: info.val, val: 0, ..info }, pictures }
    }
}

impl SampleSource for Unsplit {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn read(&self, _: Split, ids: &[u32]) -> Result<Vec<Sample>, DatasetError> {
        self.pictures.read(Split::Val, ids)
    }

    fn size_hint(&self, _: Split, id: u32) -> u64 {
        self.pictures.size_hint(Split::Val, id)
    }

    fn name(&self, _: Split, id: u32) -> String {
        self.pictures.name(Split::Val, id)
    }
}
