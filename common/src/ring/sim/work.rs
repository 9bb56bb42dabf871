//! A training step as the simulation takes it, of a model and of what its compute takes.

use super::model::{Gathered, Part, Work};
use crate::config::{ClusterConfig, InputShape, Layer, LayerKind, ModelConfig, Precision, TrainConfig};
use crate::dense::{DenseLayer, Way, dense_layers_of};
use crate::net::transport::STREAMS_IN_FLIGHT;
use crate::ring::{BucketLayout, Encoding};

/// What one worker's compute of a step takes, by itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compute {
    pub forward_ms: f64,
    pub backward_ms: f64,
    /// The share of the backward pass after which the gradients of the dense layers are
    /// ready; those of the convolutions follow where the model [cuts](ModelConfig::cut) them,
    /// and at its end.
    pub dense_at: f64,
    /// From the summed gradient to the next step.
    pub update_ms: f64,
}

/// A step of `train.global_batch` samples by `world` workers that share them evenly, each of
/// which computes its share in this time.
pub fn work(model: &ModelConfig, input: InputShape, train: &TrainConfig, cluster: &ClusterConfig, world: u32, compute: Compute) -> Work {
    let layers = model.layers(input);
    let batch = f64::from(train.global_batch) / f64::from(world);
    let dense = dense_layers_of(model, train, cluster, input);
    let factored: Vec<&DenseLayer> = dense.iter().filter(|layer| layer.way == Way::Factors && world > 1).collect();
    let is_dense = |layer: &Layer| matches!(layer.kind, LayerKind::Dense { .. });
    // Layers that the backward pass reaches only after the cut.
    let cut = model.cut().and_then(|name| layers.iter().position(|layer| layer.name == name)).unwrap_or(0);
    let is_before_cut = |layer: &Layer| layers[..cut].iter().any(|before| before.name == layer.name);
    let count = |is_counted: &dyn Fn(&Layer) -> bool| -> u64 {
        train.trained_layers(&layers).filter(|layer| is_counted(layer)).map(Layer::values).sum()
    };
    let products: u64 = factored.iter().map(|layer| layer.inputs * layer.units).sum();
    // The products take what as many multiply-adds take in the forward pass, and the
    // backward pass does not make those of a worker's own samples.
    let macs: u64 = layers.iter().map(|layer| layer.macs).sum();
    let macs_after_cut: u64 = layers[cut..].iter().filter(|layer| !is_dense(layer)).map(|layer| layer.macs).sum();
    let own_ms = compute.forward_ms * products as f64 / macs.max(1) as f64;
    let dense_ms = compute.forward_ms + (compute.dense_at * compute.backward_ms - own_ms).max(0.0);
    let compute_ms = compute.forward_ms + (compute.backward_ms - own_ms).max(0.0);
    let cut_ms = dense_ms + compute.backward_ms * macs_after_cut as f64 / macs.max(1) as f64;
    let convolutions = |before: bool| count(&|layer| !is_dense(layer) && is_before_cut(layer) == before) as usize;
    let mut parts = vec![
        Part { elements: convolutions(true), ready_ms: compute_ms },
        Part { elements: convolutions(false), ready_ms: if cut == 0 { compute_ms } else { cut_ms.min(compute_ms) } },
        Part { elements: (count(&is_dense) - products) as usize, ready_ms: dense_ms },
    ];
    parts.retain(|part| part.elements > 0);
    let encoding = if train.precision == Precision::Bf16 { Encoding::Bf16 } else { Encoding::F32 };
    let matrix = |width: u64| Gathered { values_each: (batch * width as f64).ceil() as usize, ready_ms: dense_ms, encoding };
    Work {
        layout: BucketLayout::new(parts.iter().map(|part| part.elements).sum(), cluster.bucket_bytes),
        parts,
        compute_ms,
        update_ms: compute.update_ms,
        encoding: if train.reproducible { Encoding::Fixed } else { cluster.wire.into() },
        gathered: factored.iter().rev().flat_map(|layer| [matrix(layer.inputs), matrix(layer.units)]).collect(),
        product_ms: own_ms * f64::from(world),
        in_flight: (STREAMS_IN_FLIGHT * cluster.connections) as usize,
    }
}
