//! Ends a run once more of its samples do not decode than `data.max_corrupt` allows.
//! All ranks know how many samples a step was planned to have and how many it had, so all
//! of them end at the same step, without the coordinator.

use common::dataset::Split;

/// More samples do not decode than are allowed.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct TooManyLeftOut(String);

/// The samples of the current epoch that were left out. An epoch has each sample once,
/// so none is counted twice.
#[derive(Debug)]
pub struct LeftOut {
    /// Of an epoch.
    samples: u32,
    /// The share of them that may be left out.
    allowed: f64,
    epoch: u64,
    seen: u64,
    left_out: u64,
}

impl LeftOut {
    pub fn new(samples: u32, allowed: f64) -> Self {
        Self { samples, allowed, epoch: 0, seen: 0, left_out: 0 }
    }

    /// Adds a step of `planned` samples, of which `counted` could be decoded.
    pub fn step(&mut self, epoch: u64, planned: u32, counted: u64) -> Result<(), TooManyLeftOut> {
        if epoch != self.epoch {
            (self.epoch, self.seen, self.left_out) = (epoch, 0, 0);
        }
        self.seen += u64::from(planned);
        self.left_out += u64::from(planned).saturating_sub(counted);
        check(Split::Train, self.samples, self.seen, self.left_out, self.allowed)
    }
}

/// Checks an evaluation of `samples`, of which `counted` could be decoded.
pub fn evaluated(samples: u32, counted: u64, allowed: f64) -> Result<(), TooManyLeftOut> {
    let seen = u64::from(samples);
    check(Split::Val, samples, seen, seen.saturating_sub(counted), allowed)
}

/// `seen`: samples of the split that were looked at so far.
fn check(split: Split, samples: u32, seen: u64, left_out: u64, allowed: f64) -> Result<(), TooManyLeftOut> {
    let advice = "skipped.jsonl in the run directory names them; mend or remove them";
    if left_out > 0 && left_out == seen && seen >= u64::from(samples) {
        return Err(TooManyLeftOut(format!("none of the {samples} {split} samples can be decoded: {advice}")));
    }
    if left_out as f64 > allowed * f64::from(samples) {
        return Err(TooManyLeftOut(format!(
            "{left_out} of the {seen} {split} samples that were read cannot be decoded, more than the {:.3} % of {samples} that data.max_corrupt allows: {advice}, or raise data.max_corrupt",
            100.0 * allowed
        )));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_run_ends_with_the_first_sample_too_many() {
        let mut left_out = LeftOut::new(1000, 0.01);
        for step in 0..10 {
            left_out.step(0, 50, 50 - u64::from(step % 2 == 0)).unwrap();
        }
        left_out.step(0, 50, 45).unwrap();
        let error = left_out.step(0, 50, 49).unwrap_err().to_string();
        assert!(error.contains("11 of the 600 training samples") && error.contains("1.000 % of 1000"), "{error}");
    }

    #[test]
    fn each_epoch_counts_anew_because_it_meets_the_same_samples() {
        let mut left_out = LeftOut::new(100, 0.01);
        (0..50).for_each(|epoch| left_out.step(epoch, 100, 99).unwrap());
        assert!(left_out.step(50, 100, 98).is_err());
    }

    #[test]
    fn a_split_of_which_nothing_is_left_is_an_error_whatever_is_allowed() {
        let mut left_out = LeftOut::new(64, 1.0);
        left_out.step(0, 32, 0).unwrap();
        let error = left_out.step(0, 32, 0).unwrap_err().to_string();
        assert!(error.contains("none of the 64 training samples"), "{error}");
        assert!(evaluated(7, 0, 1.0).unwrap_err().to_string().contains("none of the 7 validation samples"));
        assert_eq!(evaluated(7, 1, 1.0), Ok(()));
        assert_eq!(evaluated(7, 7, 0.0), Ok(()));
        assert!(evaluated(7, 6, 0.01).is_err());
        assert_eq!(evaluated(0, 0, 0.01), Ok(()), "a split without samples has none left out");
    }
}
