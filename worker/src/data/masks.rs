//! Which values dropout keeps in a step: drawn ahead of it, on the threads that decode. A
//! mask depends on the seed, the step, the shard and the place in the shard alone, so it is
//! the same in any world, on any device, and for any part of a batch.

use std::ops::Range;

use common::seed;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// A place of a model where dropout acts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// Values of a sample there.
    pub values: usize,
    /// The share of them that become zero, to within 2^-17.
    pub probability: f64,
}

/// Consecutive samples of a batch that draw their masks from one seed: those of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaskGroup {
    pub seed: u64,
    pub samples: usize,
}

/// The masks of a batch, whose memory is used for batch after batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Masks {
    samples: usize,
    /// For each dropout of the model in the order of its forward pass, `[n, values]`: 1
    /// for what is kept and 0 for what is not.
    places: Vec<(Dropout, Vec<u8>)>,
}

/// The masks of neighbouring samples.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MaskRows<'a> {
    masks: &'a Masks,
    start: usize,
    end: usize,
}

impl Dropout {
    /// Random numbers of 16 bits below this mean zero.
    fn threshold(&self) -> u32 {
        (self.probability * 65536.0).round().min(65535.0) as u32
    }

    /// What is kept is multiplied by this, which keeps the mean.
    pub fn scale(&self) -> f32 {
        65536.0 / (65536 - self.threshold()) as f32
    }
}

impl Masks {
    /// The masks of new batches; see [`draw`](Self::draw).
    pub fn drawn(places: &[Dropout], groups: &[MaskGroup]) -> Self {
        let mut masks = Self::default();
        masks.draw(places, groups);
        masks
    }

    /// These masks of so many samples.
    #[cfg(test)]
    pub(crate) fn given(samples: usize, places: Vec<(Dropout, Vec<u8>)>) -> Self {
        Self { samples, places }
    }

    /// Draws masks for these places and, in order, the samples of these groups.
    pub fn draw(&mut self, places: &[Dropout], groups: &[MaskGroup]) {
        self.samples = groups.iter().map(|group| group.samples).sum();
        self.places.resize_with(places.len(), || (Dropout { values: 0, probability: 0.0 }, Vec::new()));
        for ((dropout, mask), place) in self.places.iter_mut().zip(places) {
            *dropout = *place;
            mask.clear();
            mask.reserve(self.samples * place.values + 1);
        }
        for group in groups {
            let mut rng = seed::stream(group.seed, "dropout", &[]);
            for (dropout, mask) in &mut self.places {
                append(&mut rng, group.samples * dropout.values, dropout.threshold(), mask);
            }
        }
    }

    /// The masks of the samples at these places of the batch.
    pub fn rows(&self, places: &Range<usize>) -> MaskRows<'_> {
        MaskRows { masks: self, start: places.start, end: places.end.min(self.samples) }
    }

    /// The masks of the whole batch.
    pub fn all(&self) -> MaskRows<'_> {
        self.rows(&(0..self.samples))
    }
}

impl<'a> MaskRows<'a> {
    /// How many samples have masks.
    pub fn samples(&self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Those of these samples.
    pub fn part(&self, places: &Range<usize>) -> Self {
        Self { start: self.start + places.start, end: (self.start + places.end).min(self.end), ..*self }
    }

    /// For each dropout of the model, the masks of all samples: `[n, values]`.
    pub fn places(&self) -> impl Iterator<Item = (Dropout, &'a [u8])> {
        let (start, end) = (self.start, self.end);
        self.masks.places.iter().map(move |(dropout, mask)| (*dropout, &mask[start * dropout.values..end * dropout.values]))
    }
}

/// Appends `len` values of a mask. Each word of the stream makes two; the next mask begins
/// with a word of its own.
fn append(rng: &mut ChaCha8Rng, len: usize, threshold: u32, mask: &mut Vec<u8>) {
    let value = |random: u32| u8::from(random >= threshold);
    let end = mask.len() + len;
    while mask.len() < end {
        let random = rng.next_u32();
        mask.extend([value(random & 0xffff), value(random >> 16)]);
    }
    mask.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACES: [Dropout; 2] = [Dropout { values: 5, probability: 0.5 }, Dropout { values: 3, probability: 0.25 }];

    fn group(seed: u64, samples: usize) -> MaskGroup {
        MaskGroup { seed, samples }
    }

    #[test]
    fn masks_depend_on_the_group_alone() {
        let both = Masks::drawn(&PLACES, &[group(1, 3), group(2, 0), group(3, 4)]);
        let (first, last) = (Masks::drawn(&PLACES, &[group(1, 3)]), Masks::drawn(&PLACES, &[group(3, 4)]));
        let rows = |masks: MaskRows<'_>| masks.places().map(|(_, mask)| mask.to_vec()).collect::<Vec<_>>();
        assert_eq!(rows(both.rows(&(0..3))), rows(first.all()));
        assert_eq!(rows(both.rows(&(3..7))), rows(last.all()));
        assert_eq!(rows(both.all().part(&(2..6)).part(&(1..3))), rows(last.rows(&(0..2))));
        assert_eq!((both.all().samples(), both.rows(&(2..5)).samples(), both.rows(&(5..5)).samples()), (7, 3, 0));
    }

    #[test]
    fn the_memory_of_one_batch_serves_the_next() {
        let mut masks = Masks::drawn(&PLACES, &[group(9, 8)]);
        masks.draw(&PLACES[..1], &[group(1, 2)]);
        assert_eq!(masks, Masks::drawn(&PLACES[..1], &[group(1, 2)]));
        assert_eq!(Masks::drawn(&[], &[group(1, 2)]).all().places().count(), 0);
    }

    #[test]
    fn a_share_is_kept_and_the_mean_stays() {
        for probability in [0.0, 0.1, 0.5, 0.9, 1.0] {
            let place = Dropout { values: 100_000, probability };
            let masks = Masks::drawn(&[place], &[group(5, 1)]);
            let kept: u32 = masks.all().places().flat_map(|(_, mask)| mask).map(|&kept| u32::from(kept)).sum();
            let share = f64::from(kept) / 1e5;
            assert!((share - (1.0 - probability)).abs() < 0.005, "{probability}: {share}");
            assert!(probability > 0.99 || (share * f64::from(place.scale()) - 1.0).abs() < 0.05, "{probability}");
        }
    }
}
