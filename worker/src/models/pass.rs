//! What a forward pass is for, and the random numbers that it needs.

use burn::tensor::{Tensor, TensorData};
use common::seed;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;

/// Training or evaluation. Dropout draws from this value's own seeded stream on
/// the host, so that a seed means the same mask on every device.
#[derive(Debug)]
pub struct Pass {
    dropout: Option<ChaCha8Rng>,
}

impl Pass {
    /// Dropout does nothing.
    pub fn evaluate() -> Self {
        Self { dropout: None }
    }

    /// Dropout is active and drawn from `dropout_seed`.
    pub fn train(dropout_seed: u64) -> Self {
        Self { dropout: Some(seed::stream(dropout_seed, "dropout", &[])) }
    }

    /// Inverted dropout (Srivastava et al., "Dropout: A Simple Way to Prevent
    /// Neural Networks from Overfitting", 2014): each value becomes zero with
    /// `probability`, the others grow so that the expected sum stays.
    pub fn dropout<const D: usize>(&mut self, x: Tensor<D>, probability: f64) -> Tensor<D> {
        let Some(rng) = self.dropout.as_mut().filter(|_| probability > 0.0) else {
            return x;
        };
        let shape = x.shape();
        let mask = mask(rng, shape.num_elements(), probability);
        let mask = Tensor::<D>::from_data(TensorData::new(mask, shape), &x.device()).cast(x.dtype());
        // The clone keeps the backend from multiplying in place: the values of x
        // are still needed by the backward pass of the layer that made them.
        let kept = x.clone();
        let y = x * mask.clone();
        drop((kept, mask));
        y
    }
}

/// `len` values that are 0 with `probability` (to within 2^-17), else what keeps
/// the mean at 1.
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
