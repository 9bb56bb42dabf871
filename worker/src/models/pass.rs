//! Whether a forward pass is for training or evaluation, and the random numbers that it
//! needs.

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use common::seed;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Consecutive samples of a batch that draw their dropout from one seed: those of
/// one shard, or a part of them. So a sample's mask does not depend on what else is in
/// the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DropoutGroup {
    seed: u64,
    /// The samples of the shard.
    whole: usize,
    /// Those of them that are in the batch.
    part: Range<usize>,
}

impl DropoutGroup {
    /// All `samples` of a shard.
    pub fn new(seed: u64, samples: usize) -> Self {
        Self { seed, whole: samples, part: 0..samples }
    }

    /// These of the shard's samples.
    pub fn part(self, part: Range<usize>) -> Self {
        Self { part, ..self }
    }

    /// How many samples of the batch it covers.
    pub fn samples(&self) -> usize {
        self.part.len()
    }
}

/// Training or evaluation. Dropout draws from this value's own seeded streams on
/// the host, so that a seed means the same mask on every device.
#[derive(Debug)]
pub struct Pass {
    /// A stream for each group; none in evaluation.
    dropout: Vec<(ChaCha8Rng, DropoutGroup)>,
}

impl Pass {
    /// A pass in which dropout does nothing.
    pub fn evaluate() -> Self {
        Self { dropout: Vec::new() }
    }

    /// A pass in which dropout is active; the groups together are the whole batch, in
    /// order.
    pub fn train(groups: &[DropoutGroup]) -> Self {
        Self { dropout: groups.iter().map(|g| (seed::stream(g.seed, "dropout", &[]), g.clone())).collect() }
    }

    /// Inverted dropout (Srivastava et al., "Dropout: A Simple Way to Prevent Neural
    /// Networks from Overfitting", 2014): each value becomes zero with `probability`,
    /// the others are scaled up so that the expected sum stays the same.
    pub fn dropout<const D: usize>(&mut self, x: Tensor<D>, probability: f64) -> Tensor<D> {
        if self.dropout.is_empty() || probability == 0.0 {
            return x;
        }
        let shape = x.shape();
        let samples: usize = self.dropout.iter().map(|(_, group)| group.samples()).sum();
        let per_sample = shape.num_elements() / samples.max(1);
        let mut all = Vec::with_capacity(shape.num_elements());
        for (rng, group) in &mut self.dropout {
            // Also the masks of the shard's other samples, so that the next layer's
            // begin where they always do.
            let mask = mask(rng, group.whole * per_sample, probability);
            all.extend_from_slice(&mask[group.part.start * per_sample..group.part.end * per_sample]);
        }
        let mask = Tensor::<D>::from_data(TensorData::new(all, shape), &x.device()).cast(x.dtype());
        // The clone keeps the backend from multiplying in place: the values of x
        // are still needed by the backward pass of the layer that made them.
        let kept = x.clone();
        let y = x * mask.clone();
        drop((kept, mask));
        y
    }
}

/// `len` values that are 0 with `probability` (to within 2^-17), else the value that
/// keeps the mean at 1.
fn mask(rng: &mut ChaCha8Rng, len: usize, probability: f64) -> Vec<f32> {
    let threshold = (probability * 65536.0).round().min(65535.0) as u32;
    let kept = 65536.0 / (65536 - threshold) as f32;
    let value = |random: u32| if random < threshold { 0.0 } else { kept };
    let mut mask = Vec::with_capacity(len + 1);
    while mask.len() < len {
        let random = rng.next_u32();
        mask.push(value(random & 0xffff));
        mask.push(value(random >> 16));
    }
    mask.truncate(len);
    mask
}
