//! The networks, as ordinary burn modules that depend on no backend, no loss and no
//! optimizer.
//!
//! A model has a file here and a variant of [`Model`]. Its config and its layers are in
//! `common::config`; its fields here have the names of those layers.

mod activation;
mod alexnet;
mod initial;
mod layout;
mod lenet;
mod linear;
mod mlp;
mod model;
mod network;
mod pass;
#[cfg(test)]
mod tests;

pub use activation::activate;
pub use alexnet::Alexnet;
pub use common::config::InputShape;
pub use initial::initial_weights;
pub use layout::{ParamLayout, ParamSpec};
pub use lenet::Lenet;
pub use linear::{Perceptron, Softmax};
pub use mlp::Mlp;
pub use model::Model;
#[cfg(any(feature = "flex", feature = "libtorch"))]
pub(crate) use network::NewLeaf;
pub use network::{Network, Role};
pub use pass::{Pass, Tap};
