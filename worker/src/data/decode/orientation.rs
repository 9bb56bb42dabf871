//! Which way up a picture is, as cameras record it: the EXIF 2.3 specification, tag 0x0112.

use exif::{In, Reader, Tag};

use crate::data::picture::Picture;

/// What stands before an EXIF block in a JPEG, and in other files of some programs.
pub(super) const PREFIX: &[u8] = b"Exif\0\0";

/// The orientation in an EXIF block, 1 (upright) where there is none or a nonsensical one.
/// What is damaged elsewhere in the block does not matter.
pub(super) fn of(exif: &[u8]) -> u32 {
    let tiff = exif.strip_prefix(PREFIX).unwrap_or(exif);
    let parsed = Reader::new().continue_on_error(true).read_raw(tiff.to_vec());
    let parsed = parsed.or_else(|e| e.distill_partial_result(|_| {}));
    let value = parsed.ok().and_then(|e| {
        let field = e.get_field(Tag::Orientation, In::PRIMARY)?;
        field.value.get_uint(0)
    });
    value.filter(|v| (1..=8).contains(v)).unwrap_or(1)
}

/// Turns a picture of three channels upright. Orientations 5 to 8 swap rows and columns.
pub(super) fn turn(picture: Picture, orientation: u32) -> Picture {
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

    /// A block of little-endian entries (tag, type, count, value).
    fn block(entries: &[(u16, u16, u32, u32)], next: &[u8]) -> Vec<u8> {
        let mut bytes = b"II\x2a\0\x08\0\0\0".to_vec();
        bytes.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in entries {
            bytes.extend([&tag.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &value.to_le_bytes()].concat());
        }
        [&bytes, next].concat()
    }

    #[test]
    fn damage_elsewhere_does_not_hide_the_orientation() {
        const SHORT: u16 = 3;
        let upright = (0x0112, SHORT, 1, 6);
        let last = [0; 4];
        assert_eq!(of(&block(&[upright], &last)), 6);
        assert_eq!(of(&block(&[upright], &[])), 6, "the next directory's place is missing");
        assert_eq!(of(&block(&[upright], &[0xff, 0xff, 0xff, 0x7f])), 6, "the next directory is beyond the end");
        assert_eq!(of(&block(&[upright, (0x8769, 4, 1, 0x7fff_ffff)], &last)), 6, "the camera's directory is beyond the end");
        assert_eq!(of(&block(&[(0x010f, 2, 0x7fff_ffff, 8), upright], &last)), 6, "an entry before it is too long");
        assert_eq!(of(&block(&[upright, (0x0110, 2, 40, 0xffff)], &last)), 6, "an entry behind it is too long");
        assert_eq!(of(&block(&[(0x0112, 4, 1, 8)], &last)), 8, "another type of number");
        assert_eq!(of(&block(&[(0x0112, SHORT, 1, 9)], &last)), 1);
        assert_eq!(of(&block(&[], &last)), 1);
        assert_eq!(of(b"II"), 1);
        let whole = block(&[upright], &last);
        (0..whole.len()).for_each(|cut| assert!([1, 6].contains(&of(&whole[..cut])), "cut at {cut}"));
    }
}
