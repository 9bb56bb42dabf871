//! Pixels to PNG and JPEG.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use super::picture::Picture;

/// Writes `[height, width, channels]` bytes, 1 or 3 channels, as a PNG file.
pub fn write_png(path: &Path, width: u32, height: u32, channels: u32, pixels: &[u8]) -> Result<()> {
    if path.extension().is_none_or(|e| !e.eq_ignore_ascii_case("png")) {
        bail!("`{}` should end in .png, the format that is written", path.display());
    }
    let colour = if channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let file = File::create(path).with_context(|| format!("could not create `{}`", path.display()))?;
    let mut file = BufWriter::new(file);
    let written = PngEncoder::new(&mut file).write_image(pixels, width, height, colour);
    written.with_context(|| format!("could not write `{}`", path.display()))?;
    file.flush().with_context(|| format!("could not write `{}`", path.display()))
}

/// A picture as the content of a PNG file.
pub fn png_of(picture: &Picture) -> Result<Vec<u8>, String> {
    let colour = if picture.channels == 1 { ExtendedColorType::L8 } else { ExtendedColorType::Rgb8 };
    let mut out = Vec::new();
    PngEncoder::new(&mut out).write_image(&picture.pixels, picture.width, picture.height, colour).map_err(|e| e.to_string())?;
    Ok(out)
}

/// A picture as the content of a JPEG file of this quality, 1 to 100. Colours have half the
/// resolution, as in most pictures, and there is one scan, which is read the fastest.
pub fn jpeg_of(picture: &Picture, quality: u32) -> Result<Vec<u8>, String> {
    let side = |length: u32| u16::try_from(length).map_err(|_| format!("has a side of {length} pixels, more than a JPEG can have"));
    let colour = if picture.channels == 1 { ColorType::Luma } else { ColorType::Rgb };
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out, quality.clamp(1, 100) as u8);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder.encode(&picture.pixels, side(picture.width)?, side(picture.height)?, colour).map_err(|e| e.to_string())?;
    Ok(out)
}
