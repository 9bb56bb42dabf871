//! Whether a forward pass is for training or evaluation, and the random numbers that it
//! needs.

use burn::tensor::{Tensor, TensorData};
use common::seed;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Consecutive samples of a batch that draw their dropout from one seed: those of
/// one shard. So a sample's mask does not depend on what else is in the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutGroup {
    pub seed: u64,
    pub samples: usize,
}

/// Training or evaluation. Dropout draws from this value's own seeded streams on
/// the host, so that a seed means the same mask on every device.
#[derive(Debug)]
pub struct Pass {
    /// A stream and a number of samples for each group; none in evaluation.
    dropout: Vec<(ChaCha8Rng, usize)>,
}

impl Pass {
    /// A pass in which dropout does nothing.
    pub fn evaluate() -> Self {
        Self { dropout: Vec::new() }
    }

    /// A pass in which dropout is active; the groups together are the whole batch, in
    /// order.
    pub fn train(groups: &[DropoutGroup]) -> Self {
        Self { dropout: groups.iter().map(|g| (seed::stream(g.seed, "dropout", &[]), g.samples)).collect() }
    }

    /// Inverted dropout (Srivastava et al., "Dropout: A Simple Way to Prevent Neural
    /// Networks from Overfitting", 2014): each value becomes zero with `probability`,
    /// the others are scaled up so that the expected sum stays the same.
    pub fn dropout<const D: usize>(&mut self, x: Tensor<D>, probability: f64) -> Tensor<D> {
        if self.dropout.is_empty() || probability == 0.0 {
            return x;
        }
        let shape = x.shape();
        let samples: usize = self.dropout.iter().map(|(_, samples)| samples).sum();
        let per_sample = shape.num_elements() / samples.max(1);
        let mask: Vec<f32> = self.dropout.iter_mut().flat_map(|(rng, samples)| mask(rng, *samples * per_sample, probability)).collect();
        let mask = Tensor::<D>::from_data(TensorData::new(mask, shape), &x.device()).cast(x.dtype());
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
