//! `worker data show`: what a dataset holds, as text and as a picture.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use common::config::{Config, DataConfig, DataSource};
use common::dataset::{self, IndexProgress, SampleFormat, SampleSource, Split};
use common::seed;
use indicatif::HumanCount;

use crate::data::{Picture, Recipe, Renderer, decode};
use crate::figures::{Regions, Tile, Tiles, save};

/// Samples of a class on the contact sheet, classes on it, and the side of a sample.
const SAMPLES: usize = 10;
const CLASSES: usize = 20;
const SIDE: u32 = 72;

/// Opens the dataset at `place`: a config, a file or a folder of any kind of data.
/// `label` is the label column of a CSV file.
pub fn open(place: &Path, label: &str) -> Result<Arc<dyn SampleSource>> {
    let (config, seed) = if place.extension().is_some_and(|e| e == "toml") {
        let config = Config::load(place, &[])?;
        (config.data, config.seed)
    } else {
        (guess(place, label)?, 1)
    };
    Ok(dataset::open(&config, seed, &common::ui::index_progress(false))?)
}

/// The dataset at `place` as it lies there, and its `[data]` section. Data that is not
/// divided into training and validation is one set, and all of it is the validation set;
/// the flag says that.
pub(crate) fn open_as_it_lies(
    place: &Path,
    label: &str,
    progress: &dyn Fn(IndexProgress),
) -> Result<(Arc<dyn SampleSource>, DataConfig, bool)> {
    if place.extension().is_some_and(|e| e == "toml") {
        let Config { data, seed, .. } = Config::load(place, &[])?;
        return Ok((dataset::open(&data, seed, progress)?, data, false));
    }
    let config = guess(place, label)?;
    let to_divide = matches!(
        &config.source,
        DataSource::Images { val_fraction: Some(_), .. }
            | DataSource::List { val_fraction: Some(_), .. }
            | DataSource::Webdataset { val_fraction: Some(_), .. }
            | DataSource::Parquet { val_fraction: Some(_), .. }
    );
    let whole = if to_divide { dataset::open_for_validation(&config, progress)? } else { None };
    let (one, source) = (whole.is_some(), whole.map_or_else(|| dataset::open(&config, 1, progress), Ok)?);
    Ok((source, config, one))
}

/// A `[data]` section for data of which only the place is known; the columns of a table are as
/// they stand there.
pub(crate) fn guess(place: &Path, label: &str) -> Result<DataConfig> {
    let mut data = dataset::section_of(place, label)?;
    if data.get("kind").and_then(|kind| kind.as_str()) == Some("csv") {
        data.insert("standardize".to_owned(), false.into());
    }
    Ok(data.try_into()?)
}

/// Classes and counts.
pub fn text(source: &dyn SampleSource) -> Result<String> {
    let info = source.info();
    let counts = [Split::Train, Split::Val].map(|split| count(source, split));
    let [train, val] = counts;
    let (train, val) = (train?, val?);
    let kind = match info.format {
        SampleFormat::Encoded => "picture files".to_owned(),
        SampleFormat::Raw { height, width, channels } => format!("pictures of {width}x{height}, {channels} channels"),
        SampleFormat::Features { count } => format!("rows of {count} features"),
    };
    let mut text = format!(
        "{kind}, {} classes, {} training and {} validation samples\n\n",
        info.classes.len(),
        HumanCount(info.train.into()),
        HumanCount(info.val.into())
    );
    let width = info.classes.iter().map(|c| c.chars().count()).max().unwrap_or(0).max(5);
    let _ = writeln!(text, "{:>width$}  {:>10}  {:>10}", "class", "training", "validation");
    for ((class, t), v) in info.classes.iter().zip(train).zip(val) {
        let _ = writeln!(text, "{class:>width$}  {:>10}  {:>10}", HumanCount(t).to_string(), HumanCount(v).to_string());
    }
    if !source.columns().is_empty() {
        text += &columns(source)?;
    }
    if !source.passed_over().is_empty() {
        let _ = writeln!(text, "\n{}", source.passed_over());
    }
    Ok(text)
}

/// Samples of each class.
fn count(source: &dyn SampleSource, split: Split) -> Result<Vec<u64>> {
    let mut counts = vec![0; source.info().classes.len()];
    source.labels(split)?.into_iter().for_each(|label| counts[label as usize] += 1);
    Ok(counts)
}

fn columns(source: &dyn SampleSource) -> Result<String> {
    let mut text = format!("\n{:>16}  {:>12}  {:>12}  {:>12}\n", "feature", "least", "mean", "most");
    let rows = rows(source)?;
    for (n, column) in source.columns().iter().enumerate() {
        let values = || rows.iter().map(|(row, _)| column.raw(row[n]));
        let mean = values().sum::<f64>() / rows.len().max(1) as f64;
        let (least, most) = values().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), v| (a.min(v), b.max(v)));
        let _ = writeln!(text, "{:>16}  {least:>12.4}  {mean:>12.4}  {most:>12.4}", column.name);
    }
    Ok(text)
}

/// Rows read at once.
const CHUNK: usize = 1024;

/// All training rows of a table, with their labels.
pub fn rows(source: &dyn SampleSource) -> Result<Vec<(Vec<f32>, u32)>> {
    let ids: Vec<u32> = (0..source.info().train).collect();
    let mut rows = Vec::with_capacity(ids.len());
    for ids in ids.chunks(CHUNK) {
        let floats = |bytes: &[u8]| bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        rows.extend(source.read(Split::Train, ids)?.into_iter().map(|s| (floats(&s.bytes), s.label)));
    }
    Ok(rows)
}

/// Writes a picture of the data: samples of each class, or the points of a table
/// with two features. False if there is nothing to draw.
pub fn picture(source: &dyn SampleSource, title: &str, path: &Path) -> Result<bool> {
    match source.info().format {
        SampleFormat::Features { count: 2 } => save(&points(source, title)?, path)?,
        SampleFormat::Features { .. } => return Ok(false),
        _ => save(&sheet(source, title)?, path)?,
    }
    Ok(true)
}

fn points(source: &dyn SampleSource, title: &str) -> Result<Regions> {
    let columns = source.columns();
    let raw = |row: &[f32], n: usize| columns[n].raw(row[n]);
    let points: Vec<(f64, f64, usize)> = rows(source)?.iter().map(|(row, label)| (raw(row, 0), raw(row, 1), *label as usize)).collect();
    Ok(Regions {
        title: title.to_owned(),
        axes: [columns[0].name.clone(), columns[1].name.clone()],
        x: Regions::range(points.iter().map(|p| p.0)),
        y: Regions::range(points.iter().map(|p| p.1)),
        classes: Vec::new(),
        points,
        names: source.info().classes.clone(),
    })
}

fn sheet(source: &dyn SampleSource, title: &str) -> Result<Tiles> {
    let info = source.info();
    let labels = source.labels(Split::Train)?;
    let mut rows = Vec::new();
    for (label, class) in info.classes.iter().enumerate().take(CLASSES) {
        let mut own: Vec<u32> = (0..info.train).filter(|&id| labels[id as usize] as usize == label).collect();
        seed::shuffle(&mut own, &mut seed::stream(1, "contact sheet", &[label as u64]));
        own.truncate(SAMPLES);
        let mut tiles = Vec::new();
        for sample in source.read(Split::Train, &own)? {
            match decode(info.format, &sample.bytes) {
                Ok(picture) => tiles.push(tile(&picture)?),
                Err(e) => tracing::warn!("`{}` {e}", source.name(Split::Train, sample.id)),
            }
        }
        rows.push((class.clone(), tiles));
    }
    let more = info.classes.len().saturating_sub(CLASSES);
    let title = if more > 0 { format!("{title} ({more} more classes)") } else { title.to_owned() };
    Ok(Tiles { title, rows, side: SIDE })
}

/// The centre of a picture, scaled down to `SIDE` unless it is smaller already.
fn tile(picture: &Picture) -> Result<Tile> {
    let side = picture.width.min(picture.height).min(SIDE);
    let config: DataConfig = toml::toml! {
        kind = "idx"
        path = ""
    }
    .try_into()?;
    let pixels = common::config::Pixels { image_size: side, eval_resize: 1.0, ..config.pixels };
    let recipe = Recipe::evaluation(&pixels, picture.width, picture.height, false);
    let plane = (side * side) as usize;
    let values = Renderer::default().numbers(picture, &recipe, &pixels).map_err(anyhow::Error::msg)?;
    let byte = |c: usize, p: usize| (255.0 * values[if picture.channels == 3 { c * plane + p } else { p }]).round() as u8;
    let rgb = (0..plane).flat_map(|p| [byte(0, p), byte(1, p), byte(2, p)]).collect();
    Ok(Tile { width: side, height: side, pixels: rgb })
}
