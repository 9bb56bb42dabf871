//! `worker data pack`: any pictures as WebDataset shards near the size that training
//! needs, so that reading and decoding them takes less time. [`verify`](mod@verify) checks them.
//!
//! ```text
//! OUT/pack.json           what was packed and how
//! OUT/classes.txt         the names of the classes, a line each
//! OUT/train-000000.tar    KEY.jpg and KEY.cls of up to SAMPLES samples; of data that is not
//!                         divided, all shards are pictures-NNNNNN.tar
//! OUT/train-000000.jsonl  of each sample in it: key, label, place, BLAKE3 of its picture
//! OUT/skipped.txt         pictures that do not decode, if those were to be left out
//! ```
//!
//! A shard has its index only once it is whole: after an interruption the same command
//! goes on with the shards that lack theirs.

pub mod verify;

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use common::config::CorruptPolicy;
use common::dataset::{Sample, SampleFormat, SampleSource, Split};
use common::digest::Digest;
use common::files::replace;
use common::ui::counter;
use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::data::{Picture, SampleFile, jpeg_of, png_of};

/// Samples of a shard: with pictures of 20 KB, shards of 100 MB.
const SAMPLES: u32 = 5000;

/// Samples that are read and encoded at a time.
const AT_A_TIME: usize = 256;

const PACK: &str = "pack.json";
const CLASSES: &str = "classes.txt";
const SKIPPED: &str = "skipped.txt";

/// How pictures are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Larger pictures are made smaller until their shorter side has so many pixels.
    pub short_side: u32,
    /// Of JPEG, 1 to 100.
    pub quality: u32,
    #[serde(skip)]
    pub on_corrupt: CorruptPolicy,
}

/// pack.json: what must not change between two starts of the same pack.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pack {
    version: u32,
    /// The fingerprint of the data that is packed.
    source: Digest,
    options: Options,
    samples_per_shard: u32,
    parts: Vec<Part>,
    classes: Vec<String>,
}

/// A split, or all of data that is not divided.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Part {
    /// With which the names of its shards begin.
    name: String,
    samples: u32,
}

impl Pack {
    fn samples(&self) -> u64 {
        self.parts.iter().map(|part| u64::from(part.samples)).sum()
    }
}

/// A line of a shard's index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Packed {
    key: String,
    label: u32,
    /// Where the picture's bytes lie in the tar.
    offset: u64,
    bytes: u64,
    blake3: Digest,
}

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Done {
    pub shards: u32,
    /// Shards that were there already.
    pub kept: u32,
    pub samples: u64,
    pub skipped: u64,
    pub bytes: u64,
}

/// Packs both splits of `source` into `out`; of data that is not `divided`, its validation
/// set, which has all samples.
pub fn pack(source: &Arc<dyn SampleSource>, divided: bool, out: &Path, options: Options) -> Result<Done> {
    let info = source.info();
    if matches!(info.format, SampleFormat::Features { .. }) {
        bail!("tables are read whole and need no pack: this is for pictures");
    }
    fs::create_dir_all(out).with_context(|| format!("could not create `{}`", out.display()))?;
    let splits: &[(&str, Split)] = if divided { &[("train", Split::Train), ("val", Split::Val)] } else { &[("pictures", Split::Val)] };
    let mine = Pack {
        version: 1,
        source: info.fingerprint,
        options,
        samples_per_shard: SAMPLES,
        parts: splits.iter().map(|&(name, split)| Part { name: name.to_owned(), samples: info.len(split) }).collect(),
        classes: info.classes.clone(),
    };
    describe(out, &mine)?;
    let bar = counter("packing", Some(mine.samples()));
    let mut done = Done::default();
    for &(name, split) in splits {
        let len = info.len(split);
        for (number, first) in (0..len).step_by(SAMPLES as usize).enumerate() {
            let ids: Vec<u32> = (first..first.saturating_add(SAMPLES).min(len)).collect();
            let shard = Shard::new(out, name, number);
            let packed = match shard.index()? {
                Some(packed) => {
                    bar.inc(ids.len() as u64);
                    done.kept += 1;
                    packed
                }
                None => shard.write(source, split, &ids, options, &bar)?,
            };
            done.shards += 1;
            done.samples += packed.len() as u64;
            done.skipped += (ids.len() - packed.len()) as u64;
            done.bytes += packed.iter().map(|p| p.bytes).sum::<u64>();
        }
    }
    bar.finish_and_clear();
    Ok(done)
}

/// Writes pack.json and classes.txt; refuses a folder with another pack or other files.
fn describe(out: &Path, mine: &Pack) -> Result<()> {
    let file = out.join(PACK);
    if file.exists() {
        let there = read_pack(out)?;
        if there != *mine {
            bail!("`{}` holds a pack of other data or with other options: give another folder, or remove it", out.display());
        }
        return Ok(());
    }
    if fs::read_dir(out).with_context(|| format!("could not read `{}`", out.display()))?.next().is_some() {
        bail!("`{}` is not empty and holds no pack: give an empty folder or a new one", out.display());
    }
    write_whole(&out.join(CLASSES), mine.classes.iter().map(|c| format!("{c}\n")).collect::<String>().as_bytes())?;
    write_whole(&file, serde_json::to_string_pretty(mine)?.as_bytes())
}

fn read_pack(out: &Path) -> Result<Pack> {
    let file = out.join(PACK);
    let text = fs::read(&file).with_context(|| format!("could not read `{}`", file.display()))?;
    let pack: Pack = serde_json::from_slice(&text).with_context(|| format!("`{}` is damaged", file.display()))?;
    if pack.version != 1 {
        bail!("`{}` is of version {}, and this program knows version 1", file.display(), pack.version);
    }
    Ok(pack)
}

/// Writes a file that is either whole or not there.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, bytes).with_context(|| format!("could not write `{}`", path.display()))
}

/// The files of one shard.
struct Shard {
    tar: PathBuf,
    index: PathBuf,
}

impl Shard {
    fn new(out: &Path, part: &str, number: usize) -> Self {
        let name = format!("{part}-{number:06}");
        Self { tar: out.join(format!("{name}.tar")), index: out.join(format!("{name}.jsonl")) }
    }

    /// The lines of its index, if it is whole.
    fn index(&self) -> Result<Option<Vec<Packed>>> {
        let text = match fs::read_to_string(&self.index) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("could not read `{}`", self.index.display())),
        };
        let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Packed>, _>>();
        lines.map(Some).with_context(|| format!("`{}` is damaged: remove it to have its shard packed again", self.index.display()))
    }

    fn write(&self, source: &Arc<dyn SampleSource>, split: Split, ids: &[u32], options: Options, bar: &ProgressBar) -> Result<Vec<Packed>> {
        let folder = self.tar.parent().unwrap_or(Path::new("."));
        let failed = || format!("could not write `{}`", self.tar.display());
        // Like any other file, it is for those whom the umask lets read it.
        let mode = fs::Permissions::from_mode(0o666);
        let file = tempfile::Builder::new().permissions(mode).tempfile_in(folder).with_context(failed)?;
        let mut tar = tar::Builder::new(BufWriter::new(file));
        let (mut packed, mut at) = (Vec::with_capacity(ids.len()), 0u64);
        for ids in ids.chunks(AT_A_TIME) {
            let samples = source.read(split, ids)?;
            let encoded: Vec<_> = samples.par_iter().map(|sample| encode(source.info().format, sample, options)).collect();
            for (sample, outcome) in samples.iter().zip(encoded) {
                bar.inc(1);
                let (ending, bytes) = match outcome {
                    Ok(encoded) => encoded,
                    Err(problem) => {
                        self.skip(&source.name(split, sample.id), &problem, options.on_corrupt)?;
                        continue;
                    }
                };
                let key = format!("{:08}", sample.id);
                let label = sample.label.to_string();
                for (name, content) in [(format!("{key}.{ending}"), &bytes[..]), (format!("{key}.cls"), label.as_bytes())] {
                    append(&mut tar, &name, content).with_context(failed)?;
                }
                packed.push(Packed { key, label: sample.label, offset: at + BLOCK, bytes: bytes.len() as u64, blake3: Digest::of(&bytes) });
                at += 2 * BLOCK + padded(bytes.len()) + padded(label.len());
            }
        }
        let file = tar.into_inner().with_context(failed)?.into_inner().map_err(|e| e.into_error()).with_context(failed)?;
        file.as_file().sync_all().with_context(failed)?;
        file.persist(&self.tar).with_context(failed)?;
        let mut lines = Vec::new();
        for line in &packed {
            serde_json::to_writer(&mut lines, line)?;
            lines.push(b'\n');
        }
        write_whole(&self.index, &lines)?;
        Ok(packed)
    }

    /// Lists a picture that does not decode, or ends the work with it.
    fn skip(&self, name: &str, problem: &str, policy: CorruptPolicy) -> Result<()> {
        if policy == CorruptPolicy::Stop {
            bail!("`{name}` {problem}; mend or remove it, or leave such pictures out with --on-corrupt skip");
        }
        tracing::warn!("left out `{name}`: {problem}");
        let path = self.tar.with_file_name(SKIPPED);
        let written = File::options().create(true).append(true).open(&path).and_then(|mut f| writeln!(f, "{name} {problem}"));
        written.with_context(|| format!("could not write `{}`", path.display()))
    }
}

/// A tar consists of blocks of so many bytes.
const BLOCK: u64 = 512;

fn padded(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(BLOCK)
}

/// Appends a file whose header depends on nothing but its name and size.
fn append(tar: &mut tar::Builder<impl Write>, name: &str, content: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content)
}

/// The ending and the bytes under which a sample is packed.
fn encode(format: SampleFormat, sample: &Sample, options: Options) -> Result<(&'static str, Vec<u8>), String> {
    let file = SampleFile::open(format, &sample.bytes).map_err(|e| e.to_string())?;
    let turned = file.is_turned();
    let picture = file.decode(None).map_err(|e| e.to_string())?.picture;
    // Pictures that are small already stay exact, so that training sees the same.
    if matches!(format, SampleFormat::Raw { .. }) || picture.width.min(picture.height) <= options.short_side {
        if sample.bytes.starts_with(&[0xff, 0xd8]) && format == SampleFormat::Encoded && !turned {
            return Ok(("jpg", sample.bytes.to_vec()));
        }
        return Ok(("png", png_of(&picture)?));
    }
    Ok(("jpg", jpeg_of(&smaller(&picture, options.short_side)?, options.quality)?))
}

/// The picture with a shorter side of `short_side` pixels: bilinear interpolation that
/// averages, as in training.
fn smaller(picture: &Picture, short_side: u32) -> Result<Picture, String> {
    let scale = f64::from(short_side) / f64::from(picture.width.min(picture.height));
    let side = |length: u32| ((f64::from(length) * scale).round() as u32).max(short_side);
    let (width, height) = (side(picture.width), side(picture.height));
    let source = ImageRef::new(picture.width, picture.height, &picture.pixels, PixelType::U8x3).map_err(|e| e.to_string())?;
    let mut target = Image::new(width, height, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear));
    Resizer::new().resize(&source, &mut target, &options).map_err(|e| e.to_string())?;
    Ok(Picture { width, height, channels: 3, pixels: target.into_vec() })
}

#[cfg(test)]
mod tests;
