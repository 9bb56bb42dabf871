//! Models, the input pipeline and the training loop of Ringleader.
//!
//! Read [`training::train`] first: it is the algorithm. The modules below stand in the
//! order in which they build on each other: none imports from one after it.
//!
//! To train a model of your own, implement [`models::Network`] and give it to [`cli::run`] in the
//! `main` of a crate of yours: docs/own-model.md.

// From undecoded samples to batches of normalised numbers.
pub mod data;

// Curves, matrices and other figures, as PNG or SVG.
pub mod figures;

// The networks, their parameters and the initial weights.
pub mod models;

// Weights in files: PyTorch's, safetensors, ONNX.
pub mod weights;

// SGD, Adam, AdamW, LARS and LAMB over flat host slices.
pub mod optim;

// Devices, and the engines that run a model on them. Only `engine::libtorch` uses
// libtorch.
pub mod engine;

// A worker's copy of the training state.
pub mod replica;

// The training loop, and the run of one process.
pub mod training;

// A worker of a cluster.
pub mod cluster;

// Operations on runs, models and datasets other than training.
pub mod analysis;

// Benchmarks of the parts of training.
pub mod bench;

// The command line.
pub mod cli;
