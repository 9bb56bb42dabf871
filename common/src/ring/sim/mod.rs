//! The time that a training step takes in a cluster that is not available: the ring's
//! own [`schedule`], buckets and segments under a cost model. Pure: time is a number,
//! and nothing is sent.
//!
//! Modelled: each rank moves its messages on one thread, in the order in which they
//! arise; compute and messages of a machine's workers share its cores evenly, except
//! for the loss when threads do not divide evenly among cores; a machine has one link
//! each way; a bounded number of buckets is under way at a time. Not modelled: lost
//! packets, windows and congestion control, other effects of the scheduler, a last
//! machine with fewer workers than the others.
//!
//! All machines of a world are alike, so one of them stands for all: the messages that
//! leave its last rank are those that reach its first. A late rank delays every other,
//! because each of its sends waits for its own values; so the latest rank of a step
//! stands for all of them, too.

mod engine;
mod model;
#[cfg(test)]
mod tests;
mod work;

pub use model::{Costs, Gathered, Machines, Outcome, Part, Sent, Work, not_negative, positive, slowest};
pub use work::{Compute, work};

#[cfg(doc)]
use super::schedule;

/// Simulates one step in a ring of `world` whose slowest worker takes `slowest`
/// times the compute of `work`.
pub fn simulate(world: usize, work: &Work, costs: &Costs, machines: &Machines, slowest: f64) -> Outcome {
    engine::run(world, work, costs, machines, &|_| slowest, &mut |_| {})
}
