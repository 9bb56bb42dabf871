//! The learning rate as a pure function of the config and the step. It depends on no
//! optimizer and keeps no state, so a resumed run goes on exactly where it was.

use common::config::{ScheduleKind, TrainConfig};

/// The learning rate of `step` (from 0) in a run of `total_steps`.
///
/// It rises linearly over the warm-up (the first step already learns), then
/// stays, falls by `train.decay` at each of `train.decay_epochs`, or follows half
/// a cosine down to `train.final_lr * train.lr` (Loshchilov and Hutter, "SGDR:
/// Stochastic Gradient Descent with Warm Restarts", 2016, without restarts).
pub fn learning_rate(train: &TrainConfig, steps_per_epoch: u64, total_steps: u64, step: u64) -> f64 {
    let step = step as f64;
    let warmup = (train.warmup_epochs * steps_per_epoch as f64).min(total_steps as f64);
    if step < warmup {
        return train.lr * ((step + 1.0) / warmup).min(1.0);
    }
    match train.schedule {
        ScheduleKind::Constant => train.lr,
        ScheduleKind::Step => {
            let passed = train.decay_epochs.iter().filter(|&&epoch| step >= epoch * steps_per_epoch as f64).count();
            train.lr * train.decay.powi(passed as i32)
        }
        ScheduleKind::Cosine => {
            let length = (total_steps as f64 - warmup).max(1.0);
            let progress = ((step - warmup) / length).min(1.0);
            let share = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
            train.lr * (train.final_lr + (1.0 - train.final_lr) * share)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(schedule: ScheduleKind) -> TrainConfig {
        TrainConfig { schedule, lr: 0.1, warmup_epochs: 1.0, ..TrainConfig::default() }
    }

    #[test]
    fn warm_up_rises_linearly_to_the_full_rate() {
        for schedule in [ScheduleKind::Constant, ScheduleKind::Step, ScheduleKind::Cosine] {
            let train = config(schedule);
            let rates: Vec<f64> = (0..10).map(|s| learning_rate(&train, 10, 100, s)).collect();
            for (step, rate) in rates.iter().enumerate() {
                assert!((rate - 0.01 * (step + 1) as f64).abs() < 1e-12, "{schedule:?} step {step}: {rate}");
            }
            assert!((learning_rate(&train, 10, 100, 10) - 0.1).abs() < 1e-12);
        }
    }

    #[test]
    fn step_decay_multiplies_at_each_of_its_epochs() {
        let train = TrainConfig { decay_epochs: vec![3.0, 5.5], decay: 0.5, ..config(ScheduleKind::Step) };
        for (step, expected) in [(29, 0.1), (30, 0.05), (54, 0.05), (55, 0.025), (99, 0.025)] {
            assert!((learning_rate(&train, 10, 100, step) - expected).abs() < 1e-12, "step {step}");
        }
    }

    #[test]
    fn cosine_falls_to_its_final_share_and_stays_there() {
        let train = TrainConfig { final_lr: 0.1, ..config(ScheduleKind::Cosine) };
        let rates: Vec<f64> = (10..=100).map(|s| learning_rate(&train, 10, 100, s)).collect();
        assert!(rates.windows(2).all(|pair| pair[1] < pair[0]));
        assert!((learning_rate(&train, 10, 100, 55) - 0.055).abs() < 1e-12);
        assert!((learning_rate(&train, 10, 100, 100) - 0.01).abs() < 1e-12);
        assert!((learning_rate(&train, 10, 100, 500) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn a_warm_up_longer_than_the_run_never_exceeds_the_rate() {
        let train = TrainConfig { warmup_epochs: 50.0, ..config(ScheduleKind::Cosine) };
        assert!((0..30).all(|s| learning_rate(&train, 10, 20, s) <= 0.1 + 1e-12));
    }
}
