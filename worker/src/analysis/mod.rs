//! Operations on runs, models and datasets other than training. [`trained`] loads a
//! run's model for the other modules.

pub mod after_training;
pub mod doctor;
pub mod evaluate;
pub mod export;
pub mod fetch;
pub mod filter;
pub mod pack;
pub mod perceptron;
pub mod plot;
pub mod predict;
pub mod show;
pub mod summary;
pub mod trained;
