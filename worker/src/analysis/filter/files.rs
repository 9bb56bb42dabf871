//! Signals from files and back: a column of a CSV file, a picture, a folder of
//! frames.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use common::dataset::SampleFormat;

use super::signal::Signal;
use crate::data::{Picture, decode, write_png};

/// A signal, and the kind of file to write it back to.
pub(super) struct Source {
    pub(super) signal: Signal,
    kind: Kind,
}

enum Kind {
    /// The column's name.
    Column(String),
    Picture,
    Frames,
}

pub(super) fn read(path: &Path, column: Option<&str>) -> Result<Source> {
    let is_csv = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("csv"));
    if column.is_some() && !is_csv {
        bail!("--column belongs to a CSV file, and `{}` is none", path.display());
    }
    if path.is_dir() {
        frames(path)
    } else if is_csv {
        csv_column(path, column)
    } else {
        let picture = picture(path)?;
        let shape = vec![picture.height as usize, picture.width as usize];
        Ok(Source { signal: Signal { shape, channels: 3, values: planes(&picture) }, kind: Kind::Picture })
    }
}

pub(super) fn write(path: &Path, source: &Source, result: &Signal) -> Result<()> {
    match (&source.kind, &*result.shape) {
        (Kind::Column(name), _) => {
            let mut text = format!("{name}\n");
            result.values.iter().for_each(|v| text += &format!("{v}\n"));
            std::fs::write(path, text).with_context(|| format!("could not write `{}`", path.display()))
        }
        (Kind::Picture, &[height, width]) => {
            write_png(path, width as u32, height as u32, 3, &interleaved(&result.values, height * width, 0..height * width))
        }
        (Kind::Frames, &[depth, height, width]) => {
            std::fs::create_dir_all(path).with_context(|| format!("could not create the folder `{}`", path.display()))?;
            (0..depth).try_for_each(|n| {
                let plane = height * width;
                let pixels = interleaved(&result.values, depth * plane, n * plane..(n + 1) * plane);
                write_png(&path.join(format!("frame-{n:05}.png")), width as u32, height as u32, 3, &pixels)
            })
        }
        _ => Err(anyhow!("the result has {} dimensions", result.shape.len())),
    }
}

fn picture(path: &Path) -> Result<Picture> {
    let bytes = std::fs::read(path).with_context(|| format!("could not read `{}`", path.display()))?;
    decode(SampleFormat::Encoded, &bytes).map_err(|e| anyhow!("`{}` {e}", path.display()))
}

/// `[height, width, 3]` bytes as `[3, height, width]` values.
fn planes(picture: &Picture) -> Vec<f32> {
    let pixels = picture.pixels.as_chunks::<3>().0;
    (0..3).flat_map(|c| pixels.iter().map(move |p| f32::from(p[c]))).collect()
}

/// The values `range` of each of three channels, which lie `stride` apart, as pixels.
/// Values darker than black or brighter than white become black or white.
fn interleaved(values: &[f32], stride: usize, range: std::ops::Range<usize>) -> Vec<u8> {
    let byte = |v: f32| v.round().clamp(0.0, 255.0) as u8;
    range.flat_map(|i| (0..3).map(move |c| byte(values[c * stride + i]))).collect()
}

fn frames(folder: &Path) -> Result<Source> {
    let read = std::fs::read_dir(folder).with_context(|| format!("could not read `{}`", folder.display()))?;
    let mut files: Vec<PathBuf> = read.filter_map(|entry| Some(entry.ok()?.path())).filter(|p| is_picture(p)).collect();
    files.sort();
    let pictures = files.iter().map(|f| picture(f)).collect::<Result<Vec<_>>>()?;
    let Some(first) = pictures.first() else {
        bail!("`{}` holds no pictures: a folder is read as the frames of a film", folder.display());
    };
    let (width, height) = (first.width as usize, first.height as usize);
    if let Some((file, odd)) = files.iter().zip(&pictures).find(|(_, p)| (p.width, p.height) != (first.width, first.height)) {
        bail!("`{}` is {}x{}, and the first frame {width}x{height}: all frames need one size", file.display(), odd.width, odd.height);
    }
    let each: Vec<Vec<f32>> = pictures.iter().map(planes).collect();
    let plane = width * height;
    let values = (0..3).flat_map(|c| each.iter().flat_map(move |p| p[c * plane..(c + 1) * plane].iter().copied())).collect();
    Ok(Source { signal: Signal { shape: vec![pictures.len(), height, width], channels: 3, values }, kind: Kind::Frames })
}

fn is_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ["jpg", "jpeg", "png"].iter().any(|known| e.eq_ignore_ascii_case(known)))
}

fn csv_column(path: &Path, column: Option<&str>) -> Result<Source> {
    let text = std::fs::read_to_string(path).with_context(|| format!("could not read `{}`", path.display()))?;
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let header = reader.headers().with_context(|| format!("`{}` is no CSV file", path.display()))?.clone();
    let names = header.iter().map(|h| format!("`{h}`")).collect::<Vec<_>>().join(", ");
    let at = match column {
        Some(name) => header.iter().position(|h| h == name),
        None => (header.len() == 1).then_some(0),
    };
    let at = at.with_context(|| match column {
        Some(name) => format!("`{}` has no column `{name}`; its columns are {names}", path.display()),
        None => format!("`{}` has the columns {names}: name one with --column", path.display()),
    })?;
    let mut values = Vec::new();
    for (n, row) in reader.records().enumerate() {
        let row = row.with_context(|| format!("`{}` is damaged", path.display()))?;
        let text = row.get(at).unwrap_or_default();
        let value = text.parse::<f32>().ok().filter(|v| v.is_finite());
        values.push(value.with_context(|| format!("`{}` has `{text}` in row {}, where a number is needed", path.display(), n + 1))?);
    }
    if values.is_empty() {
        bail!("`{}` has a header and no rows", path.display());
    }
    let name = header.get(at).unwrap_or_default().to_owned();
    Ok(Source { signal: Signal { shape: vec![values.len()], channels: 1, values }, kind: Kind::Column(name) })
}
