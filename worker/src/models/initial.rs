//! Initial weights, drawn on the host from the run's seed, so that they are the
//! same on every device, for every number of workers and threads.

use common::config::{Activation, ModelConfig};
use common::seed;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::prelude::*;

use super::layout::ParamLayout;
use super::network::Role;

/// Values drawn from one stream; streams are drawn in parallel.
const BLOCK: usize = 1 << 16;
/// Standard deviation of the output layer: small, so that training starts from
/// nearly equal class probabilities.
const OUTPUT_DEVIATION: f32 = 0.01;

/// The variance of the initial weights of a model's layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scheme {
    /// All zero, as the perceptron convergence theorem assumes.
    Zero,
    /// Variance 2 / fan-in (He et al., "Delving Deep into Rectifiers", 2015), and
    /// a narrow output layer: for ReLU.
    He,
    /// Variance 2 / (fan-in + fan-out) in every layer (Glorot and Bengio,
    /// "Understanding the Difficulty of Training Deep Feedforward Neural
    /// Networks", 2010): for sigmoid and tanh.
    Xavier,
}

impl Scheme {
    fn of(model: &ModelConfig) -> Self {
        match (model, model.activation()) {
            (ModelConfig::Perceptron(_), _) => Self::Zero,
            (_, None | Some(Activation::Relu)) => Self::He,
            (_, Some(_)) => Self::Xavier,
        }
    }
}

/// The flat initial state of a model: zero biases, normal weights whose
/// deviation follows the model's activation. Norms begin with a scale of 1 and a shift of 0,
/// running means with 0 and running variances with 1.
pub fn initial_weights(layout: &ParamLayout, model: &ModelConfig, seed: u64) -> Vec<f32> {
    let mut flat = vec![0.0; layout.total()];
    let ones = layout.params().iter().filter(|p| matches!(p.role(), Role::Scale | Role::RunningVariance));
    ones.for_each(|param| flat[param.range()].fill(1.0));
    let scheme = Scheme::of(model);
    if scheme == Scheme::Zero {
        return flat;
    }
    let output = layout.params().iter().rposition(|p| p.shape().len() > 1);
    for (index, param) in layout.params().iter().enumerate() {
        // A convolution's weight is [out, in, height, width], a dense one's [in, out].
        let (fan_in, fan_out) = match param.shape() {
            [fan_in, fan_out] => (*fan_in, *fan_out),
            [out, rest @ ..] if rest.len() > 1 => (rest.iter().product(), out * rest[1..].iter().product::<usize>()),
            _ => continue,
        };
        let deviation = match scheme {
            Scheme::He if Some(index) == output => OUTPUT_DEVIATION,
            Scheme::He | Scheme::Zero => (2.0 / fan_in as f32).sqrt(),
            Scheme::Xavier => (2.0 / (fan_in + fan_out) as f32).sqrt(),
        };
        flat[param.range()].par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
            fill_normal(&mut seed::stream(seed, "weights", &[index as u64, block as u64]), deviation, values);
        });
    }
    flat
}

/// Marsaglia and Tsang, "The Ziggurat Method for Generating Random Variables", 2000:
/// AlexNet has 60 million weights, and a newcomer should draw them quickly.
fn fill_normal(rng: &mut ChaCha8Rng, deviation: f32, values: &mut [f32]) {
    for value in values {
        let normal: f32 = StandardNormal.sample(rng);
        *value = deviation * normal;
    }
}
