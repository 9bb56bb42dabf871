//! JPEG and PNG files to pixels: greyscale, palettes, transparency, 16 bits,
//! CMYK and EXIF orientation included.

use common::dataset::SampleFormat;
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// The most pixels that a picture may have: larger ones are taken for damage or
/// for an attempt to fill the memory.
const MAX_PIXELS: u64 = 100_000_000;

/// The shortest side that a picture file may have: a single pixel is a web
/// page's spacer or damage, and has no content to learn.
const MIN_SIDE: u32 = 2;

/// A decoded picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub width: u32,
    pub height: u32,
    /// 1 or 3.
    pub channels: u32,
    /// `[height, width, channels]`
    pub pixels: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    #[error("is neither JPEG nor PNG")]
    Unknown,
    #[error("is a damaged JPEG: {0}")]
    Jpeg(String),
    #[error("is a damaged PNG: {0}")]
    Png(String),
    #[error("has {width}x{height} pixels; {MAX_PIXELS} are the most that are read")]
    TooLarge { width: u64, height: u64 },
    #[error("has {width}x{height} pixels: too small to be a picture, which has at least {MIN_SIDE} on each side")]
    TooSmall { width: u64, height: u64 },
    #[error("has {found} bytes where a picture of {expected} bytes was announced")]
    Raw { found: usize, expected: usize },
}

/// Decodes a sample. Encoded pictures become three channels, upright.
pub fn decode(format: SampleFormat, bytes: &[u8]) -> Result<Picture, DecodeError> {
    match format {
        SampleFormat::Raw { height, width, channels } => {
            let expected = (u64::from(height) * u64::from(width) * u64::from(channels)) as usize;
            if bytes.len() != expected {
                return Err(DecodeError::Raw { found: bytes.len(), expected });
            }
            Ok(Picture { width, height, channels, pixels: bytes.to_vec() })
        }
        SampleFormat::Features { .. } => Err(DecodeError::Unknown),
        // The first bytes count, not the name: mislabelled files are common.
        SampleFormat::Encoded if bytes.starts_with(&[0xff, 0xd8]) => jpeg(bytes),
        SampleFormat::Encoded if bytes.starts_with(b"\x89PNG\r\n\x1a\n") => png(bytes),
        SampleFormat::Encoded => Err(DecodeError::Unknown),
    }
}

fn check_size(width: u64, height: u64) -> Result<(), DecodeError> {
    if width * height > MAX_PIXELS {
        Err(DecodeError::TooLarge { width, height })
    } else if width.min(height) < MIN_SIDE.into() {
        Err(DecodeError::TooSmall { width, height })
    } else {
        Ok(())
    }
}

fn jpeg(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let bad = |e: zune_jpeg::errors::DecodeErrors| DecodeError::Jpeg(e.to_string());
    // Strict: a file that was cut short is an error, not a grey lower half.
    let options = DecoderOptions::new_fast()
        .set_strict_mode(true)
        .jpeg_set_out_colorspace(ColorSpace::RGB)
        .set_max_width(1 << 16)
        .set_max_height(1 << 16);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(bad)?;
    let info = decoder.info().ok_or_else(|| DecodeError::Jpeg("it has no header".to_owned()))?;
    let (width, height) = (u32::from(info.width), u32::from(info.height));
    check_size(width.into(), height.into())?;
    let orientation = decoder.exif().map_or(1, |exif| orientation(exif));
    let pixels = decoder.decode().map_err(bad)?;
    let expected = width as usize * height as usize * 3;
    if pixels.len() != expected {
        return Err(DecodeError::Jpeg(format!("{} bytes of pixels instead of {expected}", pixels.len())));
    }
    Ok(turn(Picture { width, height, channels: 3, pixels }, orientation))
}

fn png(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let bad = |e: image::ImageError| DecodeError::Png(e.to_string());
    let mut reader = image::ImageReader::with_format(std::io::Cursor::new(bytes), image::ImageFormat::Png);
    let (width, height) =
        image::ImageReader::with_format(std::io::Cursor::new(bytes), image::ImageFormat::Png).into_dimensions().map_err(bad)?;
    check_size(width.into(), height.into())?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    let pixels = reader.decode().map_err(bad)?.into_rgb8().into_raw();
    Ok(Picture { width, height, channels: 3, pixels })
}

/// The EXIF orientation, 1 (upright) where there is none or a nonsensical one.
fn orientation(exif: &[u8]) -> u32 {
    let parsed = exif::Reader::new().read_raw(exif.to_vec()).ok();
    let value = parsed.and_then(|e| e.get_field(exif::Tag::Orientation, exif::In::PRIMARY)?.value.get_uint(0));
    value.filter(|v| (1..=8).contains(v)).unwrap_or(1)
}

/// Turns a picture upright. Orientations 5 to 8 swap rows and columns; see the
/// EXIF 2.3 specification, tag 0x0112.
fn turn(picture: Picture, orientation: u32) -> Picture {
    if orientation == 1 {
        return picture;
    }
    let (w, h) = (picture.width as usize, picture.height as usize);
    let swapped = orientation >= 5;
    let (width, height) = if swapped { (h, w) } else { (w, h) };
    let mut pixels = Vec::with_capacity(picture.pixels.len());
    for y in 0..height {
        for x in 0..width {
            let (sx, sy) = match orientation {
                2 => (w - 1 - x, y),
                3 => (w - 1 - x, h - 1 - y),
                4 => (x, h - 1 - y),
                5 => (y, x),
                6 => (y, h - 1 - x),
                7 => (w - 1 - y, h - 1 - x),
                _ => (w - 1 - y, x),
            };
            let at = (sy * w + sx) * 3;
            pixels.extend_from_slice(&picture.pixels[at..at + 3]);
        }
    }
    Picture { width: width as u32, height: height as u32, channels: 3, pixels }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 3x2 picture whose pixels are numbered from the upper left.
    fn numbered() -> Picture {
        Picture { width: 3, height: 2, channels: 3, pixels: (0..6u8).flat_map(|n| [n, n, n]).collect() }
    }

    #[test]
    fn each_orientation_turns_as_exif_defines_it() {
        let rows = |orientation| -> (u32, Vec<u8>) {
            let p = turn(numbered(), orientation);
            (p.width, p.pixels.chunks(3).map(|c| c[0]).collect())
        };
        assert_eq!(rows(1), (3, vec![0, 1, 2, 3, 4, 5]));
        assert_eq!(rows(2), (3, vec![2, 1, 0, 5, 4, 3]));
        assert_eq!(rows(3), (3, vec![5, 4, 3, 2, 1, 0]));
        assert_eq!(rows(4), (3, vec![3, 4, 5, 0, 1, 2]));
        assert_eq!(rows(5), (2, vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(rows(6), (2, vec![3, 0, 4, 1, 5, 2]));
        assert_eq!(rows(7), (2, vec![5, 2, 4, 1, 3, 0]));
        assert_eq!(rows(8), (2, vec![2, 5, 1, 4, 0, 3]));
    }
}
