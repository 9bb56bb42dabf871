//! Between the model's flat gradient and the ring: gathers spans into buckets,
//! sends each bucket as soon as it is full, and hands back the sums.
//!
//! In reproducible mode it keeps the gradient of each shard separately until all are
//! complete, agrees with the other ranks on a scale for each bucket, and sums integers:
//! see [`common::ring::fixed`].
//!
//! It depends neither on burn nor on sockets.

use crate::engine::Delivery;
use common::config::{Precision, TrainConfig, WireEncoding};
use common::ring::fixed::{Scale, exponent};
use common::ring::{Bucket, BucketLayout, Ring, RingError, STATISTICS, Span, Values};

/// The statistics bucket: the values that ranks sum besides the gradient.
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
}

/// The 64 bits of a checksum travel in pieces of so many bits, each as f32.
const PIECE_BITS: usize = 11;
const PIECES: usize = u64::BITS.div_ceil(PIECE_BITS as u32) as usize;

/// The f32 values of a [`StepTotals`]: two for the loss, three counts, two flags, and
/// the checksum.
const ENTRIES: usize = 2 + 3 + 2 + PIECES;
const _: () = assert!(ENTRIES <= STATISTICS, "the statistics bucket has no room for all entries");

impl StepTotals {
    /// Every entry but the loss is an integer below 2^24, so exact in f32; the loss
    /// travels as an f32 and its rounding error. [`Self::decode`] reads the entries in
    /// the same order.
    fn encode(self) -> Vec<f32> {
        let coarse = self.loss as f32;
        let fine = (self.loss - f64::from(coarse)) as f32;
        let flag = |set: bool| f32::from(u8::from(set));
        let mut values = vec![coarse, fine];
        values.extend([self.top1, self.top5, self.count].map(|n| n as f32));
        values.extend([self.stop, self.pause].map(flag));
        // The checksum is summed modulo 2^64, in pieces small enough for the sum of
        // 2^13 ranks to be exact.
        values.extend((0..PIECES).map(|i| ((self.checksum >> (i * PIECE_BITS)) & ((1 << PIECE_BITS) - 1)) as f32));
        debug_assert_eq!(values.len(), ENTRIES);
        values.resize(STATISTICS, 0.0);
        values
    }

    fn decode(values: &[f32]) -> Self {
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
        }
    }
}

/// How a step's gradients are kept and summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Summation {
    F32,
    /// Computed as bf16, and sent as bf16 or not at all: never converted.
    Bf16,
    /// As integers, independent of which rank computed which of the run's `shards`.
    Exact {
        shards: u32,
    },
}

impl Summation {
    /// `wire`: the format in which gradients travel; none where nothing is sent.
    pub fn of(train: &TrainConfig, wire: Option<WireEncoding>) -> Self {
        let compact = train.precision == Precision::Bf16 && wire.is_none_or(|wire| wire == WireEncoding::Bf16);
        match train.reproducible {
            true => Self::Exact { shards: train.shards },
            false if compact => Self::Bf16,
            false => Self::F32,
        }
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
    /// Empty until the first gradient comes: where [`Exchange::is_alone`], none does.
    buckets: Vec<Values>,
    compact: bool,
    /// Elements that are still missing in each bucket.
    missing: Vec<usize>,
    /// Buckets from this one on have been sent to the ring. They are sent last to
    /// first, since the backward pass finishes the last layers first; a rank whose
    /// spans come in another order (it may have no samples) still sends its buckets in
    /// this order.
    sent_from: usize,
    exact: Option<Exact>,
}

/// The gradients that reproducible mode keeps of a step.
struct Exact {
    /// Shards of the run: how many addends a sum may have.
    shards: u32,
    /// The flat gradient of each shard of this rank; memory is kept between steps.
    parts: Vec<Vec<f32>>,
    /// How many of them belong to this step.
    used: usize,
}

impl Exchange {
    pub fn new(ring: Option<Ring>, layout: BucketLayout, summation: Summation) -> Self {
        let compact = summation == Summation::Bf16;
        let missing = (0..layout.len()).map(|b| layout.range(b).len()).collect();
        let exact = match summation {
            Summation::Exact { shards } => Some(Exact { shards, parts: Vec::new(), used: 0 }),
            Summation::F32 | Summation::Bf16 => None,
        };
        Self { ring, layout, round: 0, sent_from: layout.len(), buckets: Vec::new(), compact, missing, exact }
    }

    /// Whether the gradient of this rank is the sum already, so that it need not come
    /// here.
    pub fn is_alone(&self) -> bool {
        self.exact.is_none() && self.ring.as_ref().is_none_or(|ring| ring.world() == 1)
    }

    /// Where the gradients of the parts of a batch belong.
    pub fn delivery(&self) -> Delivery {
        if self.exact.is_some() {
            Delivery::Each
        } else if self.is_alone() {
            Delivery::Keep
        } else {
            Delivery::Sum
        }
    }

    fn make_buckets(&mut self) {
        if self.buckets.is_empty() {
            let bucket = |b| Values::zeros(self.compact, self.layout.range(b).len());
            self.buckets = (0..self.layout.len()).map(bucket).collect();
        }
    }

    /// Takes a finished span of the flat gradient; spans may come in any order,
    /// together they cover it once. In reproducible mode, those of each `part` of the
    /// batch (a shard) do; else the part does not matter.
    pub fn add(&mut self, part: usize, offset: usize, span: Span<'_>) -> Result<(), RingError> {
        if let Some(exact) = &mut self.exact {
            while exact.parts.len() <= part {
                exact.parts.push(vec![0.0; self.layout.elements()]);
            }
            exact.used = exact.used.max(part + 1);
            span.read(&mut exact.parts[part][offset..offset + span.len()]);
            return Ok(());
        }
        self.make_buckets();
        let (mut offset, mut rest) = (offset, span);
        while !rest.is_empty() {
            let b = offset / self.layout.bucket_elements();
            let range = self.layout.range(b);
            let n = rest.len().min(range.end - offset);
            let at = offset - range.start;
            self.buckets[b].write(at, rest.range(0..n));
            self.missing[b] -= n;
            (offset, rest) = (offset + n, rest.range(n..rest.len()));
        }
        while self.sent_from > 0 && self.missing[self.sent_from - 1] == 0 {
            self.sent_from -= 1;
            if let Some(ring) = &self.ring {
                ring.submit(self.round, self.sent_from, std::mem::take(&mut self.buckets[self.sent_from]))?;
            }
        }
        Ok(())
    }

    /// Waits until every bucket and the statistics are summed over all ranks. `receive` gets
    /// the offset and the values of each bucket as soon as it is summed.
    pub fn finish(&mut self, mine: StepTotals, receive: &mut dyn FnMut(usize, Span<'_>)) -> Result<StepTotals, RingError> {
        if let Some(mut exact) = self.exact.take() {
            let outcome = self.finish_exact(&exact, mine, receive);
            exact.used = 0;
            self.exact = Some(exact);
            return outcome;
        }
        let totals = self.sum(mine)?;
        for b in (0..self.buckets.len()).rev() {
            if let Some(ring) = &mut self.ring {
                self.buckets[b] = ring.wait(self.round, b)?;
            }
            self.missing[b] = self.buckets[b].len();
            receive(self.layout.range(b).start, self.buckets[b].span());
        }
        self.sent_from = self.layout.len();
        self.round += 1;
        Ok(totals)
    }

    fn finish_exact(&mut self, exact: &Exact, mine: StepTotals, receive: &mut dyn FnMut(usize, Span<'_>)) -> Result<StepTotals, RingError> {
        self.make_buckets();
        let parts = &exact.parts[..exact.used];
        let own = (0..self.layout.len()).map(|b| {
            let all = parts.iter().map(|part| exponent(&part[self.layout.range(b)]));
            all.fold(exponent(&[]), f32::max)
        });
        let mut largest: Vec<f32> = own.collect();
        if let Some(ring) = &mut self.ring {
            ring.submit(self.round, self.layout.exponents(), largest)?;
            largest = ring.wait(self.round, self.layout.exponents())?.into_f32();
        }
        let scales: Vec<Option<Scale>> = largest.iter().map(|&e| Scale::new(e, exact.shards)).collect();
        for (b, scale) in scales.iter().enumerate() {
            let Some(scale) = scale else { continue };
            let mut sums = std::mem::take(&mut self.buckets[b]).into_f32();
            sums.fill(0.0);
            parts.iter().for_each(|part| scale.add(&part[self.layout.range(b)], &mut sums));
            match &self.ring {
                Some(ring) => ring.submit(self.round, b, sums)?,
                None => self.buckets[b] = sums.into(),
            }
        }
        let totals = self.sum(mine)?;
        for (b, scale) in scales.iter().enumerate() {
            let mut sums = match (scale, &mut self.ring) {
                (Some(_), Some(ring)) => ring.wait(self.round, b)?.into_f32(),
                _ => std::mem::take(&mut self.buckets[b]).into_f32(),
            };
            match scale {
                Some(scale) => scale.restore(&mut sums),
                // Some value was NaN or infinite: the sum becomes NaN, which the update
                // refuses.
                None => sums.fill(f32::NAN),
            }
            self.buckets[b] = sums.into();
            receive(self.layout.range(b).start, self.buckets[b].span());
        }
        self.round += 1;
        Ok(totals)
    }

    /// Sums statistics alone, as a round of its own.
    pub fn totals(&mut self, mine: StepTotals) -> Result<StepTotals, RingError> {
        let totals = self.sum(mine)?;
        self.round += 1;
        Ok(totals)
    }

    fn sum(&mut self, mine: StepTotals) -> Result<StepTotals, RingError> {
        let Some(ring) = &mut self.ring else { return Ok(mine) };
        let statistics = self.layout.statistics();
        ring.submit(self.round, statistics, mine.encode())?;
        Ok(StepTotals::decode(&ring.wait(self.round, statistics)?.into_f32()))
    }

    /// The summed gradient, bucket by bucket, after [`Exchange::finish`].
    pub fn gradient(&mut self) -> &mut [Values] {
        &mut self.buckets
    }

    pub fn bytes_sent(&self) -> u64 {
        self.ring.as_ref().map_or(0, Ring::bytes_sent)
    }

    /// Returns the ring, so that it can be closed in order.
    pub fn into_ring(self) -> Option<Ring> {
        self.ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The summed gradient as one vector.
    fn whole(exchange: &mut Exchange) -> Vec<f32> {
        exchange.gradient().iter().flat_map(|bucket| bucket.clone().into_f32()).collect()
    }

    #[test]
    fn totals_travel_exactly() {
        let checksum = 0xfedc_ba98_7654_3210;
        let totals = StepTotals { loss: 12345.678901, top1: 16_000_001, top5: 7, count: 16_777_215, checksum, stop: true, pause: true };
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

    #[test]
    fn exact_sums_do_not_depend_on_who_has_which_part() {
        let layout = BucketLayout::new(50, 4 * 7);
        let part = |p: usize| -> Vec<f32> { (0..50).map(|i| ((i * 31 + p * 17) % 97) as f32 / 7.0 - 6.0).collect() };
        let sum = |order: &[usize]| {
            let mut exchange = Exchange::new(None, layout, Summation::Exact { shards: 4 });
            for _ in 0..2 {
                for (place, &p) in order.iter().enumerate() {
                    let values = part(p);
                    for span in [20..50, 0..20] {
                        exchange.add(place, span.start, Span::F32(&values[span])).unwrap_or_else(|e| panic!("{e}"));
                    }
                }
                exchange.finish(StepTotals::default(), &mut |_, _| ()).unwrap_or_else(|e| panic!("{e}"));
            }
            whole(&mut exchange)
        };
        let first = sum(&[0, 1, 2, 3]);
        assert_eq!(first, sum(&[3, 1, 0, 2]));
        for (i, got) in first.iter().enumerate() {
            let truth: f32 = (0..4).map(|p| part(p)[i]).sum();
            assert!((got - truth).abs() < 1e-5, "{i}: {got} {truth}");
        }
    }

    #[test]
    fn a_nan_in_one_part_spoils_its_bucket_and_no_other() {
        let mut exchange = Exchange::new(None, BucketLayout::new(4, 8), Summation::Exact { shards: 2 });
        exchange.add(0, 0, Span::F32(&[1.0, f32::NAN, 2.0, 3.0])).unwrap_or_else(|e| panic!("{e}"));
        exchange.finish(StepTotals::default(), &mut |_, _| ()).unwrap_or_else(|e| panic!("{e}"));
        let sums = whole(&mut exchange);
        assert!(sums[..2].iter().all(|v| v.is_nan()));
        assert_eq!(sums[2..], [2.0, 3.0]);
    }

    #[test]
    fn spans_in_any_order_make_up_the_gradient() {
        let layout = BucketLayout::new(50, 4 * 7);
        for summation in [Summation::F32, Summation::Bf16] {
            let mut exchange = Exchange::new(None, layout, summation);
            for round in 0..3 {
                // Small integers, which bf16 holds exactly.
                let flat: Vec<f32> = (0..50).map(|i| (i + round * 100) as f32).collect();
                for span in [30..50, 0..9, 9..30] {
                    exchange.add(0, span.start, Span::F32(&flat[span])).unwrap_or_else(|e| panic!("{e}"));
                }
                let mine = StepTotals { count: 3, ..StepTotals::default() };
                assert_eq!(exchange.finish(mine, &mut |_, _| ()).ok(), Some(mine));
                assert_eq!(whole(&mut exchange), flat);
            }
        }
    }
}
