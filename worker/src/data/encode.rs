//! Pixels to PNG files.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result, bail};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};

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
