//! The networks, as ordinary burn modules that depend on no backend, no loss and no
//! optimizer.
//!
//! A model has a file here and implements [`Network`]. Its config and its layers are in
//! `common::config`; its fields here have the names of those layers. A model of a user's own
//! is a [`Network`] in another crate, which says itself what its layers are.

mod activation;
mod alexnet;
mod describe;
mod error;
mod initial;
mod layout;
mod lenet;
mod linear;
mod mlp;
mod model;
mod network;
mod own;
mod pass;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod tests_of_own;

pub use activation::activate;
pub use alexnet::Alexnet;
pub use common::config::InputShape;
pub use describe::describe;
pub use error::ModelError;
pub use initial::initial_weights;
pub(crate) use layout::BatchNorms;
pub use layout::{ParamLayout, ParamSpec};
pub use lenet::Lenet;
pub use linear::{Perceptron, Softmax};
pub use mlp::Mlp;
pub use model::Model;
#[cfg(any(feature = "flex", feature = "libtorch"))]
pub(crate) use network::NewLeaf;
pub use network::{Network, Role};
pub use own::{Own, register};
pub use pass::{BatchStatistics, Pass, Tap};
#[cfg(feature = "libtorch")]
pub(crate) use pass::{Cut, Normalised};
