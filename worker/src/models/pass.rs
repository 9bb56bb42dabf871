//! Whether a forward pass is for training or evaluation, and what it needs for that.

use burn::tensor::Tensor;

/// Training or evaluation. In training, dropout multiplies by masks that were drawn on the
/// host, so that a seed means the same mask on every device.
#[derive(Debug)]
pub struct Pass {
    /// What each dropout of the pass multiplies by, in order; none in evaluation.
    masks: std::vec::IntoIter<Tensor<2>>,
}

impl Pass {
    /// A pass in which dropout does nothing.
    pub fn evaluate() -> Self {
        Self::train(Vec::new())
    }

    /// A pass in which dropout is active. `masks` are `[n, values]` for each of
    /// [`super::Model::dropouts`]: zero, or what keeps the mean.
    pub fn train(masks: Vec<Tensor<2>>) -> Self {
        Self { masks: masks.into_iter() }
    }

    /// Inverted dropout (Srivastava et al., "Dropout: A Simple Way to Prevent Neural
    /// Networks from Overfitting", 2014): each value becomes zero with `probability`,
    /// the others are scaled up so that the expected sum stays the same.
    pub fn dropout<const D: usize>(&mut self, x: Tensor<D>, probability: f64) -> Tensor<D> {
        let mask = if probability == 0.0 { None } else { self.masks.next() };
        let Some(mask) = mask else { return x };
        let mask = mask.reshape(x.shape()).cast(x.dtype());
        // The clone keeps the backend from multiplying in place: the values of x
        // are still needed by the backward pass of the layer that made them.
        let kept = x.clone();
        let y = x * mask.clone();
        drop((kept, mask));
        y
    }
}
