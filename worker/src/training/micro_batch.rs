//! How many samples are computed at a time.

use anyhow::Result;
use common::config::MicroBatch;

use super::job::Job;
use crate::engine::EngineError;
use crate::replica::{Replica, ReplicaError};

/// The most samples of a step that this worker computes at a time, as many on each of its
/// devices as the config says. For "auto", it rehearses a step.
pub(super) fn micro_batch(job: &Job, replica: &mut Replica) -> Result<usize> {
    let whole = job.largest_batch();
    match job.config.train.micro_batch {
        None => Ok(whole),
        Some(MicroBatch::Samples(samples)) => Ok(samples as usize * replica.devices()),
        Some(MicroBatch::Auto(_)) => Ok(largest_that_fits(whole, |samples| replica.rehearse(samples))?),
    }
}

/// Halves `samples` until `rehearse` finds memory for it, and says so.
fn largest_that_fits(whole: usize, mut rehearse: impl FnMut(usize) -> Result<(), ReplicaError>) -> Result<usize, ReplicaError> {
    let mut samples = whole.max(1);
    loop {
        match rehearse(samples) {
            Err(ReplicaError::Engine(error @ EngineError::OutOfMemory { .. })) if samples > 1 => {
                samples = samples.div_ceil(2);
                tracing::warn!("{error}; trying {samples} samples at a time");
            }
            other => return other.map(|()| samples),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn full(samples: usize) -> ReplicaError {
        ReplicaError::Engine(EngineError::OutOfMemory { device: "cuda:0".to_owned(), samples, cause: "CUDA out of memory".to_owned() })
    }

    #[test]
    fn a_batch_is_halved_until_it_fits_and_each_size_is_tried_once() {
        let mut tried = Vec::new();
        let found = largest_that_fits(500, |samples| {
            tried.push(samples);
            if samples > 70 { Err(full(samples)) } else { Ok(()) }
        });
        assert_eq!((found.unwrap(), tried), (63, vec![500, 250, 125, 63]));
    }

    #[test]
    fn one_sample_that_does_not_fit_and_other_failures_are_errors() {
        assert!(matches!(largest_that_fits(5, |n| Err(full(n))), Err(ReplicaError::Engine(EngineError::OutOfMemory { samples: 1, .. }))));
        let other = || ReplicaError::Engine(EngineError::Broken);
        let mut tried = 0;
        let found = largest_that_fits(5, |_| {
            tried += 1;
            Err(other())
        });
        assert!(matches!(found, Err(ReplicaError::Engine(EngineError::Broken))) && tried == 1);
    }
}
