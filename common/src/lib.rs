//! Shared by coordinator and workers: vocabulary, configuration, the sample plan,
//! datasets, the ring, the wire and the run directory.
//!
//! This crate knows no tensor library, neither burn nor libtorch, so that it builds in
//! seconds and every decision in it can be tested without a model. The modules below
//! are listed in the order in which they build on each other: none imports from a later
//! one.

// Seeded random streams.
pub mod seed;

// Loops over numbers, compiled for several instruction sets.
pub mod simd;

// Files that are replaced whole, and locks.
pub mod files;

// Folders that belong to one user alone.
pub mod private_folder;

// BLAKE3 digests of weights, files, datasets and configs.
pub mod digest;

// Numbers that JSON lacks.
pub mod json_number;

// Traces of where the time goes, as a file for Perfetto.
pub mod trace;

// Ctrl-C, SIGTERM and SIGHUP.
pub mod signals;

// Objects in Amazon S3, Google Cloud Storage, and on web servers.
pub mod objects;

// Panics of libraries, made errors.
pub mod contained;

// The configuration of a run.
pub mod config;

// Datasets as sequences of undecoded samples.
pub mod dataset;

// Which samples a step consumes.
pub mod plan;

// What workers exchange of dense layers.
pub mod dense;

// Proof of what a run trained on.
pub mod audit;

// Metrics of steps and evaluations.
pub mod metrics;

// What the model says of a few validation pictures.
pub mod predictions;

// The current status of a run.
pub mod status;

// Logs, the progress bar, and all output on stdout and stderr.
pub mod ui;

// How long the processes of a run wait for one another.
pub mod timing;

// The messages between coordinator and workers.
pub mod wire;

// Encrypted, authenticated connections.
pub mod net;

// What is wrong with a machine or with the network between two.
pub mod diagnosis;

// Ring all-reduce.
pub mod ring;

// The files of a run.
pub mod run_dir;

// The record of a run for an MLflow server.
pub mod mlflow;

// Keeps the record of a run.
pub mod recorder;

#[cfg(fuzzing)]
pub mod fuzzing;
