//! The activation function after a hidden layer.

use burn::tensor::Tensor;
use burn::tensor::activation::{relu, sigmoid, tanh};
use common::config::Activation;

pub fn activate<const D: usize>(kind: Activation, x: Tensor<D>) -> Tensor<D> {
    match kind {
        Activation::Relu => relu(x),
        Activation::Sigmoid => sigmoid(x),
        Activation::Tanh => tanh(x),
        Activation::Identity => x,
    }
}
