//! The statistics bucket: what ranks sum in each round besides the gradient.

use common::ring::STATISTICS;

/// The values of the statistics bucket.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct StepTotals {
    /// Sum of the samples' losses.
    pub loss: f64,
    pub top1: u64,
    pub top5: u64,
    pub count: u64,
    /// The [`common::audit::checksum`] of the samples.
    pub checksum: u64,
    /// Some rank was asked to end the run.
    pub stop: bool,
    /// Some rank was asked to end the generation.
    pub pause: bool,
    /// A mark of the weights before the step, which is the same on all ranks: see
    /// [`super::exchange::Exchange::committed`].
    pub(super) mark: Mark,
}

/// Pieces of a hash. Of all ranks, it holds the sums.
pub(super) type Mark = [u32; 2];

/// The 64 bits of a checksum travel in pieces of so many bits, each as f32.
const PIECE_BITS: usize = 11;
const PIECES: usize = u64::BITS.div_ceil(PIECE_BITS as u32) as usize;

/// The f32 values of a [`StepTotals`]: two for the loss, three counts, two flags, the
/// checksum and the mark.
const ENTRIES: usize = 2 + 3 + 2 + PIECES + 2;
const _: () = assert!(ENTRIES <= STATISTICS, "the statistics bucket has no room for all entries");

/// The mark of a hash: as many of its bits as two pieces have.
pub(super) fn mark(hash: u64) -> Mark {
    [0, 1].map(|number| (hash >> (number * PIECE_BITS)) as u32 & ((1 << PIECE_BITS) - 1))
}

impl StepTotals {
    /// Every entry but the loss is an integer below 2^24, so exact in f32; the loss
    /// travels as an f32 and its rounding error. [`Self::decode`] reads the entries in
    /// the same order.
    pub(super) fn encode(self) -> Vec<f32> {
        let coarse = self.loss as f32;
        let fine = (self.loss - f64::from(coarse)) as f32;
        let flag = |set: bool| f32::from(u8::from(set));
        let mut values = vec![coarse, fine];
        values.extend([self.top1, self.top5, self.count].map(|n| n as f32));
        values.extend([self.stop, self.pause].map(flag));
        // The checksum is summed modulo 2^64, in pieces small enough for the sum of
        // 2^13 ranks to be exact.
        values.extend((0..PIECES).map(|i| ((self.checksum >> (i * PIECE_BITS)) & ((1 << PIECE_BITS) - 1)) as f32));
        values.extend(self.mark.map(|piece| piece as f32));
        debug_assert_eq!(values.len(), ENTRIES);
        values.resize(STATISTICS, 0.0);
        values
    }

    pub(super) fn decode(values: &[f32]) -> Self {
        let mut rest = values.iter().map(|&value| f64::from(value));
        let mut next = || rest.next().unwrap_or_default();
        Self {
            loss: next() + next(),
            top1: next() as u64,
            top5: next() as u64,
            count: next() as u64,
            stop: next() > 0.0,
            pause: next() > 0.0,
            checksum: (0..PIECES).map(|i| (next() as u64).wrapping_shl(i as u32 * PIECE_BITS as u32)).fold(0, u64::wrapping_add),
            mark: [next() as u32, next() as u32],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_travel_exactly() {
        let checksum = 0xfedc_ba98_7654_3210;
        let totals = StepTotals {
            loss: 12345.678901,
            top1: 16_000_001,
            top5: 7,
            count: 16_777_215,
            checksum,
            stop: true,
            pause: true,
            mark: [2047, 1],
        };
        let back = StepTotals::decode(&totals.encode());
        assert!((back.loss - totals.loss).abs() < 1e-6);
        assert_eq!(StepTotals { loss: 0.0, ..back }, StepTotals { loss: 0.0, ..totals });
        assert_eq!(totals.encode().len(), STATISTICS);
    }

    #[test]
    fn checksums_of_many_ranks_add_up_modulo_two_to_the_64() {
        let checksums: Vec<u64> = (0..1000).map(|rank: u64| common::audit::checksum(&[rank as u32, 7])).collect();
        let mut sum = vec![0.0f32; STATISTICS];
        for &checksum in &checksums {
            sum.iter_mut().zip(StepTotals { checksum, ..StepTotals::default() }.encode()).for_each(|(s, v)| *s += v);
        }
        assert_eq!(StepTotals::decode(&sum).checksum, checksums.iter().fold(0, |a: u64, b| a.wrapping_add(*b)));
    }
}
