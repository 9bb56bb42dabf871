//! What the workers of a ring exchange in a step, as it follows from the config and from who
//! owns which rows of the global batch: the same on every rank.

use super::bucket::BucketLayout;
use super::encoding::Encoding;
use super::gather::Gathers;
use crate::config::{Config, InputShape, Precision};
use crate::dense::Factored;

/// The most classes whose confusions are counted in evaluations: 4 MB of counts.
const MOST_CONFUSED: usize = 1024;

/// How many counts an evaluation has beside its sums: how often each class was predicted as
/// each other, or none of very many classes.
fn confused(classes: usize) -> usize {
    if classes <= MOST_CONFUSED { classes * classes } else { 0 }
}

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
    /// `shards`: how many shards each rank owns, in the order of the ranks. Each has as many
    /// rows of the global batch as its shards have samples in a full step.
    ///
    /// With `factors`, the gradients of dense layers are made of factors where the config
    /// says so: in a world of one only if the weights must be those of any world.
    pub fn new(config: &Config, input: InputShape, shards: &[u32], factors: bool) -> Self {
        let factors = factors && (shards.len() > 1 || config.train.reproducible);
        let per_shard = (config.train.global_batch / config.train.shards) as usize;
        let rows: Vec<usize> = shards.iter().map(|&shards| shards as usize * per_shard).collect();
        let trained = config.train.trained_values(&config.model, input) as usize;
        let factored = if factors { Factored::of(config, input) } else { Factored::nothing(trained) };
        let widths = factored.layers.iter().flat_map(|layer| [layer.inputs, layer.units]).collect();
        Self {
            layout: BucketLayout::new(factored.regions.summed_len(), config.cluster.bucket_bytes).counting(confused(input.classes)),
            encoding: if config.train.reproducible { Encoding::Fixed } else { config.cluster.wire.into() },
            // In the format in which they are computed, so without loss.
            gathers: Gathers::new(&rows, widths, config.train.precision == Precision::Bf16),
            factored,
        }
    }

    /// The indices of a layer's matrices: its inputs, and the gradient of its output.
    pub fn matrices(layer: usize) -> [usize; 2] {
        [2 * layer, 2 * layer + 1]
    }
}
