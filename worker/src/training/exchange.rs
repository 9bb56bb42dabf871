//! Between the model's gradient and the ring: puts spans into buckets and rows of factors
//! into matrices, sends each as soon as it is full, and hands back sums and whole matrices.
//!
//! In reproducible mode it keeps the gradient of each shard separately until all are
//! complete, agrees with the other ranks on a scale for each bucket, and sums integers:
//! see [`common::ring::fixed`].
//!
//! It depends neither on burn nor on sockets.

use std::ops::Range;
use std::time::Instant;

use common::config::{Precision, TrainConfig, WireEncoding};
use common::ring::fixed::{Scale, exponent};
use common::trace;

use super::totals::{Mark, StepTotals, mark};
use crate::engine::{Delivery, Piece};
use common::ring::{Bucket, Encoding, ExchangePlan, Ring, RingError, Span, Values};

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
    plan: ExchangePlan,
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
    factors: Factors,
    /// Of the weights after the newest update.
    mark: Mark,
}

/// The factors of a step.
struct Factors {
    rank: usize,
    /// The matrices that are gathered: two for each factored layer. Empty while they are on
    /// their way.
    matrices: Vec<Values>,
    /// The row of each sample of this rank, and the samples of each part of the batch.
    rows: Vec<usize>,
    parts: Vec<Range<usize>>,
    /// How many layers' factors of how many parts are still to come.
    missing: usize,
    /// All of this rank are on their way to the others, if there are any.
    sent: bool,
    /// Seconds that the products of the newest step took.
    multiplied: f64,
}

/// What an exchange hands over as it comes.
pub trait Receiver {
    /// A span of the summed gradient, at this offset of the flat vector.
    fn summed(&mut self, offset: usize, span: Span<'_>);

    /// The factors of a layer, of all rows: to be multiplied.
    fn gathered(&mut self, layer: usize, inputs: Span<'_>, slopes: Span<'_>);
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
    /// `rank`: of this worker, in the plan's rows.
    pub fn new(ring: Option<Ring>, plan: ExchangePlan, rank: u32, summation: Summation) -> Self {
        let compact = summation == Summation::Bf16;
        let missing = (0..plan.layout.len()).map(|b| plan.layout.range(b).len()).collect();
        let exact = match summation {
            Summation::Exact { shards } => Some(Exact { shards, parts: Vec::new(), used: 0 }),
            Summation::F32 | Summation::Bf16 => None,
        };
        let sent_from = plan.layout.len();
        let bf16 = plan.gathers.encoding() == Encoding::Bf16;
        let matrices = (0..plan.gathers.len()).map(|matrix| Values::zeros(bf16, plan.gathers.values(matrix))).collect();
        let factors =
            Factors { rank: rank as usize, matrices, rows: Vec::new(), parts: Vec::new(), missing: 0, sent: true, multiplied: 0.0 };
        Self { ring, plan, round: 0, sent_from, buckets: Vec::new(), compact, missing, exact, factors, mark: [0; 2] }
    }

    /// Begins a step: `rows` are the rows of this rank's samples in the global batch, and
    /// `parts` the samples whose gradients are computed at once.
    pub fn begin(&mut self, rows: Vec<usize>, parts: &[Range<usize>]) -> Result<(), RingError> {
        let layers = self.plan.factored.layers.len();
        if layers == 0 {
            return Ok(());
        }
        let Factors { rank, matrices, .. } = &mut self.factors;
        // A row without a sample counts for nothing.
        if rows.len() < self.plan.gathers.rows_of(*rank).len() {
            for (number, matrix) in matrices.iter_mut().enumerate() {
                matrix.clear(self.plan.gathers.block(number, *rank));
            }
        }
        let filled = parts.iter().filter(|part| !part.is_empty()).count();
        (self.factors.rows, self.factors.parts) = (rows, parts.to_vec());
        (self.factors.missing, self.factors.sent) = (layers * filled, false);
        self.send_factors()
    }

    /// Tells what the newest update was made with. Its mark travels with the next round, in
    /// which ranks find out whether all have done the same.
    pub fn committed(&mut self, grad_norm: f64) {
        let hash = common::audit::checksum(&[grad_norm.to_bits() as u32, (grad_norm.to_bits() >> 32) as u32]);
        self.mark = mark(hash);
    }

    /// Whether some rank has other weights than this one, as far as the marks tell.
    pub fn differs(&self, all: &StepTotals) -> bool {
        let world = self.ring.as_ref().map_or(1, Ring::world) as u32;
        all.mark != self.mark.map(|piece| piece * world)
    }

    /// Seconds that the products of the newest step took.
    pub fn multiplied(&self) -> f64 {
        self.factors.multiplied
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
        } else if self.ring.as_ref().is_some_and(Ring::crosses_network) {
            Delivery::SumInPieces
        } else {
            // What travels within a machine takes its cores from the backward pass.
            Delivery::Sum
        }
    }

    fn make_buckets(&mut self) {
        if self.buckets.is_empty() {
            let bucket = |b| Values::zeros(self.compact, self.plan.layout.range(b).len());
            self.buckets = (0..self.plan.layout.len()).map(bucket).collect();
        }
    }

    /// Takes a finished piece of the gradient; pieces may come in any order, together they
    /// cover it once. In reproducible mode, those of each `part` of the batch (a shard) do;
    /// else it matters for factors only. No piece of values reaches over a product.
    pub fn add(&mut self, part: usize, piece: Piece<'_>) -> Result<(), RingError> {
        match piece {
            Piece::Factors { layer, inputs, slopes } => {
                for (matrix, values) in ExchangePlan::matrices(layer).into_iter().zip([inputs, slopes]) {
                    let width = self.plan.gathers.width(matrix);
                    let rows = &self.factors.rows[self.factors.parts[part].clone()];
                    for (&row, values) in rows.iter().zip(values.chunks(width)) {
                        self.factors.matrices[matrix].write(row * width, values);
                    }
                }
                self.factors.missing -= 1;
                self.send_factors()?;
                self.send_full_buckets()
            }
            Piece::Values(offset, span) => self.add_values(part, self.plan.factored.regions.place(offset), span),
        }
    }

    /// `place`: in the vector that is summed.
    fn add_values(&mut self, part: usize, mut place: usize, mut rest: Span<'_>) -> Result<(), RingError> {
        if let Some(exact) = &mut self.exact {
            while exact.parts.len() <= part {
                exact.parts.push(vec![0.0; self.plan.layout.elements()]);
            }
            exact.used = exact.used.max(part + 1);
            rest.read(&mut exact.parts[part][place..place + rest.len()]);
            return Ok(());
        }
        self.make_buckets();
        while !rest.is_empty() {
            let b = place / self.plan.layout.bucket_elements();
            let range = self.plan.layout.range(b);
            let n = rest.len().min(range.end - place);
            self.buckets[b].write(place - range.start, rest.range(0..n));
            self.missing[b] -= n;
            (place, rest) = (place + n, rest.range(n..rest.len()));
        }
        self.send_full_buckets()
    }

    /// Sends the factors once all of this rank are here: the last layers' first, and before
    /// any bucket, so that all ranks send in the same order.
    fn send_factors(&mut self) -> Result<(), RingError> {
        if self.factors.missing > 0 || self.factors.sent {
            return Ok(());
        }
        self.factors.sent = true;
        let Some(ring) = &self.ring else { return Ok(()) };
        for layer in (0..self.plan.factored.layers.len()).rev() {
            for matrix in ExchangePlan::matrices(layer) {
                ring.submit(self.round, self.plan.layout.gathered(matrix), std::mem::take(&mut self.factors.matrices[matrix]))?;
            }
        }
        Ok(())
    }

    fn send_full_buckets(&mut self) -> Result<(), RingError> {
        while self.factors.sent && self.sent_from > 0 && self.missing[self.sent_from - 1] == 0 {
            self.sent_from -= 1;
            if let Some(ring) = &self.ring {
                ring.submit(self.round, self.sent_from, std::mem::take(&mut self.buckets[self.sent_from]))?;
            }
        }
        Ok(())
    }

    /// Waits until all factors are gathered, and every bucket and the statistics are summed
    /// over all ranks. The receiver gets each as soon as it is there.
    pub fn finish(&mut self, mine: StepTotals, receiver: &mut dyn Receiver) -> Result<StepTotals, RingError> {
        let scales = match self.exact.take() {
            None => None,
            Some(mut exact) => {
                let scales = self.submit_exact(&exact);
                exact.used = 0;
                self.exact = Some(exact);
                Some(scales?)
            }
        };
        self.submit_statistics(mine)?;
        // While factors are multiplied, sums are on their way.
        self.receive_factors(receiver)?;
        let totals = self.statistics(mine)?;
        // Alone, the gradient has stayed in the engine, and there are no buckets.
        for b in (0..self.buckets.len()).rev() {
            let scale = scales.as_ref().map(|scales| scales[b].as_ref());
            if let Some(ring) = &mut self.ring
                && !matches!(scale, Some(None))
            {
                self.buckets[b] = ring.wait(self.round, b)?;
            }
            if let Some(scale) = scale {
                let mut sums = std::mem::take(&mut self.buckets[b]).into_f32();
                match scale {
                    Some(scale) => scale.restore(&mut sums),
                    // Some value was NaN or infinite: the sum becomes NaN, which the update
                    // refuses.
                    None => sums.fill(f32::NAN),
                }
                self.buckets[b] = sums.into();
            }
            self.missing[b] = self.buckets[b].len();
            let (span, mut at) = (self.buckets[b].span(), 0);
            for flat in self.plan.factored.regions.flat(self.plan.layout.range(b)) {
                receiver.summed(flat.start, span.range(at..at + flat.len()));
                at += flat.len();
            }
        }
        self.sent_from = self.plan.layout.len();
        self.round += 1;
        Ok(totals)
    }

    fn receive_factors(&mut self, receiver: &mut dyn Receiver) -> Result<(), RingError> {
        self.factors.multiplied = 0.0;
        for layer in (0..self.plan.factored.layers.len()).rev() {
            let matrices = ExchangePlan::matrices(layer);
            if let Some(ring) = &mut self.ring {
                for matrix in matrices {
                    self.factors.matrices[matrix] = ring.wait(self.round, self.plan.layout.gathered(matrix))?;
                }
            }
            let start = Instant::now();
            let [inputs, slopes] = matrices.map(|matrix| self.factors.matrices[matrix].span());
            receiver.gathered(layer, inputs, slopes);
            trace::record("product", Some(self.round), start, Instant::now());
            self.factors.multiplied += start.elapsed().as_secs_f64();
        }
        Ok(())
    }

    /// Agrees on a scale for each bucket, and sends the sums of this rank's parts as
    /// integers. No scale means that some value was NaN or infinite: then nothing is sent.
    fn submit_exact(&mut self, exact: &Exact) -> Result<Vec<Option<Scale>>, RingError> {
        self.make_buckets();
        let parts = &exact.parts[..exact.used];
        let own = (0..self.plan.layout.len()).map(|b| {
            let all = parts.iter().map(|part| exponent(&part[self.plan.layout.range(b)]));
            all.fold(exponent(&[]), f32::max)
        });
        let mut largest: Vec<f32> = own.collect();
        if let Some(ring) = &mut self.ring {
            ring.submit(self.round, self.plan.layout.exponents(), largest)?;
            largest = ring.wait(self.round, self.plan.layout.exponents())?.into_f32();
        }
        let scales: Vec<Option<Scale>> = largest.iter().map(|&e| Scale::new(e, exact.shards)).collect();
        for (b, scale) in scales.iter().enumerate() {
            let Some(scale) = scale else { continue };
            let mut sums = std::mem::take(&mut self.buckets[b]).into_f32();
            sums.fill(0.0);
            parts.iter().for_each(|part| scale.add(&part[self.plan.layout.range(b)], &mut sums));
            match &self.ring {
                Some(ring) => ring.submit(self.round, b, sums)?,
                None => self.buckets[b] = sums.into(),
            }
        }
        Ok(scales)
    }

    /// The round of an evaluation: sums statistics, and counts of which f32 has all exactly.
    pub fn evaluation(&mut self, mine: StepTotals, mut counts: Vec<f32>) -> Result<(StepTotals, Vec<f32>), RingError> {
        self.submit_statistics(mine)?;
        let bucket = self.plan.layout.counts();
        if let Some(ring) = self.ring.as_mut().filter(|_| !counts.is_empty()) {
            ring.submit(self.round, bucket, counts)?;
            counts = ring.wait(self.round, bucket)?.into_f32();
        }
        let totals = self.statistics(mine)?;
        self.round += 1;
        Ok((totals, counts))
    }

    /// How many counts the round of an evaluation sums.
    pub fn counts(&self) -> usize {
        self.plan.layout.range(self.plan.layout.counts()).len()
    }

    fn submit_statistics(&self, mine: StepTotals) -> Result<(), RingError> {
        let Some(ring) = &self.ring else { return Ok(()) };
        ring.submit(self.round, self.plan.layout.statistics(), StepTotals { mark: self.mark, ..mine }.encode())
    }

    fn statistics(&mut self, mine: StepTotals) -> Result<StepTotals, RingError> {
        let Some(ring) = &mut self.ring else { return Ok(StepTotals { mark: self.mark, ..mine }) };
        Ok(StepTotals::decode(&ring.wait(self.round, self.plan.layout.statistics())?.into_f32()))
    }

    /// What was summed, bucket by bucket, after [`Exchange::finish`].
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
mod tests;
