//! Optimizers, losses, schedules and whole steps of AlexNet against figures made by
//! PyTorch: `worker/golden/pytorch.py` makes them. Those of LARS and LAMB, which PyTorch
//! lacks, it makes by the formulas of their papers, in f64.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use common::config::{AlexnetConfig, Metric, OptimizerKind, ScheduleKind};
use common::metrics::Evaluation;
use common::recorder::Length;
use serde::Deserialize;

use super::tests::{devices, mixed_gradient, norm};
use super::*;
use crate::data::Second;
use crate::optim::{Optimizer, Threads};
use crate::training::schedule::{learning_rate, reduces};

#[derive(Deserialize)]
pub(super) struct Figures {
    optimizers: Vec<Updated>,
    losses: Vec<Lost>,
    schedules: Vec<Scheduled>,
    plateaus: Vec<Plateau>,
    average: Vec<f32>,
    alexnet: Steps,
    alexnet_mixed: Steps,
    pub gradient_with_dropout: Vec<Gradient>,
}

/// Of one parameter.
#[derive(Deserialize)]
pub(super) struct Gradient {
    pub name: String,
    /// The largest absolute value.
    pub largest: f32,
    /// Each value whose place is a multiple of a hundredth of their number.
    pub values: Vec<f32>,
}

#[derive(Deserialize)]
struct Updated {
    name: String,
    weights: Vec<f32>,
}

#[derive(Deserialize)]
struct Lost {
    name: String,
    loss: f64,
    slope: Vec<f32>,
}

#[derive(Deserialize)]
struct Scheduled {
    name: String,
    rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Plateau {
    metric: Metric,
    patience: u32,
    floor: f64,
    values: Vec<f64>,
    rates: Vec<f64>,
}

#[derive(Deserialize)]
struct Steps {
    steps: Vec<OneStep>,
    weights: Vec<Weights>,
}

#[derive(Deserialize)]
struct OneStep {
    loss: f64,
    gradient_norms: Vec<f64>,
    gradient_norm: f64,
}

#[derive(Deserialize)]
struct Weights {
    name: String,
    norm: f64,
    sum: f64,
}

pub(super) fn figures() -> Figures {
    serde_json::from_str(include_str!("../../golden/figures.json")).unwrap()
}

/// A pseudo-random number from -0.5 up to 0.5, computed as in the script.
fn number(place: usize, salt: u32) -> f32 {
    let mut x = (place as u32).wrapping_mul(2_654_435_761).wrapping_add(salt.wrapping_mul(40503));
    x ^= x >> 16;
    x = x.wrapping_mul(0x85eb_ca6b);
    x ^= x >> 13;
    (x >> 8) as f32 / (1 << 24) as f32 - 0.5
}

pub(super) fn numbers(n: usize, salt: u32) -> Vec<f32> {
    (0..n).map(|place| number(place, salt)).collect()
}

fn assert_near(what: &str, found: f64, expected: f64, tolerance: f64) {
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1.0), "{what}: {found} here, {expected} by PyTorch");
}

#[test]
fn optimizers_update_as_pytorchs_do() {
    let plain = TrainConfig { momentum: 0.0, weight_decay: 0.0, ..TrainConfig::default() };
    let expected = figures().optimizers;
    assert_eq!(expected.len(), 10);
    for Updated { name, weights: expected } in expected {
        let (lr, train) = match name.as_str() {
            "sgd" => (0.1, TrainConfig { optimizer: OptimizerKind::Sgd, ..plain.clone() }),
            "sgd-momentum-decay" => {
                (0.1, TrainConfig { optimizer: OptimizerKind::Sgd, momentum: 0.9, weight_decay: 0.01, ..plain.clone() })
            }
            "sgd-nesterov" => (0.1, TrainConfig { momentum: 0.9, nesterov: true, weight_decay: 0.01, ..plain.clone() }),
            "sgd-matrices-decay" => (0.1, TrainConfig { momentum: 0.9, weight_decay: 0.01, decay_bias: false, ..plain.clone() }),
            "adamw-matrices-decay" => {
                (0.01, TrainConfig { optimizer: OptimizerKind::Adamw, weight_decay: 0.1, decay_bias: false, ..plain.clone() })
            }
            "lars" => {
                let train = TrainConfig { momentum: 0.9, weight_decay: 0.01, trust_coefficient: 0.02, ..plain.clone() };
                (2.0, TrainConfig { optimizer: OptimizerKind::Lars, ..train })
            }
            "lamb" => (0.05, TrainConfig { optimizer: OptimizerKind::Lamb, weight_decay: 0.01, ..plain.clone() }),
            "adam" => (0.01, TrainConfig { optimizer: OptimizerKind::Adam, ..plain.clone() }),
            "adam-decay" => (0.01, TrainConfig { optimizer: OptimizerKind::Adam, weight_decay: 0.01, ..plain.clone() }),
            "adamw" => {
                let train = TrainConfig {
                    optimizer: OptimizerKind::Adamw,
                    weight_decay: 0.1,
                    beta1: 0.8,
                    beta2: 0.99,
                    epsilon: 1e-6,
                    ..plain.clone()
                };
                (0.01, train)
            }
            _ => panic!("{name} is not known here"),
        };
        let mut optimizer = Optimizer::new(&train, &ParamLayout::of_shapes(&[&[4, 8], &[8]]), Threads::new(1).unwrap());
        let mut weights = numbers(40, 1);
        for step in 0..6 {
            optimizer.step(&mut weights, None, &[numbers(40, 100 + step)], Update { step: step.into(), lr, factor: 1.0 });
        }
        for (at, (found, expected)) in weights.iter().zip(&expected).enumerate() {
            assert_near(&format!("{name}, weight {at}"), (*found).into(), (*expected).into(), 2e-6);
        }
    }
}

#[test]
fn the_average_of_the_weights_is_pytorchs() {
    let train = TrainConfig { momentum: 0.9, weight_decay: 0.0, ema: Some(0.9), ..TrainConfig::default() };
    let mut optimizer = Optimizer::new(&train, &ParamLayout::of_shapes(&[&[5, 8]]), Threads::new(1).unwrap());
    let mut weights = numbers(40, 1);
    for step in 0..6 {
        optimizer.step(&mut weights, None, &[numbers(40, 100 + step)], Update { step: step.into(), lr: 0.1, factor: 1.0 });
    }
    let before = weights.clone();
    optimizer.swap_average(&mut weights, None);
    let expected = figures().average;
    assert_eq!(expected.len(), 40);
    for (at, (found, expected)) in weights.iter().zip(expected).enumerate() {
        assert_near(&format!("weight {at}"), (*found).into(), expected.into(), 2e-6);
    }
    optimizer.swap_average(&mut weights, None);
    assert_eq!(weights, before);
}

#[test]
fn losses_and_their_slopes_are_pytorchs() {
    let expected = figures().losses;
    assert_eq!(expected.len(), 7);
    let seconds = [(2, 0.5), (6, 0.25), (1, 0.0), (0, 0.125), (5, 0.4375)].map(|(label, share)| Second { label, share });
    for Lost { name, loss: expected, slope: expected_slope } in expected {
        let loss = match name.as_str() {
            "cross-entropy" | "cross-entropy-mixed" => Loss::CrossEntropy { smoothing: 0.0 },
            "cross-entropy-smoothed" | "cross-entropy-mixed-smoothed" => Loss::CrossEntropy { smoothing: 0.1 },
            "mse" => Loss::Mse,
            "margin" => Loss::Margin { delta: 1.5 },
            "perceptron" => Loss::Perceptron,
            _ => panic!("{name} is not known here"),
        };
        let classes = expected_slope.len() / 5;
        let labels = [0, 6, 3, 3, 1].map(|label| label % classes as i32);
        let logits: Vec<f32> = numbers(5 * classes, 2).iter().map(|x| 4.0 * x).collect();
        let mut slope = vec![0.0; logits.len()];
        let seconds = if name.contains("mixed") { &seconds[..] } else { &[] };
        let sums = loss.mixed_sums(&logits, &labels, seconds, 1.0, Some(&mut slope));
        assert_near(&name, sums.loss, expected, 1e-6);
        for (at, (found, expected)) in slope.iter().zip(&expected_slope).enumerate() {
            assert_near(&format!("{name}, slope {at}"), (*found).into(), (*expected).into(), 1e-6);
        }
    }
}

#[test]
fn schedules_are_pytorchs() {
    let expected = figures().schedules;
    assert_eq!(expected.len(), 5);
    for Scheduled { name, rates } in expected {
        let schedule = match name.as_str() {
            "constant" => ScheduleKind::Constant,
            "step" => ScheduleKind::Step,
            "cosine" => ScheduleKind::Cosine,
            "onecycle" => ScheduleKind::OneCycle,
            "polynomial" => ScheduleKind::Polynomial,
            _ => panic!("{name} is not known here"),
        };
        let train = TrainConfig {
            schedule,
            lr: 0.2,
            warmup_epochs: if schedule == ScheduleKind::OneCycle { 0.0 } else { 1.0 },
            power: 2.0,
            decay: 0.1,
            decay_epochs: vec![2.0, 4.5],
            final_lr: 0.05,
            ..TrainConfig::default()
        };
        assert_eq!(rates.len(), 60);
        for (step, rate) in (0..).zip(rates) {
            assert_near(
                &format!("{name}, step {step}"),
                learning_rate(&train, Length { steps_per_epoch: 10, steps: 60 }, step, 0),
                rate,
                1e-12,
            );
        }
    }
}

#[test]
fn plateaus_are_pytorchs() {
    let expected = figures().plateaus;
    assert_eq!(expected.len(), 3);
    for Plateau { metric, patience, floor, values, rates } in expected {
        let train = TrainConfig {
            schedule: ScheduleKind::Plateau,
            lr: 0.2,
            keep_metric: metric,
            plateau_patience: patience,
            final_lr: floor,
            ..TrainConfig::default()
        };
        assert!(rates.last() < Some(&0.1), "a plateau without a fall shows nothing");
        let mut progress = Progress::new(&train);
        for (step, (value, rate)) in (1..).zip(values.iter().zip(rates)) {
            let evaluation = Evaluation { step, epoch: step, loss: *value, top1: *value, top5: 0.0, samples: 1 };
            progress = progress.after(&train, &evaluation, |reductions| reduces(&train, reductions));
            let found = learning_rate(&train, Length { steps_per_epoch: 1, steps: 40 }, step, progress.reductions());
            assert_near(&format!("{metric:?}, patience {patience}, evaluation {step}"), found, rate, 1e-12);
            assert_eq!(Progress::decode(&progress.encode()).unwrap(), progress);
        }
    }
    for odd in ["", "top1", "top2 - 0 - 0 0", "top1 x 0 - 0 0", "top1 - 0 - 0 -1", "top1 - 0 - 0 0 0"] {
        assert!(Progress::decode(odd).is_err(), "{odd}");
    }
}

/// The weights with which the script's networks begin.
pub(super) fn write_weights(replica: &mut Replica) {
    let layout = replica.layout().clone();
    let write = &mut |flat: &mut [f32]| {
        for (salt, param) in (10..).zip(layout.params()) {
            let inputs: usize = match param.shape() {
                [_, inputs @ ..] if inputs.len() == 3 => inputs.iter().product(),
                [inputs, _] => *inputs,
                _ => 1,
            };
            let scale = if param.shape().len() == 1 { 0.1 } else { (24.0 / inputs as f64).sqrt() as f32 };
            let values = numbers(param.range().len(), salt);
            flat[param.range()].iter_mut().zip(values).for_each(|(to, value)| *to = value * scale);
        }
    };
    replica.engine.write_weights(write).unwrap();
}

#[test]
fn three_steps_of_alexnet_are_pytorchs() {
    three_steps(&figures().alexnet, false);
}

/// On every engine, of samples with two labels.
#[test]
fn three_steps_of_alexnet_on_mixed_samples_are_pytorchs() {
    three_steps(&figures().alexnet_mixed, true);
}

fn three_steps(Steps { steps, weights }: &Steps, mixed: bool) {
    const INPUT: InputShape = InputShape { channels: 3, image_size: 63, classes: 10 };
    const BATCH: usize = 6;
    let model = ModelConfig::Alexnet(AlexnetConfig { width: 0.125, dropout: 0.0, ..AlexnetConfig::default() });
    let train = TrainConfig {
        optimizer: OptimizerKind::Sgd,
        momentum: 0.9,
        weight_decay: 5e-4,
        clip_norm: Some(2.0),
        label_smoothing: 0.1,
        threads: Some(2),
        ..TrainConfig::default()
    };
    for device in devices() {
        let mut replica = Replica::new(&model, &train, INPUT, 1, device.clone()).unwrap();
        let layout = replica.layout().clone();
        assert_eq!(
            layout.params().iter().map(|p| p.name()).collect::<Vec<_>>(),
            weights.iter().map(|w| w.name.as_str()).collect::<Vec<_>>()
        );
        write_weights(&mut replica);
        for (step, expected) in (0u32..).zip(steps) {
            let images: Vec<f32> = numbers(BATCH * INPUT.values(), 50 + step).iter().map(|x| 4.0 * x).collect();
            let labels: Vec<i32> = (0..BATCH as i32).map(|i| (7 * step as i32 + 3 * i) % 10).collect();
            let second = |i: usize| Second { label: (3 * step as i32 + 7 * i as i32 + 1) % 10, share: i as f32 / 12.0 };
            let seconds: Vec<Second> = (0..if mixed { BATCH } else { 0 }).map(second).collect();
            let (flat, sums) = mixed_gradient(&mut replica, &images, &labels, &seconds, 1.0 / BATCH as f32, 0);
            let what = |what: &str| format!("{device}, step {step}: {what}");
            assert_near(&what("loss"), sums.loss / BATCH as f64, expected.loss, 1e-5);
            for (param, expected) in layout.params().iter().zip(&expected.gradient_norms) {
                assert_near(&what(param.name()), norm(&flat[param.range()]), *expected, 1e-4);
            }
            let update = replica.update(&[flat], Update { step: step.into(), lr: 0.02, factor: 1.0 }).unwrap();
            assert_near(&what("norm"), update.grad_norm, expected.gradient_norm, 1e-4);
        }
        for (param, expected) in layout.params().iter().zip(weights) {
            let values = &replica.weights().unwrap()[param.range()];
            let sum: f64 = values.iter().map(|&w| f64::from(w)).sum();
            assert_near(&format!("{device}, {}, norm", param.name()), norm(values), expected.norm, 1e-4);
            assert_near(&format!("{device}, {}, sum", param.name()), sum, expected.sum, 1e-3);
        }
    }
}
