//! Batch normalisation by libtorch's own kernel: one pass forward and one backward, in the
//! order in which the values lie, with the statistics in f32 where the values are bf16.

use burn::tensor::Tensor as BurnTensor;
use tch::{Kind, Tensor};

use super::super::EngineError;
use super::bridge::{inner, wrap};
use crate::models::Normalised;

/// The kernel of [`crate::models::Pass`] on libtorch's devices. It panics where libtorch
/// fails, as all operations of burn do: [`super::network::Network::guarded`] makes an error of
/// it.
pub(super) fn normalised(input: BurnTensor<4>, scale: BurnTensor<1>, shift: BurnTensor<1>, epsilon: f64) -> Normalised {
    by_libtorch(input, scale, shift, epsilon).unwrap_or_else(|error| panic!("batch normalisation: {error}"))
}

fn by_libtorch(input: BurnTensor<4>, scale: BurnTensor<1>, shift: BurnTensor<1>, epsilon: f64) -> Result<Normalised, EngineError> {
    let [n, channels, height, width] = input.dims();
    let values = n * height * width;
    let (input, scale, shift) = (inner(input)?, inner(scale)?.f_to_kind(Kind::Float)?, inner(shift)?.f_to_kind(Kind::Float)?);
    let zeros = || Tensor::f_zeros([channels as i64], (Kind::Float, input.device()));
    // With a momentum of 1 they become the statistics of this batch. libtorch divides by one
    // value less than there are, so that of one value would be no number.
    let (mean, variance) = (zeros()?, zeros()?);
    let (output, ..) = input.f_native_batch_norm(Some(&scale), Some(&shift), Some(&mean), Some(&variance), true, 1.0, epsilon)?;
    let variance = if values > 1 { variance } else { zeros()? };
    Ok(Normalised { output: wrap(output), mean: wrap(mean), variance: wrap(variance) })
}
