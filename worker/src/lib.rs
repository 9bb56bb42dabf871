//! Models, the input pipeline and the training loop of Ringleader.
//!
//! Read [`train`] first: it is the algorithm. [`job`] says what a rank has to
//! do, [`data`] brings its samples, [`replica`] holds the model, [`exchange`]
//! has the gradient summed; [`member`] (behind [`join`]) and [`single`] are the two
//! ways to run it; [`donor`] hands state from one worker to another.
//! Only [`device`] knows libtorch. What is done with a run afterwards starts from
//! [`trained`]; [`plot`] draws, [`plots`] says what. [`mod@bench`] measures the parts.

pub mod bench;
pub mod bulk;
pub mod checkpoints;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod control;
pub mod data;
pub mod device;
pub mod doctor;
pub mod donor;
pub mod ending;
pub mod evaluate;
pub mod exchange;
pub mod fetch;
pub mod filter;
pub mod job;
pub mod join;
pub mod link;
pub mod member;
pub mod models;
pub mod optim;
pub mod perceptron;
pub mod plot;
pub mod plots;
pub mod predict;
pub mod presence;
pub mod remote;
pub mod replica;
pub mod schedule;
pub mod show;
pub mod single;
pub mod summary;
pub mod train;
pub mod trained;
pub mod voice;
