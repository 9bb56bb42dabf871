//! Models, the input pipeline and the training loop of Ringleader.
//!
//! Read [`train`] first: it is the algorithm. [`job`] says what a rank has to
//! do, [`data`] brings its samples, [`replica`] holds the model, [`exchange`]
//! has the gradient summed; [`join`] and [`single`] are the two ways to run it.
//! Only [`device`] knows libtorch.

pub mod checkpoints;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod data;
pub mod device;
pub mod doctor;
pub mod exchange;
pub mod fetch;
pub mod job;
pub mod join;
pub mod member;
pub mod models;
pub mod optim;
pub mod remote;
pub mod replica;
pub mod schedule;
pub mod single;
pub mod train;
