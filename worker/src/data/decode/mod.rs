//! Picture files to pixels: JPEG, PNG, WebP, GIF, BMP, TIFF and PNM, known by their first
//! bytes and not by their names; greyscale, palettes, transparency, 16 bits, CMYK and EXIF
//! orientation included. `pillow.txt` holds what Pillow makes of several hundred files.

mod error;
mod jpeg;
mod orientation;
mod others;
mod png;
#[cfg(test)]
mod tests;

use common::contained;
use common::dataset::SampleFormat;
use image::ImageFormat;

use super::picture::{Part, Picture, Region};
pub use error::DecodeError;

/// An undecoded sample whose size is known.
pub struct SampleFile<'a>(Content<'a>);

enum Content<'a> {
    Decoded(Picture),
    Jpeg(jpeg::Jpeg<'a>),
}

impl<'a> SampleFile<'a> {
    /// Reads a sample as far as needed to know its size. Encoded pictures become three
    /// channels, upright.
    pub fn open(format: SampleFormat, bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let content = match format {
            SampleFormat::Raw { height, width, channels } => {
                let expected = (u64::from(height) * u64::from(width) * u64::from(channels)) as usize;
                if bytes.len() != expected {
                    return Err(DecodeError::Raw { found: bytes.len(), expected });
                }
                Content::Decoded(Picture { width, height, channels, pixels: bytes.to_vec() })
            }
            SampleFormat::Features { .. } => return Err(DecodeError::Unknown),
            SampleFormat::Encoded => contained::run(|| encoded(bytes)).unwrap_or_else(|panic| Err(DecodeError::Panicked(panic)))?,
        };
        Ok(Self(content))
    }

    /// Width and height of the upright picture.
    pub fn size(&self) -> (u32, u32) {
        match &self.0 {
            Content::Decoded(picture) => (picture.width, picture.height),
            Content::Jpeg(jpeg) => jpeg.size(),
        }
    }

    /// Whether the file holds the picture turned.
    pub fn is_turned(&self) -> bool {
        matches!(&self.0, Content::Jpeg(jpeg) if jpeg.is_turned())
    }

    /// Decodes at least `region`; all of the picture if there is none.
    pub fn decode(self, region: Option<Region>) -> Result<Part, DecodeError> {
        match self.0 {
            Content::Decoded(picture) => Ok(Part { picture, left: 0, top: 0 }),
            Content::Jpeg(jpeg) => jpeg.decode(region),
        }
    }
}

/// Decodes all of a sample.
pub fn decode(format: SampleFormat, bytes: &[u8]) -> Result<Picture, DecodeError> {
    SampleFile::open(format, bytes)?.decode(None).map(|part| part.picture)
}

fn encoded(bytes: &[u8]) -> Result<Content<'_>, DecodeError> {
    if bytes.starts_with(&[0xff, 0xd8]) {
        return jpeg::Jpeg::open(bytes).map(Content::Jpeg);
    }
    let picture = match image::guess_format(bytes) {
        Ok(ImageFormat::Png) => png::decode(bytes),
        Ok(ImageFormat::WebP) => others::decode(bytes, ImageFormat::WebP, "WebP"),
        Ok(ImageFormat::Gif) => others::decode(bytes, ImageFormat::Gif, "GIF"),
        Ok(ImageFormat::Bmp) => others::decode(bytes, ImageFormat::Bmp, "BMP"),
        Ok(ImageFormat::Tiff) => others::decode(bytes, ImageFormat::Tiff, "TIFF"),
        Ok(ImageFormat::Pnm) => others::decode(bytes, ImageFormat::Pnm, "PNM"),
        _ => Err(DecodeError::Unknown),
    };
    picture.map(Content::Decoded)
}
