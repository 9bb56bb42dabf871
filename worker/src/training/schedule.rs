//! The learning rate as a pure function of the config, the step and how often evaluations got
//! no better. It depends on no optimizer and keeps no state, so a resumed run goes on exactly
//! where it was.

use std::f64::consts::PI;

use common::config::{ScheduleKind, TrainConfig};
use common::recorder::Length;

/// What PyTorch's `OneCycleLR` does by default: the share of the run in which the rate rises,
/// by what the first rate is below the highest, and the last one below the first.
const RISES: f64 = 0.3;
const FIRST_BELOW: f64 = 25.0;
const LAST_BELOW: f64 = 1e4;

/// PyTorch's `ReduceLROnPlateau` does not change a rate by less than this.
const LEAST_CHANGE: f64 = 1e-8;

/// The learning rate of `step` (from 0) in a run of this length, after so many
/// [reductions](reduces).
///
/// It rises linearly over the warm-up (the first step already learns), then stays, falls by
/// `train.decay` at each of `train.decay_epochs` or at each plateau, follows half a cosine down
/// to `train.final_lr * train.lr` (Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent
/// with Warm Restarts", 2016, without restarts), or falls to 0 as a power of what is left of
/// the run. One cycle (Smith and Topin, "Super-Convergence", 2017) has no other warm-up, and
/// leaves the momentum as it is.
pub fn learning_rate(train: &TrainConfig, length: Length, step: u64, reductions: u32) -> f64 {
    let Length { steps_per_epoch, steps: total_steps } = length;
    let (lr, step) = (train.scaled_lr(), step as f64);
    let warmup = (train.warmup_epochs * steps_per_epoch as f64).min(total_steps as f64);
    if step < warmup {
        return reduced(train, reductions) * ((step + 1.0) / warmup).min(1.0);
    }
    let progress = ((step - warmup) / (total_steps as f64 - warmup).max(1.0)).min(1.0);
    match train.schedule {
        ScheduleKind::Constant => lr,
        ScheduleKind::Step => {
            let passed = train.decay_epochs.iter().filter(|&&epoch| step >= epoch * steps_per_epoch as f64).count();
            lr * train.decay.powi(passed as i32)
        }
        ScheduleKind::Cosine => {
            let share = 0.5 * (1.0 + (PI * progress).cos());
            lr * (train.final_lr + (1.0 - train.final_lr) * share)
        }
        ScheduleKind::OneCycle => {
            let (first, last) = (lr / FIRST_BELOW, lr / FIRST_BELOW / LAST_BELOW);
            let between = |from: f64, to: f64, part: f64| to + (from - to) / 2.0 * (1.0 + (PI * part.clamp(0.0, 1.0)).cos());
            // The steps that have the highest and the last rate. In a run of three steps or
            // fewer the first one has the highest.
            let (top, end) = ((RISES * total_steps as f64 - 1.0).max(0.0), total_steps as f64 - 1.0);
            if step < top { between(first, lr, step / top) } else { between(lr, last, (step - top) / (end - top).max(1.0)) }
        }
        ScheduleKind::Polynomial => lr * (1.0 - progress).powf(train.power),
        ScheduleKind::Plateau => reduced(train, reductions),
    }
}

/// The rate after so many reductions.
fn reduced(train: &TrainConfig, reductions: u32) -> f64 {
    (0..reductions).fold(train.scaled_lr(), |lr, _| next(train, lr))
}

fn next(train: &TrainConfig, lr: f64) -> f64 {
    (lr * train.decay).max(train.final_lr * train.scaled_lr()).min(lr)
}

/// Whether one more reduction changes the rate.
pub fn reduces(train: &TrainConfig, reductions: u32) -> bool {
    let lr = reduced(train, reductions);
    lr - next(train, lr) > LEAST_CHANGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(schedule: ScheduleKind) -> TrainConfig {
        TrainConfig { schedule, lr: 0.1, warmup_epochs: 1.0, ..TrainConfig::default() }
    }

    fn rate(train: &TrainConfig, total: u64, step: u64) -> f64 {
        learning_rate(train, Length { steps_per_epoch: 10, steps: total }, step, 0)
    }

    #[test]
    fn warm_up_rises_linearly_to_the_full_rate() {
        use ScheduleKind::{Constant, Cosine, Plateau, Polynomial, Step};
        for schedule in [Constant, Step, Cosine, Polynomial, Plateau] {
            let train = config(schedule);
            let rates: Vec<f64> = (0..10).map(|s| rate(&train, 100, s)).collect();
            for (step, rate) in rates.iter().enumerate() {
                assert!((rate - 0.01 * (step + 1) as f64).abs() < 1e-12, "{schedule:?} step {step}: {rate}");
            }
            assert!((rate(&train, 100, 10) - 0.1).abs() < 1e-12);
        }
    }

    #[test]
    fn step_decay_multiplies_at_each_of_its_epochs() {
        let train = TrainConfig { decay_epochs: vec![3.0, 5.5], decay: 0.5, ..config(ScheduleKind::Step) };
        for (step, expected) in [(29, 0.1), (30, 0.05), (54, 0.05), (55, 0.025), (99, 0.025)] {
            assert!((rate(&train, 100, step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    #[test]
    fn cosine_falls_to_its_final_share_and_stays_there() {
        let train = TrainConfig { final_lr: 0.1, ..config(ScheduleKind::Cosine) };
        let rates: Vec<f64> = (10..=100).map(|s| rate(&train, 100, s)).collect();
        assert!(rates.windows(2).all(|pair| pair[1] < pair[0]));
        assert!((rate(&train, 100, 55) - 0.055).abs() < 1e-12);
        assert!((rate(&train, 100, 100) - 0.01).abs() < 1e-12);
        assert!((rate(&train, 100, 500) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn one_cycle_rises_and_falls_in_a_run_of_any_length() {
        let train = TrainConfig { warmup_epochs: 0.0, ..config(ScheduleKind::OneCycle) };
        for total in 1..50 {
            let rates: Vec<f64> = (0..total + 3).map(|s| rate(&train, total, s)).collect();
            assert!(rates.iter().all(|rate| rate.is_finite() && (0.0..=0.1 + 1e-12).contains(rate)), "{total}: {rates:?}");
            let top = rates.iter().position(|&r| r == rates.iter().copied().fold(0.0, f64::max));
            assert!(top.is_some_and(|top| top as u64 <= total.div_ceil(3)), "{total}: {rates:?}");
        }
    }

    #[test]
    fn a_plateau_lowers_the_rate_to_its_floor() {
        let train = TrainConfig { final_lr: 0.05, ..config(ScheduleKind::Plateau) };
        let after = |reductions| learning_rate(&train, Length { steps_per_epoch: 10, steps: 100 }, 50, reductions);
        for (reductions, expected) in [(0, 0.1), (1, 0.01), (2, 0.005), (3, 0.005)] {
            assert!((after(reductions) - expected).abs() < 1e-12, "{reductions}: {}", after(reductions));
        }
        assert_eq!([0, 1, 2].map(|reductions| reduces(&train, reductions)), [true, true, false]);
    }

    #[test]
    fn a_rate_is_for_its_batch() {
        let train = TrainConfig { lr_batch: Some(256), global_batch: 1024, ..config(ScheduleKind::Constant) };
        assert!((rate(&train, 100, 50) - 0.4).abs() < 1e-12);
        assert!((rate(&train, 100, 0) - 0.04).abs() < 1e-12, "the warm-up rises to it");
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_exceeds_the_rate() {
        let train = TrainConfig { warmup_epochs: 50.0, ..config(ScheduleKind::Cosine) };
        assert!((0..30).all(|s| rate(&train, 20, s) <= 0.1 + 1e-12));
    }
}
