//! Between the model's flat gradient and the ring: gathers spans into buckets,
//! sends each bucket as soon as it is full, and hands back the sums.
//!
//! It knows neither burn nor sockets.

use common::net::{Ring, RingError};
use common::ring::{BucketLayout, STATISTICS};

/// The statistics bucket: what ranks sum beside the gradient.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Sum of the samples' losses.
    pub loss: f64,
    pub top1: u64,
    pub top5: u64,
    pub count: u64,
    /// Some rank was asked to stop.
    pub stop: bool,
}

impl Totals {
    /// Every entry but the loss is an integer below 2^24, so exact in f32; the
    /// loss travels as the f32 and what that rounding left over.
    fn encode(self) -> Vec<f32> {
        let coarse = self.loss as f32;
        let fine = (self.loss - f64::from(coarse)) as f32;
        let mut values = vec![0.0; STATISTICS];
        values[..6].copy_from_slice(&[coarse, fine, self.top1 as f32, self.top5 as f32, self.count as f32, f32::from(u8::from(self.stop))]);
        values
    }

    fn decode(values: &[f32]) -> Self {
        let at = |i: usize| f64::from(values.get(i).copied().unwrap_or_default());
        Self { loss: at(0) + at(1), top1: at(2) as u64, top5: at(3) as u64, count: at(4) as u64, stop: at(5) > 0.0 }
    }
}

/// Collects one gradient at a time and has the ring sum it.
pub struct Exchange {
    ring: Ring,
    layout: BucketLayout,
    /// All-reduce rounds so far: one a step, one an evaluation. All ranks count
    /// alike, because they run the same loop.
    round: u64,
    buckets: Vec<Vec<f32>>,
    /// Elements that are still missing in each bucket.
    missing: Vec<usize>,
}

impl Exchange {
    pub fn new(ring: Ring, layout: BucketLayout) -> Self {
        let buckets: Vec<Vec<f32>> = (0..layout.len()).map(|b| vec![0.0; layout.range(b).len()]).collect();
        let missing = buckets.iter().map(Vec::len).collect();
        Self { ring, layout, round: 0, buckets, missing }
    }

    /// Takes a finished span of the flat gradient; spans may come in any order,
    /// together they cover it once.
    pub fn add(&mut self, offset: usize, span: &[f32]) -> Result<(), RingError> {
        let (mut offset, mut rest) = (offset, span);
        while !rest.is_empty() {
            let b = offset / self.layout.bucket_elements();
            let range = self.layout.range(b);
            let n = rest.len().min(range.end - offset);
            let at = offset - range.start;
            self.buckets[b][at..at + n].copy_from_slice(&rest[..n]);
            self.missing[b] -= n;
            if self.missing[b] == 0 {
                let full = std::mem::take(&mut self.buckets[b]);
                self.missing[b] = full.len();
                self.ring.submit(self.round, b, full)?;
            }
            (offset, rest) = (offset + n, &rest[n..]);
        }
        Ok(())
    }

    /// Waits until every bucket and the statistics are summed over all ranks.
    pub fn finish(&mut self, mine: Totals) -> Result<Totals, RingError> {
        let totals = self.sum(mine)?;
        for (b, bucket) in self.buckets.iter_mut().enumerate() {
            *bucket = self.ring.wait(self.round, b)?;
        }
        self.round += 1;
        Ok(totals)
    }

    /// Sums statistics alone, as a round of its own.
    pub fn totals(&mut self, mine: Totals) -> Result<Totals, RingError> {
        let totals = self.sum(mine)?;
        self.round += 1;
        Ok(totals)
    }

    fn sum(&mut self, mine: Totals) -> Result<Totals, RingError> {
        let statistics = self.layout.statistics();
        self.ring.submit(self.round, statistics, mine.encode())?;
        Ok(Totals::decode(&self.ring.wait(self.round, statistics)?))
    }

    /// The summed gradient, bucket by bucket, after [`Exchange::finish`].
    pub fn gradient(&mut self) -> &mut [Vec<f32>] {
        &mut self.buckets
    }

    pub fn bytes_sent(&self) -> u64 {
        self.ring.bytes_sent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_travel_exactly() {
        let totals = Totals { loss: 12345.678901, top1: 16_000_001, top5: 7, count: 16_777_215, stop: true };
        let back = Totals::decode(&totals.encode());
        assert!((back.loss - totals.loss).abs() < 1e-6);
        assert_eq!(Totals { loss: 0.0, ..back }, Totals { loss: 0.0, ..totals });
        assert_eq!(totals.encode().len(), STATISTICS);
    }
}
