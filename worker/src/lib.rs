//! Models, their compute devices, the optimizer and the training step of Ringleader.

pub mod device;
pub mod models;
pub mod optim;
pub mod replica;
pub mod schedule;
