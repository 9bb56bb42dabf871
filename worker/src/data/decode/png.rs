//! PNG: every colour type, 16 bits, interlaced, and what a damaged checksum covers.

use std::io::Cursor;

use png::{ColorType, Decoder, Limits, Transformations};

use super::error::{DecodeError, MAX_PIXELS, check_size};
use super::orientation::{self, turn};
use crate::data::picture::Picture;

pub(super) fn decode(bytes: &[u8]) -> Result<Picture, DecodeError> {
    let bad = |e: png::DecodingError| DecodeError::Png(e.to_string());
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: (MAX_PIXELS * 8) as usize });
    // Eight bits a channel; the upper half of sixteen.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    // A checksum that does not match is no reason to do without the picture: other
    // readers do not look at those of the pixels.
    decoder.ignore_checksums(true);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let mut reader = decoder.read_info().map_err(bad)?;
    let (width, height) = (reader.info().width, reader.info().height);
    check_size(width.into(), height.into())?;
    let size = reader.output_buffer_size().ok_or(DecodeError::TooLarge { width: width.into(), height: height.into() })?;
    let mut pixels = vec![0; size];
    let output = reader.next_frame(&mut pixels).map_err(bad)?;
    pixels.truncate(output.buffer_size());
    let pixels = match output.color_type {
        ColorType::Rgb => pixels,
        ColorType::Rgba => pixels.as_chunks::<4>().0.iter().flat_map(|[r, g, b, _]| [*r, *g, *b]).collect(),
        ColorType::Grayscale => pixels.iter().flat_map(|v| [*v; 3]).collect(),
        ColorType::GrayscaleAlpha => pixels.as_chunks::<2>().0.iter().flat_map(|[v, _]| [*v; 3]).collect(),
        ColorType::Indexed => return Err(DecodeError::Png("it has indices and no palette".to_owned())),
    };
    // Metadata may follow the pixels; a file that ends too early there has its pixels.
    _ = reader.finish();
    let turned = reader.info().exif_metadata.as_ref().map_or(1, |exif| orientation::of(exif));
    // An animation's picture may be smaller than its canvas.
    Ok(turn(Picture { width: output.width, height: output.height, channels: 3, pixels }, turned))
}
