//! Which files are pictures: by name where the name says so, so that a large set is
//! listed without opening its files; otherwise by their first bytes.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Endings of pictures, in any case; `jpg_large` is what one service once called JPEGs.
const ENDINGS: [&str; 16] =
    ["jpg", "jpeg", "png", "jpe", "jfif", "jpg_large", "webp", "bmp", "dib", "gif", "tif", "tiff", "pbm", "pgm", "ppm", "pnm"];

/// Bytes from which a picture can be told.
const HEAD: usize = 32;

pub(super) fn hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n.as_bytes().starts_with(b"."))
}

/// A link to something that is not there.
pub(super) fn is_broken_link(path: &Path) -> bool {
    path.is_symlink() && std::fs::metadata(path).is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

pub(super) fn is_named_as_picture(path: &Path) -> bool {
    path.extension().is_some_and(|e| ENDINGS.iter().any(|known| e.eq_ignore_ascii_case(known)))
}

/// Whether a regular file is a picture by its name or by its first bytes. Errors if it
/// cannot be read.
pub(super) fn is_picture(path: &Path) -> io::Result<bool> {
    if is_named_as_picture(path) {
        return Ok(true);
    }
    let mut head = Vec::with_capacity(HEAD);
    File::open(path)?.take(HEAD as u64).read_to_end(&mut head)?;
    Ok(begins_picture(&head))
}

fn begins_picture(head: &[u8]) -> bool {
    let at = |place: usize, bytes: &[u8]| head.get(place..).is_some_and(|rest| rest.starts_with(bytes));
    let named = [&b"\xff\xd8\xff"[..], b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*"].into_iter().any(|start| head.starts_with(start));
    named || (at(0, b"RIFF") && at(8, b"WEBP")) || begins_bitmap(head) || begins_netpbm(head)
}

/// Two letters begin many a text: what Windows bitmaps reserve is 0, and the second header
/// has one of few sizes.
fn begins_bitmap(head: &[u8]) -> bool {
    const HEADERS: [u32; 8] = [12, 16, 40, 52, 56, 64, 108, 124];
    let size = head.get(14..18).and_then(|size| size.try_into().ok()).map(u32::from_le_bytes);
    head.starts_with(b"BM") && head.get(6..10) == Some(&[0; 4]) && size.is_some_and(|size| HEADERS.contains(&size))
}

/// P1 to P6, white space, and then the width or a comment.
fn begins_netpbm(head: &[u8]) -> bool {
    let [b'P', b'1'..=b'6', space, rest @ ..] = head else { return false };
    let next = rest.iter().find(|byte| !byte.is_ascii_whitespace());
    space.is_ascii_whitespace() && next.is_some_and(|&byte| byte.is_ascii_digit() || byte == b'#')
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn usual_endings_in_any_case_are_pictures_unopened() {
        for name in ["a.jpg", "a.JPEG", "a.b.Png", "a.jpg_large", "a.JFIF", "a.tIf", "nowhere/a.dib", "a.webp", "a.PNM"] {
            assert!(is_picture(Path::new(name)).unwrap(), "{name}");
        }
        for name in ["jpg", ".jpg", "a.jpg.txt", "a.jpg~", "a.jp"] {
            assert!(!is_named_as_picture(Path::new(name)), "{name}");
        }
    }

    #[test]
    fn other_files_are_pictures_by_their_first_bytes() {
        let bitmap = b"BM\x46\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0\x02\0\0\0";
        let pictures: [&[u8]; 10] = [
            b"\xff\xd8\xff\xe0\0\x10JFIF",
            b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
            b"RIFF\x24\0\0\0WEBPVP8 ",
            bitmap,
            b"GIF89a\x01\0",
            b"II*\0\x08\0",
            b"MM\0*\0\0",
            b"P6\n3 2\n255\n",
            b"P1 # made by hand\n",
            b"P5\t\n 1",
        ];
        for head in pictures {
            assert!(begins_picture(head), "{}", head.escape_ascii());
        }
        let others: [&[u8]; 9] = [
            b"",
            b"BMW is a car of many letters",
            b"RIFF\x24\0\0\0WAVEfmt ",
            b"\xff\xd8",
            b"\x89PNG",
            b"P7\nWIDTH 3",
            b"P5 is a processor",
            b"II* is no TIFF",
            b"GIF",
        ];
        for head in others {
            assert!(!begins_picture(head), "{}", head.escape_ascii());
        }
    }
}
