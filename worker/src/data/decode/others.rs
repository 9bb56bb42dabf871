//! WebP, GIF, BMP, TIFF and PNM: the first picture of each file.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::error::{DecodeError, MAX_PIXELS, check_size};
use super::orientation::{self, turn};
use crate::data::picture::Picture;

pub(super) fn decode(bytes: &[u8], format: ImageFormat, name: &'static str) -> Result<Picture, DecodeError> {
    let bad = |e: ImageError| DecodeError::Other { format: name, problem: e.to_string() };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_PIXELS * 8);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(bad)?;
    let (width, height) = decoder.dimensions();
    check_size(width.into(), height.into())?;
    let turned = match format {
        // The tag is one of the file's own.
        ImageFormat::Tiff => decoder.orientation().map_or(1, |o| o.to_exif().into()),
        _ => decoder.exif_metadata().ok().flatten().map_or(1, |exif| orientation::of(&exif)),
    };
    let pixels = DynamicImage::from_decoder(decoder).map_err(bad)?.into_rgb8().into_raw();
    Ok(turn(Picture { width, height, channels: 3, pixels }, turned))
}
