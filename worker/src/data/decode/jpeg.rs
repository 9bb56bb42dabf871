//! JPEG by libjpeg-turbo, which nearly all other programs use too: what they read is read
//! here, with the same pixels.

use std::ffi::{CStr, c_int};
use std::ptr::NonNull;

use turbojpeg_sys as tj;

use super::error::{DecodeError, MAX_PIXELS, check_size};
use super::orientation::{self, turn};
use crate::data::picture::{Part, Picture, Region};

/// The most passes over its coefficients that a progressive file may make. Encoders make
/// about ten; files with thousands were made to keep a decoder busy.
const MAX_SCANS: c_int = 500;

/// The most memory that a decoder may use, in MB: [`MAX_PIXELS`] as coefficients of two
/// bytes each in three channels.
const MAX_MEMORY: c_int = (MAX_PIXELS * 2 * 3 / 1_000_000) as c_int;

/// What the library says of a file that it nevertheless read to its end. Everything else
/// is an error, which it does not tell apart by its code.
const WARNINGS: [&str; 7] = [
    "Corrupt JPEG data",
    "Premature end of JPEG file",
    "Warning: ",
    "Unknown Adobe color transform",
    "Inconsistent progression sequence",
    "Invalid SOS parameters for sequential JPEG",
    "Application transferred too many scanlines",
];

/// The left edge of a part lies at a multiple of so many pixels: what one block of the
/// coarsest channel covers.
const BLOCK: u32 = 32;

/// At the edges of a part colours are interpolated without the neighbours beyond: so many
/// pixels more are decoded on each side.
const MARGIN: u32 = 16;

/// A part is decoded by itself if it has at most this share of the picture.
const WORTH_IT: f64 = 0.9;

/// A JPEG whose header was read.
pub(super) struct Jpeg<'a> {
    bytes: &'a [u8],
    decoder: Decoder,
    header: Header,
    orientation: u32,
}

impl<'a> Jpeg<'a> {
    pub(super) fn open(bytes: &'a [u8]) -> Result<Self, DecodeError> {
        let decoder = Decoder::new().map_err(DecodeError::Jpeg)?;
        let header = decoder.header(bytes).map_err(DecodeError::Jpeg)?;
        check_size(header.width.into(), header.height.into())?;
        Ok(Self { bytes, decoder, header, orientation: exif(bytes).map_or(1, orientation::of) })
    }

    /// Width and height of the upright picture.
    pub(super) fn size(&self) -> (u32, u32) {
        let Header { width, height, .. } = self.header;
        if self.orientation >= 5 { (height, width) } else { (width, height) }
    }

    pub(super) fn is_turned(&self) -> bool {
        self.orientation != 1
    }

    /// Decodes at least `region`, if it is worth it, else the whole picture.
    pub(super) fn decode(self, region: Option<Region>) -> Result<Part, DecodeError> {
        // A file without an end is decoded to where it stops, whatever is asked of it: it
        // is damaged in every epoch or in none.
        let region = region.filter(|_| self.orientation == 1 && !self.header.inks && has_end(self.bytes));
        let part = region.and_then(|region| self.decoder.crop(&self.header, region));
        let [left, top, width, height] = part.unwrap_or([0, 0, self.header.width, self.header.height]);
        let (format, channels) = if self.header.inks { (tj::TJPF_TJPF_CMYK, 4) } else { (tj::TJPF_TJPF_RGB, 3) };
        let pitch = width as usize * channels;
        let mut pixels = vec![0; pitch * height as usize];
        let warned = self.decoder.pixels(self.bytes, format, pitch, &mut pixels).map_err(DecodeError::Jpeg)?;
        // The library fills the rest of a file that was cut short with grey.
        if warned && !has_end(self.bytes) {
            return Err(DecodeError::Jpeg("it is cut short".to_owned()));
        }
        if self.header.inks {
            pixels = pixels.as_chunks::<4>().0.iter().flat_map(|inks| light(*inks)).collect();
        }
        Ok(Part { picture: turn(Picture { width, height, channels: 3, pixels }, self.orientation), left, top })
    }
}

struct Header {
    width: u32,
    height: u32,
    /// Whether its four channels are inks (CMYK, YCCK).
    inks: bool,
}

/// A decoder of the library.
struct Decoder(NonNull<std::ffi::c_void>);

impl Decoder {
    fn new() -> Result<Self, String> {
        // SAFETY: takes a number; the handle is released once, by `drop`.
        let handle = unsafe { tj::tj3Init(tj::TJINIT_TJINIT_DECOMPRESS as c_int) };
        let decoder = Self(NonNull::new(handle).ok_or("the decoder could not be started: is memory short?")?);
        for (parameter, value) in [(tj::TJPARAM_TJPARAM_SCANLIMIT, MAX_SCANS), (tj::TJPARAM_TJPARAM_MAXMEMORY, MAX_MEMORY)] {
            // SAFETY: the handle is valid as long as `self` lives.
            if unsafe { tj::tj3Set(decoder.0.as_ptr(), parameter as c_int, value) } != 0 {
                return Err(decoder.message());
            }
        }
        Ok(decoder)
    }

    fn header(&self, bytes: &[u8]) -> Result<Header, String> {
        // SAFETY: the handle is valid, and the library reads `bytes.len()` bytes at most.
        let status = unsafe { tj::tj3DecompressHeader(self.0.as_ptr(), bytes.as_ptr(), bytes.len() as tj::size_t) };
        self.outcome(status)?;
        let positive = |value: c_int| u32::try_from(value).ok().filter(|v| *v > 0).ok_or("it has no picture");
        let space = self.get(tj::TJPARAM_TJPARAM_COLORSPACE);
        Ok(Header {
            width: positive(self.get(tj::TJPARAM_TJPARAM_JPEGWIDTH))?,
            height: positive(self.get(tj::TJPARAM_TJPARAM_JPEGHEIGHT))?,
            inks: [tj::TJCS_TJCS_CMYK, tj::TJCS_TJCS_YCCK].iter().any(|inks| *inks as c_int == space),
        })
    }

    /// Has the decoder make only a part that contains `region`, and returns that part; none
    /// if it would be most of the picture, or if the library decodes only all of it.
    fn crop(&self, header: &Header, [left, top, width, height]: Region) -> Option<Region> {
        let x = left.saturating_sub(MARGIN) / BLOCK * BLOCK;
        let y = top.saturating_sub(MARGIN);
        let w = left.saturating_add(width).saturating_add(MARGIN).min(header.width).checked_sub(x)?;
        let h = top.saturating_add(height).saturating_add(MARGIN).min(header.height).checked_sub(y)?;
        let share = f64::from(w) * f64::from(h) / (f64::from(header.width) * f64::from(header.height));
        if w == 0 || h == 0 || share > WORTH_IT {
            return None;
        }
        let [cx, cy, cw, ch] = [x, y, w, h].map(c_int::try_from);
        let region = tj::tjregion { x: cx.ok()?, y: cy.ok()?, w: cw.ok()?, h: ch.ok()? };
        // SAFETY: the handle is valid.
        let status = unsafe { tj::tj3SetCroppingRegion(self.0.as_ptr(), region) };
        (status == 0).then_some([x, y, w, h])
    }

    /// Fills `out`, rows of `pitch` bytes. Returns whether something in the file was not as
    /// it should be.
    fn pixels(&self, bytes: &[u8], format: tj::TJPF, pitch: usize, out: &mut [u8]) -> Result<bool, String> {
        let pitch = c_int::try_from(pitch).map_err(|_| "its rows are too long")?;
        // SAFETY: the handle is valid, the library reads `bytes.len()` bytes at most, and
        // `out` has the rows of the part that was set, or those that the header of the
        // same bytes announced.
        let status = unsafe {
            tj::tj3Decompress8(self.0.as_ptr(), bytes.as_ptr(), bytes.len() as tj::size_t, out.as_mut_ptr(), pitch, format as c_int)
        };
        self.outcome(status)
    }

    /// Whether the library warned; an error if it did not get to the end.
    fn outcome(&self, status: c_int) -> Result<bool, String> {
        if status == 0 {
            return Ok(false);
        }
        let message = self.message();
        // SAFETY: the handle is valid.
        let code = unsafe { tj::tj3GetErrorCode(self.0.as_ptr()) };
        // The code of an error that follows a warning is that of the warning.
        let warning = code == tj::TJERR_TJERR_WARNING as c_int && WARNINGS.iter().any(|w| message.starts_with(w));
        if warning { Ok(true) } else { Err(message) }
    }

    fn get(&self, parameter: tj::TJPARAM) -> c_int {
        // SAFETY: the handle is valid.
        unsafe { tj::tj3Get(self.0.as_ptr(), parameter as c_int) }
    }

    fn message(&self) -> String {
        // SAFETY: the library returns text that ends with a zero and lives until its next
        // call on this thread.
        unsafe { CStr::from_ptr(tj::tj3GetErrorStr(self.0.as_ptr())) }.to_string_lossy().into_owned()
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        // SAFETY: the handle is valid and nobody uses it afterwards.
        unsafe { tj::tj3Destroy(self.0.as_ptr()) };
    }
}

/// The light that inks leave, as Pillow computes it. Files hold inks inverted, as Adobe's
/// programs write them: 255 is no ink.
fn light([c, m, y, k]: [u8; 4]) -> [u8; 3] {
    let scaled = |a: u8| {
        let product = u32::from(255 - a) * u32::from(k) + 128;
        (u32::from(k) - ((product >> 8) + product) / 256) as u8
    };
    [scaled(c), scaled(m), scaled(y)]
}

/// Whether the end of the picture follows its last scan.
fn has_end(bytes: &[u8]) -> bool {
    // So nearly all files end: nothing is searched in them.
    if bytes.ends_with(&[0xff, 0xd9]) {
        return true;
    }
    let scan = bytes.windows(2).rposition(|w| w == [0xff, 0xda]).unwrap_or(0);
    bytes[scan..].windows(2).any(|w| w == [0xff, 0xd9])
}

/// The TIFF block of the first EXIF segment. Bytes between segments are passed over, as
/// the library does.
fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 2;
    loop {
        at += bytes.get(at..)?.iter().position(|b| *b == 0xff)?;
        let marker = *bytes.get(at + 1)?;
        match marker {
            // Fill bytes, and what looks like a marker between segments.
            0xff => at += 1,
            0 | 1 | 0xd0..=0xd8 => at += 2,
            // The picture begins.
            0xd9 | 0xda => return None,
            _ => {
                let length = usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]));
                let segment = bytes.get(at + 4..)?;
                let segment = &segment[..length.saturating_sub(2).min(segment.len())];
                if let (0xe1, Some(tiff)) = (marker, segment.strip_prefix(orientation::PREFIX)) {
                    return Some(tiff);
                }
                at += 2 + length.max(2);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_ink_is_white_and_full_black_is_black() {
        assert_eq!(light([255; 4]), [255; 3]);
        assert_eq!(light([255, 255, 255, 0]), [0; 3]);
        assert_eq!(light([0, 255, 255, 255]), [0, 255, 255]);
        assert_eq!(light([128, 0, 255, 100]), [50, 0, 100]);
    }

    #[test]
    fn exif_is_found_behind_stray_bytes_and_not_in_the_picture() {
        let segment = |text: &[u8]| [&[0xff, 0xe1, 0, text.len() as u8 + 2], text].concat();
        let (start, found) = ([0xff, 0xd8], segment(b"Exif\0\0II"));
        assert_eq!(exif(&[&start[..], &found].concat()), Some(&b"II"[..]));
        assert_eq!(exif(&[&start[..], &[1, 2, 0xff, 0xff], &segment(b"http"), &[7], &found].concat()), Some(&b"II"[..]));
        assert_eq!(exif(&[&start[..], &[0xff, 0xda, 0, 2], &found].concat()), None);
        for cut in 0..found.len() {
            assert!(exif(&[&start[..], &found[..cut]].concat()).is_none_or(|tiff| tiff.len() < 2));
        }
    }
}
