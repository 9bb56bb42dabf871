//! The inputs of a batch as they wait for the model. Pictures stay the bytes that they
//! are after crop, resize and flip, a quarter of the memory of numbers; each has a
//! [`Finish`], which makes normalised numbers of its bytes where the model computes.

use std::ops::Range;

use common::seed::{normal, stream};
use common::simd::f32_to_bf16;
use common::vectorised;

/// Makes numbers of a picture's bytes: normalisation, changes of colour, and the part
/// that is erased.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Finish {
    /// For each channel scale, offset, lowest and highest number: a number is
    /// `byte * scale + offset` within these bounds. A grey picture has one channel.
    pub affine: [[f32; 4]; 3],
    pub erased: Option<Erased>,
}

/// A part of a picture whose numbers are replaced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Erased {
    /// Left, top, width and height, in pixels.
    pub part: [usize; 4],
    pub filling: Filling,
}

/// Normalised numbers that take the place of others.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Filling {
    /// The same for each pixel, for each channel.
    Numbers([f32; 3]),
    /// Standard normal ones, of this seed.
    Noise { seed: u64 },
}

impl Erased {
    /// The numbers of the part: `[height, width, channels]`.
    pub(crate) fn numbers(&self, channels: usize) -> Vec<f32> {
        let [_, _, width, height] = self.part;
        match self.filling {
            Filling::Numbers(numbers) => numbers[..channels].repeat(width * height),
            Filling::Noise { seed } => {
                let mut rng = stream(seed, "erased", &[]);
                (0..width * height * channels).map(|_| normal(&mut rng)).collect()
            }
        }
    }
}

/// Pictures, one after the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pictures<'a> {
    /// `[n, size, size, channels]`
    pub bytes: &'a [u8],
    /// `[n]`
    pub finishes: &'a [Finish],
}

/// Inputs of a model: pictures, or numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Inputs<'a> {
    Pictures(Pictures<'a>),
    /// `[n, channels, size, size]`
    Numbers(&'a [f32]),
}

impl Inputs<'_> {
    /// How many values all of them have together.
    pub fn len(&self) -> usize {
        match self {
            Self::Pictures(pictures) => pictures.bytes.len(),
            Self::Numbers(numbers) => numbers.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<'a> Inputs<'a> {
    /// Those of these places, if they are the inputs of `n` samples.
    pub fn part(&self, places: &Range<usize>, n: usize) -> Self {
        let range = |len: usize| len / n.max(1) * places.start..len / n.max(1) * places.end;
        match self {
            Self::Numbers(numbers) => Self::Numbers(&numbers[range(numbers.len())]),
            Self::Pictures(Pictures { bytes, finishes }) => {
                Self::Pictures(Pictures { bytes: &bytes[range(bytes.len())], finishes: &finishes[places.clone()] })
            }
        }
    }
}

impl<'a> From<&'a [f32]> for Inputs<'a> {
    fn from(numbers: &'a [f32]) -> Self {
        Self::Numbers(numbers)
    }
}

impl<'a> From<&'a Vec<f32>> for Inputs<'a> {
    fn from(numbers: &'a Vec<f32>) -> Self {
        Self::Numbers(numbers)
    }
}

/// The memory of a batch's inputs, which is used for batch after batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputBuffer {
    bytes: Vec<u8>,
    finishes: Vec<Finish>,
    numbers: Vec<f32>,
}

impl InputBuffer {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.finishes.clear();
        self.numbers.clear();
    }

    /// Appends a picture of `len` bytes, which `fill` writes. If that fails, nothing is
    /// appended.
    pub(super) fn add_picture<E>(&mut self, len: usize, fill: impl FnOnce(&mut [u8]) -> Result<Finish, E>) -> Result<(), E> {
        let from = self.bytes.len();
        self.bytes.resize(from + len, 0);
        match fill(&mut self.bytes[from..]) {
            Ok(finish) => {
                self.finishes.push(finish);
                Ok(())
            }
            Err(error) => {
                self.bytes.truncate(from);
                Err(error)
            }
        }
    }

    /// Keeps the first `n` pictures.
    pub(super) fn truncate(&mut self, n: usize) {
        let each = self.bytes.len() / self.finishes.len().max(1);
        self.bytes.truncate(each * n);
        self.finishes.truncate(n);
    }

    /// How many pictures it holds.
    pub(super) fn pictures(&self) -> usize {
        self.finishes.len()
    }

    /// The bytes of the pictures at these places.
    pub(super) fn pictures_mut(&mut self, places: &Range<usize>) -> &mut [u8] {
        let each = self.bytes.len() / self.finishes.len().max(1);
        &mut self.bytes[each * places.start..each * places.end]
    }

    pub(super) fn add_numbers(&mut self, numbers: impl Iterator<Item = f32>) {
        self.numbers.extend(numbers);
    }

    /// All inputs.
    pub fn all(&self) -> Inputs<'_> {
        if self.finishes.is_empty() {
            Inputs::Numbers(&self.numbers)
        } else {
            Inputs::Pictures(Pictures { bytes: &self.bytes, finishes: &self.finishes })
        }
    }
}

impl Finish {
    /// Writes the numbers of a picture of `[size, size, channels]` bytes in the same
    /// order: `row` gets each row of the picture in turn.
    fn each_row(&self, bytes: &[u8], size: usize, channels: usize, mut row: impl FnMut(usize, &[f32])) {
        // A row of each constant, so that the loop over a row has no inner pattern.
        let constants: [Vec<f32>; 4] = std::array::from_fn(|i| (0..size * channels).map(|at| self.affine[at % channels][i]).collect());
        let mut numbers = vec![0.0; size * channels];
        let erased = self.erased.map(|erased| (erased.part, erased.numbers(channels)));
        for (y, bytes) in bytes.chunks_exact(size * channels).enumerate() {
            finish_row(bytes, &constants, &mut numbers);
            if let Some(([left, top, width, height], filling)) = &erased
                && (*top..top + height).contains(&y)
            {
                let row = width * channels;
                numbers[left * channels..][..row].copy_from_slice(&filling[(y - top) * row..][..row]);
            }
            row(y, &numbers);
        }
    }

    /// The numbers as `[size, size, channels]`.
    pub fn write_f32(&self, bytes: &[u8], size: usize, channels: usize, out: &mut [f32]) {
        let width = size * channels;
        self.each_row(bytes, size, channels, |y, row| out[y * width..][..width].copy_from_slice(row));
    }

    /// As [`write_f32`](Self::write_f32), rounded to bf16.
    pub fn write_bf16(&self, bytes: &[u8], size: usize, channels: usize, out: &mut [u16]) {
        let width = size * channels;
        self.each_row(bytes, size, channels, |y, row| f32_to_bf16(row, &mut out[y * width..][..width]));
    }

    /// The numbers as `[channels, size, size]`.
    pub fn write_planes(&self, bytes: &[u8], size: usize, channels: usize, out: &mut [f32]) {
        self.each_row(bytes, size, channels, |y, row| {
            for (channel, plane) in out.chunks_exact_mut(size * size).enumerate() {
                let values = row.iter().skip(channel).step_by(channels);
                plane[y * size..][..size].iter_mut().zip(values).for_each(|(to, from)| *to = *from);
            }
        });
    }
}

vectorised! {
    /// Scale, offset, lowest and highest for each place of the row.
    fn finish_row(bytes: &[u8], constants: &[Vec<f32>; 4], out: &mut [f32]) {
        let [scale, offset, low, high] = constants;
        let constants = scale.iter().zip(offset).zip(low.iter().zip(high));
        for ((out, byte), ((scale, offset), (low, high))) in out.iter_mut().zip(bytes).zip(constants) {
            *out = (f32::from(*byte) * scale + offset).clamp(*low, *high);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_orders_hold_the_same_numbers() {
        const SIZE: usize = 5;
        let fillings = [Filling::Numbers([0.0; 3]), Filling::Numbers([0.5, -3.0, 7.0]), Filling::Noise { seed: 4 }];
        for (channels, filling) in [1, 3].into_iter().flat_map(|channels| fillings.map(|filling| (channels, filling))) {
            let bytes: Vec<u8> = (0..SIZE * SIZE * channels).map(|i| (i * 37 % 256) as u8).collect();
            let affine = [[0.02, -1.0, -0.9, 2.0], [0.01, 0.5, 0.0, 2.5], [-0.02, 1.0, -3.0, 0.9]];
            let part = Erased { part: [1, 2, 3, 2], filling };
            let finish = Finish { affine, erased: Some(part) };
            let mut last = vec![f32::NAN; bytes.len()];
            let (mut planes, mut half) = (last.clone(), vec![0; bytes.len()]);
            finish.write_f32(&bytes, SIZE, channels, &mut last);
            finish.write_planes(&bytes, SIZE, channels, &mut planes);
            finish.write_bf16(&bytes, SIZE, channels, &mut half);
            let erased = part.numbers(channels);
            if let Filling::Numbers(numbers) = filling {
                assert_eq!(erased, numbers[..channels].repeat(6));
            }
            for (y, x, c) in (0..SIZE).flat_map(|y| (0..SIZE).flat_map(move |x| (0..channels).map(move |c| (y, x, c)))) {
                let at = (y * SIZE + x) * channels + c;
                let [scale, offset, low, high] = affine[c];
                let is_erased = (1..4).contains(&x) && (2..4).contains(&y);
                let plain = (f32::from(bytes[at]) * scale + offset).clamp(low, high);
                let expected = if is_erased { erased[((y - 2) * 3 + x - 1) * channels + c] } else { plain };
                assert_eq!(last[at].to_bits(), expected.to_bits());
                assert_eq!(planes[(c * SIZE + y) * SIZE + x].to_bits(), expected.to_bits());
                assert_eq!(half[at], half::bf16::from_f32(expected).to_bits());
            }
        }
    }

    #[test]
    fn noise_has_mean_0_and_deviation_1_and_is_its_seeds() {
        let noise = |seed| Erased { part: [0, 0, 100, 50], filling: Filling::Noise { seed } }.numbers(3);
        let numbers = noise(1);
        let mean = numbers.iter().sum::<f32>() / 15_000.0;
        let variance = numbers.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 15_000.0;
        // Of so many numbers the mean deviates by 0.008, and the variance by 0.012.
        assert!(mean.abs() < 0.04 && (variance - 1.0).abs() < 0.06, "{mean} {variance}");
        assert!(numbers == noise(1) && numbers != noise(2));
    }

    #[test]
    fn a_picture_that_fails_leaves_nothing_behind() {
        let finish = Finish { affine: [[1.0; 4]; 3], erased: None };
        let mut buffer = InputBuffer::default();
        let picture = |value: u8| {
            move |bytes: &mut [u8]| {
                bytes.fill(value);
                if value == 0 { Err(()) } else { Ok(finish) }
            }
        };
        assert_eq!([1, 0, 2].map(|value| buffer.add_picture(4, picture(value)).is_ok()), [true, false, true]);
        let both = [1, 1, 1, 1, 2, 2, 2, 2];
        assert_eq!(buffer.all(), Inputs::Pictures(Pictures { bytes: &both, finishes: &[finish; 2] }));
        assert_eq!(buffer.all().part(&(1..2), 2), Inputs::Pictures(Pictures { bytes: &both[4..], finishes: &[finish] }));
        buffer.truncate(1);
        assert_eq!((buffer.all(), buffer.pictures()), (Inputs::Pictures(Pictures { bytes: &both[..4], finishes: &[finish] }), 1));
        buffer.clear();
        assert!(buffer.all().is_empty());
        buffer.add_numbers([1.0, 2.0, 3.0, 4.0].into_iter());
        assert_eq!(buffer.all().part(&(0..1), 2), Inputs::Numbers(&[1.0, 2.0]));
    }
}
