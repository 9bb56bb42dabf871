//! `coordinator init`: looks at data and at this machine, and writes a commented config
//! that fits both.

mod recipe;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use common::config::{Config, DataConfig};
use common::dataset::{self, SampleFormat, SampleSource, Split};
use common::recorder::plan;
use common::simd::cpu_has_bf16;
use common::ui::index_progress;
use indicatif::HumanCount;

use recipe::{Found, Machine};

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The data: a folder, a file, a pattern of shards or an address. Or a data.kind, such as
    /// images, csv or synthetic, for a config to begin with.
    #[arg(value_name = "DIR|FORMAT")]
    pub data: PathBuf,
    /// The config to write [default: NAME.toml, by the name of the data].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// The label column of a CSV file.
    #[arg(long, value_name = "COLUMN", default_value = "label")]
    pub label: String,
}

/// Pictures whose sizes are looked at.
const LOOKED_AT: u32 = 64;

/// The kinds that need no data, and those of which the data is still to be put in place.
const GENERATED: [&str; 3] = ["synthetic", "xor", "separable"];
const KINDS: [&str; 8] = ["images", "list", "webdataset", "parquet", "ilsvrc", "idx", "cifar", "csv"];

/// Writes the config; returns what was found and what to do next.
pub fn run(args: &InitArgs, quiet: bool) -> Result<String> {
    let word = args.data.to_string_lossy();
    let found = match word.as_ref() {
        _ if args.data.exists() => look(&args.data, &args.label, quiet)?,
        kind if GENERATED.contains(&kind) => generated(kind)?,
        kind if KINDS.contains(&kind) => assumed(kind),
        _ => look(&args.data, &args.label, quiet).with_context(|| {
            format!("`{word}` is neither data nor a kind of data, which are {} and {}", KINDS.join(", "), GENERATED.join(", "))
        })?,
    };
    let text = recipe::config(&found, &machine());
    // What is written is what the other commands take.
    let config = Config::parse(&text, "the new config", &[])?;
    if found.is_there {
        plan(&config, &found.info).map_err(anyhow::Error::msg)?;
    }
    let out = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.toml", found.name)));
    let file = std::fs::File::options().write(true).create_new(true).open(&out);
    match file.and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes())) {
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            bail!("`{}` is there already: remove it, or name another file with --out", out.display())
        }
        other => other.with_context(|| format!("could not write `{}`", out.display()))?,
    }
    let out = out.display();
    let first = if found.is_there { String::new() } else { format!("put the data's place into {out}, then\n") };
    Ok(format!(
        "{out}: {}\n{first}next: coordinator check {out}\n      coordinator local {out} --workers {}, or worker train {out}",
        describe(&found, &config),
        machine().workers()
    ))
}

fn describe(found: &Found, config: &Config) -> String {
    let info = &found.info;
    let what = match (info.format, found.side) {
        _ if !found.is_there => "data that is still to come".to_owned(),
        (SampleFormat::Features { count }, _) => format!("rows of {count} features"),
        (_, Some(side)) => format!("pictures of about {side} pixels"),
        (_, None) => "pictures".to_owned(),
    };
    let samples = format!("{} training and {} validation samples", HumanCount(info.train.into()), HumanCount(info.val.into()));
    let counts = if found.is_there { format!(", {} classes, {samples}", info.classes.len()) } else { String::new() };
    format!("{} for {what}{counts}", config.model.kind())
}

/// What there is at a place.
fn look(place: &Path, label: &str, quiet: bool) -> Result<Found> {
    let section = dataset::section_of(place, label)?;
    let data: DataConfig = section.clone().try_into()?;
    let progress = index_progress(quiet);
    let source = dataset::open(&data, 1, &progress)?;
    drop(progress);
    source.passed_over().warn();
    let side = side(source.as_ref());
    Ok(Found { name: name_of(place), section, info: source.info().clone(), side, is_there: true })
}

/// A kind of data that is generated.
fn generated(kind: &str) -> Result<Found> {
    let mut section = toml::Table::from_iter([("kind".to_owned(), kind.into())]);
    if kind == "synthetic" {
        section.extend([("classes", 10), ("train", 2000), ("val", 500)].map(|(key, n)| (key.to_owned(), toml::Value::from(n))));
    }
    let data: DataConfig = section.clone().try_into()?;
    let source = dataset::open(&data, 1, &|_| {})?;
    let side = (kind == "synthetic").then_some(64);
    Ok(Found { name: kind.to_owned(), section, info: source.info().clone(), side, is_there: true })
}

/// A kind of data of which nothing is there yet, as it usually is.
fn assumed(kind: &str) -> Found {
    let (side, format, train) = match kind {
        "csv" => (None, SampleFormat::Features { count: 10 }, 1000),
        "idx" => (Some(28), SampleFormat::Raw { height: 28, width: 28, channels: 1 }, 60_000),
        "cifar" => (Some(32), SampleFormat::Raw { height: 32, width: 32, channels: 3 }, 50_000),
        "ilsvrc" => (Some(375), SampleFormat::Encoded, 1_281_167),
        _ => (Some(224), SampleFormat::Encoded, 10_000),
    };
    let path = format!("data/{}", if kind == "csv" || kind == "list" { "data.csv" } else { kind });
    let section = toml::Table::from_iter([("kind".to_owned(), kind.into()), ("path".to_owned(), path.into())]);
    let info = dataset::DatasetInfo {
        format,
        classes: vec![String::new(); 10],
        train,
        val: train / 10,
        fingerprint: common::digest::Digest::of(&[]),
    };
    Found { name: kind.to_owned(), section, info, side, is_there: false }
}

/// The median of the shorter sides of some pictures, as their headers say; none of a table,
/// and where no header says it.
fn side(source: &dyn SampleSource) -> Option<u32> {
    let info = source.info();
    match info.format {
        SampleFormat::Features { .. } => return None,
        SampleFormat::Raw { height, width, .. } => return Some(height.min(width)),
        SampleFormat::Encoded => {}
    }
    let step = (info.train / LOOKED_AT).max(1) as usize;
    let ids: Vec<u32> = (0..info.train).step_by(step).take(LOOKED_AT as usize).collect();
    // What cannot be read is said when the run starts.
    let of = |id: u32| {
        let samples = source.read(Split::Train, &[id]).ok()?;
        let size = imagesize::blob_size(&samples.first()?.bytes).ok()?;
        u32::try_from(size.width.min(size.height)).ok()
    };
    let mut sides: Vec<u32> = ids.into_iter().filter_map(of).collect();
    sides.sort_unstable();
    sides.get(sides.len() / 2).copied()
}

/// A name for the run, by that of the data, without what a folder's name must not have.
fn name_of(place: &Path) -> String {
    let whole = place.canonicalize().unwrap_or_else(|_| place.to_owned());
    let stem = whole.file_stem().unwrap_or_default().to_string_lossy();
    let plain: String = stem.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    let plain = plain.trim_matches(['.', '-']);
    if plain.is_empty() { "run".to_owned() } else { plain.to_owned() }
}

/// This machine, as far as it decides how to train.
fn machine() -> Machine {
    // The driver lists its GPUs there, whatever libraries this machine has.
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").map_or(0, Iterator::count) as u32;
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u32;
    Machine { cores, gpus, bf16: gpus > 0 || cpu_has_bf16() }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
