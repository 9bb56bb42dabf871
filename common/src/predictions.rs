//! Validation pictures with what the model says of them, which evaluations show. They come
//! from a member of the ring, are kept in the run directory, and are shown to browsers, so
//! [`Predictions::check`] admits only what is bounded and what is a picture by its content.

use std::io::Read;

use flate2::Crc;
use flate2::bufread::ZlibDecoder;
use serde::{Deserialize, Serialize};

/// The most pictures, and the most guesses of one.
pub const MOST: usize = 8;
pub const GUESSES: usize = 3;

/// The most pixels on a side of a picture, and the most bytes of all PNG files together,
/// so that they and the page that shows them are sent in 200 KB.
pub const MAX_SIDE: u32 = 96;
pub const MAX_BYTES: usize = 100_000;

/// What the model says of some pictures after `step` steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Predictions {
    pub step: u64,
    pub pictures: Vec<PredictedPicture>,
}

/// A picture, its class, and the likeliest classes, best first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct PredictedPicture {
    pub label: u32,
    pub guesses: Vec<Guess>,
    /// The content of a PNG file: the part that is evaluated, as it looks to a person.
    #[serde(with = "base64")]
    pub png: Vec<u8>,
}

/// A class, and the softmax of its score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, rkyv::Archive, rkyv::Serialize, rkyv::Deserialize)]
pub struct Guess {
    pub class: u32,
    pub probability: f32,
}

impl PredictedPicture {
    /// Whether the best guess is the class.
    pub fn is_right(&self) -> bool {
        self.guesses.first().is_some_and(|guess| guess.class == self.label)
    }
}

impl Predictions {
    /// The bytes of all PNG files.
    pub fn bytes(&self) -> usize {
        self.pictures.iter().map(|picture| picture.png.len()).sum()
    }

    /// Checks that these can be predictions of a model with so many classes, and that the
    /// pictures are whole PNG files within their bounds.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self, classes: usize) -> Result<(), String> {
        if self.pictures.len() > MOST {
            return Err(format!("an evaluation shows at most {MOST} pictures, and these are {}", self.pictures.len()));
        }
        if self.bytes() > MAX_BYTES {
            return Err(format!("the pictures of an evaluation have at most {MAX_BYTES} bytes, and these {}", self.bytes()));
        }
        for (place, picture) in self.pictures.iter().enumerate() {
            picture.check(classes).map_err(|problem| format!("picture {place} of step {}: {problem}", self.step))?;
        }
        Ok(())
    }
}

impl PredictedPicture {
    fn check(&self, classes: usize) -> Result<(), String> {
        let guesses = self.guesses.len();
        if guesses == 0 || guesses > GUESSES {
            return Err(format!("has {guesses} guesses, and not 1 to {GUESSES}"));
        }
        let named = self.guesses.iter().map(|guess| guess.class).chain([self.label]);
        if let Some(class) = named.into_iter().find(|class| *class as usize >= classes) {
            return Err(format!("is of class {class} of {classes}"));
        }
        if let Some(guess) = self.guesses.iter().find(|guess| !(0.0..=1.0).contains(&guess.probability)) {
            return Err(format!("has a guess of probability {}", guess.probability));
        }
        check_png(&self.png)
    }
}

/// Checks that this is a PNG file as the worker writes them, from its first byte to its last
/// (Portable Network Graphics Specification, second edition): 8 bits of grey or of RGB, not
/// interlaced, no chunk but the three that a picture needs, no pixel too few or too many.
fn check_png(png: &[u8]) -> Result<(), String> {
    let problem = |problem: &str| Err(format!("is no PNG file of the expected kind: {problem}"));
    let Some(mut rest) = png.strip_prefix(b"\x89PNG\r\n\x1a\n") else { return problem("it does not begin like one") };
    let (mut rows, mut compressed, mut ended) = (None, Vec::new(), false);
    while let Some((kind, content)) = chunk(&mut rest) {
        match (kind, rows) {
            (b"IHDR", None) => match row(content) {
                Some(found) => rows = Some(found),
                None => return problem(&format!("it is not 8 bits of grey or of RGB on 1 to {MAX_SIDE} pixels a side")),
            },
            (b"IDAT", Some(_)) => compressed.extend_from_slice(content),
            (b"IEND", Some(_)) if content.is_empty() => {
                ended = true;
                break;
            }
            _ => return problem("it has a chunk that is not needed, or in another order"),
        }
    }
    let Some((height, width)) = rows.filter(|_| ended && rest.is_empty()) else {
        return problem("it is cut off, or a checksum is wrong, or something follows its end");
    };
    // One byte more than there can be: a file that unpacks to more takes no more memory.
    let size = height * width;
    let (mut pixels, mut decoder) = (Vec::new(), ZlibDecoder::new(compressed.as_slice()));
    let unpacked = decoder.by_ref().take(size as u64 + 1).read_to_end(&mut pixels);
    let whole = unpacked.is_ok() && pixels.len() == size && decoder.total_in() == compressed.len() as u64;
    // The first byte of a row says how it is filtered, in one of five ways.
    if whole && pixels.chunks_exact(width).all(|row| row[0] <= 4) { Ok(()) } else { problem("its pixels do not unpack") }
}

/// Height, and bytes of an unpacked row, by the content of a header.
fn row(header: &[u8]) -> Option<(usize, usize)> {
    let header: &[u8; 13] = header.try_into().ok()?;
    let side = |at: usize| {
        let side = u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        (1..=MAX_SIDE).contains(&side).then_some(side as usize)
    };
    let channels = match header[8..] {
        [8, 0, 0, 0, 0] => 1,
        [8, 2, 0, 0, 0] => 3,
        _ => return None,
    };
    Some((side(4)?, 1 + side(0)? * channels))
}

/// Takes the next chunk, if it is whole and its checksum is right.
fn chunk<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8; 4], &'a [u8])> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    let checked = after.get(..length.checked_add(4)?)?;
    let (checksum, after) = after[checked.len()..].split_first_chunk::<4>()?;
    let mut crc = Crc::new();
    crc.update(checked);
    if crc.sum() != u32::from_be_bytes(*checksum) {
        return None;
    }
    *rest = after;
    checked.split_first_chunk::<4>()
}

/// Bytes in a JSON file.
mod base64 {
    use data_encoding::BASE64;
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        BASE64.decode(text.as_bytes()).map_err(D::Error::custom)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;

    use super::*;

    fn with_checksum(kind: &[u8; 4], content: &[u8]) -> Vec<u8> {
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(content);
        [&(content.len() as u32).to_be_bytes(), &kind[..], content, &crc.sum().to_be_bytes()].concat()
    }

    fn header(width: u32, height: u32, rest: [u8; 5]) -> Vec<u8> {
        with_checksum(b"IHDR", &[&width.to_be_bytes(), &height.to_be_bytes(), &rest[..]].concat())
    }

    fn pixels(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        [b"\x89PNG\r\n\x1a\n".to_vec(), chunks.concat()].concat()
    }

    /// A grey picture of two rows of three pixels.
    fn grey() -> Vec<u8> {
        let content = pixels(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let (first, second) = content.split_at(5);
        file(&[header(3, 2, [8, 0, 0, 0, 0]), with_checksum(b"IDAT", first), with_checksum(b"IDAT", second), with_checksum(b"IEND", b"")])
    }

    fn predictions(png: Vec<u8>) -> Predictions {
        let guesses = vec![Guess { class: 1, probability: 0.75 }, Guess { class: 0, probability: 0.25 }];
        Predictions { step: 5, pictures: vec![PredictedPicture { label: 1, guesses, png }] }
    }

    #[test]
    fn only_bounded_pictures_by_their_content_are_admitted() {
        let grey = grey();
        predictions(grey.clone()).check(2).unwrap();
        let rgb = |side: u32, bytes: usize| {
            let content = with_checksum(b"IDAT", &pixels(&vec![0; bytes]));
            file(&[header(side, side, [8, 2, 0, 0, 0]), content, with_checksum(b"IEND", b"")])
        };
        predictions(rgb(MAX_SIDE, 96 * 289)).check(2).unwrap();
        let (idat, iend) = (with_checksum(b"IDAT", &pixels(&[0; 8])), with_checksum(b"IEND", b""));
        let plain = header(3, 2, [8, 0, 0, 0, 0]);
        let more = [pixels(&[0; 8]), b"more".to_vec()].concat();
        let refused = [
            b"GIF89a".to_vec(),
            b"<svg onload=\"alert(1)\"/>".to_vec(),
            grey[..grey.len() - 1].to_vec(),
            [grey.clone(), b"<script>".to_vec()].concat(),
            rgb(MAX_SIDE + 1, 97 * 292),
            // A picture of 27 KB that unpacks to 50 MB, and one that lacks a row.
            rgb(MAX_SIDE, 50 << 20),
            rgb(MAX_SIDE, 95 * 289),
            file(&[header(0, 2, [8, 0, 0, 0, 0]), idat.clone(), iend.clone()]),
            // 16 bits, a palette, interlaced.
            file(&[header(3, 2, [16, 0, 0, 0, 0]), idat.clone(), iend.clone()]),
            file(&[header(3, 2, [8, 3, 0, 0, 0]), idat.clone(), iend.clone()]),
            file(&[header(3, 2, [8, 0, 0, 0, 1]), idat.clone(), iend.clone()]),
            // Text in it, pixels before the header, a sixth filter, something after the pixels.
            file(&[plain.clone(), with_checksum(b"tEXt", b"Comment\0<script>"), idat.clone(), iend.clone()]),
            file(&[idat.clone(), plain.clone(), iend.clone()]),
            file(&[plain.clone(), with_checksum(b"IDAT", &pixels(&[5; 8])), iend.clone()]),
            file(&[plain.clone(), with_checksum(b"IDAT", &more), iend.clone()]),
            file(&[plain.clone(), plain, idat, iend]),
        ];
        for (number, png) in refused.into_iter().enumerate() {
            assert!(predictions(png).check(2).is_err(), "the file {number} was admitted");
        }
        for at in 0..grey.len() {
            let mut damaged = grey.clone();
            damaged[at] ^= 1;
            assert!(predictions(damaged).check(2).is_err(), "a flipped bit of byte {at} was not found");
        }
    }

    #[test]
    fn only_bounded_predictions_of_the_model_are_admitted() {
        let good = predictions(grey());
        assert!(good.pictures[0].is_right());
        let other = |change: &dyn Fn(&mut Predictions)| {
            let mut changed = good.clone();
            change(&mut changed);
            changed.check(2).unwrap_err()
        };
        let many = good.pictures[0].clone();
        assert!(other(&|p| p.pictures = vec![many.clone(); MOST + 1]).contains("at most 8 pictures"));
        assert!(other(&|p| p.pictures[0].png = vec![0; MAX_BYTES + 1]).contains("at most 100000 bytes"));
        assert!(other(&|p| p.pictures[0].label = 2).contains("picture 0 of step 5: is of class 2 of 2"));
        assert!(other(&|p| p.pictures[0].guesses[1].class = 9).contains("class 9"));
        assert!(other(&|p| p.pictures[0].guesses.clear()).contains("0 guesses"));
        assert!(other(&|p| p.pictures[0].guesses = vec![Guess { class: 0, probability: 0.1 }; 4]).contains("4 guesses"));
        for probability in [-0.1, 1.1, f32::NAN, f32::INFINITY] {
            assert!(other(&|p| p.pictures[0].guesses[0].probability = probability).contains("probability"));
        }
    }

    #[test]
    fn predictions_in_a_file_are_the_same_predictions() {
        let good = predictions(grey());
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Predictions>(&text).unwrap(), good);
        assert!(serde_json::from_str::<Predictions>(&text.replace("\"png\":\"", "\"png\":\"<")).is_err());
    }
}
