//! Between the model's flat gradient and the ring: gathers spans into buckets,
//! sends each bucket as soon as it is full, and hands back the sums.
//!
//! It knows neither burn nor sockets.

use common::ring::{BucketLayout, Ring, RingError, STATISTICS};

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
    /// None in a world of one: its gradient is the sum already.
    ring: Option<Ring>,
    layout: BucketLayout,
    /// All-reduce rounds so far: one a step, one an evaluation. All ranks count
    /// alike, because they run the same loop.
    round: u64,
    buckets: Vec<Vec<f32>>,
    /// Elements that are still missing in each bucket.
    missing: Vec<usize>,
    /// Buckets from this one on are with the ring. They go last to first, since
    /// the backward pass finishes the last layers first; a rank whose spans come
    /// in another order (it may have no samples) still sends in this one.
    sent_from: usize,
}

impl Exchange {
    pub fn new(ring: Option<Ring>, layout: BucketLayout) -> Self {
        let buckets: Vec<Vec<f32>> = (0..layout.len()).map(|b| vec![0.0; layout.range(b).len()]).collect();
        let missing = buckets.iter().map(Vec::len).collect();
        Self { ring, layout, round: 0, sent_from: buckets.len(), buckets, missing }
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
            (offset, rest) = (offset + n, &rest[n..]);
        }
        while self.sent_from > 0 && self.missing[self.sent_from - 1] == 0 {
            self.sent_from -= 1;
            if let Some(ring) = &self.ring {
                ring.submit(self.round, self.sent_from, std::mem::take(&mut self.buckets[self.sent_from]))?;
            }
        }
        Ok(())
    }

    /// Waits until every bucket and the statistics are summed over all ranks.
    pub fn finish(&mut self, mine: Totals) -> Result<Totals, RingError> {
        let totals = self.sum(mine)?;
        for b in (0..self.buckets.len()).rev() {
            if let Some(ring) = &mut self.ring {
                self.buckets[b] = ring.wait(self.round, b)?;
            }
            self.missing[b] = self.buckets[b].len();
        }
        self.sent_from = self.buckets.len();
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
        let Some(ring) = &mut self.ring else { return Ok(mine) };
        let statistics = self.layout.statistics();
        ring.submit(self.round, statistics, mine.encode())?;
        Ok(Totals::decode(&ring.wait(self.round, statistics)?))
    }

    /// The summed gradient, bucket by bucket, after [`Exchange::finish`].
    pub fn gradient(&mut self) -> &mut [Vec<f32>] {
        &mut self.buckets
    }

    pub fn bytes_sent(&self) -> u64 {
        self.ring.as_ref().map_or(0, Ring::bytes_sent)
    }

    /// Leaves the ring in order.
    pub fn into_ring(self) -> Option<Ring> {
        self.ring
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

    #[test]
    fn spans_in_any_order_make_up_the_gradient() {
        let layout = BucketLayout::new(50, 4 * 7);
        let mut exchange = Exchange::new(None, layout);
        for round in 0..3 {
            let flat: Vec<f32> = (0..50).map(|i| (i + round * 100) as f32).collect();
            for span in [30..50, 0..9, 9..30] {
                exchange.add(span.start, &flat[span]).unwrap_or_else(|e| panic!("{e}"));
            }
            let mine = Totals { count: 3, ..Totals::default() };
            assert_eq!(exchange.finish(mine).ok(), Some(mine));
            assert_eq!(exchange.gradient().concat(), flat);
        }
    }
}
