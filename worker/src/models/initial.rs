//! Initial weights, drawn on the host from the run's seed, so that they are the
//! same on every device, for every number of workers and threads.

use common::seed;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::replica::ParamLayout;

/// Values drawn from one stream; streams are drawn in parallel.
const BLOCK: usize = 1 << 16;
/// Standard deviation of the output layer: small, so that training starts from
/// nearly equal class probabilities.
const OUTPUT_DEVIATION: f32 = 0.01;

/// The flat initial state of a model: zero biases; weights normal with variance
/// 2 / fan-in (He et al., "Delving Deep into Rectifiers", 2015), those of the
/// output layer normal with deviation 0.01.
pub fn initial_weights(layout: &ParamLayout, seed: u64) -> Vec<f32> {
    let mut flat = vec![0.0; layout.total()];
    let output = layout.params().iter().rposition(|p| p.shape().len() > 1);
    for (index, param) in layout.params().iter().enumerate() {
        // A convolution's weight is [out, in, height, width], a dense one's [in, out].
        let fan_in = match param.shape() {
            [fan_in, _] => *fan_in,
            [_, rest @ ..] if rest.len() > 1 => rest.iter().product(),
            _ => continue,
        };
        let deviation = if Some(index) == output { OUTPUT_DEVIATION } else { (2.0 / fan_in as f32).sqrt() };
        flat[param.range()].par_chunks_mut(BLOCK).enumerate().for_each(|(block, values)| {
            fill_normal(&mut seed::stream(seed, "weights", &[index as u64, block as u64]), deviation, values);
        });
    }
    flat
}

/// Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.
fn fill_normal(rng: &mut ChaCha8Rng, deviation: f32, values: &mut [f32]) {
    for pair in values.chunks_mut(2) {
        // 1 - u is in (0, 1]: its logarithm is finite.
        let radius = deviation * (-2.0 * (1.0 - seed::unit(rng)).ln()).sqrt();
        let (sin, cos) = (std::f32::consts::TAU * seed::unit(rng)).sin_cos();
        for (value, direction) in pair.iter_mut().zip([cos, sin]) {
            *value = radius * direction;
        }
    }
}
