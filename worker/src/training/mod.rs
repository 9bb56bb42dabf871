//! The training loop and what it consists of. Read [`mod@train`] first.
//!
//! [`job`] derives the work of one rank, [`initial`] has it begin with weights from a file, [`schedule`] gives the learning rate,
//! [`exchange`] has the gradient summed ([`totals`] are what is summed beside it), [`record`] receives metrics and checkpoints,
//! [`confusion`] counts what is mistaken for what and `pictures` draws it, and has what the model says of `examples` recorded,
//! [`early_stop`] ends training before its last step and [`left_out`] once too many samples do not decode. [`single`] runs the loop in
//! one process; a cluster's worker does so in `cluster::member`.

pub mod clock;
pub mod confusion;
pub mod early_stop;
mod examples;
pub mod exchange;
pub mod initial;
pub mod job;
pub mod left_out;
mod micro_batch;
mod pictures;
pub mod record;
pub mod schedule;
pub mod single;
#[cfg(all(test, feature = "libtorch"))]
mod tests;
pub mod totals;
pub mod train;
