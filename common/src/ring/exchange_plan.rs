//! What the workers of a ring exchange in a step, as it follows from the config and from who
//! owns which rows of the global batch: the same on every rank.

use super::bucket::BucketLayout;
use super::encoding::Encoding;
use super::gather::Gathers;
use crate::config::{Config, InputShape, Precision};
use crate::dense::Factored;

#[derive(Debug, Clone, PartialEq)]
pub struct ExchangePlan {
    pub factored: Factored,
    /// Buckets of what is left to be summed.
    pub layout: BucketLayout,
    pub encoding: Encoding,
    /// Two matrices for each factored layer: its inputs, and the gradient of its output.
    pub gathers: Gathers,
}

impl ExchangePlan {
    /// `rows`: how many rows of the global batch each rank has, in the order of the ranks.
    /// Without `factors`, gradients of all layers are summed.
    pub fn new(config: &Config, input: InputShape, rows: &[usize], factors: bool) -> Self {
        let factored = if factors { Factored::of(config, input) } else { Factored::nothing(config.model.parameters(input) as usize) };
        let widths = factored.layers.iter().flat_map(|layer| [layer.inputs, layer.units]).collect();
        Self {
            layout: BucketLayout::new(factored.regions.summed_len(), config.cluster.bucket_bytes),
            encoding: if config.train.reproducible { Encoding::Fixed } else { config.cluster.wire.into() },
            // In the format in which they are computed, so without loss.
            gathers: Gathers::new(rows, widths, config.train.precision == Precision::Bf16),
            factored,
        }
    }

    /// The indices of a layer's matrices: its inputs, and the gradient of its output.
    pub fn matrices(layer: usize) -> [usize; 2] {
        [2 * layer, 2 * layer + 1]
    }
}
