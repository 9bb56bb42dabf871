//! Between libtorch's tensors and burn's.

use burn::backend::LibTorch;
use burn::backend::libtorch::TchTensor;
use burn::tensor::Tensor as BurnTensor;
use tch::Tensor;

use super::super::EngineError;

/// A libtorch tensor as burn's.
pub(super) fn wrap<const D: usize>(tensor: Tensor) -> BurnTensor<D> {
    BurnTensor::from_primitive::<LibTorch>(TchTensor::new(tensor))
}

/// The libtorch tensor that burn holds.
pub(super) fn inner<const D: usize>(tensor: BurnTensor<D>) -> Result<Tensor, EngineError> {
    match tensor.try_into_primitive::<LibTorch>() {
        Ok(primitive) => Ok(primitive.tensor),
        Err(error) => Err(EngineError::Compute(format!("{error:?}"))),
    }
}
