//! What coordinator and workers share: vocabulary, configuration, the sample
//! plan, datasets, the ring, the wire and the run directory.
//!
//! This crate knows no tensor library: it neither names burn nor libtorch, so
//! that it builds in seconds and that every decision in it can be tested
//! without a model.

pub mod audit;
pub mod config;
pub mod dataset;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod net;
pub mod plan;
pub mod recorder;
pub mod ring;
pub mod run_dir;
pub mod seed;
pub mod simd;
pub mod trace;
pub mod ui;
pub mod wire;
