//! Several hundred made files, against what Pillow makes of them.
//!
//! `pillow.txt` has a line for each: its name, the start of the file's SHA-256, and either
//! width, height and the start of the pixels' SHA-256 or `refused`. After a change to the
//! makers it is written anew:
//!
//! ```sh
//! PICTURES=DIR cargo test --release -p worker --lib made_files_are_written -- --ignored
//! python3 worker/src/data/decode/tests/pillow.py DIR > worker/src/data/decode/tests/pillow.txt
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod jpegs;
mod others;

use std::collections::BTreeMap;

use common::dataset::SampleFormat;
use digest::Digest;
use sha2::Sha256;

use super::{DecodeError, SampleFile, decode};
use crate::data::picture::Picture;

/// What Pillow made of the files.
fn pillow() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/data/decode/tests/pillow.txt");
    std::fs::read_to_string(path).unwrap_or_default()
}

/// The name and content of a made file.
type Made = (String, Vec<u8>);

fn all() -> Vec<Made> {
    [jpegs::all(), others::all()].concat()
}

/// The first 16 hexadecimal digits of the SHA-256.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().take(8).map(|b| format!("{b:02x}")).collect()
}

/// `[height, width, 3]` bytes of smooth colours with edges and some noise.
fn scene(width: usize, height: usize) -> Vec<u8> {
    let at = |x: usize, y: usize| {
        let noise = (x * 7919 + y * 104_729 + x * y * 31) % 29;
        let edge = if (x / 5 + y / 7).is_multiple_of(3) { 90 } else { 0 };
        [(x * 255 / width + noise) as u8 / 2 + edge, (y * 200 / height + noise) as u8, ((x + y) * 3 + noise) as u8 / 2 + edge]
    };
    (0..height).flat_map(|y| (0..width).flat_map(move |x| at(x, y))).collect()
}

/// The outcome of a file in the form of `pillow.txt`.
fn outcome(bytes: &[u8]) -> Result<String, DecodeError> {
    let picture = decode(SampleFormat::Encoded, bytes)?;
    Ok(format!("{}x{} {}", picture.width, picture.height, digest(&picture.pixels)))
}

#[test]
fn made_files_have_the_pixels_that_pillow_reads() {
    let text = pillow();
    let known: BTreeMap<&str, (&str, &str)> = text
        .lines()
        .map(|line| {
            let (name, rest) = line.split_once(' ').unwrap();
            (name, rest.split_once(' ').unwrap())
        })
        .collect();
    let made = all();
    assert!(made.iter().filter(|(name, _)| name.ends_with(".jpg")).count() >= 400);
    assert_eq!(made.len(), known.len(), "pillow.txt is of other files: write it anew");
    let mut differences = Vec::new();
    for (name, bytes) in &made {
        let (file, expected) = known[name.as_str()];
        assert_eq!(file, digest(bytes), "`{name}` is made otherwise than when pillow.txt was written: write it anew");
        let found = outcome(bytes);
        let found = found.as_ref().map_or_else(|e| format!("refused, it {e}"), Clone::clone);
        if !(found == expected || (expected == "refused" && found.starts_with("refused"))) {
            differences.push(format!("{name}: {found}, in Pillow {expected}"));
        }
    }
    assert!(differences.is_empty(), "{} of {} files:\n{}", differences.len(), made.len(), differences.join("\n"));
}

#[test]
#[ignore = "writes files for pillow.py"]
fn made_files_are_written() {
    let folder = std::path::PathBuf::from(std::env::var_os("PICTURES").expect("PICTURES names the folder"));
    std::fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in all() {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

#[test]
fn a_part_has_the_pixels_of_the_whole() {
    let (width, height) = (230u32, 170u32);
    let mut parts = 0;
    for (name, bytes) in jpegs::of_sizes(&[(width as usize, height as usize)]) {
        let whole = decode(SampleFormat::Encoded, &bytes).unwrap();
        for region @ [left, top, w, h] in [[0, 0, 60, 40], [90, 61, 70, 55], [150, 100, 80, 70], [33, 0, 20, 170], [0, 77, 230, 9]] {
            let part = SampleFile::open(SampleFormat::Encoded, &bytes).unwrap().decode(Some(region)).unwrap();
            parts += u32::from((part.picture.width, part.picture.height) != (width, height));
            for y in top..top + h {
                let row = |picture: &Picture, x: u32, y: u32| {
                    let at = (y * picture.width + x) as usize * 3;
                    picture.pixels[at..at + w as usize * 3].to_vec()
                };
                assert_eq!(row(&part.picture, left - part.left, y - part.top), row(&whole, left, y), "{name}: row {y} of {region:?}");
            }
        }
    }
    // Four samplings are none that the library decodes in part.
    assert!(parts > 100, "{parts}");
}

#[test]
fn a_turned_picture_is_decoded_whole_and_cut_short_ones_are_refused_in_every_part() {
    let (name, bytes) = jpegs::of_sizes(&[(200, 200)]).swap_remove(18);
    let open = |bytes: &[u8]| SampleFile::open(SampleFormat::Encoded, bytes).unwrap().decode(Some([0, 0, 20, 20]));
    assert!(open(&bytes).unwrap().picture.height < 60, "{name}");
    let cut = open(&bytes[..bytes.len() * 3 / 4]);
    assert!(matches!(cut, Err(DecodeError::Jpeg(_))), "{cut:?}");
    let turned = jpegs::turned(&bytes);
    let turned = SampleFile::open(SampleFormat::Encoded, &turned).unwrap();
    assert_eq!(turned.decode(Some([0, 0, 20, 20])).unwrap().picture.height, 200);
}

#[test]
fn files_cut_short_or_damaged_anywhere_are_read_or_refused_and_nothing_worse() {
    for (n, (name, bytes)) in all().into_iter().enumerate().step_by(7) {
        for part in 1..4 {
            let cut = bytes.len() * part / 4;
            let found = decode(SampleFormat::Encoded, &bytes[..cut]);
            // A file that Pillow reads may have its pixels in the first part.
            assert!(!matches!(found, Err(DecodeError::Panicked(_))), "{name} cut at {cut}: {found:?}");
        }
        let mut damaged = bytes;
        for i in 0..4 {
            let at = (n * 7919 + i * 104_729) % damaged.len();
            damaged[at] ^= 1 << (n % 8);
        }
        _ = decode(SampleFormat::Encoded, &damaged);
    }
}
