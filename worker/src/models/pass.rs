//! Whether a forward pass is for training or evaluation, and what it needs for that.

use burn::nn::Linear;
use burn::tensor::Tensor;

/// Training or evaluation. In training, dropout multiplies by masks that were drawn on the
/// host, so that a seed means the same mask on every device.
#[derive(Debug)]
pub struct Pass {
    /// What each dropout of the pass multiplies by, in order; none in evaluation.
    masks: std::vec::IntoIter<Tensor<2>>,
    /// Dense layers that have been passed.
    dense: usize,
    /// The numbers of those that are tapped, and what was found there.
    tapped: Vec<usize>,
    taps: Vec<Tap>,
}

/// A dense layer as a batch passed it.
#[derive(Debug)]
pub struct Tap {
    /// `[n, inputs]`
    pub input: Tensor<2>,
    /// `[n, units]`, before any activation.
    pub output: Tensor<2>,
}

impl Pass {
    /// A pass in which dropout does nothing.
    pub fn evaluate() -> Self {
        Self::train(Vec::new())
    }

    /// A pass in which dropout is active. `masks` are `[n, values]` for each of
    /// [`super::Model::dropouts`]: zero, or what keeps the mean.
    pub fn train(masks: Vec<Tensor<2>>) -> Self {
        Self { masks: masks.into_iter(), dense: 0, tapped: Vec::new(), taps: Vec::new() }
    }

    /// Keeps input and output of the dense layers with these numbers, in the order of the
    /// pass.
    pub fn tapping(self, tapped: Vec<usize>) -> Self {
        Self { tapped, ..self }
    }

    /// What was kept of the layers that are tapped, in their order.
    pub fn into_taps(self) -> Vec<Tap> {
        self.taps
    }

    /// A dense layer. All of a model's go through here, so that they can be tapped.
    pub fn dense(&mut self, layer: &Linear, input: Tensor<2>) -> Tensor<2> {
        let number = self.dense;
        self.dense += 1;
        if !self.tapped.contains(&number) {
            return layer.forward(input);
        }
        let output = layer.forward(input.clone());
        self.taps.push(Tap { input, output: output.clone() });
        output
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
