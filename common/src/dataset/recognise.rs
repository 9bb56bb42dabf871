//! What a file is by its content, for messages about one that is not what it was taken
//! for: a page saved under the name of an archive, a workbook named .csv.

/// What [`content`] says of a tar.
pub(super) const TAR: &str = "a tar file";

/// What these first bytes of a file are, if it is known and no plain text.
pub(super) fn content(start: &[u8]) -> Option<&'static str> {
    let known: [(&[u8], &str); 13] = [
        (b"\x1f\x8b", "a gzip file"),
        (b"PK\x03\x04", "a zip file, or a workbook of Excel or LibreOffice"),
        (b"\xd0\xcf\x11\xe0", "a workbook of Excel"),
        (b"\x28\xb5\x2f\xfd", "a zstd file"),
        (b"\xfd7zXZ\0", "an xz file"),
        (b"PAR1\x15", "a parquet file"),
        (b"\x89HDF", "an HDF5 file"),
        (b"\x93NUMPY", "a NumPy file"),
        (b"%PDF-", "a PDF"),
        (b"\xff\xd8\xff", "a JPEG picture"),
        (b"\x89PNG", "a PNG picture"),
        (b"\xff\xfe", "a text in UTF-16"),
        (b"\xfe\xff", "a text in UTF-16"),
    ];
    let at = |from: usize, magic: &[u8]| start.get(from..from + magic.len()) == Some(magic);
    let found = known.iter().find(|(magic, _)| at(0, magic)).map(|(_, what)| *what);
    found
        .or_else(|| page(start))
        .or_else(|| (at(0, b"BZh") && at(4, b"1AY&SY")).then_some("a bzip2 file"))
        .or_else(|| at(257, b"ustar").then_some(TAR))
}

/// HTML, XML, and the pointers that Git leaves in place of large files.
fn page(start: &[u8]) -> Option<&'static str> {
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|t| t.eq_ignore_ascii_case(with.as_bytes()));
    if begins("<!doctype html") || begins("<html") || begins("<head") {
        Some("an HTML page")
    } else if begins("<?xml") {
        Some("an XML page")
    } else if begins("version https://git-lfs") {
        Some("a pointer of Git LFS (`git lfs pull` fetches the file)")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_content() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (start, word) in [
            (&b"\x1f\x8b\x08"[..], "gzip"),
            (b"PK\x03\x04rest", "zip"),
            (b"\xef\xbb\xbf \n<!DOCTYPE HTML><html>", "HTML"),
            (b"<?xml version='1.0'?><Error>", "XML"),
            (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
            (b"\xff\xfea\0,\0", "UTF-16"),
            (b"BZh91AY&SY", "bzip2"),
            (&tar, "tar"),
        ] {
            assert!(content(start).is_some_and(|what| what.contains(word)), "{word}: {:?}", content(start));
        }
        for plain in [&b""[..], b"a,b\n1,2\n", b"\xef\xbb\xbfa,b\n", b"<3,b\n", b"P", b"PAR1,BZh\n", b"BZh,x\n", b"\0\0\x08\x03"] {
            assert_eq!(content(plain), None, "{plain:?}");
        }
    }
}
